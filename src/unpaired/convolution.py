"""2d convolutions: on a CPU those of small maps by matrix products and those of many channels by tiles, and those that
are differentiated twice.

A convolution's kernels lay weights out anew for each call, and gather their gradient in large buffers: where a map has
few positions for so many weights, that is most of the work. The product with a matrix of patches does neither. In fp32
3x3 and 4x4 of many channels are faster by `winograd.py`.

A gradient penalty differentiates twice. Torch's second derivative with regard to a kernel is a convolution whose
kernels are as large as the maps and whose images are the channels: slow on a CPU. It is the gradient of a kernel like
any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from unpaired import winograd

LAST = torch.channels_last
LEAST = 2**17  # weights of a kernel from which it pays: below, calls cost more than they save
_of_inputs = False  # the gradient that is being made is that of the images alone


class How(NamedTuple):
    """What `aten::convolution_backward` wants to know."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int] = (1, 1)
    transposed: bool = False
    output_padding: Sequence[int] = (0, 0)
    groups: int = 1


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` by `conv2d`: padded with zeros, neither dilated nor in groups."""

    def forward(self, x: Tensor) -> Tensor:
        return conv2d(x, self.weight, self.bias, self.stride, self.padding)  # type: ignore[arg-type]


class ConvTranspose2d(nn.ConvTranspose2d):
    """`nn.ConvTranspose2d`, with its small maps as those of `conv2d`."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if output_size or not able(x, self.weight) or not few(x, self.weight, positions(x)):
            return super().forward(x, output_size)
        how = How(self.stride, self.padding)  # type: ignore[arg-type]
        return Transposed.apply(narrowed(x), self.weight, self.bias, how, self.output_padding)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
) -> Tensor:
    """`F.conv2d`: on a CPU by matrix products or by tiles, where these are faster. The same to rounding."""
    how = How(pair(stride), pair(padding))
    if able(x, weight):
        h, w = sides(x, weight, how)
        if min(h, w) > 0 and (few(x, weight, len(x) * h * w) or tiled(narrowed(x), weight, how)):
            return Convolution.apply(narrowed(x), weight, bias, how)
    return F.conv2d(x, weight, bias, how.stride, how.padding)


def able(x: Tensor, weight: Tensor) -> bool:
    """Whether products may take the place of convolutions by `weight` (C', C, k, k)."""
    large = weight.numel() >= LEAST and weight.shape[2:].numel() > 1
    return large and x.is_cpu and not torch.compiler.is_compiling()


def few(x: Tensor, weight: Tensor, places: int) -> bool:
    """Whether the gradient of `weight` is faster as a product, for that many positions of C'."""
    size = 2 if torch.is_autocast_enabled("cpu") else x.element_size()
    return 0 < places <= (8 if size == 2 else 2) * len(weight)


def tiny(weight: Tensor, places: int) -> bool:
    """Whether the convolution and the gradient of its input are, too."""
    return 4 * places <= len(weight)


def tiled(x: Tensor, weight: Tensor, how: How) -> bool:
    """Whether tiles are faster, for `x` and `weight` that are `able`."""
    size = tuple(weight.shape[2:])
    if x.dtype is not torch.float32 or size not in ((3, 3), (4, 4)) or list(how.stride) != [1, 1]:
        return False
    return winograd.pays(len(x), *sides(x, weight, how), weight.shape[1], len(weight), size[0])


def narrowed(x: Tensor) -> Tensor:
    """In the format of autocast, which does not look into functions of our own."""
    return x.to(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else x


def pair(n: int | Sequence[int]) -> list[int]:
    return [n, n] if isinstance(n, int) else list(n)


class Twice(TorchFunctionMode):
    """While it lasts, 2d convolutions are such ones. Images that are leaves get no `grad` of their own."""

    active = False

    def __enter__(self) -> Twice:
        self.before, Twice.active = Twice.active, True
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        Twice.active = self.before
        super().__exit__(*error)

    def __torch_function__(
        self, func: Callable, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is F.conv2d:
            return convolve(*args, **kwargs or {})
        return func(*args, **kwargs or {})


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """`F.conv2d`, under `Twice`."""
    how = How(pair(stride), pair(padding), pair(dilation), groups=groups)
    return Convolution.apply(x, weight, bias, how)


@contextmanager
def of_inputs() -> Iterator[None]:
    """While it lasts, gradients are those of what goes into the networks, not those of kernels."""
    global _of_inputs
    _of_inputs = True
    try:
        yield
    finally:
        _of_inputs = False


def of_inputs_alone() -> bool:
    """Whether it lasts."""
    return _of_inputs


def once(backward: Callable) -> Callable:
    """A backward pass that has no derivative, and says so. Torch's own mark is silent where what comes in is constant,
    as it is under a sum of scores."""

    @wraps(backward)
    def checked(ctx: Any, *g: Any) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(f"{type(ctx).__name__} cannot be differentiated twice.")
        return backward(ctx, *g)

    return checked


def used(ctx: Any, i: int) -> bool:
    """Whether the backward pass that runs goes on to a node's input number i, a tensor as all before it.

    `needs_input_grad` is true of kernels too that do not move in this pass, as those of D while G learns.
    """
    node = ctx.next_functions[i][0] if ctx.needs_input_grad[i] else None
    try:
        return node is not None and torch._C._will_engine_execute_node(node)
    except RuntimeError:  # a leaf, the gradient of which `autograd.grad` is to return
        return True


class Convolution(torch.autograd.Function):
    """In the format of `x`; weights are kept in their own and narrowed again for the backward pass, which is cheap."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, how: How) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how, ctx.images = how, Twice.active and x.is_leaf
        b = None if bias is None else bias.to(x.dtype)
        return convolution(x, weight.to(x.dtype), b, how)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        w = weight.to(x.dtype)
        if _of_inputs:
            return OfInput.apply(g, w, x.detach(), ctx.how), None, None, None
        wants_x, wants_weight, wants_bias = (used(ctx, i) for i in range(3))
        return (
            of_input(g, w, x, ctx.how) if wants_x and not ctx.images else None,
            of_kernel(g, x, w, ctx.how).to(weight.dtype) if wants_weight else None,
            g.sum((0, 2, 3), dtype=weight.dtype) if wants_bias else None,
            None,
        )


class OfInput(torch.autograd.Function):
    """The gradient of a convolution's input, as a function of that of its output and of its kernel; linear in both."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, weight: Tensor, x: Tensor, how: How) -> Tensor:
        ctx.save_for_backward(g, weight)
        ctx.how = how
        return of_input(g, weight, x, how)

    @staticmethod
    @once
    def backward(ctx: Any, gg: Tensor) -> tuple[Tensor | None, ...]:
        g, weight = ctx.saved_tensors
        wants_g, wants_weight, *_ = ctx.needs_input_grad
        return (
            convolution(gg, weight, None, ctx.how) if wants_g else None,
            of_kernel(g, gg, weight, ctx.how) if wants_weight else None,
            None,
            None,
        )


class Transposed(torch.autograd.Function):
    """A transposed convolution: the gradient of the input of one that goes from its output to its input."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, how: How, more: Sequence[int]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = how
        w, b = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
        if not tiny(weight, positions(x)):
            return F.conv_transpose2d(x, w, b, how.stride, how.padding, more)
        sides = zip(x.shape[2:], w.shape[2:], how.stride, how.padding, more, strict=True)
        size = [(n - 1) * s - 2 * p + k + m for n, k, s, p, m in sides]
        return gathered(x, w, b, how, size)

    @staticmethod
    @once
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = (used(ctx, i) for i in range(3))
        w = weight.to(x.dtype)
        return (
            convolution(g, w, None, ctx.how) if wants_x else None,
            of_kernel(x, g, w, ctx.how).to(weight.dtype) if wants_weight else None,
            g.sum((0, 2, 3), dtype=weight.dtype) if wants_bias else None,
            None,
            None,
        )


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, how: How) -> Tensor:
    h, w = sides(x, weight, how)
    here = by_formulas(x, weight, how)
    if here and tiled(x, weight, how):
        return winograd.convolution(x, weight, bias, how.padding)
    if not here or not tiny(weight, len(x) * h * w):
        return F.conv2d(x, weight, bias, how.stride, how.padding, how.dilation, how.groups)
    rows, columns = by_taps(weight).flatten(1), patches(x, weight, how).T
    y = rows @ columns if bias is None else torch.addmm(bias[:, None], rows, columns)
    return as_map(y.view(-1, len(x), h, w).transpose(0, 1), x.dtype)


def of_input(g: Tensor, weight: Tensor, x: Tensor, how: How) -> Tensor:
    """The gradient of an input `x`, of which the shape matters alone, from that of the output (B, C', h, w)."""
    if by_formulas(g, weight, how) and tiled(x, weight, how):
        return winograd.of_input(g, weight, x, how.padding)
    if by_formulas(g, weight, how) and tiny(weight, positions(g)):
        return gathered(g, weight, None, how, x.shape[2:])
    only = [True, False, False]
    return torch.ops.aten.convolution_backward(g, x, weight, None, *how, only)[0]


def gathered(
    g: Tensor, weight: Tensor, bias: Tensor | None, how: How, size: Sequence[int]
) -> Tensor:
    """`of_input` by a product: what each position gives to the patch that it saw, summed up."""
    b, _, h, w = g.shape
    taps = (pixels(g) @ by_taps(weight).flatten(1)).view(b, h, w, *weight.shape[2:], -1)
    (s, t), (p, q), (height, width) = how.stride, how.padding, size
    wide = torch.promote_types(g.dtype, torch.float32)
    whole = g.new_zeros(b, height + 2 * p, width + 2 * q, weight.shape[1], dtype=wide)
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            whole[:, i : i + s * h : s, j : j + t * w : t] += taps[:, :, :, i, j]
    whole = whole[:, p : p + height, q : q + width]
    whole = whole if bias is None else whole + bias
    return as_map(whole.permute(0, 3, 1, 2), g.dtype)


def of_kernel(g: Tensor, x: Tensor, weight: Tensor, how: How) -> Tensor:
    """The gradient of a kernel, of which the shape matters alone."""
    if by_formulas(g, weight, how) and tiled(x, weight, how):
        return winograd.of_kernel(g, x, weight, how.padding)
    if not by_formulas(g, weight, how) or not few(g, weight, positions(g)):
        only = [False, True, False]
        return torch.ops.aten.convolution_backward(g, x, weight, None, *how, only)[1]
    c, _, kh, kw = weight.shape
    found = pixels(g).T @ patches(x, weight, how)
    return found.view(c, kh, kw, -1).permute(0, 3, 1, 2)


def by_formulas(x: Tensor, weight: Tensor, how: How) -> bool:
    """Whether there are formulas here for it: not for derivatives of derivatives."""
    plain = list(how.dilation) == [1, 1] and how.groups == 1
    return plain and able(x, weight) and not torch.is_grad_enabled()


def positions(x: Tensor) -> int:
    return x.shape[0] * x.shape[2] * x.shape[3]


def sides(x: Tensor, weight: Tensor, how: How) -> tuple[int, int]:
    h, w = (
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(
            x.shape[2:], weight.shape[2:], how.stride, how.padding, how.dilation, strict=True
        )
    )
    return h, w


def patches(x: Tensor, weight: Tensor, how: How) -> Tensor:
    """What each position of the output sees: (B, C, H, W) -> (B h w, k k C), in the order of `by_taps`."""
    (h, w), (kh, kw), (s, t), (p, q) = (
        sides(x, weight, how),
        weight.shape[2:],
        how.stride,
        how.padding,
    )
    x = x.permute(0, 2, 3, 1)
    x = F.pad(x, (0, 0, q, q, p, p)).contiguous() if p or q else x.contiguous()
    b, _, width, c = x.shape
    image, line = x.stride(0), width * c
    seen = x.as_strided((b, h, w, kh, kw * c), (image, s * line, t * c, line, 1))
    return seen.reshape(b * h * w, kh * kw * c)


def pixels(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B H W, C)."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def as_map(y: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy, channels last: what a function of our own gives must not be a view, or nothing may change it in place."""
    return torch.empty(y.shape, dtype=dtype, memory_format=LAST).copy_(y)


def by_taps(weight: Tensor) -> Tensor:
    """(C', C, k, k) -> (C', k k, C): as a channels-last kernel lies in memory."""
    return weight.permute(0, 2, 3, 1).flatten(1, 2)
