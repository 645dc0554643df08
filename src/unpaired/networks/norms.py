"""Normalisation of maps, with gradients written out: two passes over a map where autograd takes a dozen.

The plain formulas (`torch.var_mean`, a product, a sum) give the same numbers to rounding (`tests/test_blocks.py`) and
took four times as long on a CPU. Statistics are in fp32 where the map is bf16.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from unpaired.networks.memory import remade


def adain(
    x: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-5, slope: float | None = None
) -> Tensor:
    """scale * (x - mean(x)) / std(x) + shift, statistics per sample and channel (Huang and Belongie, ICCV 2017).

    x (B, C, H, W), shift and scale (B, C). The variance is the population's, eps inside the root. With a `slope`, leaky
    ReLU of it, or ReLU (0).
    """
    return remade_by_its_node(Standardise.apply(x, shift, scale, eps, slope))


def remade_by_its_node(y: Tensor) -> Tensor:
    """What one of the functions below gave, to be made again from what its node keeps."""
    return remade(y, partial(again, y.grad_fn))


def again(ctx: Any) -> Tensor:
    x, k, b = ctx.saved_tensors[:3]
    return activated(torch.addcmul(b, widened(x), k), ctx.slope).to(x.dtype)


def activated(y: Tensor, slope: float | None) -> Tensor:
    """In place."""
    return y if slope is None else F.leaky_relu_(y, slope)


def before(g: Tensor, ctx: Any) -> Tensor:
    """The gradient before the activation."""
    if ctx.slope is None:
        return g
    x, k, b = ctx.saved_tensors[:3]
    return torch.ops.aten.leaky_relu_backward(g, torch.addcmul(b, widened(x), k), ctx.slope, False)


class Standardise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shift: Tensor, scale: Tensor, eps: float, slope: float | None
    ) -> Tensor:
        wide = widened(x)
        mean = wide.mean((2, 3), keepdim=True)
        r = ((wide - mean).square_().mean((2, 3), keepdim=True) + eps).rsqrt_()  # 1 / std
        k = scale[:, :, None, None] * r
        b = shift[:, :, None, None] - mean * k
        ctx.save_for_backward(x, k, b, mean, r)
        ctx.slope = slope
        return activated(torch.addcmul(b, wide, k), slope).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, k, _, mean, r = ctx.saved_tensors
        x, g = widened(x), before(widened(g), ctx)
        g_shift = g.mean((2, 3), keepdim=True)
        g_scale = ((g * x).mean((2, 3), keepdim=True) - mean * g_shift) * r
        a = -k * r * g_scale
        g_x = torch.addcmul(-k * g_shift - mean * a, x, a).addcmul_(g, k)
        n = x.shape[2] * x.shape[3]
        return g_x, n * g_shift[..., 0, 0], n * g_scale[..., 0, 0], None, None


class InstanceNorm(nn.InstanceNorm2d):
    """`nn.InstanceNorm2d`, same names and numbers; `affine` as there. With a `slope`, leaky ReLU of it."""

    activates = True

    def __init__(self, c: int, eps: float = 1e-5, affine: bool = False) -> None:
        super().__init__(c, eps, affine=affine)

    def forward(self, x: Tensor, *, slope: float | None = None) -> Tensor:
        shape = x.shape[:2]
        shift, scale = (self.bias, self.weight) if self.affine else (x.new_zeros(1), x.new_ones(1))
        return adain(x, shift.expand(shape), scale.expand(shape), self.eps, slope)


class LayerNorm(nn.Module):
    """One mean and one deviation a sample, over channels and positions; affine per channel (MUNIT).

    The deviation is unbiased, and eps is added to it outside the root. With a `slope`, leaky ReLU of it.
    """

    activates = True

    def __init__(self, c: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.rand(c)), nn.Parameter(torch.zeros(c))
        self.eps = eps

    def forward(self, x: Tensor, *, slope: float | None = None) -> Tensor:
        return remade_by_its_node(StandardiseLayer.apply(x, self.beta, self.gamma, self.eps, slope))


class StandardiseLayer(torch.autograd.Function):
    """gamma * (x - mean) / (std + eps) + beta, statistics per sample, gamma and beta (C,)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, beta: Tensor, gamma: Tensor, eps: float, slope: float | None
    ) -> Tensor:
        wide = widened(x)
        n = x[0].numel()
        mean = wide.mean((2, 3), keepdim=True).mean(1, keepdim=True)  # (B, 1, 1, 1)
        square = (wide - mean).square_().mean((2, 3), keepdim=True).mean(1, keepdim=True)
        std = (square * (n / (n - 1))).sqrt_()
        q = 1 / (std + eps)
        k = gamma[:, None, None] * q  # (B, C, 1, 1)
        b = beta[:, None, None] - mean * k
        ctx.save_for_backward(x, k, b, mean, std, q)
        ctx.slope = slope
        return activated(torch.addcmul(b, wide, k), slope).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, k, _, mean, std, q = ctx.saved_tensors
        x, g = widened(x), before(widened(g), ctx)
        n = x[0].numel()
        sums = g.sum((2, 3), keepdim=True)  # (B, C, 1, 1)
        products = (g * x).sum((2, 3), keepdim=True) - mean * sums
        inner = (k * products).sum(1, keepdim=True)
        p = (q * inner / ((n - 1) * std)).masked_fill(std == 0, 0)  # of a blank map: not 0 / 0
        level = (k * sums).sum(1, keepdim=True) / n
        g_x = torch.addcmul(mean * p - level, x, -p).addcmul_(g, k)
        return g_x, sums.sum((0, 2, 3)), (q * products).sum((0, 2, 3)), None, None


def widened(x: Tensor) -> Tensor:
    """bf16 as fp32, anything else as it is."""
    return x.float() if x.dtype is torch.bfloat16 else x
