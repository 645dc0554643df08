"""What each part of DSM is for, beside the methods it builds on: StarGAN v2 and SmoothGAN, same steps, same protocol.

    python benchmarks/ablation_dsm.py                        # seven domains of the built-in scenes
    python benchmarks/ablation_dsm.py --data digits emoji    # and folders with a folder for each domain

32 px, preset small, at most 15 minutes a run. Stop and start it at will: finished runs are not repeated. Writes
runs/ablation_dsm/<set>/<run> and runs/ablation_dsm/table.md. More words are settings of all runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from running import apart, figures_table, measured, tools, trained, weights

OUT = Path("runs/ablation_dsm")
RUNS = {
    "DSM": ("dsm",),
    "DSM without flow": (
        "dsm",
        "method.flow=false",
        "optim.F.lr=2e-5",
        "optim.F.weight_decay=1e-4",
    ),
    "DSM without L_uni": ("dsm", "method.lambda_uni=0"),
    "DSM without L_smooth": ("dsm", "method.lambda_smooth=0"),
    "DSM without L_ds": ("dsm", "method.lambda_ds=0"),
    "StarGAN v2": ("stargan_v2",),
    "SmoothGAN": ("smoothgan",),
}
SCENES = "outline, painted, mosaic, neon, chalk, blueprint, papercut"
WAYS = {"latent": "random styles", "reference": "styles of references"}
COLUMNS = {
    way: (
        "KID",
        "LPIPS diversity",
        "pixel diversity",
        "label kept",
        "paired error",
        "content kept",
        "styles covered",
    )
    for way in WAYS
}
STYLES = ("style gap", "PS", "MCC", "MCC ranks")


def compare(name: str, data: Sequence[object], args: argparse.Namespace) -> str:
    """Trains and measures all runs on one set; a table for each way to a style, one for the styles themselves."""
    figures, notes = {}, {}
    for run, (method, *settings) in RUNS.items():
        if args.only and run not in args.only:
            continue
        folder = OUT / name / run.replace(" ", "-")
        words = [
            "--method",
            method,
            "--preset",
            "small",
            *data,
            *settings,
            f"train.steps={args.steps}",
        ]
        step = trained(folder, *words, "data.size=32", *args.settings, minutes=args.minutes)
        figures[run], notes[run] = measured(folder, step, *tools(args)), str(step)
    parts = [f"## {name}\n"]
    for way, title in WAYS.items():
        rows = {run: f.get("means", {}).get(way, {}).get("model", {}) for run, f in figures.items()}
        if way == "latent":
            rows = {run: row | mean(scenes(figures[run])) for run, row in rows.items()}
        parts.append(
            f"Means over all directions, by {title}:\n\n" + figures_table(rows, COLUMNS[way], notes)
        )
    rows = {run: mean(list(f.get("styles", {}).values())) for run, f in figures.items()}
    parts.append("Means over all domains:\n\n" + figures_table(rows, STYLES, notes))
    return "\n".join(parts)


def scenes(figures: Mapping) -> list[Mapping[str, float]]:
    """The figures that only scenes have, of each direction."""
    return [row["model"] for row in figures.get("scenes", {}).values()]


def mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each figure that all rows have."""
    names = [n for n in rows[0] if all(n in row for row in rows)] if rows else []
    return {n: sum(row[n] for row in rows) / len(rows) for n in names}


def main(argv: Sequence[str] | None = None) -> None:
    p = argparse.ArgumentParser(description="What each part of DSM is for.")
    p.add_argument("--data", type=Path, nargs="+", default=[], metavar="DIR", help="besides scenes")
    p.add_argument("--steps", type=int, default=1500)
    p.add_argument("--minutes", type=float, default=15, help="of a run, at most")
    p.add_argument("--only", nargs="+", metavar="RUN", help="some of the runs")
    weights(p)
    args = apart(p, argv)
    if unknown := set(args.only or ()) - RUNS.keys():
        raise SystemExit(f"There is no run {unknown.pop()!r}: choose from {', '.join(RUNS)}.")
    parts = [compare("scenes", ["--data", "scenes", f"data.domains=[{SCENES}]"], args)]
    for folder in args.data:
        parts.append(
            compare(folder.name, ["--data", folder, "data.flip=false", "method.mirror=false"], args)
        )
    (OUT / "table.md").write_text("\n".join(parts))
    print("\n".join(parts))


if __name__ == "__main__":
    main()
