"""Augmented CycleGAN: Learning Many-to-Many Mappings from Unpaired Data.

Amjad Almahairi, Sai Rajeswar, Alessandro Sordoni, Philip Bachman, Aaron Courville. ICML 2018.
https://arxiv.org/abs/1802.10151

CycleGAN between A and B x Z: a code z_b holds what B shows and A does not (here colours and
texture, A being edges). G_AB draws b from a and z_b, G_BA draws a from b, and E_B reads z_b from
both. With b' = G_AB(a, z_b), z_b ~ N(0, I), a' = G_BA(b) and z_b' = E_B(a', b) the objective is

    min over G_AB, G_BA, E_B, max over D_A, D_B, D_z of
        L_GAN + lambda_A L_cyc^A + lambda_B L_cyc^B + lambda_z L_cyc^z

    L_GAN   = least squares, D_B on b', D_A on a', D_z on z_b'; D's losses are halved
    L_cyc^A = E |G_BA(b') - a|
    L_cyc^B = E |G_AB(a', z_b') - b|
    L_cyc^z = E |E_B(a, b') - z_b|

From A to B there are many outputs, by random codes or by that of a reference b, E_B(G_BA(b), b);
from B to A there is one.

Differences from the official code: a moving average of the generators and E_B does the translating
(theirs does not average; `train.ema=0` for theirs); the learning rate falls over fractions of the
run (theirs: by epochs); no stochastic E_B and no training on pairs besides, which theirs can have.
`e_layers` and `d_A_layers` fit other sizes than 64 px; where E_B ends in more than one pixel, their
mean is the code. Nothing else: losses, gradients and updates agree with it to rounding
(`tests/test_parity_family.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from unpaired.convolution import Conv2d, ConvTranspose2d
from unpaired.errors import ConfigProblem
from unpaired.losses import l1, lsgan_d, lsgan_g
from unpaired.method import Batch, Method, MethodConfig, Shape, Step, Update
from unpaired.networks.blocks import ConvToFew, gaussian, reflect, reflected
from unpaired.networks.memory import without
from unpaired.networks.norms import InstanceNorm, adain

OPTIM: dict[str, dict[str, Any]] = {
    "default": {
        "lr": 2e-4,
        "betas": [0.5, 0.999],
        "clip": 500.0,
        "decay": {"kind": "linear", "start": 0.5},
    },
    "D_A": {"lr": 4e-5},  # a fifth
    "D_B": {"lr": 4e-5},
    "D_z": {"lr": 4e-5},
}


class Config(MethodConfig):
    """The paper's settings for edges and shoes of 64 px."""

    lambda_A: float = Field(1.0, ge=0)  # weight of the cycle that begins in A
    lambda_B: float = Field(1.0, ge=0)  # of the one that begins in B
    lambda_z: float = Field(0.025, ge=0)  # of the reconstruction of the code z
    z_dim: int = Field(16, ge=1, le=4096)  # numbers in a code
    dim: int = Field(32, ge=1, le=4096)  # channels of both G's first layers
    residuals: int = Field(3, ge=1, le=64)  # residual blocks of G
    e_dim: int = Field(32, ge=1, le=4096)  # channels of E_B's first layer
    e_layers: int = Field(4, ge=1, le=16)  # of E_B, down to 4 pixels: 3 for 32 px
    d_A_dim: int = Field(32, ge=1, le=4096)  # channels of D_A's first layer
    d_A_layers: int = Field(4, ge=1, le=16)  # of D_A, down to 4 pixels: 3 for 32 px
    d_B_dim: int = Field(64, ge=1, le=4096)  # channels of D_B's first layer
    d_z_dim: int = Field(64, ge=1, le=4096)  # width of D_z


class AugmentedCycleGAN(Method):
    layout = "two_domains"
    averaged = "G_AB G_BA E_B"
    accumulates = False  # BatchNorm
    card = {
        "title": "Augmented CycleGAN: Learning Many-to-Many Mappings from Unpaired Data",
        "authors": "Almahairi, Rajeswar, Sordoni, Bachman, Courville",
        "venue": "ICML",
        "year": 2018,
        "url": "https://arxiv.org/abs/1802.10151",
        "outputs": "many one way, one back",
    }
    presets = {
        "paper": {
            "data": {"size": 64, "batch": 32},
            "optim": OPTIM,
            "train": {"steps": 78_000, "save_every": 2_000, "sample_every": 2_000},
        },
        "small": {
            "method": {
                "z_dim": 8,
                "dim": 12,
                "e_dim": 16,
                "e_layers": 3,
                "d_A_dim": 16,
                "d_A_layers": 3,
                "d_B_dim": 24,
                "d_z_dim": 32,
            },
            "data": {"size": 32, "batch": 8},
            # D at a fifth, as above, is fooled at once in a short run (docs/log.md)
            "optim": {"default": OPTIM["default"] | {"lr": 5e-4}},
            "train": {"steps": 4000, "ema": 0.995, "save_every": 500, "sample_every": 500},
        },
    }

    def __init__(self, config: Config, domains: tuple[str, ...], shape: Shape) -> None:
        super().__init__(config, domains, shape)
        smallest = max(2 ** (max(config.e_layers, config.d_A_layers) + 2), DiscriminatorB.smallest)
        if min(shape.height, shape.width) < smallest:
            raise ConfigProblem(
                f"data.size is below {smallest} px, the least that the networks of method.e_layers="
                f"{config.e_layers} and method.d_A_layers={config.d_A_layers} can judge: lower "
                "these or raise data.size."
            )
        if shape.height % self.stride or shape.width % self.stride:
            raise ConfigProblem(f"data.size must be a multiple of {self.stride} for {self.name}.")
        c, z = shape.channels, config.z_dim
        self.G_AB = Generator(c, config.dim, config.residuals, lambda c: ConditionalNorm(c, z))
        self.G_BA = Generator(c, config.dim, config.residuals)
        self.E_B = Encoder(2 * c, config.e_dim, config.e_layers, z)
        self.D_A = DiscriminatorA(c, config.d_A_dim, config.d_A_layers)
        self.D_B = DiscriminatorB(c, config.d_B_dim)
        self.D_z = DiscriminatorZ(z, config.d_z_dim)

    # The game ------------------------------------------------------------------------------------

    def updates(self, batch: Batch, step: Step) -> Iterator[Update]:
        a, b = batch["x_1"], batch["x_2"]
        if len(a) < 2:
            raise ConfigProblem(
                "augmented_cyclegan normalises over a batch: set data.batch=2 or more."
            )
        z = step.normal("z", len(a), self.config.z_dim, like=a)
        fake_b, fake_a = self.G_AB(a, z), self.G_BA(b)
        fake_z = self.E_B(torch.cat([fake_a, b], 1))
        yield self.discriminate(a, b, z, fake_a.detach(), fake_b.detach(), fake_z.detach())
        yield self.generate(a, b, z, fake_a, fake_b, fake_z)

    def discriminate(
        self, a: Tensor, b: Tensor, z: Tensor, fake_a: Tensor, fake_b: Tensor, fake_z: Tensor
    ) -> Update:
        D_A, D_B, D_z = self.D_A, self.D_B, self.D_z
        D_fake, D_real = D_z(fake_z), D_z(z)  # in this order: BatchNorm's averages tell
        L = {
            "D_A": lsgan_d([D_A(a)], [D_A(fake_a)]) / 2,
            "D_B": lsgan_d([D_B(b)], [D_B(fake_b)]) / 2,
            "D_z": lsgan_d([D_real], [D_fake]) / 2,
        }
        loss = torch.stack(list(L.values())).sum()
        return Update("D_A D_B D_z", loss, {name: part.detach() for name, part in L.items()})

    def generate(
        self, a: Tensor, b: Tensor, z: Tensor, fake_a: Tensor, fake_b: Tensor, fake_z: Tensor
    ) -> Update:
        G_AB, G_BA, E_B, w = self.G_AB, self.G_BA, self.E_B, self.config
        L = {
            "adv_a": lsgan_g([self.D_A(fake_a)]),
            "adv_b": lsgan_g([self.D_B(fake_b)]),
            "adv_z": lsgan_g([self.D_z(fake_z)]),
            "cyc_a": w.lambda_A * l1(G_BA(fake_b), a),
            "cyc_b": w.lambda_B * l1(G_AB(fake_a, fake_z), b),
            "cyc_z": w.lambda_z * l1(E_B(torch.cat([a, fake_b], 1)), z),
        }
        loss = torch.stack(list(L.values())).sum()
        return Update("G_AB G_BA E_B", loss, {name: part.detach() for name, part in L.items()})

    # The verbs -----------------------------------------------------------------------------------

    def styles(self, source: int, target: int) -> frozenset[str]:
        if source == target:
            raise ConfigProblem(
                f"{self.name} has no way from a domain to itself: name another source or target."
            )
        return frozenset({"latent", "reference"}) if target else frozenset()

    def encode_content(self, x: Tensor, source: int) -> Tensor:
        """The images themselves: the code enters G_AB from its first layer on."""
        return x

    def decode(self, content: Tensor, style: Tensor | None, target: int) -> Tensor:
        return self.G_AB(content, style) if target else self.G_BA(content)

    def latent_dim(self, target: int) -> int:
        return self.config.z_dim if target else 0

    def encode_style(self, reference: Tensor, target: int) -> Tensor:
        """What the images of B show beside what G_BA keeps of them."""
        if not target:
            return super().encode_style(reference, target)
        return self.E_B(torch.cat([self.G_BA(reference), reference], 1))

    @property
    def stride(self) -> int:
        return Generator.stride


class Norm(InstanceNorm):
    """Instance norm with a scale and a shift a channel; takes no notice of a code."""

    def __init__(self, c: int) -> None:
        super().__init__(c, affine=True)

    def forward(self, x: Tensor, z: Tensor | None = None, *, slope: float | None = None) -> Tensor:
        return super().forward(x, slope=slope)


class ConditionalNorm(nn.Module):
    """Instance norm whose scale and shift, never negative, are read from a code z (B, z_dim).

    Its variance is the unbiased one, eps inside the root; `Norm` has the population's.
    """

    def __init__(self, c: int, z_dim: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Conv2d(z_dim, c, 1), nn.Conv2d(z_dim, c, 1)

    def forward(
        self, x: Tensor, z: Tensor, eps: float = 1e-5, *, slope: float | None = None
    ) -> Tensor:
        z = z[:, :, None, None]
        scale, shift = F.relu(self.scale(z)).flatten(1), F.relu(self.shift(z)).flatten(1)
        return adain(x, shift, scale, eps, slope, correction=1)


class Generator(nn.Module):
    """Images -> images in [-1, 1], at half of their size in between; `norm` may take a code."""

    stride = 2

    def __init__(
        self,
        channels: int,
        dim: int,
        residuals: int,
        norm: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        within, norm = norm, norm or Norm
        self.convs = nn.ModuleList(
            (
                Conv2d(channels, dim, 7),
                Conv2d(dim, 2 * dim, 3, 1, 1),
                Conv2d(2 * dim, 4 * dim, 3, 2, 1),
                ConvTranspose2d(4 * dim, 2 * dim, 3, 2, 1, output_padding=1),
                Conv2d(2 * dim, dim, 3, 1, 1),
            )
        )
        self.norms = nn.ModuleList(norm(c * dim) for c in (1, 2, 4, 2, 1))
        self.residuals = nn.ModuleList(Block(4 * dim, within) for _ in range(residuals))
        self.rgb = ConvToFew(dim, channels, 7, padding=3)
        gaussian(self)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        x = reflect(x, 3)
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = norm(without(x, conv), z, slope=0.0)
            for block in self.residuals if i == 2 else ():
                x = block(x, z)
        return without(x, self.rgb).tanh()


class Block(nn.Module):
    """ReLU of x + two 3x3 convolutions of x; the first has a norm only where there is a code."""

    def __init__(self, c: int, norm: Callable[[int], nn.Module] | None) -> None:
        super().__init__()
        self.conv_1, self.conv_2 = Conv2d(c, c, 3), Conv2d(c, c, 3)
        self.norm_1, self.norm_2 = norm(c) if norm else None, Norm(c)

    def forward(self, x: Tensor, z: Tensor | None) -> Tensor:
        h = reflected(x, 1, self.conv_1)
        h = self.norm_1(h, z, slope=0.0) if self.norm_1 else F.relu(h)
        return F.relu(x + self.norm_2(reflected(h, 1, self.conv_2)))


class Encoder(nn.Module):
    """Two images side by side in the channels -> a code (B, z_dim)."""

    def __init__(self, channels: int, dim: int, layers: int, z_dim: int) -> None:
        super().__init__()
        widths = [dim * 2**i for i in range(layers)]
        blocks: list[nn.Module] = [Conv2d(channels, dim, 3, 2, 1), nn.ReLU()]
        for a, b in zip(widths, widths[1:], strict=False):
            blocks += [Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        c = widths[-1]
        blocks += [Conv2d(c, c, 4, bias=False), nn.BatchNorm2d(c), nn.ReLU()]
        self.convs = nn.Sequential(*blocks)
        self.mu = nn.Conv2d(c, z_dim, 1)
        gaussian(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.mu(self.convs(x)).mean((2, 3))


class DiscriminatorA(nn.Sequential):
    """Images -> scores (B, 1, h, w), one for 64 px with four `layers` of stride 2."""

    def __init__(self, channels: int, dim: int, layers: int) -> None:
        widths = [dim * min(2**i, 4) for i in range(layers)]
        blocks: list[nn.Module] = [Conv2d(channels, dim, 3, 2, 1), nn.LeakyReLU(0.2)]
        for a, b in zip(widths, widths[1:], strict=False):
            blocks += [Conv2d(a, b, 3, 2, 1), Norm(b), nn.LeakyReLU(0.2)]
        super().__init__(*blocks, Conv2d(widths[-1], 1, 4))
        gaussian(self)


class DiscriminatorB(nn.Sequential):
    """Images -> scores of patches (B, 1, h, w): two convolutions of stride 2, three of stride 1."""

    smallest = 16

    def __init__(self, channels: int, dim: int) -> None:
        blocks: list[nn.Module] = [Conv2d(channels, dim, 4, 2, 1), nn.LeakyReLU(0.2)]
        for a, b, stride in (1, 2, 2), (2, 4, 1), (4, 4, 1):
            conv = Conv2d(a * dim, b * dim, 4, stride, 1)
            blocks += [conv, Norm(b * dim), nn.LeakyReLU(0.2)]
        super().__init__(*blocks, Conv2d(4 * dim, 1, 4, 1, 1))
        gaussian(self)


class DiscriminatorZ(nn.Sequential):
    """Codes (B, z_dim) -> scores (B, 1)."""

    def __init__(self, z_dim: int, dim: int) -> None:
        blocks: list[nn.Module] = []
        for a in (z_dim, dim, dim):
            blocks += [nn.Linear(a, dim), nn.BatchNorm1d(dim), nn.LeakyReLU(0.2)]
        super().__init__(*blocks, nn.Linear(dim, 1))
        gaussian(self)
