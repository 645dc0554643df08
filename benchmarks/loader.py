"""Images a second that the loader gives, from JPEGs of 512 px, beside what training consumes.

    python benchmarks/loader.py                  # every method's preset `small`
    python benchmarks/loader.py --paper          # every method at the size of its paper: minutes on a CPU

cold: the first epoch of the first run; each image is decoded, resized and kept. warm: a later run, which finds them.
With no workers the training process reads by itself. Loading has one thread a process, a step has all. The photographs
are built-in scenes with grain, and in the system's memory as files: no disk is waited for. Loading and steps take
turns; figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from running import table
from steps import CASES, FAST, Case, Ours

from unpaired.config import Run, load
from unpaired.data.batches import Batches, loader
from unpaired.data.datasets import cache_training, open_dataset
from unpaired.data.scenes import Scenes

SIDE = 512
IMAGES = {"two_domains": 2, "paired": 2, "domains": 3, "unlabelled": 1}  # of a sample of a batch


def photographs(folder: Path, count: int) -> None:
    """`count` JPEGs of about 70 KB in each of two domains."""
    rng = np.random.default_rng(0)
    for domain in ("painted", "mosaic"):
        (folder / domain).mkdir(parents=True)
        for i, scene in enumerate(Scenes(domain, SIDE, count=count)):
            pixels = scene.image + rng.normal(0, 6, scene.image.shape)
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(folder / domain / f"{i}.jpg", quality=92)


def batches(folder: Path, size: int) -> Batches:
    """The batches of a run that finds the cache as it is."""
    run = load(method="munit", data={"root": str(folder), "size": size, "batch": 4})
    dataset = open_dataset(run.data, "two_domains")
    assert dataset.listing
    cache_training(run.data, dataset, dataset.listing.fingerprint())
    train = dataset.splits["train"]
    return Batches(train, "two_domains", 4, run.data.hw, steps=10**9)


def first_epoch(data: Batches, workers: int) -> float:
    """Images a second, the start of the workers included."""
    steps = -(-max(map(len, data.pictures)) // data.batch)
    begun = time.perf_counter()
    for _, _ in zip(range(steps), loader(data, 0, workers), strict=False):
        pass
    return 2 * data.batch * steps / (time.perf_counter() - begun)


def steady(data: Batches, workers: int, seconds: float) -> float:
    """Images a second, once the workers run."""
    source = loader(data, 0, workers)
    next(source)
    steps, begun = 0, time.perf_counter()
    while time.perf_counter() < begun + seconds:
        next(source)
        steps += 1
    return 2 * data.batch * steps / (time.perf_counter() - begun)


def loading(size: int, workers: int, folder: Path, seconds: float) -> tuple[float, float]:
    """Images a second, cold and warm."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=folder.parent) as cache:
        os.environ["UNPAIRED_CACHE"] = cache
        cold = first_epoch(batches(folder, size), workers)
        return cold, steady(batches(folder, size), workers, seconds)


def stepping(ours: Ours, threads: int) -> float:
    """Images a second that steps consume."""
    torch.set_num_threads(threads)
    begun = time.perf_counter()
    ours.step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return consumed(ours.run) / (time.perf_counter() - begun)


def consumed(run: Run) -> int:
    return IMAGES[run.method_class().layout] * run.data.batch


def main(argv: Sequence[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--paper", action="store_true", help="sizes of the papers")
    p.add_argument("--methods", nargs="+", help="only these cases, such as munit")
    p.add_argument("--workers", nargs="+", type=int, default=[0, 1, 2])
    p.add_argument("--count", type=int, default=200, help="photographs of a domain (default 200)")
    p.add_argument("--seconds", type=float, default=2.0, help="of each warm measurement")
    p.add_argument("--rounds", type=int, default=3)
    args = p.parse_args(argv)
    threads = torch.get_num_threads()
    cases: dict[str, Case] = CASES if args.paper else FAST
    runs = {name: case.run() for name, case in cases.items() if name in (args.methods or cases)}
    sizes = {name: min(run.data.hw) for name, run in runs.items()}
    eaten: dict[str, list[float]] = {name: [] for name in runs}
    given: dict[tuple[int, int], list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "photographs"
        photographs(folder, args.count)
        files = [f.stat().st_size for f in folder.rglob("*.jpg")]
        print(f"{len(files)} JPEGs of {SIDE} px, {sum(files) / len(files) / 1000:.0f} KB each\n")
        things = {name: Ours(run) for name, run in runs.items()}
        for ours in things.values():
            stepping(ours, threads)  # warm-up
        for _ in range(args.rounds):
            for name, ours in things.items():
                eaten[name].append(stepping(ours, threads))
            for size in sorted(set(sizes.values())):
                for n in args.workers:
                    rates = loading(size, n, folder, args.seconds)
                    given.setdefault((size, n), []).append(rates)
        torch.set_num_threads(threads)
    need = {name: statistics.median(rates) for name, rates in eaten.items()}
    rows = [
        [name, sizes[name], things[name].precision, consumed(runs[name]), f"{need[name]:.1f}"]
        for name in runs
    ]
    print(table(["method", "px", "precision", "images a step", "images/s consumed"], rows))
    rows = []
    for (size, n), rates in sorted(given.items()):
        cold, warm = (statistics.median(r) for r in zip(*rates, strict=True))
        fastest = max((name for name in runs if sizes[name] == size), key=need.__getitem__)
        times = [f"{rate / need[fastest]:.1f}" for rate in (cold, warm)]
        rows.append([size, n, f"{cold:.0f}", f"{warm:.0f}", fastest, *times])
    head = ["px", "workers", "cold images/s", "warm images/s", "fastest method"]
    print(table([*head, "cold: times it", "warm: times it"], rows))


if __name__ == "__main__":
    main()
