"""A training step of each method, plain and ours, on a batch that lies ready: what the benchmarks of speed compare.

The plain steps (`plain*.py`) are the yardstick. `agreement` copies our weights into them, hands both the same draws and
says by how much the losses and gradients of a step differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from lightning_fabric import Fabric
from plain import PlainMUNIT
from plain_family import (
    PlainAugmentedCycleGAN,
    PlainBicycleGAN,
    PlainCycleGAN,
    PlainPix2Pix,
    PlainUNIT,
)
from plain_stargan import PlainDSM, PlainSmoothGAN, PlainStarGANv2
from plain_tunit import PlainTUNIT
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from unpaired.config import Run, load
from unpaired.heap import MMAP_THRESHOLD, TRIM_THRESHOLD, keep_freed, set_malloc
from unpaired.method import Step
from unpaired.train import build_optimizers, prepare, train_step

FRACTION = 0.9  # late in a run: every term of every method is on
DOMAINS = {"two_domains": 2, "paired": 2, "domains": 3, "unlabelled": 1}


@dataclass(frozen=True)
class Case:
    """A method at a size. `gpu`: the batches measured there, the first being the paper's."""

    settings: Mapping[str, Any]
    gpu: tuple[int, ...]

    def run(self, words: Sequence[str] = ()) -> Run:
        return load(None, words, **self.settings)


def case(name: str, size: int, batch: int, gpu: tuple[int, ...], **settings: Any) -> Case:
    data = {"size": size, "batch": batch}
    return Case({"method": {"name": name, **settings}, "data": data}, gpu)


CASES = {
    "munit-256": case("munit", 256, 1, (1, 4, 8)),
    "munit-64": case("munit", 64, 8, (8,), dim=32, d_dim=32),
    "tunit-128": case("tunit", 128, 8, (32,)),
    "stargan_v2-128": case("stargan_v2", 128, 2, (8,)),
    "dsm-128": case("dsm", 128, 2, (8,)),
    "smoothgan-128": case("smoothgan", 128, 2, (4,)),
    "unit-256": case("unit", 256, 1, (1,)),
    "cyclegan-256": case("cyclegan", 256, 1, (1,)),
    "pix2pix-256": case("pix2pix", 256, 1, (1,)),
    "bicyclegan-256": case("bicyclegan", 256, 2, (2,)),
    "augmented_cyclegan-64": case("augmented_cyclegan", 64, 32, (32,)),
}
FAST = {  # the presets `small`: seconds each
    name: Case({"preset": "small", "method": {"name": name}}, ())
    for name in dict.fromkeys(name.rpartition("-")[0] for name in CASES)
}
FAST["tunit"] = Case(  # the paper's, as far as the plain step goes
    {
        "preset": "small",
        "method": {"name": "tunit", "normalise": False, "gan_batch": None},
        "data": {"batch": 16},
    },
    (),
)


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def batch(run: Run, seed: int = 0) -> dict[str, Tensor]:
    """A batch of noise in the names of the method's layout, contiguous."""
    layout, (h, w), n = run.method_class().layout, run.data.hw, run.data.batch
    g = torch.Generator().manual_seed(seed)
    names = {"domains": ("x_src", "x_ref", "x_ref2"), "unlabelled": ("x", "x_tf")}
    made = {
        name: torch.rand(n, run.data.channels, h, w, generator=g) * 2 - 1
        for name in names.get(layout, ("x_1", "x_2"))
    }
    if layout == "domains":
        made["y_src"] = torch.arange(n) % DOMAINS[layout]
        made["y_ref"] = (made["y_src"] + 1) % DOMAINS[layout]
    if layout == "unlabelled":
        made["y"] = torch.full((n,), -1)
    dtype = torch.get_default_dtype()
    return {k: x.to(device(), dtype if x.is_floating_point() else None) for k, x in made.items()}


class Draws:
    """Random numbers made where the images lie; `Step` has the same verbs."""

    fraction = FRACTION

    def normal(self, name: str, *shape: int, like: Tensor) -> Tensor:
        return torch.randn(shape, device=like.device, dtype=like.dtype)

    def uniform(self, name: str, *shape: int, like: Tensor) -> Tensor:
        return torch.rand(shape, device=like.device, dtype=like.dtype)

    def permutation(self, name: str, n: int, like: Tensor) -> Tensor:
        return torch.randperm(n, device=like.device)


class MUNIT(nn.Module):
    """`plain.py` in the shape of the other plain steps."""

    def __init__(self, w: Any, side: int, domains: int) -> None:
        super().__init__()
        sizes = (w.dim, w.d_dim, w.style_dim, w.mlp_dim, w.downsamplings, w.residuals)
        self.plain = PlainMUNIT(*sizes, w.d_layers, w.d_scales)
        self.G_1, self.G_2 = (
            nn.ModuleList([g.content, g.style, g.decoder, g.mlp])
            for g in (self.plain.a, self.plain.b)
        )
        self.D_1, self.D_2 = self.plain.d_a, self.plain.d_b

    def step(self, batch: Mapping[str, Tensor], draws: Any) -> None:
        x_1, x_2 = batch["x_1"], batch["x_2"]
        styles = [
            draws.normal(name, len(x_1), self.plain.style, like=x_1)
            for name in ("D.s_1", "D.s_2", "G.s_1", "G.s_2")
        ]
        with patch("torch.randn", side_effect=styles):
            self.plain.step(x_1, x_2)


PLAIN = {
    "munit": MUNIT,
    "tunit": PlainTUNIT,
    "stargan_v2": PlainStarGANv2,
    "smoothgan": PlainSmoothGAN,
    "dsm": PlainDSM,
    "unit": PlainUNIT,
    "cyclegan": PlainCycleGAN,
    "augmented_cyclegan": PlainAugmentedCycleGAN,
    "pix2pix": PlainPix2Pix,
    "bicyclegan": PlainBicycleGAN,
}


# glibc's, where its thresholds come to by themselves: Plain and Ours take turns in one process
DEFAULTS = {MMAP_THRESHOLD: 2**25, TRIM_THRESHOLD: 2**26}


class Plain:
    """A plain step. On a GPU with cuDNN's search for the fastest convolutions, as the official codes have it."""

    name, precision = "plain", "32-true"

    def __init__(self, run: Run) -> None:
        torch.manual_seed(0)
        cls, side = run.method_class(), min(run.data.hw)
        self.method = PLAIN[run.method.name](run.method, side, DOMAINS[cls.layout]).to(device())
        self.batch, self.draws = batch(run), Draws()

    def step(self, draws: Any = None) -> None:
        set_malloc(DEFAULTS)
        before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
        self.method.step(self.batch, draws or self.draws)
        torch.backends.cudnn.benchmark = before


class Ours:
    """A step of the product, as the trainer plays it."""

    name = "ours"

    def __init__(self, run: Run) -> None:
        self.run, self.index = run, 0
        domains = tuple(map(str, range(DOMAINS[run.method_class().layout])))
        self.precision = run.precision(torch.device(device()))
        self.fabric = self.lightning(self.precision)
        self.method = run.build(domains).to(self.fabric.device)
        self.optimizers = build_optimizers(self.method, run)
        self.clips = {net: run.optimizer(net).clip for net in self.optimizers}
        prepare(self.method, run.train)
        saved = self.method.state_dict().keys()
        self.buffers = [b for name, b in self.method.named_buffers() if name in saved]
        self.batch = {
            k: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
            for k, x in batch(run).items()
        }

    @staticmethod
    def lightning(name: Any) -> Fabric:
        fabric = Fabric(accelerator=device(), devices=1, precision=name)
        fabric.launch()
        return fabric

    def step(self, draws: Step | None = None, fabric: Fabric | None = None) -> None:
        if device() == "cpu":  # as the trainer does
            keep_freed()
        n = self.run.train.accumulate
        steps = [
            draws or Step(int(FRACTION * 1_000_000) + self.index, 1_000_000, microbatch=m)
            for m in range(n)
        ]
        parts = [{k: x[m::n] for k, x in self.batch.items()} for m in range(n)]
        fabric, self.index = fabric or self.fabric, self.index + 1
        kept = [b.clone() for b in self.buffers]  # as the trainer does, for a step that fails
        train_step(fabric, self.method, self.optimizers, parts, steps, self.clips)
        self.method.update_averages(0.999)
        del kept


@dataclass
class Moves:
    """The loss and the gradients of each move that is played while it watches: what is differentiated between two
    steps of optimizers is a move."""

    losses: list[float] = field(default_factory=list)
    gradients: list[dict[nn.Parameter, Tensor]] = field(default_factory=list)
    moved: bool = True

    @contextmanager
    def watch(self) -> Iterator[Moves]:
        backward = torch.Tensor.backward

        def differentiated(loss: Tensor, *args: Any, **kw: Any) -> None:
            if self.moved:
                self.losses.append(0.0)
                self.gradients.append({})
                self.moved = False
            self.losses[-1] += float(loss.detach())
            backward(loss, *args, **kw)

        def stepped(optimizer: torch.optim.Optimizer, args: Any, kw: Any) -> None:
            self.moved = True
            for p in optimizer.param_groups[0]["params"]:
                if p.grad is not None:
                    self.gradients[-1][p] = p.grad.clone()

        hook = register_optimizer_step_pre_hook(stepped)
        try:
            with patch("torch.Tensor.backward", differentiated):
                yield self
        finally:
            hook.remove()


def pairs(plain: nn.Module, ours: nn.Module) -> dict[str, list[tuple[Any, Any]]]:
    """By network, our parameters and those of the plain method, which has them in the same order."""
    return {
        name: list(zip(net.parameters(), ours.get_submodule(name).parameters(), strict=True))
        for name, net in plain.named_children()
    }


def agreement(plain: Plain, ours: Ours, learn: bool = False) -> tuple[float, float]:
    """By how much, relatively, losses and gradients of the two differ at most, in full precision.

    A gradient is that of a network in a move; its difference is told by the norm. Two steps are played. All moves of
    the second are compared, at the same weights; where they `learn`, as in a real step, those of both.
    """
    matched = pairs(plain.method, ours.method)
    with torch.no_grad():
        for p, q in (pair for net in matched.values() for pair in net):
            p.copy_(q)
    fabric = ours.lightning("32-true")
    with rates(plain, ours, learn), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return compared(played(plain, learn), played(ours, learn, fabric), matched)


def rounding(run: Run) -> tuple[float, float]:
    """By how much losses and gradients of the plain step in fp32 differ from its own in float64, as above."""
    narrow, wide = Plain(run), Plain(run)  # of the same seed
    wide.method.double()
    wide.batch = {k: x.double() if x.is_floating_point() else x for k, x in wide.batch.items()}
    with rates(narrow, wide, False), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return compared(played(narrow), played(wide), pairs(narrow.method, wide.method))


def played(thing: Plain | Ours, learn: bool = False, *more: Any) -> Moves:
    """The moves of the second of two steps; of both, where they `learn`."""
    seen = Moves()
    for i in range(2):  # the first fills queues and histories
        draws = Step(int(FRACTION * 1000) + i, 1000, seed=1)
        with seen.watch() if learn or i else nullcontext():
            thing.step(draws, *more)
    return seen


def compared(
    some: Moves, others: Moves, matched: Mapping[str, list[tuple[Any, Any]]]
) -> tuple[float, float]:
    """The largest difference of losses and of gradients, in terms of the others'."""
    losses = max(relative(b - a, a) for a, b in zip(some.losses, others.losses, strict=True))
    gradients = 0.0
    for a, b in zip(some.gradients, others.gradients, strict=True):
        for net in matched.values():
            moving = [(p, q) for p, q in net if p in a or q in b]
            if moving:
                gap = torch.stack([(a[p] - b[q]).norm() for p, q in moving]).norm()
                size = torch.stack([b[q].norm() for _, q in moving]).norm()
                gradients = max(gradients, relative(gap, size))
    return losses, gradients


def relative(gap: Any, size: Any) -> float:
    """|gap| / |size|, 0 where both are."""
    gap, size = abs(float(gap)), abs(float(size))
    return gap / size if size else (math.inf if gap else 0.0)


@contextmanager
def rates(some: Plain | Ours, others: Plain | Ours, learn: bool) -> Iterator[None]:
    """Learning rates of 0 while it lasts, unless they `learn`."""
    groups = [g for thing in (some, others) for o in optimizers(thing) for g in o.param_groups]
    before = [g["lr"] for g in groups]
    for g in groups:
        g["lr"] = g["lr"] if learn else 0.0
    try:
        yield
    finally:
        for g, lr in zip(groups, before, strict=True):
            g["lr"] = lr


def optimizers(thing: Plain | Ours) -> list[torch.optim.Optimizer]:
    if isinstance(thing, Ours):
        return list(thing.optimizers.values())
    method = thing.method
    held = [o for o in vars(method).values() if isinstance(o, torch.optim.Optimizer)]
    held += getattr(method, "opt", {}).values()
    return [*held, method.plain.g_opt, method.plain.d_opt] if isinstance(method, MUNIT) else held
