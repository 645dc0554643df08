"""Maps that autograd does not keep for the backward pass, but makes again when it comes to them.

Between two convolutions stand a norm, an activation and padding. Plain, each of them and the next convolution keep a
map; here the norm keeps its input and nothing else is kept, for all that follows is a cheap function of it. Same
numbers, about half the memory, no time that could be measured (docs/log.md). `checkpointed` goes further, at a price.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from unpaired.convolution import Twice

LEAST = 2**20  # bytes of a map from which it pays: below, time goes into calls and not into memory
Map = Callable[[Tensor], Tensor]
_within = False  # a block that is run again as a whole


def pays(x: Tensor) -> bool:
    # The compiler comes first: it has no size to tell
    return not torch.compiler.is_compiling() and not _within and x.nbytes >= LEAST


def remade(y: Tensor, make: Callable[[], Tensor]) -> Tensor:
    """`y`, of which `without` knows that `make` gives it again."""
    if pays(y) and y.grad_fn is not None:
        y.again = make  # type: ignore[attr-defined]
    return y


def without(x: Tensor, conv: Map) -> Tensor:
    """conv(x); where `x` can be made again, autograd does not keep it."""
    again = getattr(x, "again", None)
    if again is None or _within:
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
    if not torch.is_grad_enabled() or not pays(x):
        return conv(pad(x))
    again = getattr(x, "again", x.detach)
    return without(remade(pad(x), lambda: pad(again())), conv)


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


def checkpointed(net: nn.Module) -> None:
    """From now on a block of `net` keeps its inputs alone for the backward pass, which runs it again: same numbers.

    A block is a member of a sequence that has parts of its own. One with running statistics, which would count its
    input twice, stays as it is.
    """
    for part in net.children():
        own = isinstance(net, nn.Sequential | nn.ModuleList) and any(True for _ in part.children())
        counts = any(getattr(m, "track_running_stats", False) for m in part.modules())
        if own and not counts:
            part.forward = again_as_a_whole(part, part.forward)
        else:
            checkpointed(part)


def again_as_a_whole(block: nn.Module, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def whole(*args: Any, **kwargs: Any) -> Tensor:
        with within():
            return forward(*args, **kwargs)

    def twice(*args: Any, **kwargs: Any) -> Tensor:
        with Twice():
            return whole(*args, **kwargs)

    def run(*args: Any, **kwargs: Any) -> Tensor:
        # What is frozen now may not be when it is run again: then other maps would be kept
        learns = all(p.requires_grad for p in block.parameters())
        if not learns or not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        again = twice if Twice.active else whole
        return checkpoint(again, *args, use_reentrant=False, **kwargs)

    return run


@contextmanager
def within() -> Iterator[None]:
    """Nothing is made again by itself in here."""
    global _within
    before, _within = _within, True
    try:
        yield
    finally:
        _within = before
