"""pix2pix: Image-to-Image Translation with Conditional Adversarial Networks.

Phillip Isola, Jun-Yan Zhu, Tinghui Zhou, Alexei A. Efros. CVPR 2017.
https://arxiv.org/abs/1611.07004

Learns from pairs (x, y): G draws y from x, and D judges the two together. The objective is (eq. 4)

    min over G, max over D of   L_cGAN(G, D) + lambda L_L1(G)

    L_cGAN = E log D(x, y) + E log(1 - D(x, G(x, z)))                                          (1)
    L_L1   = E |y - G(x, z)|_1                                                                 (3)

D sees patches of 70x70 pixels; its loss is halved, and G climbs log D instead (Sec. 3.3). The noise
z is the dropout of the first three layers on the way up (Sec. 3.1, 6.1; the authors' PyTorch code has
it one layer further out).

At test time G is a function of x alone: one image has one translation, whatever else is in its
batch. With `norm: instance` each image is normalised by itself, in training too, which is what batch
norm does with the published code's batch of one ("instance normalization", Sec. 3.3); with
`norm: batch`, for larger batches, running averages take the place of the paper's statistics of the
test batch. There is no dropout; the paper leaves it on, and found that noise to change little (Sec. 3.1).

Differences from the official code: the above; a moving average of the generator does the
translating (theirs does not average; `train.ema=0` for theirs); the learning rate falls over
fractions of the run (theirs: constant for 100 epochs, then to 0 in 100). Nothing else: without
dropout, losses, gradients and updates agree with it to rounding (`tests/test_parity_family.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from unpaired.errors import ConfigProblem
from unpaired.losses import l1, nsgan_d, nsgan_g
from unpaired.method import Batch, Method, MethodConfig, Shape, Step, Update
from unpaired.networks.patchgan import PatchGAN
from unpaired.networks.unet import ImageNorm, UNet

OPTIM = {"default": {"lr": 2e-4, "betas": [0.5, 0.999], "decay": {"kind": "linear", "start": 0.5}}}


class Config(MethodConfig):
    """The paper's settings for 256 px."""

    lambda_L1: float = Field(100.0, ge=0)  # weight of the distance from the true answer
    dropout: float = Field(0.5, ge=0, lt=1)  # in three layers of G, its only noise
    dim: int = Field(64, ge=1, le=4096)  # channels of G's first layer
    levels: int = Field(8, ge=2, le=16)  # down to 1 pixel: 7 for 128 px, 6 for 64 px
    d_dim: int = Field(64, ge=1, le=4096)  # channels of D's first layer
    norm: Literal["instance", "batch"] = (
        "instance"  # batch: of the batch, where it has several images
    )
    d_layers: int = Field(3, ge=1, le=16)  # layers of D that halve


class Pix2Pix(Method):
    layout = "paired"
    averaged = "G"
    accumulates = False  # with `norm: batch`
    card = {
        "title": "Image-to-Image Translation with Conditional Adversarial Networks",
        "authors": "Isola, Zhu, Zhou, Efros",
        "venue": "CVPR",
        "year": 2017,
        "url": "https://arxiv.org/abs/1611.07004",
        "outputs": "one",
    }
    presets = {
        "paper": {
            "data": {"size": 256, "zoom": 286 / 256, "batch": 1},
            "optim": OPTIM,
            "train": {"steps": 200_000, "save_every": 5_000, "sample_every": 5_000},
        },
        "small": {
            # no dropout: at 32 px its three maps are most of the way up, and at test time it is off
            "method": {
                "norm": "batch",
                "dropout": 0.0,
                "dim": 24,
                "levels": 5,
                "d_dim": 24,
                "d_layers": 2,
            },
            "data": {"size": 32, "batch": 8},
            "optim": {"default": OPTIM["default"] | {"lr": 1e-3}},
            "train": {"steps": 4000, "ema": 0.995, "save_every": 500, "sample_every": 500},
        },
    }

    def __init__(self, config: Config, domains: tuple[str, ...], shape: Shape) -> None:
        super().__init__(config, domains, shape)
        if shape.height % self.stride or shape.width % self.stride:
            raise ConfigProblem(
                f"data.size must be a multiple of {self.stride}, which method.levels="
                f"{config.levels} halve to one pixel: lower method.levels or change data.size."
            )
        smallest = PatchGAN.smallest(config.d_layers)
        if min(shape.height, shape.width) < smallest:
            raise ConfigProblem(
                f"data.size is below {smallest} px, the least that the discriminator of "
                f"method.d_layers={config.d_layers} can judge: lower it or raise data.size."
            )
        norm = ImageNorm if config.norm == "instance" else torch.nn.BatchNorm2d
        self.G = UNet(shape.channels, shape.channels, config.dim, config.levels, norm)
        self.D = PatchGAN(2 * shape.channels, config.d_dim, config.d_layers, norm)

    # The game ------------------------------------------------------------------------------------

    def updates(self, batch: Batch, step: Step) -> Iterator[Update]:
        x, y = batch["x_1"], batch["x_2"]
        fake = self.G(x, noise=self.noise(x, step), dropout=self.config.dropout)
        yield self.discriminate(x, y, fake.detach())
        yield self.generate(x, y, fake)

    def discriminate(self, x: Tensor, y: Tensor, fake: Tensor) -> Update:
        D_fake, D_real = self.D(torch.cat([x, fake], 1)), self.D(torch.cat([x, y], 1))
        loss = nsgan_d([D_real], [D_fake]) / 2  # (1)
        return Update("D", loss, {"D": loss.detach()})

    def generate(self, x: Tensor, y: Tensor, fake: Tensor) -> Update:
        L_adv = nsgan_g([self.D(torch.cat([x, fake], 1))])  # (1)
        L_L1 = self.config.lambda_L1 * l1(fake, y)  # (3)
        return Update("G", L_adv + L_L1, {"adv": L_adv.detach(), "L1": L_L1.detach()})

    def noise(self, x: Tensor, step: Step) -> list[Tensor]:
        """What dropout is decided by: z of the paper."""
        if not self.config.dropout:
            return []
        shapes = self.G.dropped(x)
        return [step.uniform(f"z_{i}", *shape, like=x) for i, shape in enumerate(shapes)]

    # The verbs -----------------------------------------------------------------------------------

    def styles(self, source: int, target: int) -> frozenset[str]:
        if (source, target) != (0, 1):
            raise ConfigProblem(
                f"pix2pix translates from {self.domains[0]} to {self.domains[1]} only: for the "
                "other way train it with data.domains in the other order."
            )
        return frozenset()

    def encode_content(self, x: Tensor, source: int) -> Tensor:
        """The images themselves: what G keeps is spread over all levels."""
        self.styles(source, 1)
        return x

    def decode(self, content: Tensor, style: Tensor | None, target: int) -> Tensor:
        self.styles(0, target)
        return self.G(content)

    @property
    def stride(self) -> int:
        return 2**self.config.levels
