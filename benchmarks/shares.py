"""Where the time of a training step goes, plain and ours: the share of each kind of work, by torch's profiler.

    python benchmarks/shares.py                       # every method at full size
    python benchmarks/shares.py --only-fast --cases munit

The kinds: convolutions (matrix products too), copies (of memory layout and of number format, joining), padding,
normalisation (forward and backward, whatever it is made of), elementwise, the optimizers and the averages, data
(decoding JPEGs of 512 px for one batch, cutting it and moving it to the device: the same reader feeds both steps), and
the rest: pooling, enlarging, sums, Python, waiting. On a CPU a convolution includes the copies of its kernel; on
a GPU times are those of kernels, and Python ahead of them is in the rest.

(Not `profile.py`: a script's folder comes first on the path, and Python's own profiler needs that name.)
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from running import apart, table
from steps import DOMAINS, Ours, Plain, device
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.profiler import ProfilerActivity, profile, record_function
from train_step import chosen, machine, parser, seconds, sizes, wait

from unpaired.config import Run
from unpaired.data.augment import View
from unpaired.data.batches import Batches, to_device
from unpaired.data.datasets import open_dataset

KINDS = (
    *("convolutions", "copies", "normalisation", "padding", "elementwise", "optimizer", "data"),
    "rest",
)
NORM = re.compile(r"(Norm|AdaIN)(\dd)?$")  # classes of modules
FUNCTION = re.compile(r"Standardise|[Nn]orm")  # autograd's names
OPERATIONS = (
    ("optimizer", re.compile(r"_foreach_|_fused_")),
    ("convolutions", re.compile(r"conv|linear|(^|::)(b?add)?b?mm|matmul|dot|embedding")),
    ("padding", re.compile(r"pad(_backward|\dd|$|_)|reflection|replication")),
    ("copies", re.compile(r"copy|clone|contiguous|::to$|::cat$|stack|reorder|Memcpy|flip")),
    ("normalisation", re.compile(r"(batch|instance|layer|group)_norm|::(var|std)(_|$)")),
    (
        "elementwise",
        re.compile(
            r"::(add|sub|rsub|mul|div|neg|pow|sqrt|rsqrt|square|exp|log|abs|sgn|sign|relu|leaky_relu|tanh|sigmoid"
            r"|softplus|threshold|clamp|clamp_min|clamp_max|maximum|minimum|where|masked_fill|addcmul|addcdiv|lerp"
            r"|gt|lt|ge|le|eq|ne|bitwise_and|reciprocal)(_backward)?_?$"
        ),
    ),
)


def shares(thing: Any, data: float) -> tuple[float, dict[str, float]]:
    """Milliseconds of a step with its data, and the share of each kind."""
    seconds(thing, 2)
    wall = min(seconds(thing) for _ in range(3))
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device() == "cuda")
    with marked_norms(), profile(activities=activities) as trace:
        start = time.perf_counter()
        thing.step()
        wait()
        profiled = time.perf_counter() - start
    spent, kind_of = dict.fromkeys(KINDS, 0.0), Kinds()
    gpu = device() == "cuda"
    for event in sorted(trace.events(), key=lambda e: e.time_range.start):
        if event.device_type == torch.autograd.DeviceType.CPU:  # with the kernels it launched
            kind = kind_of(event)  # of those without time too: backward asks for their kinds
            spent[kind] += (
                event.self_device_time_total if gpu else event.self_cpu_time_total
            ) / 1e6
    known = sum(v for k, v in spent.items() if k != "rest")
    clock = max(wall if gpu else profiled, known)  # the profiler slows what the CPU does
    result = {k: v / clock * wall / (wall + data) for k, v in spent.items()}
    result["data"] = data / (wall + data)
    result["rest"] = 1 - sum(v for k, v in result.items() if k != "rest")
    return 1e3 * (wall + data), result


class Kinds:
    """The kind of each event, asked in the order of time: what is within a norm, an optimizer or their backward is of
    their kind, unless it is a convolution, a copy or padding."""

    def __init__(self) -> None:
        self.forward: dict[
            int, str | None
        ] = {}  # of the last operation with a number of autograd's
        self.known: dict[Any, str | None] = {}

    def __call__(self, event: Any) -> str:
        around = self.around(event)
        if event.sequence_nr >= 0 and not event.name.startswith("autograd::"):
            self.forward[event.sequence_nr] = around
        own = next((kind for kind, names in OPERATIONS if names.search(event.name)), "rest")
        if around == "optimizer":
            return around
        return own if own in ("convolutions", "padding", "copies") else around or own

    def around(self, event: Any) -> str | None:
        """What the event is part of."""
        if event is None:
            return None
        key = event.id
        if key not in self.known:
            self.known[key] = self.begun(event) or self.around(event.cpu_parent)
        return self.known[key]

    def begun(self, event: Any) -> str | None:
        """What begins with this event."""
        if event.name.startswith(("Optimizer.step", "optimizer")):
            return "optimizer"
        if event.name == "norm":
            return "normalisation"
        if event.name.startswith("autograd::engine::evaluate_function"):
            if FUNCTION.search(event.name):
                return "normalisation"
            return self.forward.get(event.sequence_nr)
        return None


@contextmanager
def marked_norms() -> Iterator[None]:
    """Ranges named "norm" around modules and functions that normalise, "optimizer" around the plain averages."""
    open_ranges: list[Any] = []

    def before(module: Any, inputs: Any) -> None:
        if NORM.search(type(module).__name__):
            open_ranges.append(record_function("norm"))
            open_ranges[-1].__enter__()

    def after(module: Any, inputs: Any, output: Any) -> None:
        if NORM.search(type(module).__name__):
            open_ranges.pop().__exit__(None, None, None)

    def within(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kw: Any) -> Any:
            with record_function(name):
                return function(*args, **kw)

        return call

    functions = [
        f
        for f in torch.autograd.Function.__subclasses__()
        if f.__module__.startswith("unpaired") and FUNCTION.search(f.__name__)
    ]
    hooks = [register_module_forward_pre_hook(before), register_module_forward_hook(after)]
    with ExitStack() as stack:
        for f in functions:
            stack.enter_context(patch.object(f, "apply", within("norm", f.apply)))
        plain_average = within("optimizer", torch.Tensor.lerp_)
        stack.enter_context(patch.object(torch.Tensor, "lerp_", plain_average))
        stack.callback(lambda: [hook.remove() for hook in hooks])
        yield


def data_seconds(run: Run) -> float:
    """What one process takes for a batch of JPEGs of 512 px that it has not seen."""
    layout, n = run.method_class().layout, 2 * run.data.batch
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as root:
        for d in range(DOMAINS[layout]):
            folder = Path(root, f"domain_{d}")
            folder.mkdir()
            for i in range(n):
                coarse = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
                coarse.resize((512, 512), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg")
        data = run.data.model_copy(update={"root": root})
        pictures = open_dataset(data, layout).splits["train"]
        size, view = run.data.hw, View()
        read = Batches(pictures, layout, run.data.batch, size, steps=1)
        start = time.perf_counter()
        to_device(read[0][0], device(), view)
        wait()
        return time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> None:
    p = parser(__doc__)
    p.add_argument("--out", type=Path, default=Path("runs/shares.md"))
    args = apart(p, argv)
    rows = []
    for name, case in chosen(args).items():
        run = case.run([*sizes(case)[0], *args.settings])
        data = data_seconds(run)
        for cls in (Plain, Ours):
            ms, parts = shares(cls(run), data)
            row = [name, run.data.batch, cls.name, f"{ms:.0f}"]
            rows.append([*row, *(f"{parts[kind]:.0%}" for kind in KINDS)])
        args.out.parent.mkdir(parents=True, exist_ok=True)
        head = ("case", "batch", "step", "ms", *KINDS)
        text = f"{machine()}; settings: {' '.join(args.settings) or 'none'}\n\n{table(head, rows)}"
        args.out.write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
