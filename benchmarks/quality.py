"""Does speed cost quality? MUNIT in fp32, in bf16, and in bf16 with method.share_fakes; seeds 0, 1, 2; scenes, digits.

    python benchmarks/quality.py --digits digits.npz          # without --digits: scenes alone

In fp32 our step is the plain one of `benchmarks/plain.py` to 1e-5 (`tests/test_plain.py`), so its runs are plain runs
made faster; what changes the maths is bf16, which is the default where the processor multiplies it, and share_fakes,
which is an option. Scenes by configs/munit_demo.yaml, digits (MNIST, MNIST-M) by the preset `small` for as many steps;
protocol `quick`, random styles, means of both directions. A figure is kept where its mean over the seeds differs from
that of fp32 by no more than the seeds do in either.

Stop and start it at will: finished runs are not repeated. Writes runs/quality/<set>/<way>-<seed> and
runs/quality/table.md. Several may go on at once with --only and --seeds. More words are settings of all runs.

--digits: arrays <set>_<x|y>_<train|test>, uint8, of mnist and mnistm.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from running import apart, digit_folders, measured, table, tools, trained, weights

from unpaired.metrics.table import metric

OUT = Path("runs/quality")
CONFIG = Path(__file__).parent.parent / "configs" / "munit_demo.yaml"
STEPS = 550  # as the demo
BF16 = "train.precision=bf16-mixed"
WAYS = {
    "fp32": ("train.precision=32-true",),
    "bf16": (BF16,),
    "shared": (BF16, "method.share_fakes=true"),
}


def figures_of(result: Mapping[str, Any]) -> dict[str, float]:
    """Each figure by random styles that has a better end, the mean of all directions."""
    found: dict[str, list[float]] = defaultdict(list)
    rows = [d["rows"]["model"] for d in result["directions"] if d["way"] == "latent"]
    rows += [of["model"] for of in result.get("scenes", {}).values()]
    for row in rows:
        for name, value in row.items():
            if value is not None and metric(name).better in ("higher", "lower"):
                found[name].append(value)
    return {name: float(np.mean(values)) for name, values in found.items()}


def row(name: str, values: Mapping[str, Sequence[float]]) -> list[object]:
    """A figure's mean and spread in each way, and which of them differ from the first by more than seeds do."""
    cells = [f"{np.mean(v):.3g} ({min(v):.3g} to {max(v):.3g})" for v in values.values()]
    (_, first), *others = values.items()
    differ = [
        way
        for way, v in others
        if abs(float(np.mean(first) - np.mean(v))) > max(max(x) - min(x) for x in (first, v))
    ]
    return [f"{name} {metric(name).arrow}", *cells, ", ".join(differ)]


def main(argv: Sequence[str] | None = None) -> None:
    p = argparse.ArgumentParser(description="Does speed cost quality?")
    p.add_argument("--digits", type=Path, metavar="FILE")
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--only", choices=WAYS, help="one way")
    p.add_argument("--minutes", type=float, default=30, help="of a run, at most")
    weights(p)
    args = apart(p, argv)
    sets: dict[str, list[object]] = {"scenes": [CONFIG]}
    if args.digits:
        data = digit_folders(
            args.digits, OUT / "data" / "digits", ("mnist", "mnistm"), "{set}/{digit}"
        )
        words = ["data.size=32", "data.flip=false", f"train.steps={STEPS}"]
        sets["digits"] = ["--method", "munit", "--preset", "small", "--data", data, *words]
    parts = []
    for name, words in sets.items():
        figures: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for kind, own in WAYS.items():
            for seed in args.seeds if args.only in (None, kind) else ():
                run = OUT / name / f"{kind}-{seed}"
                settings = (*own, f"train.seed={seed}", *args.settings)
                step = trained(run, *words, *settings, minutes=args.minutes)
                for figure, value in figures_of(measured(run, step, *tools(args))).items():
                    figures[figure][kind].append(value)
        if not args.only:
            seeds = ", ".join(map(str, args.seeds))
            rows = [row(figure, values) for figure, values in figures.items()]
            head = ["", *WAYS, "differs from fp32 by more than the seeds do"]
            parts.append(f"## {name}, seeds {seeds}\n\n{table(head, rows)}")
    if parts:
        (OUT / "table.md").write_text("\n".join(parts))
        print("\n".join(parts))


if __name__ == "__main__":
    main()
