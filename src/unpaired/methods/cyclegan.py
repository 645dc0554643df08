"""CycleGAN: Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks.

Jun-Yan Zhu, Taesung Park, Phillip Isola, Alexei A. Efros. ICCV 2017.
https://arxiv.org/abs/1703.10593

Two generators G: X -> Y and F: Y -> X, each of which undoes the other. The objective is (eq. 3)

    min over G, F, max over D_X, D_Y of
        L_GAN(G, D_Y) + L_GAN(F, D_X) + lambda_cyc L_cyc [+ L_identity]

    L_GAN      = least squares, D on patches of 70x70 pixels                            (1), Sec. 4
    L_cyc      = E |F(G(x)) - x|_1 + E |G(F(y)) - y|_1                                  (2)
    L_identity = lambda_cyc lambda_idt (E |G(y) - y|_1 + E |F(x) - x|_1)                Sec. 5.2

D learns from a history of 50 generated images (Sec. 4): half of what it sees, once the history is
full, is from earlier.

With `noise` it is the `CycleGAN with noise` of MUNIT's Table 1: a map of noise is appended to the
input of G and F, drawn N(0, I) on a grid of `noise_grid` x `noise_grid` cells and enlarged to the
image. (A code repeated at every position would do nothing: instance norm removes it.) Nothing in
the objective asks G and F to use it.

Differences from the official code: a moving average of the generators does the translating (theirs
does not average; `train.ema=0` for theirs); the learning rate falls over fractions of the run
(theirs: constant for 100 epochs, then to 0 in 100); the history is part of the saved state. Nothing
else: losses, gradients and updates agree with it to rounding (`tests/test_parity_family.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from unpaired.errors import ConfigProblem
from unpaired.losses import l1, lsgan_d, lsgan_g
from unpaired.method import Batch, Method, MethodConfig, Shape, Step, Update
from unpaired.networks.patchgan import PatchGAN
from unpaired.networks.resnet import ResNet

Translate = Callable[[Tensor], Tensor]
OPTIM = {"default": {"lr": 2e-4, "betas": [0.5, 0.999], "decay": {"kind": "linear", "start": 0.5}}}


class Config(MethodConfig):
    """The paper's settings for 256 px; `residuals` is 6 for 128 px."""

    lambda_cyc: float = Field(10.0, ge=0)  # weight of the cycle
    lambda_idt: float = Field(0.5, ge=0)  # times lambda_cyc; 0 where colours should change
    noise: bool = False  # many results: G sees a random map too
    noise_grid: int = Field(8, ge=2, le=1024)  # pixels a side of that map
    # Without F, as published generators come: translates x only, cannot train
    one_way: bool = False
    pool: int = Field(50, ge=0, le=10_000)  # generated images of each domain that are remembered
    # Channels of G's first layer, twice as many after each halving
    dim: int = Field(64, ge=1, le=4096)
    downsamplings: int = Field(2, ge=1, le=8)  # how often G halves an image
    residuals: int = Field(9, ge=1, le=64)  # residual blocks of G: 6 for 128 px
    d_dim: int = Field(64, ge=1, le=4096)  # channels of D's first layer
    d_layers: int = Field(3, ge=1, le=16)  # layers of D that halve


class CycleGAN(Method):
    layout = "two_domains"
    averaged = "G F"
    card = {
        "title": "Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks",
        "authors": "Zhu, Park, Isola, Efros",
        "venue": "ICCV",
        "year": 2017,
        "url": "https://arxiv.org/abs/1703.10593",
        "outputs": "one; many with noise",
    }
    presets = {
        "paper": {
            "data": {"size": 256, "zoom": 286 / 256, "batch": 1},
            "optim": OPTIM,
            "train": {"steps": 200_000, "save_every": 5_000, "sample_every": 5_000},
        },
        "small": {
            "method": {
                "dim": 24,
                "downsamplings": 1,
                "residuals": 3,
                "d_dim": 24,
                "d_layers": 2,
            },
            "data": {"size": 32, "batch": 8},
            "optim": OPTIM,  # 1e-3, as the other small ones have it, hides styles in dots (docs/log.md)
            "train": {"steps": 4000, "ema": 0.995, "save_every": 500, "sample_every": 500},
        },
    }

    def __init__(self, config: Config, domains: tuple[str, ...], shape: Shape) -> None:
        super().__init__(config, domains, shape)
        smallest = max(ResNet.smallest(config.downsamplings), PatchGAN.smallest(config.d_layers))
        if min(shape.height, shape.width) < smallest:
            raise ConfigProblem(
                f"data.size is below {smallest} px, the least that the networks of method.d_layers="
                f"{config.d_layers} and method.downsamplings={config.downsamplings} can take: lower "
                "one of these or raise data.size."
            )
        if shape.height % self.stride or shape.width % self.stride:
            raise ConfigProblem(
                f"data.size must be a multiple of {self.stride} "
                f"with method.downsamplings={config.downsamplings}."
            )
        c = shape.channels
        self.G, self.F = (
            ResNet(c + config.noise, c, config.dim, config.residuals, config.downsamplings)
            for _ in range(2)
        )
        self.D_X, self.D_Y = (PatchGAN(c, config.d_dim, config.d_layers) for _ in range(2))
        self.pool_X, self.pool_Y = Pool(config.pool, shape), Pool(config.pool, shape)
        if config.one_way:
            self.averaged = "G"  # of this instance

    # The game ------------------------------------------------------------------------------------

    def begin(self) -> None:
        if self.config.one_way:
            raise ConfigProblem("cyclegan trains both ways: leave method.one_way out.")

    def updates(self, batch: Batch, step: Step) -> Iterator[Update]:
        x, y = batch["x_1"], batch["x_2"]
        G, F = self.noisy(self.G, "G", x, step), self.noisy(self.F, "F", y, step)
        fake_y, fake_x = G(x), F(y)
        yield self.generate(x, y, fake_x, fake_y, G, F)
        yield self.discriminate(x, y, fake_x.detach(), fake_y.detach(), step)

    def generate(
        self, x: Tensor, y: Tensor, fake_x: Tensor, fake_y: Tensor, G: Translate, F: Translate
    ) -> Update:
        D_X, D_Y, w = self.D_X, self.D_Y, self.config
        L = {
            "adv_G": lsgan_g([D_Y(fake_y)]),  # (1)
            "adv_F": lsgan_g([D_X(fake_x)]),
            "cyc_x": w.lambda_cyc * l1(F(fake_y), x),  # (2)
            "cyc_y": w.lambda_cyc * l1(G(fake_x), y),
        }
        if w.lambda_idt:
            L["idt_x"] = w.lambda_cyc * w.lambda_idt * l1(F(x), x)  # Sec. 5.2
            L["idt_y"] = w.lambda_cyc * w.lambda_idt * l1(G(y), y)
        loss = torch.stack(list(L.values())).sum()
        return Update("G F", loss, {name: part.detach() for name, part in L.items()})

    def discriminate(
        self, x: Tensor, y: Tensor, fake_x: Tensor, fake_y: Tensor, step: Step
    ) -> Update:
        D_X, D_Y = self.D_X, self.D_Y
        fake_x = self.pool_X(fake_x, *self.dice("pool_X", fake_x, step))
        fake_y = self.pool_Y(fake_y, *self.dice("pool_Y", fake_y, step))
        L_D_X = lsgan_d([D_X(x)], [D_X(fake_x)]) / 2  # halved: D learns at half of G's rate
        L_D_Y = lsgan_d([D_Y(y)], [D_Y(fake_y)]) / 2
        return Update("D_X D_Y", L_D_X + L_D_Y, {"D_X": L_D_X.detach(), "D_Y": L_D_Y.detach()})

    def noisy(self, net: nn.Module, name: str, x: Tensor, step: Step) -> Translate:
        """`net` as a function of images alone: its noise is one for all of a step."""
        if not self.config.noise:
            return net
        z = step.normal(f"z_{name}", len(x), self.config.noise_grid**2, like=x)
        return lambda x: net(with_noise(x, z))

    def dice(self, name: str, fakes: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Two uniform numbers an image: whether the pool swaps it, and for which."""
        draw = partial(step.uniform, like=self.pool_X.images)  # not bf16: it rounds up to 1
        return draw(f"{name}.swap", len(fakes)), draw(f"{name}.which", len(fakes))

    # The verbs -----------------------------------------------------------------------------------

    def styles(self, source: int, target: int) -> frozenset[str]:
        if source == target:
            raise ConfigProblem(
                "cyclegan has no way from a domain to itself: name another source or target."
            )
        if self.config.one_way and not target:
            raise ConfigProblem(
                f"This model translates from {self.domains[0]} to {self.domains[1]} only: it was imported without "
                "the generator of the other way."
            )
        return frozenset({"latent"}) if self.config.noise else frozenset()

    def encode_content(self, x: Tensor, source: int) -> Tensor:
        """The images themselves: G and F have no code between two halves."""
        return x

    def decode(self, content: Tensor, style: Tensor | None, target: int) -> Tensor:
        return (self.G if target else self.F)(with_noise(content, style))

    def latent_dim(self, target: int) -> int:
        return self.config.noise_grid**2 if self.config.noise else 0

    @property
    def stride(self) -> int:
        return 2**self.config.downsamplings


def with_noise(x: Tensor, z: Tensor | None) -> Tensor:
    """Images (B, C, H, W), noise (B, k * k) on a grid -> (B, C + 1, H, W); `x` without noise."""
    if z is None:
        return x
    k = round(z.shape[1] ** 0.5)
    return torch.cat([x, functional.interpolate(z.view(-1, 1, k, k), x.shape[2:])], dim=1)


class Pool(nn.Module):
    """A history of generated images: once full, half of what it returns is from it.

    Shrivastava et al., CVPR 2017.
    """

    images: Tensor
    count: Tensor

    def __init__(self, size: int, shape: Shape) -> None:
        super().__init__()
        self.register_buffer("images", torch.zeros(size, shape.channels, shape.height, shape.width))
        self.register_buffer("count", torch.zeros(1, dtype=torch.long))

    def forward(self, fakes: Tensor, swap: Tensor, which: Tensor) -> Tensor:
        """Images (B, C, H, W), two uniform numbers each -> as many, some exchanged for older ones.

        One after the other: while there is room an image is kept and returned; then, if `swap` <
        1/2, it takes the place of the image `which` * size, which is returned instead of it.
        """
        if not len(self.images):
            return fakes
        size, returned = len(self.images), []
        for x, u, v in zip(fakes[:, None], swap[:, None], which[:, None], strict=True):
            room = self.count < size  # no branch on it: the step waits for no device
            slot = torch.where(room, self.count, (v * size).long())
            old = self.images.index_select(0, slot)
            returned.append(torch.where(room | (u >= 0.5), x, old))
            self.images.index_copy_(0, slot, torch.where(room | (u < 0.5), x, old).to(old.dtype))
            self.count += room
        return torch.cat(returned)
