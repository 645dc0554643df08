"""Convolutions that are differentiated twice, as a gradient penalty asks for.

Torch's second derivative with regard to a kernel is a convolution whose kernels are as large as the maps and whose
images are the channels: slow on a CPU. It is the gradient of a kernel like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_of_inputs = False  # the gradient that is being made is that of the images alone


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
    """`F.conv2d`."""
    stride, padding, dilation = (
        [n, n] if isinstance(n, int) else list(n) for n in (stride, padding, dilation)
    )
    return Convolution.apply(x, weight, bias, (stride, padding, dilation, False, [0, 0], groups))


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


class Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, how: tuple) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how, ctx.images = how, x.is_leaf
        return convolution(x, weight, bias, how)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        if _of_inputs:
            return OfInput.apply(g, weight, x.detach(), ctx.how), None, None, None
        wanted = list(ctx.needs_input_grad[:3])
        wanted[0] &= not ctx.images
        rows = [len(weight)] if wanted[2] else None
        found = torch.ops.aten.convolution_backward(g, x, weight, rows, *ctx.how, wanted)
        return *found, None


class OfInput(torch.autograd.Function):
    """The gradient of a convolution's input, as a function of that of its output and of its kernel; linear in both."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, weight: Tensor, x: Tensor, how: tuple) -> Tensor:
        ctx.save_for_backward(g, weight)
        ctx.how = how
        only_x = [True, False, False]
        return torch.ops.aten.convolution_backward(g, x, weight, None, *how, only_x)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gg: Tensor) -> tuple[Tensor | None, ...]:
        g, weight = ctx.saved_tensors
        only_kernel = [False, True, False]
        found = torch.ops.aten.convolution_backward(g, gg, weight, None, *ctx.how, only_kernel)
        return convolution(gg, weight, None, ctx.how), found[1], None, None


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, how: tuple) -> Tensor:
    stride, padding, dilation, _, _, groups = how
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
