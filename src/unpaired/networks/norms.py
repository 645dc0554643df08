"""Normalisation of maps, with gradients written out: two passes over a map where autograd takes a dozen.

The plain formulas (`torch.var_mean`, a product, a sum) give the same numbers to rounding (`tests/test_blocks.py`) and
took four times as long on a CPU; torch's compiler fuses them, and is given these. Statistics are in fp32 where the map
is bf16. On a CPU maps of bf16 go through torch's kernels of batch norm, which read and write them as they are: a third
of the time that fp32 in between takes. A channel of a sample is a channel of theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    if torch.compiler.is_compiling():  # which fuses the plain formula
        wide, k, b = widened(x), widened(scale)[:, :, None, None], widened(shift)[:, :, None, None]
        variance, mean = torch.var_mean(wide, (2, 3), correction=0, keepdim=True)
        y = (wide - mean) * (variance + eps).rsqrt() * k + b
        return (y if slope is None else F.leaky_relu(y, slope)).to(x.dtype)
    if fused(x) and not torch.is_grad_enabled():
        return activated(
            in_turn(x, widened(scale), widened(shift), None, None, True, 0.0, eps), slope
        )
    return remade_by_its_node(Standardise.apply(x, shift, scale, eps, slope))


def remade_by_its_node(y: Tensor) -> Tensor:
    """What one of the functions below gave, to be made again from what its node keeps."""
    return remade(y, partial(again, y.grad_fn))


def again(ctx: Any) -> Tensor:
    x, k, b = ctx.saved_tensors[:3]
    return apart(activated(scaled(x, k, b), ctx.slope).to(x.dtype), k.shape)


def activated(y: Tensor, slope: float | None) -> Tensor:
    """In place."""
    return y if slope is None else F.leaky_relu_(y, slope)


def before(g: Tensor, x: Tensor, k: Tensor, b: Tensor, slope: float | None) -> Tensor:
    """The gradient before the activation."""
    if slope is None:
        return g
    return torch.ops.aten.leaky_relu_backward(g, scaled(x, k, b), slope, False)


class Standardise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shift: Tensor, scale: Tensor, eps: float, slope: float | None
    ) -> Tensor:
        shape, shift, scale = x.shape[:2], widened(shift), widened(scale)
        if fused(x):
            x = beside(x)
            rows = (scale.flatten(), shift.flatten(), None, None)
            y, *found = torch.native_batch_norm(x, *rows, True, 0.0, eps)
            mean, r = (v.view(shape) for v in found)
        else:
            wide = widened(x)
            mean = wide.mean((2, 3))
            square = (wide - mean[:, :, None, None]).square_().mean((2, 3))
            r = (square + eps).rsqrt_()  # 1 / std
        k = scale * r
        b = shift - mean * k
        y = apart(y, shape) if fused(x) else scaled(x, k, b)
        ctx.save_for_backward(x, k, b, mean, r, scale)
        ctx.slope = slope
        return activated(y, slope).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, k, b, mean, r, scale = ctx.saved_tensors
        if fused(x):
            g = before(beside(g), x, k, b, ctx.slope)
            rows = (scale.flatten(), None, None, mean.flatten(), r.flatten())
            g_x, g_scale, g_shift = torch.ops.aten.native_batch_norm_backward(
                g, x, *rows, True, 0.0, [True, True, True]
            )
            return apart(g_x, k.shape), g_shift.view_as(k), g_scale.view_as(k), None, None
        x, g = widened(x), before(widened(g), x, k, b, ctx.slope)
        g_shift = g.mean((2, 3))
        g_scale = ((g * x).mean((2, 3)) - mean * g_shift) * r
        a = -k * r * g_scale
        g_x = scaled(x, a, -k * g_shift - mean * a).addcmul_(g, k[:, :, None, None])
        n = x.shape[2] * x.shape[3]
        return g_x, n * g_shift, n * g_scale, None, None


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
        if torch.compiler.is_compiling():
            wide, gamma, beta = widened(x), self.gamma[:, None, None], self.beta[:, None, None]
            variance, mean = torch.var_mean(wide, (1, 2, 3), keepdim=True)
            y = (wide - mean) / (variance.sqrt() + self.eps) * gamma + beta
            return (y if slope is None else F.leaky_relu(y, slope)).to(x.dtype)
        if fused(x) and not torch.is_grad_enabled():
            x = x.contiguous(memory_format=torch.channels_last)
            *_, k, b = layer_statistics(x, self.beta, self.gamma, self.eps)
            rest = torch.zeros_like(self.beta), torch.ones_like(self.beta), False, 0.0, 0.0
            return activated(in_turn(x, k, b, *rest), slope)
        return remade_by_its_node(StandardiseLayer.apply(x, self.beta, self.gamma, self.eps, slope))


class StandardiseLayer(torch.autograd.Function):
    """gamma * (x - mean) / (std + eps) + beta, statistics per sample, gamma and beta (C,)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, beta: Tensor, gamma: Tensor, eps: float, slope: float | None
    ) -> Tensor:
        if fused(x):
            x = x.contiguous(memory_format=torch.channels_last)
        mean, std, q, k, shift = layer_statistics(x, beta, gamma, eps)
        x = beside(x) if fused(x) else x
        ctx.save_for_backward(x, k, shift, mean, std, q)
        ctx.slope = slope
        return apart(activated(scaled(x, k, shift), slope).to(x.dtype), k.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, k, shift, mean, std, q = ctx.saved_tensors
        n = g[0].numel()
        if fused(x):
            g = before(beside(g), x, k, shift, ctx.slope)
            one, middle = torch.ones(k.numel()), mean.expand_as(k).flatten()
            _, products, sums = torch.ops.aten.native_batch_norm_backward(
                g, x, one, None, None, middle, one, True, 0.0, [False, True, True]
            )
            products, sums = products.view_as(k), sums.view_as(k)
        else:
            x, g = widened(x), before(widened(g), x, k, shift, ctx.slope)
            sums = g.sum((2, 3))
            products = (g * x).sum((2, 3)) - mean * sums
        inner = (k * products).sum(1, keepdim=True)
        p = (q * inner / ((n - 1) * std)).masked_fill(std == 0, 0)  # of a blank map: not 0 / 0
        level = (k * sums).sum(1, keepdim=True) / n
        a, b = (-p).expand_as(k), (mean * p - level).expand_as(k)
        if fused(x):
            g_x = apart(scaled(g, k, b).add_(scaled(x, a, torch.zeros_like(k))), k.shape)
        else:
            g_x = scaled(x, a, b).addcmul_(g, k[:, :, None, None])
        return g_x, sums.sum(0), (q * products).sum(0), None, None


def layer_statistics(x: Tensor, beta: Tensor, gamma: Tensor, eps: float) -> tuple[Tensor, ...]:
    """Mean, std and 1 / (std + eps) of each sample (B, 1), and k, b (B, C) by which its norm is k x + b."""
    n, (b, c, h, w) = x[0].numel(), x.shape
    if fused(x):
        one, zero = torch.ones_like(gamma), torch.zeros_like(gamma)
        _, mean, r = torch.native_group_norm(x, one, zero, b, c, h * w, 1, 0.0)
        square = r**-2  # (B, 1), as the mean
    else:
        wide = widened(x)
        mean = wide.mean((2, 3)).mean(1, keepdim=True)
        square = (wide - mean[:, :, None, None]).square_().mean((2, 3)).mean(1, keepdim=True)
    std = (square * (n / (n - 1))).sqrt_()
    q = 1 / (std + eps)
    k = gamma * q
    return mean, std, q, k, beta - mean * k


def in_turn(x: Tensor, k: Tensor, b: Tensor, *rest: Any) -> Tensor:
    """Torch's batch norm of each sample by its own k and b (B, C): without laying them side by side, which copies."""
    x = x.contiguous(memory_format=torch.channels_last)
    y, spare = torch.empty_like(x), (k.new_empty(x.shape[1]), k.new_empty(x.shape[1]))
    for i in range(len(x)):
        torch.native_batch_norm(x[i : i + 1], k[i], b[i], *rest, out=(y[i : i + 1], *spare))
    return y


def fused(x: Tensor) -> bool:
    """Whether torch's kernels of batch norm are faster."""
    return x.is_cpu and x.dtype is torch.bfloat16


def beside(x: Tensor) -> Tensor:
    """The channels of all samples side by side: (B, C, H, W) -> (1, B C, H, W), channels last."""
    b, c, h, w = x.shape
    y = x.permute(2, 3, 0, 1).reshape(1, h, w, b * c).permute(0, 3, 1, 2)
    return y.contiguous(memory_format=torch.channels_last)


def apart(x: Tensor, shape: Sequence[int]) -> Tensor:
    """The reverse: (B, C, H, W), channels last; what is not side by side as it is."""
    if x.shape[:2] == shape:
        return x
    y = x.permute(0, 2, 3, 1)[0].unflatten(2, shape)
    return y.permute(2, 3, 0, 1).contiguous(memory_format=torch.channels_last)


def scaled(x: Tensor, k: Tensor, b: Tensor) -> Tensor:
    """k * x + b for each sample and channel, k and b (B, C)."""
    if not fused(x):
        return torch.addcmul(b[:, :, None, None], widened(x), k[:, :, None, None])
    k, b = k.flatten(), b.flatten()
    zero, one = torch.zeros_like(k), torch.ones_like(k)
    return torch.native_batch_norm(x, k, b, zero, one, False, 0.0, 0.0)[0]


def widened(x: Tensor) -> Tensor:
    """bf16 as fp32, anything else as it is."""
    return x.float() if x.dtype is torch.bfloat16 else x
