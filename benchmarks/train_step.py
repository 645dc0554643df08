"""A training step of every method beside a plain one: time, memory, share of what the machine can do.

    python benchmarks/train_step.py                      # every method at full size: on two CPU cores an hour or more
    python benchmarks/train_step.py --only-fast          # the presets `small`, fp32 or bf16 as trained: minutes
    python benchmarks/train_step.py --cases munit-256 dsm-128 train.precision=32-true train.compile=true

The same command runs on a GPU, if there is one: at the papers' batch sizes, MUNIT at larger ones too. The table is
printed and written to `--out`, row by row.

Plain (`plain*.py`) and ours take turns of some seconds, so that noise of the machine hits both, each in a process of
its own: plain with the heap and the pages that torch has by itself. The figures are medians, "times plain" is that of
the paired ratios. Words key=value are settings of ours; `method.*` and `data.*` are those of the plain step too, which
is in fp32 always (TF32 convolutions on a GPU, as torch has them).

- first: seconds of the first two steps, compiling included.
- GFLOP: operations of convolutions and matrix products, counted by torch. Of ceiling: GFLOP/s over those of a 3x3
  convolution of 256 channels and 64 x 64 positions, forward and backward, or in bf16 on a GPU of a matrix product,
  measured between the turns in the same precision.
- peak MB: in a process of its own the most resident memory of three steps less that before the networks were made
  (CPU), or the allocator's peak (GPU). Of plain: the share of the plain step's.
- differ by: how much losses and gradients of our step differ from the plain one's at most, relatively, both in fp32 (no
  TF32), with the same weights, images and draws. Gradients jump where ReLU and L1 have a kink, and fp32 differs from
  float64 there by more than 1e-5, which --rounding tells of the plain step; in float64 plain and ours agree to 1e-9
  (tests/test_plain.py).
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from running import apart
from steps import CASES, FAST, Ours, Plain, agreement, device, rounding
from torch.utils.flop_counter import FlopCounterMode

from unpaired.config import Run
from unpaired.train import ran_out_of_memory

HEAD = (
    *("case", "batch", "step", "precision", "ms", "images/s", "times plain", "first", "GFLOP"),
    *("GFLOP/s", "of ceiling", "peak MB", "of plain", "differ by"),
)
STEPS = {"plain": Plain, "ours": Ours}
LEAST = 3  # turns, however long they take
TURN = 3  # seconds of one, or a step: after a pause a step is slower, as systems take back memory that nobody uses
BY_ITSELF = os.environ | {"THP_MEM_ALLOC_ENABLE": "0"}  # torch, where we do not ask for large pages


class Ceiling:
    """What the machine reaches in a precision: a convolution, or in bf16 on a GPU a matrix product."""

    def __init__(self, precision: str) -> None:
        dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
        if device() == "cuda" and dtype is torch.bfloat16:
            a, b = torch.randn(2, 8192, 8192, device="cuda", dtype=dtype)
            self.step, self.operations = lambda: a @ b, 2 * 8192**3
            return
        last = torch.channels_last
        conv = torch.nn.Conv2d(256, 256, 3, padding=1).to(device(), dtype, memory_format=last)
        x = torch.randn(4, 256, 64, 64, device=device(), dtype=dtype).contiguous(memory_format=last)
        self.step = lambda: conv(x.requires_grad_()).sum().backward()
        self.operations = 3 * 2 * 4 * 256 * 256 * 9 * 64 * 64


def seconds(thing: Any, times: int = 1) -> float:
    """Of `times` steps."""
    wait()
    start = time.perf_counter()
    for _ in range(times):
        thing.step()
    wait()
    return time.perf_counter() - start


def wait() -> None:
    if device() == "cuda":
        torch.cuda.synchronize()


class NoModules(nullcontext):
    """In the place of the counter's tracker of modules, which cannot follow a gradient penalty."""

    parents = ("Global",)


def operations(thing: Any) -> int:
    """Of a step: convolutions and matrix products, forward and backward."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = NoModules()
    with counter:
        thing.step()
    return counter.get_total_flops()


class Elsewhere:
    """Steps of another process, played when they are asked for."""

    def __init__(self, which: str, words: Sequence[str]) -> None:
        self.process = subprocess.Popen(
            [*words, "--turn", which],
            env=BY_ITSELF if which == "plain" else None,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def step(self) -> None:
        assert self.process.stdin and self.process.stdout
        with suppress(BrokenPipeError):  # it ended, of which the answer tells
            self.process.stdin.write("step\n")
            self.process.stdin.flush()
        if not self.process.stdout.readline():
            killed = self.process.wait() == -signal.SIGKILL
            raise RuntimeError("out of memory" if killed else "a step failed: see above")

    def __enter__(self) -> Elsewhere:
        return self

    def __exit__(self, *error: Any) -> None:
        assert self.process.stdin and self.process.stdout
        with suppress(BrokenPipeError):
            self.process.stdin.close()  # after which it ends
        self.process.stdout.close()
        self.process.wait()


def take_turns(which: str, run: Run) -> None:
    """What `Elsewhere` runs."""
    thing = STEPS[which](run)
    for _ in sys.stdin:
        seconds(thing)
        print("done", flush=True)


def measure(
    name: str,
    run: Run,
    turns: int,
    minutes: float,
    peaks: Mapping[str, float],
    words: Sequence[str],
    rounded: tuple[float, float] | None,
) -> list[list[str]]:
    """The rows of one case: plain, then ours. `words`: the command line for this case alone."""
    plain, ours = Plain(run), Ours(run)
    differ = agreement(plain, ours)
    counted = {thing.name: operations(thing) for thing in (plain, ours)}
    precisions = {thing.name: thing.precision for thing in (plain, ours)}
    del plain, ours
    free()
    ceilings = {p: Ceiling(p) for p in set(precisions.values())}
    times: dict[str, list[float]] = {key: [] for key in ("plain", "ours", *ceilings)}
    with ExitStack() as stack:
        things = {which: stack.enter_context(Elsewhere(which, words)) for which in STEPS}
        first = {which: seconds(thing, 2) for which, thing in things.items()}
        n = {which: max(1, round(TURN / seconds(thing))) for which, thing in things.items()}
        for c in ceilings.values():
            seconds(c, 2)
        end = time.monotonic() + 60 * minutes
        while len(times["ours"]) < turns and (len(times["ours"]) < LEAST or time.monotonic() < end):
            for which, thing in things.items():
                times[which].append(seconds(thing, n[which]) / n[which])
            for precision, c in ceilings.items():
                times[precision].append(seconds(c))
    rows = []
    for which, precision in precisions.items():
        s = statistics.median(times[which])
        ratios = [p / o for p, o in zip(times["plain"], times[which], strict=True)]
        top = ceilings[precision].operations / statistics.median(times[precision])
        flop, peak = counted[which], peaks[which]
        row = [name, str(run.data.batch), which, precision]
        row += [f"{s * 1e3:.0f}", f"{run.data.batch / s:.3g}", f"{statistics.median(ratios):.2f}"]
        row += [f"{first[which]:.1f}", f"{flop / 1e9:.0f}", f"{flop / s / 1e9:.0f}"]
        row += [f"{flop / s / top:.0%}", f"{peak:.0f}", f"{peak / peaks['plain']:.0%}"]
        told = "losses {:.0e}, gradients {:.0e}".format(*differ)
        if rounded:
            told += "; fp32 from float64 by {:.0e}, {:.0e}".format(*rounded)
        rows.append([*row, told if which == "ours" else ""])
    return rows


def free() -> None:
    """For other processes."""
    gc.collect()
    if device() == "cuda":
        torch.cuda.empty_cache()


def peak(which: str, words: Sequence[str]) -> float:
    """Megabytes, in a process of its own; nan where it ran out of memory or was killed."""
    env = BY_ITSELF if which == "plain" else None
    done = subprocess.run([*words, "--peak", which], env=env, capture_output=True, text=True)
    if done.returncode > 0 and not ran_out_of_memory(RuntimeError(done.stderr)):
        raise SystemExit(done.stderr)
    return float(done.stdout.split()[-1]) if not done.returncode else float("nan")


def peak_here(which: str, run: Run) -> float:
    """Megabytes that three steps take at most."""
    if device() == "cpu":
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak left by the parent's image
    before = resident("VmRSS")
    thing = STEPS[which](run)
    if device() == "cuda":
        seconds(thing, 2)  # cuDNN tries algorithms, which may take more than any step
        torch.cuda.reset_peak_memory_stats()
    seconds(thing, 3)
    if device() == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return (resident("VmHWM") - before) / 1024


def resident(which: str) -> int:
    """Kilobytes: VmRSS, now, or VmHWM, at most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(which)).split()[1])


def machine() -> str:
    """What the figures were made with."""
    words = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parent).stdout
    cpu = f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    where = torch.cuda.get_device_name() if device() == "cuda" else cpu
    return f"commit {commit.strip() or 'unknown'}, torch {torch.__version__}, {where}"


def parser(description: str | None) -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    p.add_argument("--cases", nargs="+", choices=[*CASES, *FAST], metavar="CASE", default=[])
    p.add_argument("--only-fast", action="store_true", help="the presets `small`")
    return p


def chosen(args: argparse.Namespace) -> dict[str, Any]:
    """The cases that were asked for; all, or all fast ones, where none was."""
    cases = FAST if args.only_fast else CASES
    return {n: {**CASES, **FAST}[n] for n in args.cases} or cases


def sizes(case: Any) -> list[list[str]]:
    """The settings of a case's batches on this device."""
    return [[f"data.batch={n}"] for n in case.gpu] if device() == "cuda" and case.gpu else [[]]


def main(argv: Sequence[str] | None = None) -> None:
    p = parser(__doc__)
    p.add_argument("--turns", type=int, default=7)
    p.add_argument("--minutes", type=float, default=10, help="of turns, for a case")
    p.add_argument("--out", type=Path, default=Path("runs/train_step.md"))
    p.add_argument("--rounding", action="store_true", help="what fp32 differs by from float64, too")
    for option in ("--peak", "--turn"):
        p.add_argument(option, choices=STEPS, help=argparse.SUPPRESS)
    args = apart(p, argv)
    cases = chosen(args)
    if args.peak or args.turn:
        (case,) = cases.values()
        run = case.run(args.settings)
        return print(peak_here(args.peak, run)) if args.peak else take_turns(args.turn, run)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", encoding="utf-8") as file:

        def say(line: str) -> None:
            print(line, flush=True)
            print(line, file=file, flush=True)

        say(f"{machine()}; settings: {' '.join(args.settings) or 'none'}\n")
        say(f"| {' | '.join(HEAD)} |\n|{' --- |' * len(HEAD)}")
        for name, case in cases.items():
            for words in ([*size, *args.settings] for size in sizes(case)):
                alone = [sys.executable, __file__, "--cases", name, *words]
                alone += ["--only-fast"] * args.only_fast
                peaks = {which: peak(which, alone) for which in STEPS}
                run = case.run(words)
                try:
                    rounded = rounding(run) if args.rounding else None
                    rows = measure(name, run, args.turns, args.minutes, peaks, alone, rounded)
                except RuntimeError as error:
                    if not ran_out_of_memory(error):
                        raise
                    rows = [[name, str(run.data.batch), "out of memory", *[""] * (len(HEAD) - 3)]]
                for row in rows:
                    say(f"| {' | '.join(row)} |")
                free()


if __name__ == "__main__":
    main()
