"""TUNIT's networks: guiding C, generator G, multi-head D (Baek et al., ICCV 2021, appendix)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unpaired.convolution import Conv2d
from unpaired.method import fp32
from unpaired.networks.blocks import Conv, Residual, down_conv, kaiming, reflected, up_conv
from unpaired.networks.memory import without
from unpaired.networks.norms import FilterResponseNorm, InstanceNorm, adain

BATCHNORM = (nn.BatchNorm1d, nn.BatchNorm2d)
MEMORY = 1024  # images that a domain's mean style stands for


class GuidingNetwork(nn.Module):
    """Images (B, C, H, W) -> style (B, style_dim) and logits of the pseudo-domain (B, K).

    VGG-11 with BatchNorm. The heads start as the official ones (std 0.01 of 512 features), and as
    strong where features are fewer: from logits near 0 mutual information has no way to go. It
    keeps the mean style of each domain, so that weights and means stay together.

    normalise: the heads see features of mean 0 and variance 1 over the batch. Pooled features of an
    untrained network are nearly the same for all images, which leaves clustering without a start.
    """

    mean: Tensor
    count: Tensor

    def __init__(
        self, channels: int, dim: int, style_dim: int, clusters: int, normalise: bool = False
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width, repeats in zip((1, 2, 4, 8, 8), (1, 1, 2, 2, 2), strict=True):
            for _ in range(repeats):
                c = width * dim
                layers += [Conv2d(channels, c, 3, padding=1), nn.BatchNorm2d(c), nn.ReLU()]
                channels = c
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.norm = nn.BatchNorm1d(channels, affine=False) if normalise else nn.Identity()
        self.style, self.domain = nn.Linear(channels, style_dim), nn.Linear(channels, clusters)
        self.register_buffer("mean", torch.zeros(clusters, style_dim))
        self.register_buffer("count", torch.zeros(clusters))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01 * math.sqrt(512 / channels))
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.features(x).mean((2, 3))
        with fp32(x):  # codes are not normalised and divided by 0.07: bf16 is too coarse for them
            h = self.norm(h.to(self.style.weight))
            return self.style(h), self.domain(h)

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Leaves the running statistics as they are: for images that are not those to come."""
        norms = [m for m in (*self.features, self.norm) if isinstance(m, BATCHNORM)]
        try:
            for norm in norms:
                norm.track_running_stats = False
            yield
        finally:
            for norm in norms:
                norm.track_running_stats = True

    @torch.no_grad()
    def remember(self, s: Tensor, y: Tensor) -> None:
        """Takes styles (B, style_dim) of domains (B,) into the means, which follow the latest."""
        member = (y[:, None] == torch.arange(len(self.count), device=y.device)).to(
            self.mean
        )  # (B, K)
        n = member.sum(0)
        self.count.add_(n).clamp_(max=MEMORY)
        change = member.T @ s.to(self.mean) - n[:, None] * self.mean
        self.mean += change / self.count.clamp(min=1)[:, None]


class Generator(nn.Module):
    """`encoder`: images -> content of about 16 px. `decoder`: content and styles -> images."""

    def __init__(self, channels: int, dim: int, stride: int, style_dim: int, mlp_dim: int) -> None:
        super().__init__()
        self.stride, downsamplings = stride, stride.bit_length() - 1
        layers: list[nn.Module] = [Conv(channels, dim, 7, 1, 3, InstanceNorm, nn.ReLU())]
        for _ in range(downsamplings):
            layers.append(Conv(dim, 2 * dim, 4, 2, 1, InstanceNorm, nn.ReLU()))
            dim *= 2
        self.encoder = nn.Sequential(*layers, TenthResidual(dim), TenthResidual(dim))
        self.decoder = Decoder(channels, dim, downsamplings, style_dim, mlp_dim)
        kaiming(self)


class TenthResidual(Residual):
    """`Residual` whose residual counts a tenth."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * self.body(x)


class Decoder(nn.Module):
    """Content and styles -> images in [-1, 1]. AdaIN everywhere, also in the up-sampling part."""

    def __init__(
        self, channels: int, c: int, downsamplings: int, style_dim: int, mlp_dim: int
    ) -> None:
        super().__init__()
        self.residuals = nn.ModuleList(StyleConv(c, c, 3) for _ in range(4))
        self.up = nn.ModuleList()
        for _ in range(downsamplings):
            self.up.append(StyleConv(c, c // 2, 5))
            c //= 2
        self.rgb = Conv(c, channels, 7, 1, 3, activation=nn.Tanh())
        self.numbers = [2 * conv.out_channels for conv in (*self.residuals, *self.up)]
        self.mlp = nn.Sequential(
            nn.Linear(style_dim, mlp_dim),
            nn.ReLU(),
            nn.Linear(mlp_dim, mlp_dim),
            nn.ReLU(),
            nn.Linear(mlp_dim, sum(self.numbers)),
        )

    def forward(self, c: Tensor, s: Tensor) -> Tensor:
        parts = self.mlp(s).split(self.numbers, dim=1)
        for i in (0, 2):
            h = self.residuals[i](c, parts[i], slope=0.0)
            c = c + 0.1 * self.residuals[i + 1](h, parts[i + 1])
        for conv, part in zip(self.up, parts[4:], strict=True):
            c = conv(c, part, doubles=True, slope=0.0)
        return self.rgb(c)


class StyleConv(Conv2d):
    """Nearest up-sampling, reflection padding, convolution, AdaIN by (B, 2C) numbers, the shift first, activation."""

    def __init__(self, c_in: int, c_out: int, kernel: int) -> None:
        super().__init__(c_in, c_out, kernel)

    def forward(  # type: ignore[override]
        self, x: Tensor, numbers: Tensor, doubles: bool = False, slope: float | None = None
    ) -> Tensor:
        shift, scale = numbers.chunk(2, dim=1)
        if doubles:
            h = up_conv(x, self.weight, self.bias)
        else:
            h = reflected(x, self.kernel_size[0] // 2, super().forward)
        return adain(h, shift, scale, slope=slope)


class Discriminator(nn.Module):
    """Images (B, C, H, W), domains (B,) -> scores (B,): real for this domain? One head each."""

    def __init__(self, channels: int, side: int, dim: int, max_dim: int, clusters: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [Conv2d(channels, dim, 3, padding=1)]
        for _ in range(int(math.log2(side)) - 2):
            wide = min(2 * dim, max_dim)
            layers += [FRNResidual(dim, dim), FRNResidual(dim, wide, halves=True)]
            dim = wide
        layers += [nn.LeakyReLU(0.2), Conv2d(dim, dim, 4), nn.LeakyReLU(0.2)]
        self.trunk = nn.Sequential(*layers)
        self.heads = nn.Conv2d(dim, clusters, 1)
        kaiming(self)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        scores = self.heads(self.trunk(x)).mean((2, 3))  # (B, K); one position, for powers of two
        return scores.gather(1, y[:, None]).squeeze(1)


class FRNResidual(nn.Module):
    """(x + two 3x3 convolutions of x) / sqrt(2), pre-activated by filter response norm.

    (B, a, H, W) -> (B, b, H, W), or half the size where it `halves`.
    """

    def __init__(self, a: int, b: int, halves: bool = False) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = FilterResponseNorm(a), FilterResponseNorm(a)
        self.conv_1 = Conv2d(a, a, 3, padding=1)
        self.conv_2 = Conv2d(a, b, 3, padding=1)
        self.skip = nn.Identity() if a == b else nn.Conv2d(a, b, 1, bias=False)
        self.halves = halves

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm_1(x)
        h = down_conv(h, self.conv_1) if self.halves else without(h, self.conv_1)
        h = without(self.norm_2(h), self.conv_2)
        x = F.avg_pool2d(x, 2) if self.halves else x  # before the skip: a quarter of the work
        return (self.skip(x) + h) / math.sqrt(2)
