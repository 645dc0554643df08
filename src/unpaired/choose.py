"""How many domains? `unpaired domains --choose 2 5 10 20 --data DIR`: the first stage alone, thrice for each number K.

`train.steps` are the steps of this stage; without it they are as many as a whole run of the preset gives it. Training
goes on with as many steps as a whole run has after it.

Two figures for each K, on the same images. *Information*: what a domain tells of an image's second view, in units of
log K: 1 where images part into K equal, certain groups. *Stability*: how far runs from other seeds agree (mean ARI of
two, 0 is chance). A K that fits the images has both high; too many domains make stability fall, as the cuts become
arbitrary. Neither says what you want to tell apart: look at the pages of the runs too.

Some seeds end in a poor division, with half of the images in one domain, and information tells them: training goes on
best from the run that has most of it, which is named for each K.
"""

from __future__ import annotations

import html
import json
import math
import shlex
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unpaired import domains, page
from unpaired.checkpoint import RunFolder, write_atomic
from unpaired.config import Run, changes, load
from unpaired.data.augment import View
from unpaired.data.datasets import open_dataset
from unpaired.errors import ConfigProblem
from unpaired.losses import mutual_information
from unpaired.metrics.matching import clustering
from unpaired.train import fit
from unpaired.translator import Translator

SEEDS = (0, 1, 2)
MOST = 2000  # images that the figures are of


def choose(
    numbers: Sequence[int],
    data: Sequence[str],
    settings: Sequence[str],
    preset: str | None,
    out: Path,
    say: Callable[[str], None],
) -> str:
    """Trains what is missing in `out`, writes `choose.json` and `choose.html` there, returns the table as text.

    Stop and start it at will: finished runs are not repeated. Raises ConfigProblem for numbers under 2.
    """
    if min(numbers) < 2:
        raise ConfigProblem(f"--choose {min(numbers)}: 2 domains are the least that part images.")
    preset = preset or "small"
    own = [word for word in settings if not word.startswith("train.steps=")]
    first, rest = stages(data, own, preset)
    words = [f"train.steps={first}", *settings]
    rows = []
    for K in sorted(set(numbers)):
        runs = [trained(K, seed, data, words, preset, out, say) for seed in SEEDS]
        found, information = zip(*map(measured, runs), strict=True)
        told = [round(i / math.log(K), 3) for i in information]
        best = told.index(max(told))
        shares = np.bincount(found[best], minlength=K) / len(found[best])
        pairs = [clustering(a, b).ari for a, b in combinations(found, 2)]
        rows.append(
            {
                "K": K,
                "information": told,  # of each seed
                "stability": round(float(np.mean(pairs)), 3),
                "used": int((shares > 0.1 / K).sum()),  # by the best
                "best": str(runs[best]),
            }
        )
        say(line(rows[-1]))
    write_atomic(out / "choose.json", json.dumps(rows, indent=1).encode())
    said = ["--preset", preset, "--data", *data, *own, f"train.steps={rest}"]
    go_on = [f"Go on from the best run of {row['K']} domains: {on_from(row, said)}" for row in rows]
    text = page.document("How many domains?", document(rows, go_on))
    write_atomic(out / "choose.html", text.encode(errors="backslashreplace"))
    head = "   K  information/log K    stability (ARI)  domains in use  best run"
    return "\n".join([head, *map(line, rows), *go_on])


def whole(data: Sequence[str], settings: Sequence[str], preset: str) -> Run:
    """The run that settings describe, with both stages."""
    root = data[0] if len(data) == 1 else list(data)
    return load(None, settings, method={"name": "tunit"}, preset=preset, data={"root": root})


def stages(data: Sequence[str], settings: Sequence[str], preset: str) -> tuple[int, int]:
    """How many steps C is alone in such a run, and how many G and D play."""
    run = whole(data, settings, preset)
    config: Any = run.method
    first = min(max(1, round(config.first_stage * run.train.steps)), run.train.steps - 1)
    return first, run.train.steps - first


def on_from(row: dict[str, Any], said: Sequence[str]) -> str:
    """The command that trains all networks from the best run of a K: G and D play from the first step on."""
    own = ["--init", row["best"], f"method.clusters={row['K']}", "method.first_stage=0"]
    return shlex.join(["unpaired", "train", "--method", "tunit", *said, *own])


def trained(
    K: int,
    seed: int,
    data: Sequence[str],
    settings: Sequence[str],
    preset: str,
    out: Path,
    say: Callable[[str], None],
) -> Path:
    """The first stage of a run, in its folder below `out`; goes on with what is begun, refuses what is not the same."""
    own = (f"method.clusters={K}", "method.first_stage=1.0", f"train.seed={seed}")
    run = whole(data, [*settings, *own], preset)
    folder = RunFolder(out / f"K{K}-seed{seed}")
    if (saved := folder.path / "config.yaml").is_file():
        begun = load(saved)
        places = {k: (getattr(begun.data, k), getattr(run.data, k)) for k in ("root", "labels")}
        odd = [f"data.{k}: {a} -> {b}" for k, (a, b) in places.items() if a != b]
        odd += changes(begun, run)
        if (
            begun.train.steps != run.train.steps
        ):  # of unequal lengths the longer one would look better
            odd.append(f"train.steps: {begun.train.steps} -> {run.train.steps}")
        if odd:
            raise ConfigProblem(
                f"{folder.path} holds a run of other settings ({'; '.join(odd[:3])}): choose another --out."
            )
    status = folder.read_status() or {}
    if status.get("status") != "done" or status.get("step", 0) < run.train.steps:
        say(f"{K} domains, seed {seed}: {run.train.steps} steps")
        fit(run, folder, resume=bool(folder.steps()), say=say)
    return folder.path


@torch.inference_mode()
def measured(path: Path) -> tuple[np.ndarray, float]:
    """The domains of images, evenly spread, and the information in nats between these and their second views."""
    translator = Translator.load(path)
    method: Any = translator.method
    run = load(path / "config.yaml")
    dataset = open_dataset(run.data, "unlabelled", 0)
    pictures = dataset.splits["train"][0]
    view = View.of(run.data)
    u = torch.rand(MOST, View.draws, generator=torch.Generator().manual_seed(0))
    places = np.unique(np.linspace(0, len(pictures) - 1, min(MOST, len(pictures))).astype(int))
    p, q = [], []
    for i in range(0, len(places), domains.BATCH):
        part = places[i : i + domains.BATCH]
        x = torch.cat([translator.reference(pictures.read(int(place))) for place in part])
        p.append(method.assign(x))
        q.append(method.assign(view(x, u[i : i + len(part)])))
    one, two = torch.cat(p), torch.cat(q)
    return one.argmax(1).cpu().numpy(), float(mutual_information(one, two))


def line(row: dict[str, Any]) -> str:
    told = " ".join(f"{i:.2f}" for i in row["information"])
    used = f"{row['used']:d} of {row['K']:d}"
    return f"{row['K']:4d}  {told:>17s}  {row['stability']:17.3f}  {used:>14s}  {row['best']}"


def document(rows: Sequence[dict[str, Any]], go_on: Sequence[str]) -> str:
    cells = "".join(
        f"<tr><td>{r['K']}</td><td>{' '.join(f'{i:.3f}' for i in r['information'])}</td><td>{r['stability']:.3f}</td>"
        f"<td>{r['used']} of {r['K']}</td><td>{html.escape(r['best'])}</td></tr>"
        for r in rows
    )
    text = [*(__doc__ or "").split("\n\n")[1:], *go_on]
    about = "".join(f"<p>{html.escape(part)}</p>" for part in text)
    return (
        f"<h1>How many domains?</h1>{about}<table><tr><th>K</th><th>information / log K, of each seed</th>"
        f"<th>stability (ARI)</th><th>domains in use</th><th>best run</th></tr>{cells}</table><p>{plot(rows)}</p>"
    )


def plot(rows: Sequence[dict[str, Any]], width: int = 460, height: int = 220) -> str:
    """Information of the best seed and stability over K, on one axis from 0 to 1, as inline SVG."""
    at = lambda i: 40 + i * (width - 80) / max(len(rows) - 1, 1)  # noqa: E731
    parts = []
    curves = (
        ("information", "var(--accent)", 14, [max(r["information"]) for r in rows]),
        ("stability", "#c86040", 30, [r["stability"] for r in rows]),
    )
    for name, colour, top, values in curves:
        points = [
            (at(i), height - 24 - (height - 60) * min(max(value, 0), 1))
            for i, value in enumerate(values)
        ]
        parts.append(
            f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}" fill="none" '
            f'stroke="{colour}" stroke-width="1.5"/><text x="{width - 90}" y="{top}" font-size="12" '
            f'fill="{colour}">{name}</text>'
        )
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
    parts += [
        f'<text x="{at(i):.1f}" y="{height - 6}" font-size="11" text-anchor="middle" '
        f'fill="currentColor">{r["K"]}</text>'
        for i, r in enumerate(rows)
    ]
    return f'<svg viewBox="0 0 {width} {height}" style="max-width:{width}px">{"".join(parts)}</svg>'
