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
from torch.nn import functional as F

from unpaired.convolution import of_inputs_alone, once
from unpaired.networks.memory import remade


def adain(
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
    eps: float = 1e-5,
    slope: float | None = None,
    correction: int = 0,
) -> Tensor:
    """scale * (x - mean(x)) / std(x) + shift, statistics per sample and channel (Huang and Belongie, ICCV 2017).

    x (B, C, H, W), shift and scale (B, C). The variance is the population's, the unbiased one with a `correction` of 1;
    eps inside the root. With a `slope`, leaky ReLU of it, or ReLU (0).
    """
    if torch.compiler.is_compiling():  # which fuses the plain formula
        wide, k, b = widened(x), widened(scale)[:, :, None, None], widened(shift)[:, :, None, None]
        variance, mean = torch.var_mean(wide, (2, 3), correction=correction, keepdim=True)
        y = (wide - mean) * (variance + eps).rsqrt() * k + b
        return (y if slope is None else F.leaky_relu(y, slope)).to(x.dtype)
    if correction:  # of that variance the population's is a share
        share = 1 - correction / x[0, 0].numel()
        scale, eps = scale * share**0.5, eps * share
    return remade_by_its_node(Standardise.apply(x, shift, scale, eps, slope))


def remade_by_its_node(y: Tensor) -> Tensor:
    """What one of the functions below gave, to be made again from what its node keeps."""
    return remade(y, partial(again, y.grad_fn))


def again(ctx: Any) -> Tensor:
    """Kept from then on for the node's own backward pass, which comes next."""
    if ctx.y is None:
        x, k, b = ctx.saved_tensors[:3]
        ctx.y = apart(activated(scaled(x, k, b), ctx.slope).to(x.dtype), k.shape)
    return ctx.y


def activated(y: Tensor, slope: float | None) -> Tensor:
    """In place."""
    return y if slope is None else F.leaky_relu_(y, slope)


def before(ctx: Any, g: Tensor, x: Tensor, k: Tensor, b: Tensor) -> Tensor:
    """The gradient before the activation, laid out as `x`, the map that `ctx` keeps."""
    y, ctx.y = ctx.y, None
    if ctx.slope is None:
        return joined(g)
    if y is not None:  # its sign is that of what was activated
        return joined(torch.ops.aten.leaky_relu_backward(g, y, ctx.slope, True))
    return torch.ops.aten.leaky_relu_backward(joined(g), scaled(x, k, b), ctx.slope, False)


class Standardise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shift: Tensor, scale: Tensor, eps: float, slope: float | None
    ) -> Tensor:
        shape, shift, scale = x.shape[:2], widened(shift), widened(scale)
        if fused(x):
            x = joined(x)
            y, mean, r = batch_norm(x, scale, shift, None, None, True, 0.0, eps)
        else:
            wide = widened(x)
            mean = wide.mean((2, 3))
            square = (wide - mean[:, :, None, None]).square_().mean((2, 3))
            r = (square + eps).rsqrt_()  # 1 / std
        k = scale * r
        b = shift - mean * k
        y = y if fused(x) else scaled(x, k, b)
        ctx.save_for_backward(x, k, b, mean, r, scale)
        ctx.slope, ctx.y = slope, None
        return apart(activated(y, slope).to(x.dtype), shape)

    @staticmethod
    @once
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, k, b, mean, r, scale = ctx.saved_tensors
        g = before(ctx, g, x, k, b)
        if fused(x):
            g_x, g_scale, g_shift = batch_norm_backward(g, x, scale, mean, r, [True, True, True])
            return apart(g_x, k.shape), g_shift, g_scale, None, None
        x, g = widened(x), widened(g)
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
        x = joined(x)
        ctx.save_for_backward(x, k, shift, mean, std, q)
        ctx.slope, ctx.y = slope, None
        return apart(activated(scaled(x, k, shift), slope).to(x.dtype), k.shape)

    @staticmethod
    @once
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, k, b, mean, std, q = ctx.saved_tensors
        n, g = g[0].numel(), before(ctx, g, x, k, b)
        if fused(x):
            one = torch.ones_like(k)
            _, products, sums = batch_norm_backward(
                g, x, one, mean.expand_as(k), one, [False, True, True]
            )
        else:
            x, g = widened(x), widened(g)
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


class FilterResponseNorm(nn.Module):
    """max(gamma x / rms(x) + beta, tau), norm and activation (Singh and Krishnan, CVPR 2020)."""

    def __init__(self, c: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1, c, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, c, 1, 1))
        self.tau = nn.Parameter(torch.zeros(1, c, 1, 1))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            r = (widened(x).square().mean((2, 3), keepdim=True) + self.eps).rsqrt()
            h = torch.addcmul(self.beta - self.tau, widened(x), self.gamma * r)
            return (F.relu(h) + self.tau).to(x.dtype)
        y = FilterResponse.apply(x, self.gamma, self.beta, self.tau, self.eps)
        node = y.grad_fn
        return remade(y, lambda: response(*node.saved_tensors).to(x.dtype))


def response(x: Tensor, gamma: Tensor, beta: Tensor, tau: Tensor, r: Tensor) -> Tensor:
    """max(s x + beta, tau), in fp32."""
    return above(x, gamma, beta, tau, r).add_(tau)


def above(x: Tensor, gamma: Tensor, beta: Tensor, tau: Tensor, r: Tensor) -> Tensor:
    """By how much s x + beta is above tau, 0 where it is not."""
    return torch.addcmul(beta - tau, widened(x), gamma * r).relu_()


class FilterResponse(torch.autograd.Function):
    """y = max(s x + beta, tau), s = gamma r, r = 1 / sqrt(mean(x^2) + eps) of each sample and channel, in fp32."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, tau: Tensor, eps: float
    ) -> Tensor:
        wide = widened(x)
        r = (wide.square().mean((2, 3), keepdim=True) + eps).rsqrt_()
        ctx.save_for_backward(x, gamma, beta, tau, r)
        return response(wide, gamma, beta, tau, r).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, gamma, beta, tau, r = ctx.saved_tensors
        if of_inputs_alone():
            g_x = FilterResponseOfInput.apply(g, x, gamma, beta, tau, r)
            return g_x, None, None, None, None
        if torch.is_grad_enabled():
            raise RuntimeError("FilterResponse cannot be differentiated twice but by losses.r1.")
        x, g = widened(x), widened(g)
        passed = torch.ops.aten.threshold_backward(g, above(x, gamma, beta, tau, r), 0)
        g_x, inner = filter_response_backward(passed, x, gamma, r)
        g_beta = passed.sum((0, 2, 3), keepdim=True)
        g_tau = g.sum((0, 2, 3), keepdim=True) - g_beta
        return g_x, (r * inner).sum(0, keepdim=True), g_beta, g_tau, None


class FilterResponseOfInput(torch.autograd.Function):
    """The gradient of the input as a function of that of the output, of the input and of gamma."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, gamma: Tensor, beta: Tensor, tau: Tensor, r: Tensor
    ) -> Tensor:
        wide = widened(x)
        passed = torch.ops.aten.threshold_backward(widened(g), above(wide, gamma, beta, tau, r), 0)
        g_x, inner = filter_response_backward(passed, wide, gamma, r)
        ctx.save_for_backward(passed, inner, x, gamma, beta, tau, r)
        return g_x.to(x.dtype)

    @staticmethod
    @once
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        g, inner, x, gamma, beta, tau, r = ctx.saved_tensors
        v, x = widened(v), widened(x)
        n = x.shape[2] * x.shape[3]
        of_g, with_x = filter_response_backward(v, x, gamma, r)  # it is symmetric in g and v
        of_g = torch.ops.aten.threshold_backward(of_g, above(x, gamma, beta, tau, r), 0)
        with_g = (v * g).sum((2, 3), keepdim=True)
        c = gamma * r**3 / n
        of_r = gamma * (with_g - 3 * r**2 / n * inner * with_x)
        of_x = (g * (-c * with_x)).addcmul_(v, -c * inner).addcmul_(x, of_r * r**3 / -n)
        of_gamma = (r * with_g - r**3 / n * inner * with_x).sum(0, keepdim=True)
        return of_g, of_x, of_gamma, None, None, None


def filter_response_backward(
    g: Tensor, x: Tensor, gamma: Tensor, r: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradient of x, and sum(g x) (B, C, 1, 1), which those of gamma and r are made of."""
    inner = (g * x).sum((2, 3), keepdim=True)
    s = gamma * r
    return torch.addcmul(g * s, x, inner * s * r**2 / -(x.shape[2] * x.shape[3])), inner


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


def fused(x: Tensor) -> bool:
    """Whether torch's kernels of batch norm are faster."""
    return x.is_cpu and x.dtype is torch.bfloat16


def joined(x: Tensor) -> Tensor:
    """What `fused` kernels are given, channels last: small samples side by side, as one; all else as it is.

    Side by side: the channels of all samples, (B, C, H, W) -> (1, B C, H, W). It is a copy, which large samples are
    spared: they are normalised in turn.
    """
    if not fused(x):
        return x
    b, c, h, w = x.shape
    if b > 1 and x[0].nbytes < TURN:
        x = x.permute(2, 3, 0, 1).reshape(1, h, w, b * c).permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last)


TURN = 2**18  # bytes of a sample


def apart(x: Tensor, shape: Sequence[int]) -> Tensor:
    """The reverse: (B, C, H, W), channels last; what is not side by side as it is."""
    if x.shape[:2] == shape:
        return x
    y = x.permute(0, 2, 3, 1)[0].unflatten(2, shape)
    return y.permute(2, 3, 0, 1).contiguous(memory_format=torch.channels_last)


def batch_norm(x: Tensor, k: Tensor, b: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Torch's, of what is `joined`, with k and b (B, C); the statistics as these, where it makes them."""
    if len(x) == 1:
        y, *found = torch.native_batch_norm(x, k.flatten(), b.flatten(), *rest)
        mean, r = (v.view(-1, k.shape[1]) for v in found)
        return y, mean, r
    k, b = k.contiguous(), b.contiguous()  # else torch takes a path several times as slow
    y, mean, r = torch.empty_like(x), torch.empty_like(k), torch.empty_like(k)
    for i in range(len(x)):
        out = y[i : i + 1], mean[i], r[i]
        torch.native_batch_norm(x[i : i + 1], k[i], b[i], *rest, out=out)
    return y, mean, r


def batch_norm_backward(
    g: Tensor, x: Tensor, k: Tensor, mean: Tensor, r: Tensor, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the map, k and b, those that are wanted; g and x are `joined`, the rest (B, C)."""

    def one(g: Tensor, x: Tensor, k: Tensor, mean: Tensor, r: Tensor) -> tuple[Tensor, ...]:
        return torch.ops.aten.native_batch_norm_backward(
            g, x, k, None, None, mean, r, True, 0.0, wanted
        )

    if len(x) == 1:
        g_x, g_k, g_b = one(g, x, *(v.flatten() for v in (k, mean, r)))
        return g_x, g_k.view_as(k), g_b.view_as(k)
    parts = zip(g.split(1), x.split(1), k, mean, r, strict=True)
    maps, *rows = zip(*(one(*part) for part in parts), strict=True)
    g_k, g_b = map(torch.stack, rows)
    return torch.cat(maps) if wanted[0] else maps[0], g_k, g_b


def scaled(x: Tensor, k: Tensor, b: Tensor) -> Tensor:
    """k * x + b for each sample and channel, k and b (B, C); `fused` maps are `joined`."""
    if not fused(x):
        return torch.addcmul(b[:, :, None, None], widened(x), k[:, :, None, None])
    channels = x.shape[1]
    zero, one = k.new_zeros(channels), k.new_ones(channels)
    return batch_norm(x, k, b, zero, one, False, 0.0, 0.0)[0]


def widened(x: Tensor) -> Tensor:
    """bf16 as fp32, anything else as it is."""
    return x.float() if x.dtype is torch.bfloat16 else x
