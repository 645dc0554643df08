"""Milliseconds, images a second, peak memory and share of the convolution ceiling of a training step.

    python benchmarks/train_step.py                     # MUNIT 64 px (dim 32, batch 8) and 256 px (dim 64, batch 1)
    python benchmarks/train_step.py --cases 64 --compile

Ours and the plain step (plain.py) take turns in one process, so that noise of the machine hits both; the figures are
medians. Peak memory is measured in a process of its own for each: the most resident memory during three steps less the
resident memory before the networks were made (CPU), or the allocator's peak (GPU). Floating-point operations are those
of convolutions and matrix products, counted by torch; the ceiling is a 3x3 convolution, 256 channels, 64x64 positions,
forward and backward, measured between the turns in the same precision. For the plain step: in fp32.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from lightning_fabric import Fabric
from plain import PlainMUNIT
from torch.utils.flop_counter import FlopCounterMode

from unpaired.config import load
from unpaired.method import Step
from unpaired.train import build_optimizers, precision, train_step

CASES = {
    "64": dict(size=64, batch=8, dim=32, d_dim=32),
    "256": dict(size=256, batch=1, dim=64, d_dim=64),
}


class Ours:
    """A step of the product, on a batch that lies ready."""

    def __init__(self, case, method, precision_name, channels_last=True, compiled=False):
        settings = {"name": method} | (
            {k: case[k] for k in ("dim", "d_dim")} if method == "munit" else {}
        )
        self.run = load(
            method=settings,
            data={"size": case["size"], "batch": case["batch"]},
            train={"precision": precision_name},
        )
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.precision = precision(self.run, torch.device(device))
        self.fabric = Fabric(accelerator=device, devices=1, precision=self.precision)
        self.fabric.launch()
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.method = self.run.build(("a", "b")).to(self.fabric.device, memory_format=layout)
        self.optimizers = build_optimizers(self.method, self.run)
        if compiled:
            for net in self.optimizers:
                self.method.get_submodule(net).compile()
        shape = (case["batch"], 3, case["size"], case["size"])
        images = (torch.rand(shape, device=self.fabric.device) * 2 - 1 for _ in range(2))
        self.batch = {f"x_{i}": x.contiguous(memory_format=layout) for i, x in enumerate(images, 1)}
        self.index = 0

    def step(self):
        steps = [Step(self.index, 1000)]
        train_step(
            self.fabric,
            self.method,
            self.optimizers,
            [self.batch],
            steps,
            dict.fromkeys(self.optimizers),
        )
        self.method.update_averages(0.999)
        self.index += 1


class Plain:
    precision = "32-true"

    def __init__(self, case):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.method = PlainMUNIT(case["dim"], case["d_dim"]).to(device)
        shape = (case["batch"], 3, case["size"], case["size"])
        self.images = [torch.rand(shape, device=device) * 2 - 1 for _ in range(2)]

    def step(self):
        self.method.step(*self.images)


class Ceiling:
    """What convolutions reach here: 3x3, 256 channels, 64x64, forward and backward."""

    def __init__(self, precision_name):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if precision_name == "bf16-mixed" else torch.float32
        self.conv = torch.nn.Conv2d(256, 256, 3, padding=1).to(
            device, dtype, memory_format=torch.channels_last
        )
        x = torch.randn(4, 256, 64, 64, device=device, dtype=dtype).contiguous(
            memory_format=torch.channels_last
        )
        self.x = x.requires_grad_()
        self.operations = 3 * 2 * 4 * 256 * 256 * 9 * 64 * 64

    def step(self):
        self.conv(self.x).sum().backward()


def seconds(thing):
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    thing.step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def operations(thing):
    with FlopCounterMode(display=False) as counter:
        thing.step()
    return counter.get_total_flops()


def peak(case, args, plain):
    """Megabytes, in a process of its own."""
    words = [
        sys.executable,
        __file__,
        "--memory",
        json.dumps(case),
        "--method",
        args.method,
        "--precision",
        args.precision,
    ]
    words += ["--plain"] if plain else []
    return float(
        subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[-1]
    )


def memory(args):
    case = json.loads(args.memory)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak that the parent's image left
    before = resident("VmRSS")
    thing = Plain(case) if args.plain else Ours(case, args.method, args.precision)
    for _ in range(3):
        thing.step()
    if torch.cuda.is_available():
        print(torch.cuda.max_memory_allocated() / 2**20)
    else:
        print((resident("VmHWM") - before) / 1024)


def resident(which):
    """Kilobytes: VmRSS, now, or VmHWM, at most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(which)).split()[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--method", default="munit")
    parser.add_argument("--precision", default="auto")
    parser.add_argument(
        "--contiguous", action="store_true", help="ours without channels-last memory"
    )
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory:
        return memory(args)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    )
    print(
        "| case | step | precision | ms | images/s | times plain | GFLOP | GFLOP/s | of ceiling | peak MB |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in args.cases:
        case = CASES[name]
        things = {"plain": Plain(case)} if args.method == "munit" else {}
        things[args.method] = Ours(
            case, args.method, args.precision, not args.contiguous, args.compile
        )
        ceilings = {p: Ceiling(p) for p in {t.precision for t in things.values()}}
        for thing in [*things.values(), *ceilings.values()]:
            thing.step()
        times = {key: [] for key in [*things, *ceilings]}
        for _ in range(args.turns):
            for key, thing in {**things, **ceilings}.items():
                times[key].append(seconds(thing))
        for key, thing in things.items():
            s = statistics.median(times[key])
            ratio = statistics.median(
                p / o for p, o in zip(times.get("plain", times[key]), times[key], strict=True)
            )
            top = ceilings[thing.precision].operations / statistics.median(times[thing.precision])
            flop = operations(thing)
            row = [
                name,
                key,
                thing.precision,
                f"{s * 1e3:.0f}",
                f"{2 * case['batch'] / s:.1f}",
                f"{ratio:.2f}",
            ]
            row += [
                f"{flop / 1e9:.0f}",
                f"{flop / s / 1e9:.0f}",
                f"{flop / s / top:.0%}",
                f"{peak(case, args, key == 'plain'):.0f}",
            ]
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
