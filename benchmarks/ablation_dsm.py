"""What each part of DSM is for, beside the methods it builds on: StarGAN v2 and SmoothGAN, same steps, same protocol.

    python benchmarks/ablation_dsm.py                                       # seven domains of the built-in scenes
    python benchmarks/ablation_dsm.py --digits digits.npz --emoji DIR --features FILE --lpips TRUNK HEADS
    python benchmarks/ablation_dsm.py --sets choices ...      # what DSM's source leaves open, on three scenes

32 px, preset small, about 15 minutes a run (a limit of 30). Stop and start it at will: finished runs are not
repeated. Several may go on at once with --sets or --only and runs of their own; the last call, without them, writes the
whole table. Writes runs/ablation_dsm/<set>/<run> and runs/ablation_dsm/table.md. More words are settings of all runs.

--digits: arrays <set>_<x|y>_<train|test>, uint8, of mnist, usps and mnistm: the digit is what is to survive. --emoji:
DIR/train/<domain>, DIR/test/<domain>, equal names show the same symbol. Without them their sets are left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from running import apart, digit_folders, figures_table, kept, measured, tools, trained, weights

from unpaired import Translator
from unpaired.checkpoint import RunFolder
from unpaired.metrics.images import Images, held_out, open_images
from unpaired.metrics.matching import correlations
from unpaired.metrics.validation import encoded

OUT = Path("runs/ablation_dsm")
RUNS = {
    "DSM": ("dsm",),
    "DSM without flow": (
        "dsm",
        "method.flow=false",
        "optim.F.lr=5e-5",
        "optim.F.weight_decay=1e-4",
    ),
    "DSM without L_uni": ("dsm", "method.lambda_uni=0"),
    "DSM without L_smooth": ("dsm", "method.lambda_smooth=0"),
    "DSM without L_ds": ("dsm", "method.lambda_ds=0"),
    "StarGAN v2": ("stargan_v2",),
    "SmoothGAN": ("smoothgan",),
}
CHOICES = {  # what the summary leaves open: one thing changed at a time
    f"DSM, {setting.replace('=', ' ')}": ("dsm", f"method.{setting}")
    for setting in (
        "lambda_uni=0.1",
        "lambda_smooth=1",
        "alpha=0.1",
        "lambda_reg_s=0",
        "mirror=true",
        "bins=4",
        "bins=16",
        "bound=3",
    )
}
SETS = ("scenes", "digits", "emoji")
THREE = "outline, painted, neon"  # for the choices
SCENES = "outline, painted, mosaic, neon, chalk, blueprint, papercut"
STYLED = 500  # held-out images of a domain whose styles are looked at
WAYS = {"latent": "random styles", "reference": "styles of references"}
FIGURES = (
    "KID",
    "LPIPS diversity",
    "pixel diversity",
    "label kept",
    "paired LPIPS",
    "paired error",
    "content kept",
    "styles covered",
)
STYLES = ("style gap", "PS", "MCC", "MCC ranks", "dependence")


def data_words(name: str, args: argparse.Namespace) -> list[str] | None:
    """How `unpaired train` is told of a set; None where it was not given."""
    if name == "scenes":
        return ["--data", "scenes", f"data.domains=[{SCENES}]"]
    if name == "choices":
        return ["--data", "scenes", f"data.domains=[{THREE}]"]
    if name == "digits" and args.digits:
        sets, target = ("mnist", "usps", "mnistm"), OUT / "data" / "digits"
        folder = digit_folders(args.digits, target, sets, "{set}/{digit}")
        return ["--data", str(folder), "data.flip=false"]
    if name == "emoji" and args.emoji:
        return ["--data", str(args.emoji), "data.flip=false"]
    return None


def compare(name: str, data: Sequence[object], args: argparse.Namespace) -> str:
    """Trains and measures all runs on one set; a table for each way to a style, one for the styles themselves."""
    figures, notes, styled = {}, {}, {}
    for run, (method, *settings) in chosen(name, args).items():
        folder = OUT / name / run.replace(", ", "-").replace(" ", "-")
        words = ["--method", method, "--preset", "small", *data, *settings]
        words += [f"train.steps={args.steps}", f"train.sample_every={args.steps}", "data.size=32"]
        step = trained(folder, *words, *args.settings, minutes=args.minutes)
        paired = ["--paired"] if name == "emoji" else []
        figures[run], notes[run] = measured(folder, step, *paired, *tools(args)), str(step)
        of_styles = mean(list(figures[run].get("styles", {}).values()))
        alone = kept(folder / "dependence.json", step, partial(dependence, folder))
        styled[run] = of_styles | dict(alone)
    if not figures:
        return ""
    parts = [f"## {name}\n"]
    for way, title in WAYS.items():
        means = {run: f.get("means", {}).get(way, {}) for run, f in figures.items()}
        rows = {run: m.get("model", {}) for run, m in means.items()}
        rows = {run: row | mean(scenes(figures[run], way)) for run, row in rows.items()}
        first = next(iter(means.values()))
        rows |= {floor: first[floor] for floor in ("real images", "untranslated") if floor in first}
        rows = {run: mean([row]) for run, row in rows.items()}
        parts.append(
            f"Means over all directions, by {title}:\n\n" + figures_table(rows, FIGURES, notes)
        )
    parts.append("Means over all domains:\n\n" + figures_table(styled, STYLES, notes))
    return "\n".join(parts)


def chosen(name: str, args: argparse.Namespace) -> dict[str, tuple[str, ...]]:
    """The runs of a set."""
    runs = {"DSM": RUNS["DSM"], **CHOICES} if name == "choices" else RUNS
    return {run: words for run, words in runs.items() if not args.only or run in args.only}


def scenes(figures: Mapping, way: str) -> list[Mapping[str, float]]:
    """The figures that only scenes have, of each direction."""
    name = {"latent": "model", "reference": "by references"}[way]
    return [rows[name] for rows in figures.get("scenes", {}).values() if name in rows]


def mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each figure that all rows have; it is null where it was not finite."""
    names = [n for n in rows[0] if all(row.get(n) is not None for row in rows)] if rows else []
    return {n: sum(row[n] for row in rows) / len(rows) for n in names}


@torch.inference_mode()
def dependence(run: Path) -> dict[str, float]:
    """How far the components of encoded styles are from independent of each other, mean over the domains.

    Mean |rank correlation| of two components, and of their distances from the median, which see a dependence that has
    no sign. 0.036 where 500 styles have independent components.
    """
    t = Translator.load(run, "cpu")
    settings, dataset = open_images(t.run, RunFolder(run), t.domains, None)
    each = []
    for target, pictures in enumerate(dataset.splits[held_out(dataset)]):
        x = Images(pictures, settings.hw, settings.channels, dataset.listing).some(STYLED)
        each.append(dependent(encoded(t.method, x.tensor(t.device), target).numpy()))
    return {"dependence": float(np.mean(each))}


def dependent(s: np.ndarray) -> float:
    """`dependence` of styles (N, n)."""
    pairs = ~np.eye(s.shape[1], dtype=bool)
    folded = np.abs(s - np.median(s, axis=0))
    return float(np.mean([np.abs(correlations(v, v, ranks=True))[pairs] for v in (s, folded)]))


def main(argv: Sequence[str] | None = None) -> None:
    p = argparse.ArgumentParser(description="What each part of DSM is for.")
    p.add_argument("--digits", type=Path, metavar="FILE.npz", help="besides scenes")
    p.add_argument("--emoji", type=Path, metavar="DIR", help="besides scenes")
    p.add_argument("--steps", type=int, default=1500)
    p.add_argument("--minutes", type=float, default=30, help="of a run, at most")
    sets = "some of the sets, or what the summary leaves open (choices)"
    p.add_argument("--sets", nargs="+", choices=(*SETS, "choices"), default=SETS, help=sets)
    p.add_argument("--only", nargs="+", metavar="RUN", help="some of the runs")
    weights(p)
    args = apart(p, argv)
    known = RUNS | CHOICES
    if unknown := set(args.only or ()) - known.keys():
        raise SystemExit(f"There is no run {unknown.pop()!r}: choose from {', '.join(known)}.")
    parts = []
    for name in args.sets:
        if words := data_words(name, args):
            parts.append(compare(name, words, args))
            (OUT / "table.md").write_text("\n".join(parts))
    print("\n".join(parts))


if __name__ == "__main__":
    main()
