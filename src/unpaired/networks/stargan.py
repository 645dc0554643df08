"""StarGAN v2's networks, shared with SmoothGAN and DSM (Choi et al., CVPR 2020, appendix)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unpaired.convolution import Conv2d
from unpaired.errors import ConfigProblem
from unpaired.networks.blocks import down_conv, kaiming, up_conv_zeros
from unpaired.networks.memory import leaky_relu, without
from unpaired.networks.norms import InstanceNorm, adain

SLOPE = 0.2  # of leaky ReLU
SMALLEST = 16  # px, the side of the content: the least that the generator can halve to


class Generator(nn.Module):
    """Images (B, C, H, W) and styles (B, style_dim) -> images, not bounded: there is no tanh.

    `encoder` halves the image once for each step in `widths`, down to a content of about 16 px;
    `decoder` mirrors it. Instance norm removes the style of the image, AdaIN puts the new one in.
    """

    def __init__(self, channels: int, widths: Sequence[int], style_dim: int) -> None:
        super().__init__()
        norm = partial(InstanceNorm, affine=True)
        inner = widths[-1]
        self.stride = 2 ** (len(widths) - 1)
        self.encoder = nn.Sequential(
            Conv2d(channels, widths[0], 3, padding=1),
            *(Down(a, b, norm) for a, b in zip(widths, widths[1:], strict=False)),
            *(Down(inner, inner, norm, halves=False) for _ in range(2)),
        )
        self.decoder = Decoder(channels, widths, style_dim)
        kaiming(self)

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        return self.decoder(self.encoder(x), s)


class Decoder(nn.Module):
    """Content and style -> images."""

    def __init__(self, channels: int, widths: Sequence[int], style_dim: int) -> None:
        super().__init__()
        inner, outwards = widths[-1], widths[::-1]
        self.blocks = nn.ModuleList(Up(inner, inner, style_dim, doubles=False) for _ in range(2))
        self.blocks.extend(
            Up(a, b, style_dim) for a, b in zip(outwards, outwards[1:], strict=False)
        )
        self.rgb = nn.Sequential(
            InstanceNorm(widths[0], affine=True),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(widths[0], channels, 1),
        )

    def forward(self, c: Tensor, s: Tensor) -> Tensor:
        for block in self.blocks:
            c = block(c, s)
        norm, _, conv = self.rgb
        return without(norm(c, slope=SLOPE), conv)


class Mapping(nn.Module):
    """Noise (B, latent_dim) and domains (B,) -> styles (B, style_dim). F of the paper."""

    def __init__(self, latent_dim: int, mlp_dim: int, style_dim: int, domains: int) -> None:
        super().__init__()
        self.shared = nn.Sequential(*mlp(latent_dim, mlp_dim, 4))
        self.heads = nn.ModuleList(
            nn.Sequential(*mlp(mlp_dim, mlp_dim, 3), nn.Linear(mlp_dim, style_dim))
            for _ in range(domains)
        )
        kaiming(self)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        h = self.shared(z)
        return select(torch.stack([head(h) for head in self.heads], dim=1), y)


class StyleEncoder(nn.Module):
    """Images (B, C, H, W) and their domains (B,) -> styles (B, style_dim). E of the paper."""

    def __init__(self, channels: int, widths: Sequence[int], style_dim: int, domains: int) -> None:
        super().__init__()
        self.trunk = trunk(channels, widths)
        self.heads = nn.ModuleList(nn.Linear(widths[-1], style_dim) for _ in range(domains))
        kaiming(self)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.trunk(x).mean((2, 3))  # (B, widths[-1]); a single position at the size of training
        return select(torch.stack([head(h) for head in self.heads], dim=1), y)


class Discriminator(nn.Module):
    """Images (B, C, H, W) and domains (B,) -> logits (B,): real for this domain?"""

    def __init__(self, channels: int, widths: Sequence[int], domains: int) -> None:
        super().__init__()
        self.trunk = trunk(channels, widths)
        self.heads = nn.Conv2d(widths[-1], domains, 1)
        kaiming(self)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return select(self.heads(self.trunk(x)).mean((2, 3)), y)


class Down(nn.Module):
    """(x + two 3x3 convolutions of x) / sqrt(2), pre-activated, at half the size or, where it halves not, at the same.

    (B, a, H, W) -> (B, b, H / 2, W / 2)
    """

    def __init__(
        self,
        a: int,
        b: int,
        norm: Callable[[int], nn.Module] = nn.Identity,
        halves: bool = True,
    ) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = norm(a), norm(a)
        self.conv_1 = Conv2d(a, a, 3, padding=1)
        self.conv_2 = Conv2d(a, b, 3, padding=1)
        self.skip = nn.Identity() if a == b else nn.Conv2d(a, b, 1, bias=False)
        self.halves = halves

    def forward(self, x: Tensor) -> Tensor:
        h = self.activated(self.norm_1, x)
        h = down_conv(h, self.conv_1) if self.halves else without(h, self.conv_1)
        h = without(self.activated(self.norm_2, h), self.conv_2)
        x = F.avg_pool2d(x, 2) if self.halves else x  # before the skip: a quarter of the work
        return (self.skip(x) + h) / math.sqrt(2)

    @staticmethod
    def activated(norm: nn.Module, x: Tensor) -> Tensor:
        return leaky_relu(x, SLOPE) if isinstance(norm, nn.Identity) else norm(x, slope=SLOPE)


class Up(nn.Module):
    """`Down` mirrored: with a style by AdaIN, at twice the size or, where it doubles not, at the same.

    (B, a, H, W), (B, style_dim) -> (B, b, 2 H, 2 W)
    """

    def __init__(self, a: int, b: int, style_dim: int, doubles: bool = True) -> None:
        super().__init__()
        self.style_1, self.style_2 = nn.Linear(style_dim, 2 * a), nn.Linear(style_dim, 2 * b)
        self.conv_1 = Conv2d(a, b, 3, padding=1)
        self.conv_2 = Conv2d(b, b, 3, padding=1)
        self.skip = nn.Identity() if a == b else nn.Conv2d(a, b, 1, bias=False)
        self.doubles = doubles

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        h = modulate(x, self.style_1(s), SLOPE)
        h = up_conv_zeros(h, self.conv_1) if self.doubles else without(h, self.conv_1)
        h = without(modulate(h, self.style_2(s), SLOPE), self.conv_2)
        x = self.skip(x)
        x = F.interpolate(x, scale_factor=2) if self.doubles else x  # after the skip: the same
        return (x + h) / math.sqrt(2)


def modulate(x: Tensor, numbers: Tensor, slope: float | None = None) -> Tensor:
    """AdaIN with (B, 2C) numbers: the scale, to which 1 is added, comes first. With a `slope`, leaky ReLU of it."""
    scale, shift = numbers.chunk(2, dim=1)
    return adain(x, shift, 1 + scale, slope=slope)


def trunk(channels: int, widths: Sequence[int]) -> nn.Sequential:
    """Images -> features (B, widths[-1], 1, 1), for discriminator and style encoder. No norm."""
    return nn.Sequential(
        Conv2d(channels, widths[0], 3, padding=1),
        *(Down(a, b) for a, b in zip(widths, widths[1:], strict=False)),
        nn.LeakyReLU(SLOPE),
        Conv2d(widths[-1], widths[-1], 4),
        nn.LeakyReLU(SLOPE),
    )


def mlp(n_in: int, n: int, layers: int) -> list[nn.Module]:
    """`layers` linear layers of width `n`, each with its ReLU."""
    return [f for i in range(layers) for f in (nn.Linear(n if i else n_in, n), nn.ReLU())]


def select(branches: Tensor, y: Tensor) -> Tensor:
    """The branch of each sample's domain: (B, K, ...), (B,) -> (B, ...).

    All are evaluated and then selected: a domain that is not in the batch has gradient zero, not
    none, so that weight decay moves it, as in the official code.
    """
    return branches[torch.arange(y.shape[0], device=y.device), y]


def widths(side: int, smallest: int, budget: int, cap: int) -> list[int]:
    """Channels at each size from `side` to `smallest` px: budget / side, doubling up to `cap`."""
    if side > budget:
        raise ConfigProblem(
            f"method.width: {budget} is too little for {side} px, whose maps would have no channel: set it to "
            f"{16 * side} or more."
        )
    halvings = (side // smallest).bit_length() - 1
    return [min(budget // side * 2**i, cap) for i in range(halvings + 1)]


def check_sides(height: int, width: int) -> None:
    """Refuses images that the generator cannot halve to a content and double back."""
    side = min(height, width)
    stride = 2 ** (max(side // SMALLEST, 1).bit_length() - 1)
    if side < SMALLEST or height % stride or width % stride:
        raise ConfigProblem(
            f"data.size: {height} x {width} px do not suit this method, which needs at least "
            f"{SMALLEST} px and here multiples of {stride}: take a power of two from 32 to 512."
        )
