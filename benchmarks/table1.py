"""MUNIT's Table 1 in small: what MUNIT, each of its reconstruction losses and its rivals are worth, under one protocol.

    python benchmarks/table1.py --features FILE --lpips TRUNK HEADS     # built-in scenes, outline to painted
    python benchmarks/table1.py --emoji DIR ...      # and emoji: DIR/train/lineart, DIR/train/noto, DIR/test/...

32 px, preset small, the same number of steps for all, at most ten minutes a run. Stop and start it at will: finished
runs are not repeated. Writes runs/table1/<set>/<run> and runs/table1/table.md. More words are settings of all runs.
Several may go on at once with --only and runs of their own; the last call, without it, writes the whole table.

All are measured on the same held-out pairs. On the scenes, where masks are known, the content kept is read from the
outputs. On emoji LPIPS to the true partner tells another symbol from the same one in other colours, the pixels' error
counts colours as well. Methods that learn from pairs train on other scenes of the same kind, so their classifier is
another one: with --features, KID on those stands alone. Their outputs are compared with these other scenes too, so real
images and untranslated ones have a row for each.

Expected from the paper: deterministic methods vary under a tenth of MUNIT, MUNIT without image reconstruction is worst
in quality, methods with pairs are best.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from running import apart, figures_table, measured, tools, trained, weights

OUT = Path("runs/table1")
NO_IDENTITY = "method.lambda_idt=0"  # which would hold outputs to the input's colours
RUNS = {  # as in the paper's table, then what it does not have
    "UNIT": ("unit",),
    "CycleGAN": ("cyclegan", NO_IDENTITY),
    "CycleGAN with noise": ("cyclegan", NO_IDENTITY, "method.noise=true"),
    "MUNIT without image reconstruction": ("munit", "method.lambda_x=0"),
    "MUNIT without content reconstruction": ("munit", "method.lambda_c=0"),
    "MUNIT without style reconstruction": ("munit", "method.lambda_s=0"),
    "MUNIT": ("munit",),
    "Augmented CycleGAN": ("augmented_cyclegan",),
    "pix2pix (pairs)": ("pix2pix",),
    "BicycleGAN (pairs)": ("bicyclegan",),
}
DIVERSITY = ("LPIPS diversity", "pixel diversity")
COLUMNS = {
    "scenes": ("KID", *DIVERSITY, "styles covered", "content kept"),
    "emoji": ("KID", *DIVERSITY, "paired LPIPS", "paired error"),
}


def emoji(root: Path) -> Path:
    """The symbols that are there in both manners, so that all methods learn from the same files."""
    target = OUT / "emoji-pairs"
    for split in ("train", "test"):
        line, colour = (
            {p.name: p for p in sorted((root / split / d).glob("*.png"))}
            for d in ("lineart", "noto")
        )
        if not line.keys() & colour.keys():
            raise SystemExit(f"{root / split} has no lineart and noto images of equal names.")
        for domain, files in (("lineart", line), ("noto", colour)):
            folder = target / split / domain
            folder.mkdir(parents=True, exist_ok=True)
            for name in line.keys() & colour.keys():
                if not (folder / name).exists():
                    shutil.copy(files[name], folder / name)
    return target


def row_of(figures: Mapping, direction: str, row: str = "model") -> dict[str, float]:
    """All figures of one direction: by random styles where the method has them, else of its one output."""
    found: dict[str, float] = {}
    for part in figures.get("directions", ()):
        if part["name"] == direction and part["way"] in ("latent", "output"):
            found |= part["rows"].get(row, {})
    found |= figures.get("scenes", {}).get(direction, {}).get(row, {})
    if sum(name.startswith("KID") for name in found) > 1:
        found.pop("KID (classifier)", None)
    return {name: value for name, value in found.items() if value is not None}


def compare(name: str, data: Sequence[object], direction: str, args: argparse.Namespace) -> str:
    """Trains and measures all runs on one set; the table."""
    rows: dict[str, dict[str, float]] = {}
    floors: dict[str, dict[str, float]] = {}
    notes, fixed = {}, []
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
        figures = measured(folder, step, "--paired", *tools(args))
        rows[run], notes[run] = row_of(figures, direction), str(step)
        if any((d["name"], d["way"]) == (direction, "output") for d in figures["directions"]):
            fixed.append(run)
        pairs = " (pairs)" if run.endswith("(pairs)") else ""  # they train on other images
        for floor in ("real images", "untranslated"):
            floors.setdefault(floor + pairs, row_of(figures, direction, floor))
    rows |= floors
    varied = {c for row in rows.values() for c in row if c.partition(" (")[0] in DIVERSITY}
    for run in fixed:
        rows[run] |= dict.fromkeys(varied, 0.0)  # one output is no variety
    return f"## {name}: {direction}\n\n" + figures_table(rows, COLUMNS[name], notes)


def main(argv: Sequence[str] | None = None) -> None:
    p = argparse.ArgumentParser(description="MUNIT's Table 1 in small.")
    p.add_argument("--emoji", type=Path, metavar="DIR", help="also on emoji")
    p.add_argument("--steps", type=int, default=1200)
    p.add_argument("--minutes", type=float, default=10, help="of a run, at most")
    p.add_argument("--only", nargs="+", metavar="RUN", help="some of the runs")
    weights(p)
    args = apart(p, argv)
    if unknown := set(args.only or ()) - RUNS.keys():
        raise SystemExit(f"There is no run {unknown.pop()!r}: choose from {', '.join(RUNS)}.")
    scenes = ["--data", "scenes", "data.domains=[outline, painted]"]
    parts = [compare("scenes", scenes, "outline to painted", args)]
    if args.emoji:
        data = ["--data", emoji(args.emoji), "data.domains=[lineart, noto]", "data.flip=false"]
        parts.append(compare("emoji", data, "lineart to noto", args))
    (OUT / "table.md").write_text("\n".join(parts))
    print("\n".join(parts))


if __name__ == "__main__":
    main()
