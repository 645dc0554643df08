"""A second device, in software: its tensors are CPU tensors inside, and what a GPU refuses or waits for is found.

    with second_device.present() as device:
        method.to(device.name)
        ...
    device.waits  # what the processor would have waited for

As on a GPU, tensors of two devices do not mix, but for single numbers, and code that is for a CPU is not taken. Not
tried are a GPU's own kernels, and autocast.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

NAME = "second"
CPU = torch.device("cpu")
aten = torch.ops.aten
# What takes tensors of the CPU beside those of a GPU
MIXES = {aten.copy_.default, aten._to_copy.default, aten.index.Tensor, aten.index_put.default}
MIXES |= {aten.index_put_.default, aten._index_put_impl_.default}
# What the processor waits for, since it has to know the values
WAITS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default}
WAITS |= {aten._unique2.default, aten.equal.default}


class Module(_DummyBackendModule):
    def get_amp_supported_dtype(self):
        return [torch.bfloat16]


class There(torch.Tensor):
    """A tensor of the second device; `here` is what it holds."""

    @staticmethod
    def __new__(cls, here):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            here.size(),
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=torch.device(NAME, 0),
        )

    def __init__(self, here):
        self.here = here

    def __repr__(self):
        return f"There({self.here})"

    def tolist(self):
        waits.append(f"tolist at {line()}")
        return self.here.tolist()

    @classmethod
    def __torch_dispatch__(cls, f, types, args=(), kwargs=None):
        return compute(f, args, kwargs or {})


def is_there(x):
    return isinstance(x, There)


def compute(f, args, kwargs):
    """`f` of what tensors hold; of the second device where one of them is, or where it is asked for."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    there = any(map(is_there, tensors))
    wanted = kwargs.get("device")
    goes = torch.device(wanted).type == NAME if wanted is not None else there
    if there and f not in MIXES and any(not is_there(x) and x.dim() for x in tensors):
        raise RuntimeError(f"{f} of tensors of two devices: {[tuple(x.shape) for x in tensors]}")
    if there or goes:
        note(f, args, kwargs, goes)
    outer = {}  # what is changed in place is the same tensor afterwards

    def inner(x):
        if isinstance(x, torch.Tensor):
            held = x.here if is_there(x) else x
            outer[id(held)] = x
            return held
        return CPU if isinstance(x, torch.device) else x

    a, k = tree_map(inner, (args, kwargs))
    found = f(*a, **k)

    def wrapped(x):
        if not isinstance(x, torch.Tensor):
            return x
        return outer.get(id(x)) if id(x) in outer else There(x) if goes else x

    return tree_map(wrapped, found)


waits: list[str] = []


def note(f, args, kwargs, goes):
    """Keeps what a processor waits for, and the line that asks for it."""
    crosses = False
    if f is aten._to_copy.default:
        crosses = is_there(args[0]) != goes and not kwargs.get("non_blocking")
    elif f is aten.copy_.default:
        crosses = is_there(args[0]) != is_there(args[1]) and not any(args[2:])
    elif f in MIXES:  # by an index
        of = [x for x in args[1] if x is not None]
        crosses = any(x.dtype in (torch.bool, torch.uint8) or not is_there(x) for x in of)
    if crosses or f in WAITS:
        waits.append(f"{f} at {line()}")


def line():
    """Where our code was."""
    frame = sys._getframe()
    while frame and "/src/unpaired/" not in frame.f_code.co_filename:
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame else "a test"


class Mode(TorchDispatchMode):
    """Takes what makes tensors, too."""

    name, waits = NAME, waits

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        return compute(f, args, kwargs or {})


library: torch.library.Library | None = None


def register():
    """For torch, once a process; and what it makes and copies below the mode, as in `new_tensor`."""
    global library
    if library:
        return
    _setup_privateuseone_for_python_backend(NAME, backend_module=Module())
    library = torch.library.Library("aten", "IMPL")

    def made_by(f):
        return lambda *args, device=None, **kw: There(f(*args, device=CPU, **kw))

    for f in (aten.empty.memory_format, aten.empty_strided.default):
        library.impl(f, made_by(f), "PrivateUse1")

    def copied(source, to, non_blocking=False):
        return compute(aten.copy_.default, (to, source, non_blocking), {})

    library.impl("_copy_from", copied, "PrivateUse1")


@contextmanager
def present():
    """While it lasts the device exists. Inference mode, which its tensors cannot bear, is one without gradients."""
    register()
    mode = torch.autograd.grad_mode.inference_mode
    kept = mode.__enter__, mode.__exit__

    def enter(self):
        self.before = torch.is_grad_enabled()
        torch.set_grad_enabled(False)

    def leave(self, *error):
        torch.set_grad_enabled(self.before)

    mode.__enter__, mode.__exit__ = enter, leave
    waits.clear()
    try:
        with Mode() as device:
            yield device
    finally:
        mode.__enter__, mode.__exit__ = kept
