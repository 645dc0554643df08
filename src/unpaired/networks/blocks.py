"""The pieces that two methods share: convolution blocks, adaptive and layer normalisation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Conv(nn.Module):
    """Reflection padding, convolution, norm, activation. (B, C, H, W) -> (B, C', H / stride, W / stride)."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        norm: Callable[[int], nn.Module] | None = None,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.padding = padding
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride)
        self.norm = norm(c_out) if norm else nn.Identity()
        self.activation = activation or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(reflect(x, self.padding))))


class Residual(nn.Module):
    """x + two 3x3 convolutions of x, no activation after the sum."""

    def __init__(self, c: int, norm: Callable[[int], nn.Module] | None = nn.InstanceNorm2d) -> None:
        super().__init__()
        self.body = nn.Sequential(
            Conv(c, c, 3, padding=1, norm=norm, activation=nn.ReLU()),
            Conv(c, c, 3, padding=1, norm=norm),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class AdaINResidual(nn.Module):
    """`Residual` whose two norms are AdaIN. Takes 4C numbers a sample: shift and scale of each norm."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv_1, self.conv_2 = nn.Conv2d(c, c, 3), nn.Conv2d(c, c, 3)
        self.numbers = 4 * c

    def forward(self, x: Tensor, numbers: Tensor) -> Tensor:
        shift_1, scale_1, shift_2, scale_2 = numbers.chunk(4, dim=1)  # the shift comes first
        h = F.relu(adain(self.conv_1(reflect(x, 1)), shift_1, scale_1))
        return x + adain(self.conv_2(reflect(h, 1)), shift_2, scale_2)


class LayerNorm(nn.Module):
    """One mean and one deviation a sample, over channels and positions; affine per channel (MUNIT).

    The deviation is unbiased, and eps is added to it outside the root.
    """

    def __init__(self, c: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.rand(c)), nn.Parameter(torch.zeros(c))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(
            x.float() if x.dtype is torch.bfloat16 else x, (1, 2, 3), keepdim=True
        )
        scale = self.gamma.view(1, -1, 1, 1) / (var.sqrt() + self.eps)  # (B, C, 1, 1)
        return torch.addcmul(self.beta.view(1, -1, 1, 1) - mean * scale, x, scale).to(x.dtype)


def adain(x: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-5) -> Tensor:
    """scale * (x - mean(x)) / std(x) + shift, statistics per sample and channel (Huang and Belongie, ICCV 2017).

    x (B, C, H, W), shift and scale (B, C). The variance is the population's, eps inside the root.
    """
    var, mean = torch.var_mean(
        x.float() if x.dtype is torch.bfloat16 else x, (2, 3), correction=0, keepdim=True
    )
    scale = scale[:, :, None, None] * (var + eps).rsqrt()
    return torch.addcmul(shift[:, :, None, None] - mean * scale, x, scale).to(x.dtype)


def reflect(x: Tensor, n: int) -> Tensor:
    """Pads `n` pixels on each side by reflection."""
    return F.pad(x, (n, n, n, n), mode="reflect") if n else x


def kaiming(net: nn.Module) -> None:
    """Kaiming's initialisation over fan-in for convolutions and linear layers, biases 0."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def gaussian(net: nn.Module, std: float = 0.02) -> None:
    """N(0, std) for convolutions and linear layers, biases 0: the usual start of a discriminator."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def fixed(net: nn.Module) -> nn.Module:
    """`net` with its weights turned into buffers that are not saved: a pretrained network that never learns."""
    for module in net.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, parameter.detach(), persistent=False)
    return net.eval()
