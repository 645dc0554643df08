"""What MUNIT is worth on three sets, by every number that applies, beside real images and floors.

    python benchmarks/results.py --digits digits.npz --cat2dog DIR --features FILE --lpips TRUNK HEADS

Scenes (configs/munit_scenes.yaml), MNIST to MNIST-M and back at 32 px, cats to dogs and back at 64 px, by the protocol
`munit`. Stop and start it at will: finished runs are not repeated. Without --digits or --cat2dog their part is left
out. Writes runs/results/<run> and runs/results/table.md, anew after each run. More words are settings of all runs.

--digits: arrays <set>_<x|y>_<train|test>, uint8, of mnist and mnistm. --cat2dog: trainA (cats), trainB, testA, testB.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from running import apart, digit_folders, measured, status, table, tools, trained, weights

from unpaired.metrics.evaluation import PROTOCOLS
from unpaired.metrics.table import METRICS, metric

OUT = Path("runs/results")
CONFIG = Path(__file__).parent.parent / "configs" / "munit_scenes.yaml"
SMALL = ("--method", "munit", "--preset", "small")
RUNS = {
    "scenes": ("scenes, 32 px", (str(CONFIG),)),
    "digits": ("digits, 32 px", (*SMALL, "data.size=32", "data.flip=false", "train.steps=2500")),
    "cat2dog": (
        "cat2dog (A: cats, B: dogs), 64 px",
        (
            *SMALL,
            "data.size=64",
            "data.batch=4",
            "method.downsamplings=2",
            "method.d_layers=4",
            "train.steps=3000",
        ),
    ),
}
WAYS = {"latent": "random styles", "reference": "styles of images"}


def data_words(name: str, args: argparse.Namespace) -> list[str] | None:
    """How `unpaired train` is told of a set; None where it was not given."""
    if name == "scenes":
        return []
    if name == "digits":
        if args.digits is None:
            return None
        sets, target = ("mnist", "mnistm"), OUT / "data" / "digits"
        return ["--data", str(digit_folders(args.digits, target, sets, "{set}/{digit}"))]
    return None if args.cat2dog is None else ["--data", str(args.cat2dog)]


# The tables --------------------------------------------------------------------------------------


def part(title: str, run: Path, figures: Mapping[str, Any]) -> str:
    """A table for each direction, one of the styles, and what has to be known to read them."""
    steps, minutes = status(run)["step"], json.loads((run / "seconds.json").read_text()) / 60
    cut = " (stopped by the limit of time)" if status(run)["status"] != "done" else ""
    about = [
        f"Trained for {steps} steps{cut} in {minutes:.1f} minutes and measured in {figures['seconds'] / 60:.1f}.",
        *(
            f"{name}: right for {net['accuracy']:.1%} of the held-out images."
            for name, net in figures["networks"].items()
            if "accuracy" in net
        ),
    ]
    columns = columns_of(figures, f"{steps}", f"{minutes:.1f}")
    text = [f"## {title}\n", " ".join(about), ""]
    for direction in columns:
        text += [f"### {direction}\n", table(*lines(columns[direction]))]
    if figures["styles"]:
        text += ["### Styles\n", table(*lines(figures["styles"]))]
    told = (f"Left out: {s}" for s in figures["left out"])
    text += [f"- {s.replace('Left out: nothing, but', 'Note:')}" for s in told]
    return "\n".join(text).rstrip() + "\n"


def columns_of(
    figures: Mapping[str, Any], steps: str, minutes: str
) -> dict[str, dict[str, dict[str, float | str]]]:
    """Of each direction the figures by column: real images, MUNIT by each way to a style, the floors."""
    found: dict[str, dict[str, dict[str, float | str]]] = {}
    cost = {"steps": steps, "training, minutes": minutes}
    for record in figures["directions"]:
        rows, name = record["rows"], record["name"]
        columns = found.setdefault(name, {"real images": dict(rows["real images"])})
        known = figures.get("scenes", {}).get(name, {})
        latent, way = record["way"] == "latent", WAYS[record["way"]]
        own = known.get("model" if latent else "by references", {})
        columns[f"MUNIT, {way}"] = rows["model"] | own | cost
        floor = known.get("untrained", {}) if latent else {}
        columns[f"untrained, {way}"] = rows["untrained"] | floor | {"steps": "0"}
        columns["untranslated"] = rows["untranslated"] | known.get("untranslated", {})
    first = ("real images", *(f"MUNIT, {way}" for way in WAYS.values()), "untranslated")
    return {
        name: {c: columns[c] for c in (*first, *columns) if c in columns}
        for name, columns in found.items()
    }


def lines(
    columns: Mapping[str, Mapping[str, float | str]],
) -> tuple[list[str], list[list[str]]]:
    """Head and lines of a table that has a line for each figure, in the order of docs/metrics.md."""
    names = dict.fromkeys(name for column in columns.values() for name in column)
    order = list(METRICS)
    place = {n: order.index(m.name) if (m := known(n)) else len(order) for n in names}
    rows = []
    for name in sorted(names, key=place.__getitem__):
        m = known(name)
        cells = [column.get(name, "") for column in columns.values()]
        said = [c if isinstance(c, str) else "–" if c is None else f"{c:.3g}" for c in cells]
        rows.append([f"{name} {m.arrow}".strip() if m else name, *said])
    return ["", *columns], rows


def known(name: str) -> Any:
    return metric(name) if name.partition(" (")[0] in METRICS else None


def main(argv: Sequence[str] | None = None) -> None:
    p = argparse.ArgumentParser(description="What MUNIT is worth on three sets.")
    p.add_argument("--digits", type=Path, metavar="FILE.npz")
    p.add_argument("--cat2dog", type=Path, metavar="DIR")
    p.add_argument("--protocol", default="munit", choices=PROTOCOLS)
    p.add_argument("--minutes", type=float, default=90, help="of a run's training, at most")
    p.add_argument("--only", nargs="+", choices=RUNS, metavar="RUN", help="some of the runs")
    weights(p)
    args = apart(p, argv)
    protocol, cuda = PROTOCOLS[args.protocol], torch.cuda.is_available()
    machine = torch.cuda.get_device_name() if cuda else f"{os.cpu_count()} CPU cores"
    parts = [
        "# Results\n\nMUNIT on three small sets, trained and measured by `python benchmarks/results.py`, protocol "
        f"`{protocol.name}` ({protocol.says}), on {machine}. ↑ higher is better, ↓ lower. *Real images* are held-out "
        "images of the target, what a perfect translator would score: like all outputs they are compared with the "
        "target's training images. *Untranslated* is what doing nothing scores, *untrained* the same networks before "
        "training. What each figure is, and which to trust: [metrics.md](metrics.md).\n"
    ]
    for name, (title, settings) in RUNS.items():
        words = data_words(name, args)
        if words is None or (args.only and name not in args.only):
            continue
        run = OUT / name
        step = trained(run, *settings, *words, *args.settings, minutes=args.minutes)
        paired = ["--paired"] if name == "scenes" else []
        figures = measured(run, step, "--protocol", args.protocol, *paired, *tools(args))
        parts.append(part(title, run, figures))
        (OUT / "table.md").write_text("\n".join(parts))
    print("\n".join(parts))


if __name__ == "__main__":
    main()
