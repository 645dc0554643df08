"""Maps that autograd does not keep for the backward pass, but makes again when it comes to them.

Between two convolutions stand a norm, an activation and padding. Plain, each of them and the next convolution keep a
map; here the norm keeps its input and nothing else is kept, for all that follows is a cheap function of it. Same
numbers, about half the memory, no time that could be measured (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEAST = 2**20  # bytes of a map from which it pays: below, time goes into calls and not into memory
Map = Callable[[Tensor], Tensor]


def remade(y: Tensor, make: Callable[[], Tensor]) -> Tensor:
    """`y`, of which `without` knows that `make` gives it again."""
    if not torch.compiler.is_compiling() and y.nbytes >= LEAST and y.grad_fn is not None:
        y.again = make  # type: ignore[attr-defined]
    return y


def without(x: Tensor, conv: Map) -> Tensor:
    """conv(x); where `x` can be made again, autograd does not keep it."""
    again = getattr(x, "again", None)
    if again is None:
        return conv(x)
    mark = (x.data_ptr(), x.dtype, x.shape)

    def keep(t: Tensor) -> Tensor | None:
        return None if (t.data_ptr(), t.dtype, t.shape) == mark else t

    def give(kept: Tensor | None) -> Tensor:
        return again() if kept is None else kept

    with torch.autograd.graph.saved_tensors_hooks(keep, give):
        return conv(x)


def padded(x: Tensor, pad: Map, conv: Map) -> Tensor:
    """conv(pad(x)), for which autograd keeps `x` at most. `pad` may enlarge too: its gradient needs no values."""
    if torch.compiler.is_compiling() or x.nbytes < LEAST or not torch.is_grad_enabled():
        return conv(pad(x))
    device, again = x.device, getattr(x, "again", x.detach)

    def form(t: Tensor) -> Tensor:
        return torch.empty_like(t, device="meta")

    def blank(kept: Tensor) -> Tensor:
        return torch.empty_like(kept, device=device)

    with torch.autograd.graph.saved_tensors_hooks(form, blank):
        y = pad(x)
    return without(remade(y, lambda: pad(again())), conv)


def leaky_relu(x: Tensor, slope: float) -> Tensor:
    """`F.leaky_relu`, made again from `x`, which is kept."""
    origin = x.detach()
    return remade(F.leaky_relu(x, slope), lambda: F.leaky_relu(origin, slope))


def finished(y: Tensor, norm: Any, activation: Any) -> Tensor:
    """activation(norm(y)), in one where norm and activation allow it."""
    slope = 0.0 if isinstance(activation, nn.ReLU) else getattr(activation, "negative_slope", None)
    if slope is not None and getattr(norm, "activates", False):
        return norm(y, slope=slope)
    return activation(norm(y))
