"""BicycleGAN: Toward Multimodal Image-to-Image Translation.

Jun-Yan Zhu, Richard Zhang, Deepak Pathak, Trevor Darrell, Alexei A. Efros, Oliver Wang,
Eli Shechtman. NIPS 2017. https://arxiv.org/abs/1711.11586

Learns from pairs (A, B): G draws B from A and a code z, E reads a code's mean and variance from B.
Two games are played at once, each with a discriminator of its own. The objective is (Sec. 3.4)

    min over G, E, max over D_vae, D_lr of
        L_GAN^VAE + lambda_1 L_1 + lambda_kl L_KL + L_GAN^LR + lambda_latent L_latent

    cVAE-GAN, B -> z -> B (Sec. 3.2): z ~ E(B)
        L_GAN^VAE = least squares, two-scale D_vae on G(A, z)
        L_1       = E |G(A, z) - B|
        L_KL      = KL(E(B) || N(0, I)), summed over code and batch
    cLR-GAN, z -> B -> z (Sec. 3.3): z ~ N(0, I)
        L_GAN^LR  = least squares, two-scale D_lr on G(A, z)
        L_latent  = E |mean of E(G(A, z)) - z|, which teaches G alone: E would hide z in B

Each game has half of the batch: the first sees the first half of A and B; the second draws from the
same A, and its D compares with the second half of B.

Differences from the official code: a moving average of G and E does the translating (theirs does
not average; `train.ema=0` for theirs); the learning rate falls over fractions of the run (theirs:
by epochs); no dropout in G, which edges -> shoes had; data.size is free, with as many blocks of E
as `e_blocks` says. Nothing else: losses, gradients and updates agree with it to rounding
(`tests/test_parity_family.py`).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from unpaired.convolution import Conv2d
from unpaired.errors import ConfigProblem
from unpaired.losses import kl_normal, l1, lsgan_d, lsgan_g
from unpaired.method import Batch, Method, MethodConfig, Shape, Step, Update, frozen
from unpaired.networks.blocks import down_conv, gaussian
from unpaired.networks.norms import InstanceNorm
from unpaired.networks.patchgan import PatchGAN
from unpaired.networks.unet import UNet

OPTIM = {"default": {"lr": 2e-4, "betas": [0.5, 0.999], "decay": {"kind": "linear", "start": 0.5}}}


class Config(MethodConfig):
    """The paper's settings for 256 px."""

    lambda_1: float = Field(10.0, ge=0)  # weight of the distance from the true answer
    lambda_kl: float = Field(0.01, ge=0)  # of the code's divergence from N(0, I)
    lambda_latent: float = Field(0.5, ge=0)  # of the reconstruction of a random code
    conditional: bool = False  # both D see A beside B
    z_dim: int = Field(8, ge=1, le=4096)  # numbers in a code
    dim: int = Field(64, ge=1, le=4096)  # channels of G's first layer
    levels: int = Field(8, ge=2, le=16)  # down to 1 pixel: 7 for 128 px, 6 for 64 px
    e_dim: int = Field(64, ge=1, le=4096)  # channels of E's first layer
    e_blocks: int = Field(4, ge=1, le=16)  # down to 8 pixels: 3 for 128 px, 2 for 64 px
    d_dim: int = Field(64, ge=2, le=4096)  # channels of D's first layer
    d_layers: int = Field(3, ge=1, le=16)  # 2 for 128 px


class BicycleGAN(Method):
    layout = "paired"
    averaged = "G E"
    accumulates = False  # L_KL is a sum, and the batch is halved
    card = {
        "title": "Toward Multimodal Image-to-Image Translation",
        "authors": "Zhu, Zhang, Pathak, Darrell, Efros, Wang, Shechtman",
        "venue": "NIPS",
        "year": 2017,
        "url": "https://arxiv.org/abs/1711.11586",
        "outputs": "many",
    }
    presets = {
        "paper": {
            "data": {"size": 256, "zoom": 286 / 256, "batch": 2},
            "optim": OPTIM,
            "train": {"steps": 200_000, "save_every": 5_000, "sample_every": 5_000},
        },
        "small": {
            "method": {
                "lambda_kl": 0.0025,  # L_KL is a sum: over 4 images here, over one in the paper
                "dim": 24,
                "levels": 5,
                "e_dim": 24,
                "e_blocks": 2,
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
        side = min(shape.height, shape.width)
        smallest = max(TwoScales.smallest(config.d_layers), Encoder.smallest(config.e_blocks))
        if side < smallest:
            raise ConfigProblem(
                f"data.size is below {smallest} px, the least that the networks of method.d_layers="
                f"{config.d_layers} and method.e_blocks={config.e_blocks} can judge: lower one of "
                "these or raise data.size."
            )
        c = shape.channels
        self.G = UNet(c, c, config.dim, config.levels, InstanceNorm, config.z_dim, True)
        self.E = Encoder(c, config.z_dim, config.e_dim, config.e_blocks)
        seen = 2 * c if config.conditional else c
        self.D_vae = TwoScales(seen, config.d_dim, config.d_layers)
        self.D_lr = TwoScales(seen, config.d_dim, config.d_layers)

    # The game ------------------------------------------------------------------------------------

    def updates(self, batch: Batch, step: Step) -> Iterator[Update]:
        half, odd = divmod(len(batch["x_1"]), 2)
        if odd:
            raise ConfigProblem(
                "bicyclegan plays with halves of a batch: set data.batch=2 or another even number."
            )
        A, A_2 = batch["x_1"].split(half)
        B, B_2 = batch["x_2"].split(half)
        mu, logvar = self.E(B)
        z_vae = mu + (logvar / 2).exp() * step.normal("eps", *mu.shape, like=mu)
        z_lr = step.normal("z", *mu.shape, like=A)
        fake_vae, fake_lr = self.G(torch.cat([A, A]), torch.cat([z_vae, z_lr])).chunk(2)  # one call
        yield self.generate(A, B, mu, logvar, z_lr, fake_vae, fake_lr)

        L_D_vae = self.judge(self.D_vae, (A, B), (A, fake_vae.detach()))
        L_D_lr = self.judge(self.D_lr, (A_2, B_2), (A, fake_lr.detach()))
        log = {"D_vae": L_D_vae.detach(), "D_lr": L_D_lr.detach()}
        yield Update("D_vae D_lr", L_D_vae + L_D_lr, log)

    def generate(
        self,
        A: Tensor,
        B: Tensor,
        mu: Tensor,
        logvar: Tensor,
        z_lr: Tensor,
        fake_vae: Tensor,
        fake_lr: Tensor,
    ) -> Update:
        D_vae, D_lr, w = self.D_vae, self.D_lr, self.config
        L = {
            "adv_vae": lsgan_g(D_vae(self.seen(A, fake_vae))),
            "adv_lr": lsgan_g(D_lr(self.seen(A, fake_lr))),
            "L1": w.lambda_1 * l1(fake_vae, B),
            "kl": w.lambda_kl * kl_normal(mu, logvar),
            "latent": w.lambda_latent * l1(frozen(self.E)(fake_lr)[0], z_lr),  # G alone learns
        }
        loss = torch.stack(list(L.values())).sum()
        return Update("G E", loss, {name: part.detach() for name, part in L.items()})

    def judge(
        self, D: nn.Module, real: tuple[Tensor, Tensor], fake: tuple[Tensor, Tensor]
    ) -> Tensor:
        """D's loss on pairs (A, B), all of them in one call: no norm couples them."""
        maps = [s.chunk(2) for s in D(torch.cat([self.seen(*real), self.seen(*fake)]))]
        return lsgan_d([real for real, _ in maps], [fake for _, fake in maps])

    def seen(self, A: Tensor, B: Tensor) -> Tensor:
        """What a discriminator sees of a pair."""
        return torch.cat([A, B], 1) if self.config.conditional else B

    # The verbs -----------------------------------------------------------------------------------

    def styles(self, source: int, target: int) -> frozenset[str]:
        if (source, target) != (0, 1):
            raise ConfigProblem(
                f"bicyclegan translates from {self.domains[0]} to {self.domains[1]} only: for the "
                "other way train it with data.domains in the other order."
            )
        return frozenset({"latent", "reference"})

    def encode_content(self, x: Tensor, source: int) -> Tensor:
        """The images themselves: G sees the code at every level, so nothing of it comes before."""
        self.styles(source, 1)
        return x

    def decode(self, content: Tensor, style: Tensor | None, target: int) -> Tensor:
        self.styles(0, target)
        return self.G(content, style)

    def latent_dim(self, target: int) -> int:
        return self.config.z_dim

    def encode_style(self, reference: Tensor, target: int) -> Tensor:
        """The mean of E."""
        self.styles(0, target)
        return self.E(reference)[0]

    @property
    def stride(self) -> int:
        return 2**self.config.levels


class Encoder(nn.Module):
    """Images -> mean and log variance of their code, (B, z_dim) each (appendix)."""

    def __init__(self, channels: int, z_dim: int, dim: int, blocks: int) -> None:
        super().__init__()
        widths = [dim * min(i + 1, 4) for i in range(blocks + 1)]
        self.conv = Conv2d(channels, dim, 4, 2, 1)
        self.blocks = nn.Sequential(
            *(HalvingResidual(a, b) for a, b in zip(widths, widths[1:], strict=False))
        )
        self.mu, self.logvar = nn.Linear(widths[-1], z_dim), nn.Linear(widths[-1], z_dim)
        gaussian(self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.leaky_relu(self.blocks(self.conv(x)), 0.2).mean((2, 3))
        return self.mu(h), self.logvar(h)

    @staticmethod
    def smallest(blocks: int) -> int:
        """The smallest side of an image: the last block normalises and halves a map of 2 pixels."""
        return 2 ** (blocks + 1)


class HalvingResidual(nn.Module):
    """Norm and activation before each convolution; both ways end at half of the size."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv_1 = Conv2d(c_in, c_in, 3, padding=1)
        self.conv_2 = Conv2d(c_in, c_out, 3, padding=1)
        self.shortcut = nn.Conv2d(c_in, c_out, 1)
        self.norm = InstanceNorm(c_in)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_1(F.leaky_relu(self.norm(x), 0.2))
        h = down_conv(F.leaky_relu(self.norm(h), 0.2), self.conv_2)
        return h + self.shortcut(F.avg_pool2d(x, 2))


class TwoScales(nn.Module):
    """A PatchGAN on the images, and one of half the width on images of half the size."""

    def __init__(self, channels: int, dim: int, layers: int) -> None:
        super().__init__()
        self.fine = PatchGAN(channels, dim, layers)
        self.coarse = PatchGAN(channels, dim // 2, layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        half = F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
        return [self.fine(x), self.coarse(half)]

    @staticmethod
    def smallest(layers: int) -> int:
        return PatchGAN.smallest(layers, scales=2)
