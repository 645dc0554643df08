"""The domains that a method found without labels: `unpaired domains RUN` looks at them and names them.

`domains.html` in the run folder shows sizes, typical images, a map of styles, and the agreement with true labels
where there are any; `domains.json` holds the same figures and the names, which are in model.safetensors too. Those of a
model file alone lie beside it, `model.domains.html`.
"""

from __future__ import annotations

import base64
import html
import io
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from unpaired import page
from unpaired.checkpoint import RunFolder, load_model, read_json, save_model, write_atomic
from unpaired.config import Data, load, nearest
from unpaired.data.batches import Pictures
from unpaired.data.datasets import open_dataset, refuse_moved
from unpaired.data.intake import escape, placed
from unpaired.errors import ConfigProblem
from unpaired.metrics.matching import assign, clustering
from unpaired.translator import Translator

MOST = 10_000  # images of a split that are looked at, evenly spread
BATCH = 64
TYPICAL = 12
POINTS = 2000  # of the map
MODELS = ("model.safetensors", "model-best.safetensors")  # of a run


class Found(NamedTuple):
    """What a model says of N images, and what is known of them."""

    places: np.ndarray  # (N,) in their pictures
    domain: np.ndarray  # (N,)
    style: np.ndarray  # (N, style_dim)
    label: np.ndarray  # (N,), -1 where it is not known


@torch.inference_mode()
def look(translator: Translator, pictures: Pictures, most: int = MOST) -> Found:
    """Sorts the images of a split into the model's domains."""
    method: Any = translator.method
    n = len(pictures)
    places = np.unique(np.linspace(0, n - 1, min(most, n)).astype(int)) if n else np.array([], int)
    domain, style = [np.array([], int)], [np.zeros((0, 1))]
    for part in np.split(places, range(BATCH, len(places), BATCH)) if n else ():
        x = torch.cat([translator.reference(pictures.read(int(i))) for i in part])
        domain.append(method.assign(x).argmax(1).cpu().numpy())
        style.append(method.encode_style(x, 0).flatten(1).float().cpu().numpy())
    label = np.array([pictures.label(int(i)) for i in places], int)
    return Found(places, np.concatenate(domain), np.concatenate(style[1:] or style), label)


def figures(found: Found, names: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
    """Sizes of the domains, and their agreement with the true labels of the images that have one."""
    K, known = len(names), found.label >= 0
    sizes = np.bincount(found.domain, minlength=K)
    measured: dict[str, Any] = {"images": len(found.places), "sizes": sizes.tolist()}
    if known.any():
        true, mine = found.label[known], found.domain[known]
        table = np.zeros((len(labels), K), int)
        np.add.at(table, (true, mine), 1)
        measured["labels"] = list(labels)
        measured["table"] = table.tolist()  # rows: labels; columns: domains
        measured["agreement"] = {
            k: round(v, 4) for k, v in clustering(true, mine)._asdict().items()
        }
        measured["labelled"] = int(known.sum())
    return measured


def concerns(sizes: Sequence[int], names: Sequence[str]) -> list[str]:
    """What is wrong with the sizes of the domains, in plain words, with the remedy."""
    total, K = sum(sizes), len(sizes)
    empty = [name for name, n in zip(names, sizes, strict=True) if n < 0.1 * total / K]
    most = int(np.argmax(sizes))
    said = []
    if len(empty) == K - 1:
        said.append(
            f"All images fell into one domain, {names[most]}: the clustering collapsed. Train anew with a larger "
            "data.batch, a lower optim.C.lr or another train.seed, and check that the images do differ."
        )
    elif empty:
        said.append(
            f"{len(empty)} of {K} domains hold (nearly) no image: {', '.join(empty)}. Either the images have fewer "
            f"kinds (method.clusters={K - len(empty)}), or the first stage was too short (method.first_stage, "
            "train.steps)."
        )
    elif sizes[most] > 0.6 * total and K > 2:
        said.append(
            f"{names[most]} holds {sizes[most] / total:.0%} of the images: look whether it mixes kinds; more clusters "
            "(method.clusters) or a longer first stage (method.first_stage) part them."
        )
    return said


def finder(path: Path) -> Translator:
    """A model that finds its domains; others are told."""
    translator = Translator.load(path)
    if getattr(translator.method, "assign", None) is None:
        raise ConfigProblem(
            f"{translator.run.method.name} is told its domains: name a run that found them, such as one of tunit "
            "without method.labels=all."
        )
    return translator


def report(
    path: Path, data: Sequence[str] | None, labels: str | None, say: Callable[[str], None]
) -> Path:
    """Writes `domains.html` and `domains.json` of a run folder, or those beside a model file; returns the page.

    data: other images than those of the run. labels: "folders" or a CSV, in the place of the run's `data.labels`.
    """
    translator = finder(path)
    page_file = path / "domains.html" if path.is_dir() else path.with_suffix(".domains.html")
    for file in (page_file, page_file.with_suffix(".json")):
        placed(file)  # before the looking, which takes minutes
    if (config := path / "config.yaml").is_file():
        known = load(config).data  # where the images lie
        if not data:
            refuse_moved(known, "--data DIR")
        settings = known.model_dump()
    elif data:
        settings = translator.run.data.model_dump() | {"domains": None}
    else:
        raise ConfigProblem(f"{escape(path)} does not know where its images lie: say --data DIR.")
    settings |= {"labelled": 1.0, "labels": labels or (None if data else settings["labels"])}
    if data:
        settings["root"] = data[0] if len(data) == 1 else tuple(data)
    dataset = open_dataset(
        Data.model_validate(settings), "unlabelled", translator.run.train.seed, bad(say)
    )
    found = {s: look(translator, p) for s, (p,) in dataset.splits.items() if len(p)}
    names = translator.domains
    record: dict[str, Any] = {"names": list(names), "step": translator.step, "splits": {}}
    record["splits"] = {s: figures(f, names, dataset.labels) for s, f in found.items()}
    write_atomic(page_file.with_suffix(".json"), json.dumps(record, indent=1).encode())
    first = next(iter(found))  # training images, where there are any
    for sentence in concerns(record["splits"][first]["sizes"], names):
        say(sentence)
    for split, measured in record["splits"].items():
        if agreement := measured.get("agreement"):
            said = ", ".join(f"{k} {v:.3f}" for k, v in agreement.items())
            say(f"{split}, {measured['labelled']} images with a label: {said}")
    body = document(path, record, first, found[first], dataset.splits[first][0], translator)
    text = page.document(f"Domains of {path.name}", body)
    write_atomic(page_file, text.encode(errors="backslashreplace"))  # names need not be UTF-8
    return page_file


def bad(say: Callable[[str], None]) -> Callable[[Path, str], None]:
    return lambda path, reason: say(f"Bad image, another stands in: {reason}")


# The page ----------------------------------------------------------------------------------------


def document(
    path: Path,
    record: Mapping[str, Any],
    split: str,
    found: Found,
    pictures: Pictures,
    t: Translator,
) -> str:
    names, figures = record["names"], record["splits"][split]
    sizes, total = figures["sizes"], max(figures["images"], 1)
    where, largest = (
        html.escape(shlex.quote(word)) for word in (str(path), names[int(np.argmax(sizes))])
    )
    parts = [
        f"<h1>Domains <span class=soft>· {html.escape(path.name)}</span></h1>",
        f"<p class=soft>Found by {html.escape(t.run.method.name)} at step {record['step']} in {total} {split} images"
        f"{f' of {len(pictures)}, evenly chosen' if total < len(pictures) else ''}.</p>",
        *(f"<p><b>{html.escape(s)}</b></p>" for s in concerns(sizes, names)),
        f"<p>Name them: <code>unpaired domains {where} --name 1=tabby 2=siamese</code><br>"
        f"Translate: <code>unpaired translate {where} IMAGE --to {largest}</code>, with the mean style "
        "of the domain, or with <code>--style-from REF</code>.</p>",
        "<style>.typical img { width: 64px; image-rendering: pixelated; margin-right: 3px }"
        "svg { max-width: 640px } td.hit { font-weight: bold }</style>",
    ]
    for k, name in enumerate(names):
        parts.append(
            f'<h2><span style="color:{colour(k)}">●</span> {k + 1}. {html.escape(name)} '
            f"<span class=soft>{sizes[k]} images, {sizes[k] / total:.1%}</span></h2>"
            f"<div class=typical>{''.join(picture(pictures, found, i, t) for i in typical(found, k))}</div>"
        )
    parts += ["<h2>Map of styles</h2>", style_map(found.style, found.domain, names)]
    if labels := figures.get("labels"):
        parts += [
            "<h2>The same map by true labels</h2>",
            style_map(found.style, found.label, labels),
        ]
    for of, measured in record["splits"].items():
        if "agreement" in measured:
            parts += [f"<h2>Against true labels, {of}</h2>", confusion(measured, names)]
    return "".join(parts)


def typical(found: Found, k: int, most: int = TYPICAL) -> list[int]:
    """Of the images of a domain those whose styles are nearest to its mean style."""
    members = np.flatnonzero(found.domain == k)
    if not len(members):
        return []
    away = np.linalg.norm(found.style[members] - found.style[members].mean(0), axis=1)
    return members[np.argsort(away, kind="stable")[:most]].tolist()


def picture(pictures: Pictures, found: Found, i: int, t: Translator) -> str:
    place = int(found.places[i])
    file = io.BytesIO()
    image = t.pixels(pictures.read(place))
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    name = html.escape(escape(Path(pictures.name(place)).name))
    return f'<img src="data:image/png;base64,{data}" alt="{name}" title="{name}">'


def colour(k: int) -> str:
    return f"hsl({k * 137.5 % 360:.0f} 65% 50%)"  # neighbours in number are far apart in hue


def style_map(style: np.ndarray, group: np.ndarray, names: Sequence[str], side: int = 420) -> str:
    """The two principal components of the styles (N, d) as inline SVG, coloured by group (N,); -1 is left out."""
    xy, explained = principal(style)
    span = np.abs(xy).max() or 1.0
    spots = side / 2 * (1 + 0.95 * xy / span)
    shown = np.unique(np.linspace(0, len(xy) - 1, min(POINTS, len(xy))).astype(int))
    groups = []
    for k, name in enumerate(names):
        dots = "".join(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.4"/>'
            for x, y in spots[shown[group[shown] == k]]
        )
        groups.append(f'<g fill="{colour(k)}"><title>{html.escape(name)}</title>{dots}</g>')
    return (
        f"<p class=soft>Two principal components, {explained:.0%} of the variance; one dot an image: "
        f"{legend(names)}</p>"
        f'<svg viewBox="0 0 {side} {side}" fill-opacity=".65">{"".join(groups)}</svg>'
    )


def legend(names: Sequence[str]) -> str:
    return ", ".join(
        f'<span style="color:{colour(k)}">●</span> {html.escape(name)}'
        for k, name in enumerate(names)
    )


def principal(s: np.ndarray) -> tuple[np.ndarray, float]:
    """Styles (N, d) on their first two principal components, (N, 2), and the share of the variance these explain."""
    s = s - s.mean(0)
    values, vectors = np.linalg.eigh(s.T @ s)  # ascending
    xy = s @ vectors[:, ::-1][:, :2]
    xy = np.pad(xy, ((0, 0), (0, 2 - xy.shape[1])))
    return xy, float(values[-2:].sum() / max(values.sum(), 1e-12))


def confusion(measured: Mapping[str, Any], names: Sequence[str]) -> str:
    """The table of labels and domains, the columns in the order that matches the labels best."""
    table = np.array(measured["table"])
    rows, columns = assign(-table)
    order = [*columns, *(k for k in range(len(names)) if k not in columns)]
    match = dict(zip(rows.tolist(), columns.tolist(), strict=True))
    head = "".join(f"<th>{html.escape(names[k])}</th>" for k in order)
    lines = [
        f"<tr><th>{html.escape(label)}</th>"
        + "".join(
            f"<td{' class=hit' if match.get(i) == k else ''}>{table[i, k]}</td>" for k in order
        )
        + "</tr>"
        for i, label in enumerate(measured["labels"])
    ]
    a = measured["agreement"]
    return (
        f"<p>Accuracy {a['accuracy']:.3f} by the best one-to-one assignment (bold), NMI {a['nmi']:.3f}, ARI "
        f"{a['ari']:.3f}, of {measured['labelled']} images with a label.</p>"
        f"<table><tr><th></th>{head}</tr>{''.join(lines)}</table>"
    )


# Names -------------------------------------------------------------------------------------------


def saved_names(folder: Path) -> tuple[str, ...] | None:
    """The names that the domains of a run were given."""
    path = folder / "domains.json"
    return read_json(path, lambda record: tuple(record["names"])) if path.is_file() else None


def rename(path: Path, words: Sequence[str]) -> tuple[str, ...]:
    """Names domains of a run, or of a model file alone, by `3=tabby` or `domain_3=tabby`; returns all names."""
    if path.name in MODELS and path.is_file() and (path.parent / "config.yaml").is_file():
        path = path.parent  # else its other files and its next steps keep the old names
    translator = finder(path)
    names = renamed(translator.domains, words)
    if path.is_dir():
        with RunFolder(path).lock():
            models = [path / name for name in MODELS if (path / name).is_file()]
            return write_names(path, models, names)
    return write_names(None, [path], names)


def renamed(names: Sequence[str], words: Sequence[str]) -> tuple[str, ...]:
    now = list(names)
    for word in words:
        key, sign, name = word.partition("=")
        name = name.strip()
        if not sign or not name or not name.isprintable() or name.isdecimal():
            raise ConfigProblem(
                f"--name {escape(word)} is no name: write NUMBER=NAME, such as 3=tabby, a name that is no number."
            )
        if key.isdecimal() and 1 <= int(key) <= len(names):
            now[int(key) - 1] = name
        elif key in names:
            now[list(names).index(key)] = name
        else:
            raise ConfigProblem(
                f"--name {escape(word)}: there is no domain {escape(key)}; they are counted from 1 to {len(names)}: "
                f"{nearest(key, names)}"
            )
    if twice := {name for name in now if now.count(name) > 1}:
        raise ConfigProblem(
            f"--name: two domains would be called {escape(min(twice))}: give each its own name."
        )
    return tuple(now)


def write_names(
    folder: Path | None, models: Sequence[Path], names: tuple[str, ...]
) -> tuple[str, ...]:
    if folder:
        path = folder / "domains.json"
        record = read_json(path, dict) if path.is_file() else {}
        write_atomic(path, json.dumps(record | {"names": list(names)}, indent=1).encode())
    for model in models:
        tensors, about = load_model(model)
        save_model(model, tensors, about | {"domains": json.dumps(list(names))})
    return names
