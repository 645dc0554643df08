"""Does speed cost quality? MUNIT in bf16 beside fp32, seeds 0, 1, 2, on scenes and digits.

    python benchmarks/quality.py --digits digits.npz          # without --digits: scenes alone

In fp32 our step is the plain one of `benchmarks/plain.py` to 1e-5 (`tests/test_plain.py`), so its runs are plain runs
made faster; what changes the maths is bf16, which is the default where the processor has matrix units for it. Scenes by
configs/munit_demo.yaml, digits (MNIST, MNIST-M) by the preset `small` for as many steps; protocol `quick`, random
styles, means of both directions. A figure is kept where the means over the seeds differ by no more than the seeds do.

Stop and start it at will: finished runs are not repeated. Writes runs/quality/<set>/<precision>-<seed> and
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
PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}


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
    """A figure's mean and spread in both precisions, and whether they agree within the larger spread of seeds."""
    cells = [f"{np.mean(v):.3g} ({min(v):.3g} to {max(v):.3g})" for v in values.values()]
    apart = abs(float(np.mean(values["fp32"]) - np.mean(values["bf16"])))
    spread = max(max(v) - min(v) for v in values.values())
    return [f"{name} {metric(name).arrow}", *cells, "yes" if apart <= spread else "no"]


def main(argv: Sequence[str] | None = None) -> None:
    p = argparse.ArgumentParser(description="Does speed cost quality?")
    p.add_argument("--digits", type=Path, metavar="FILE")
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--only", choices=PRECISIONS, help="one precision")
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
        for kind, precision in PRECISIONS.items():
            for seed in args.seeds if args.only in (None, kind) else ():
                run = OUT / name / f"{kind}-{seed}"
                own = [f"train.precision={precision}", f"train.seed={seed}"]
                step = trained(run, *words, *own, *args.settings, minutes=args.minutes)
                for figure, value in figures_of(measured(run, step, *tools(args))).items():
                    figures[figure][kind].append(value)
        if not args.only:
            seeds = ", ".join(map(str, args.seeds))
            rows = [row(figure, values) for figure, values in figures.items()]
            head = ["", *PRECISIONS, "within the spread of seeds"]
            parts.append(f"## {name}, seeds {seeds}\n\n{table(head, rows)}")
    if parts:
        (OUT / "table.md").write_text("\n".join(parts))
        print("\n".join(parts))


if __name__ == "__main__":
    main()
