"""`unpaired report RUN...`: one page that compares runs of any methods. It holds its pictures and opens from disk."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unpaired import page
from unpaired.checkpoint import RunFolder, read_json, write_atomic
from unpaired.data.batches import Pictures, middle, spread
from unpaired.data.datasets import Dataset
from unpaired.errors import Problem
from unpaired.metrics.evaluation import metrics_file, model_file
from unpaired.metrics.features import sha256
from unpaired.metrics.images import open_images
from unpaired.metrics.table import metric
from unpaired.pictures import enlarged, label, sheet
from unpaired.translator import Translator

INPUTS, STYLES, STEPS, COMPONENTS = 4, 5, 7, 12
NEAR = 32  # side at which images are compared with training images
WIDE = (
    "<style>.runs { display: grid; grid-template-columns: repeat(auto-fill, minmax(360px, 1fr)); gap: 1rem }"
    "td, th { padding-right: 1.4rem }</style>"
)
MOST = 2000  # training images that are looked through


def report(runs: Sequence[Path], out: Path, data: Sequence[str] = ()) -> None:
    """Writes the page of `runs`. Inputs are held-out images of the first run's data, or of `data`; random styles those
    of seed 0."""
    models = [(name, Translator.load(path)) for name, path in zip(named(runs), runs, strict=True)]
    folders = [RunFolder(path if path.is_dir() else path.parent) for path in runs]
    first = models[0][1]
    _, images = open_images(first.run, folders[0], first.domains, data)
    parts = [WIDE, "<h1>Report</h1>", overview(models, folders), figures(models, runs)]
    parts += ["<h2>Same inputs, same seeds</h2>", *samples(models, images)]
    parts += ["<h2>Curves</h2>"]
    for (name, _), folder in zip(models, folders, strict=True):
        records = folder.read_log()
        losses = page.curves([r for r in records if "losses" in r])
        parts.append(
            f"<h3>{html.escape(name)}</h3>{page.alarms(records)}{page.validation(records)}"
            f"<details><summary>losses</summary>{losses}</details>"
        )
    write_atomic(out, page.document("Report", "".join(parts)).encode())


def named(runs: Sequence[Path]) -> list[str]:
    """The folders' names, or where two are alike, their paths."""
    names = [path.resolve().name for path in runs]
    return names if len(set(names)) == len(names) else [str(path) for path in runs]


def overview(models: Sequence[tuple[str, Translator]], folders: Sequence[RunFolder]) -> str:
    head = "".join(f"<th>{h}</th>" for h in ("run", "method", "domains", "size", "step", "state"))
    lines = []
    for (name, t), folder in zip(models, folders, strict=True):
        state = (folder.read_status() or {}).get("status", "")
        h, w = t.run.data.hw
        cells = (name, t.run.method.name, ", ".join(t.domains), f"{h} x {w}", str(t.step), state)
        lines.append("".join(f"<td>{html.escape(c)}</td>" for c in cells))
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def figures(models: Sequence[tuple[str, Translator]], runs: Sequence[Path]) -> str:
    """A table for each protocol, set of images and way to a style, the best of each metric in bold; runs are comparable
    within one. Figures of another model than the one that is there now are left out, and reported."""
    tables: dict[tuple[str, ...], dict[str, Mapping[str, float]]] = {}
    stale: dict[str, str] = {}
    for (name, _), run in zip(models, runs, strict=True):
        path = metrics_file(run)
        measured = read_json(path, figured) if path.is_file() else None
        if measured is None:
            continue
        model, step, same, rows = measured
        if model != sha256(model_file(run)):
            stale[name] = f"{name} (measured at step {step})"
            continue
        for way, row in rows.items():
            tables.setdefault((way, *same), {})[name] = row
    parts = ["<h2>Figures</h2>"]
    for (way, said, *_), rows in tables.items():
        title = f"{said}: {page.WAYS.get(way, way)}"
        parts.append(f"<h3>{html.escape(title)}</h3>{comparison(rows)}")
    found = {name for rows in tables.values() for name in rows} | stale.keys()
    missing = [name for name, _ in models if name not in found]
    if missing:
        parts.append(
            f"<p class=soft>Not measured: {html.escape(', '.join(missing))}; say <code>unpaired evaluate RUN</code></p>"
        )
    if stale:
        parts.append(
            f"<p class=soft>Trained on since they were measured: {html.escape(', '.join(stale.values()))}</p>"
        )
    return "".join(parts)


class Figured(NamedTuple):
    """What is used of a metrics.json: the model, its step, what comparable figures have in common, a row a way."""

    model: str
    step: int
    same: tuple[str, ...]
    rows: Mapping[str, Mapping[str, float]]


def figured(measured: Mapping[str, Any]) -> Figured | None:
    """None for one of an earlier version."""
    if measured.get("format") != page.METRICS:
        return None
    rows = {way: dict(rows["model"]) for way, rows in measured["means"].items()}
    return Figured(measured["model"]["sha256"], measured["step"], conditions(measured), rows)


def conditions(measured: Mapping[str, Any]) -> tuple[str, ...]:
    """What runs must have in common to be compared: in words, then the hashes of the images and how many others these
    are compared with."""
    data = measured["data"]
    root = data["root"] if isinstance(data["root"], str) else " and ".join(data["root"])
    said = f"{measured['protocol']['name']}, {measured['split']} images of {root}, {' x '.join(map(str, data['size']))}"
    if measured["seed"]:
        said += f", seed {measured['seed']}"
    return said, *sorted(f"{d['digest']} beside {d['train']}" for d in data["domains"].values())


def comparison(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Metrics down, runs across; arrows say which way is better, the best is bold."""
    lines = []
    for name in dict.fromkeys(name for values in rows.values() for name in values):
        try:
            about = metric(name)
        except KeyError:
            continue
        values = {run: row[name] for run, row in rows.items() if row.get(name) is not None}
        best = {"higher": max, "lower": min}.get(about.better)
        top = best(values.values()) if best and len(values) > 1 else None
        written = {run: page.number(values.get(run)) for run in rows}
        if top is not None:
            written |= {run: f"<b>{written[run]}</b>" for run, v in values.items() if v == top}
        cells = "".join(f"<td>{text}</td>" for text in written.values())
        lines.append(
            f'<tr><td title="{html.escape(about.says)}">{html.escape(name)} {about.arrow}</td>{cells}</tr>'
        )
    head = "".join(f"<th>{html.escape(run)}</th>" for run in rows)
    return f"<table><tr><th></th>{head}</tr>{''.join(lines)}</table>"


SHOWN = {
    "test": "Inputs and references are test images.",
    "val": "Inputs and references are validation images, held out of training.",
    "train": "Inputs and references are images that the runs were trained on: there are no others.",
}


def samples(models: Sequence[tuple[str, Translator]], data: Dataset) -> Iterator[str]:
    """For each way between two domains, what each run makes of the same inputs."""
    split = next((s for s in ("test", "val") if all(len(p) for p in data.splits[s])), "train")
    held = data.splits[split]
    yield f"<p class=soft>{SHOWN[split]}</p>"
    domains = data.domains if len(data.domains) > 1 else models[0][1].domains
    for source, target in [(a, b) for a in domains for b in domains if a != b][:12]:
        here = [d if d in data.domains else data.domains[0] for d in (source, target)]
        inputs, references, train = (
            split[data.domains.index(d)]
            for split, d in ((held, here[0]), (held, here[1]), (data.splits["train"], here[1]))
        )
        shown = []
        for name, t in models:
            try:
                shown += [one(name, t, source, target, inputs, references, train)]
            except Problem as problem:
                shown += [f"<p class=soft>{html.escape(name)}: {html.escape(str(problem))}</p>"]
        yield f"<h3>{html.escape(f'{source} to {target}')}</h3><div class=runs>{''.join(shown)}</div>"


def one(
    name: str,
    t: Translator,
    source: str,
    target: str,
    inputs: Pictures,
    references: Pictures,
    train: Pictures,
) -> str:
    """A run's sheet, its strips of interpolated styles and of components, and its outputs' neighbours."""
    a, b = t.index(source), t.index(target)
    ways = t.method.styles(a, b)
    arrays = [inputs.read(i) for i in spread(min(INPUTS, len(inputs)), len(inputs))]
    few = spread(min(STYLES, len(references)), len(references))
    said = [references.read(i) for i in few]
    rows: list[list[Image.Image | None]] = []
    first: list[Image.Image] = []
    for array in arrays:
        if "latent" in ways or not ways:
            made = t.translate(array, target, STYLES, 0, source=source)
        else:
            made = [t.translate(array, target, style_from=r, source=source)[0] for r in said]
        first.append(made[0])
        rows.append([enlarged(t.shown(array)), *map(enlarged, made)])
    parts = [picture(sheet(rows), f"{name}: {'random styles' if 'latent' in ways else 'outputs'}")]
    ends = (0, 1) if "latent" in ways else tuple(said[:2]) if len(said) > 1 and ways else ()
    if ends:
        line = t.interpolate(arrays[0], ends[0], ends[1], target, STEPS, source)
        parts.append(
            picture(sheet([[*map(enlarged, line)]], set_apart=0), f"{name}: between styles")
        )
    if "latent" in ways and source == first_source(t, target):
        parts.append(components(name, t, arrays[0], source, target))
    if not len(train):
        return f"<div>{''.join(parts)}</div>"
    near = neighbours(first, train)
    pairs: list[list[Image.Image | None]] = [
        [*map(enlarged, first)],
        [enlarged(t.shown(array)) for array in near],
    ]
    caption = f"{name}: outputs, and below the nearest training images of {target} (equal ones: memorised)"
    parts.append(picture(sheet(pairs, set_apart=0), caption))
    return f"<div>{''.join(parts)}</div>"


def first_source(t: Translator, target: str) -> str:
    """Where a target is shown from when once is enough."""
    return next(d for d in t.domains if d != target)


def components(name: str, t: Translator, array: np.ndarray, source: str, target: str) -> str:
    """A strip for each component of a style that changes an image the most, and how much it does."""
    n = t.components(t.index(target), t.index(source))
    moved = [
        [
            np.asarray(image, np.float32)
            for image in t.sweep(array, target, k, steps=2, source=source)
        ]
        for k in range(n)
    ]
    change = [float(np.abs(high - low).mean()) / 255 for low, high in moved]
    order = sorted(range(n), key=lambda k: -change[k])
    strips: list[list[Image.Image | None]] = []
    for k in order[:COMPONENTS]:
        images = [*map(enlarged, t.sweep(array, target, k, steps=STEPS, source=source))]
        strips.append([label(f"{k}\n{change[k]:.3f}", images[0].size), *images])
    rest = order[COMPONENTS:]
    left = f" {len(rest)} more change at most {change[rest[0]]:.3f}." if rest else ""
    caption = (
        f"{name}: components of a style, the one that changes most on top, from -2 to 2 standard deviations; at the "
        f"left its number and the mean change of a pixel from end to end, of a range of 1.{left}"
    )
    return picture(sheet(strips, set_apart=1), caption)


def neighbours(outputs: Sequence[Image.Image], train: Pictures) -> list[np.ndarray]:
    """For each output the training image with the least squared difference at NEAR px, of MOST evenly spread ones."""
    places = np.unique(np.linspace(0, len(train) - 1, min(MOST, len(train))).astype(int)).tolist()
    known = torch.stack([small(square(train.read(i))) for i in places])
    made = torch.stack([small(square(np.array(o.convert("RGB")))) for o in outputs])
    return [train.read(places[int(i)]) for i in torch.cdist(made, known).argmin(1)]


def square(image: np.ndarray) -> Tensor:
    side = min(image.shape[:2])
    return middle(image, (side, side))


def small(x: Tensor) -> Tensor:
    """(1, 3, H, W) -> (3 * NEAR * NEAR,)"""
    return torch.nn.functional.interpolate(x, (NEAR, NEAR), mode="area").flatten()


def picture(image: Image.Image, caption: str) -> str:
    """A figure with its picture inside."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    source = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return page.figure(source, caption)
