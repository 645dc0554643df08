"""The page of a run, `index.html` in its folder: samples over time, curves, config. It opens from disk."""

from __future__ import annotations

import html
import re
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from unpaired.checkpoint import RunFolder, read_json, write_atomic
from unpaired.config import Run
from unpaired.errors import StorageProblem

STYLE = """
:root { color-scheme: light dark;
  --ink: #24242c; --soft: #77778a; --line: #e3e3ea; --paper: #fcfcfd; --accent: #4060c8 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8ee; --soft: #9a9aac; --line: #34343f; --paper: #17171c; --accent: #8ea6ff } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1180px;
  margin: 2rem auto; padding: 0 1.2rem }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.05rem; margin: 2.2rem 0 .6rem }
.soft { color: var(--soft) } img { max-width: 100%; border: 1px solid var(--line); border-radius: 6px }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: 1rem }
figure { margin: 0 0 1rem } figcaption { font-size: .85rem; color: var(--soft) }
svg { width: 100%; height: auto; border: 1px solid var(--line); border-radius: 6px }
pre { font-size: .8rem; overflow: auto; border: 1px solid var(--line); border-radius: 6px; padding: .8rem }
table { border-collapse: collapse } td, th { padding: .25rem .8rem .25rem 0; text-align: left }
summary { cursor: pointer; color: var(--accent) } progress { width: 100% }
"""


def document(title: str, body: str, refresh: int = 0) -> str:
    """A page that needs nothing but itself."""
    again = f'<meta http-equiv="refresh" content="{refresh}">' if refresh else ""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{again}'
        f'<meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head><body>{body}</body></html>\n"
    )


def write(folder: RunFolder, run: Run, step: int, alive: bool) -> None:
    """Writes the page anew; while the run is alive the page reloads itself. Nothing depends on it: what cannot be read
    is left out."""
    try:
        records = folder.read_log()
    except StorageProblem:
        records = []
    log = [r for r in records if "losses" in r]
    state = "training" if alive else ended(folder)
    parts = [
        f"<h1>{html.escape(run.method.name)} <span class=soft>· {html.escape(folder.path.name)}</span></h1>",
        f"<p class=soft>{state}, step {step} of {run.train.steps}{speed(log)}</p>",
        f"<progress max={run.train.steps} value={step}></progress>",
        alarms(records),
        "<h2>Samples</h2><p class=soft>Held-out inputs at the left, always the same inputs and styles.</p>",
        samples(folder),
        figures(folder),
        domains(folder),
        "<h2>Curves</h2>",
        curves(log),
        validation(records),
        "<h2>Config</h2>",
        f"<p class=soft><code>unpaired translate {html.escape(shlex.quote(str(folder.path)))} IMAGE --to DOMAIN"
        f"</code>, or on a page: <code>unpaired serve {html.escape(shlex.quote(str(folder.path)))}</code></p>",
        "<p class=soft>Images are worked with their shorter side at the training size; --size chooses another. "
        "Style statistics change with size: far from the training size styles fade or exaggerate.</p>",
        f"<pre>{html.escape(run.to_yaml())}</pre>",
    ]
    page = document(
        f"{run.method.name} · {folder.path.name}", "".join(parts), refresh=20 if alive else 0
    )
    try:
        write_atomic(folder.path / "index.html", page.encode())
    except StorageProblem:
        return  # a full disk: the trainer tells of it when it saves


def ended(folder: RunFolder) -> str:
    """How a run ended, by its status."""
    status = folder.read_status() or {}
    known = {
        "running": "not finished",
        "preempted": "stopped",
        "diverged": "diverged",
        "failed": "failed",
    }
    word, reason = known.get(status.get("status", ""), "done"), status.get("reason")
    return html.escape(f"{word} ({reason})" if reason else word)


METRICS = "unpaired metrics 1"  # the format of metrics.json
ARROWS = {"higher": "↑", "lower": "↓"}


def figures(folder: RunFolder) -> str:
    """The tables of `unpaired evaluate`, where it was run."""
    path = folder.path / "metrics.json"
    if not path.is_file():
        return ""
    try:
        return read_json(path, tables)
    except StorageProblem:
        return ""  # damaged: nothing depends on the page


def tables(measured: Any) -> str:
    """What metrics.json holds, as HTML."""
    if measured.get("format") != METRICS:
        return ""  # of an earlier version: evaluate again
    columns = measured["columns"]
    classifiers = "".join(
        f" The {html.escape(name)} is right for {net['accuracy']:.1%} of held-out images."
        for name, net in measured["networks"].items()
        if "accuracy" in net
    )
    parts = [
        f"<h2>Figures</h2><p class=soft>Protocol {measured['protocol']['name']}, {measured['split']} images, step "
        f"{measured['step']}, seed {measured['seed']}. Arrows show which way is better; point at a name for its "
        f"meaning. Real images score what a perfect translator would.{classifiers}</p>"
    ]
    for rows in measured.get("scenes", {}).values():
        rows.pop("reader", None)
    parts += [table(way, rows, columns) for way, rows in measured.get("scenes", {}).items()]
    for way, rows in measured["means"].items():
        parts.append(table(WAYS.get(way, way), turned(rows), columns, across=True))
    if len(measured["directions"]) > len(measured["means"]):
        each = (
            table(f"{d['name']}, {d['way']}", turned(d["rows"]), columns, across=True)
            for d in measured["directions"]
        )
        parts.append(f"<details><summary>each direction</summary>{''.join(each)}</details><br>")
    if measured["styles"]:
        parts.append(table("styles of", measured["styles"], columns))
    if measured.get("clusters"):
        parts.append(table("found domains", {"model": measured["clusters"]}, columns))
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in measured["left out"])
    parts.append(f"<details><summary>what is left out, and why</summary><ul>{notes}</ul></details>")
    return "".join(parts)


def domains(folder: RunFolder) -> str:
    """The way to the page of `unpaired domains`, where it was written."""
    if not (folder.path / "domains.html").is_file():
        return ""
    return '<p><a href="domains.html">The domains that were found</a></p>'


WAYS = {
    "latent": "random styles",
    "reference": "styles of references",
    "reference, by true labels": "styles of references, by true labels",
    "output": "mean of directions",
}


def turned(rows: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Rows become columns."""
    names = dict.fromkeys(name for row in rows.values() for name in row)
    return {name: {row: of[name] for row, of in rows.items() if name in of} for name in names}


def table(
    title: str,
    rows: Mapping[str, Mapping[str, float]],
    columns: Mapping[str, Mapping[str, str]],
    across: bool = False,
) -> str:
    """A table of numbers; metrics are its columns, or with `across` its rows."""
    heads = dict.fromkeys(name for row in rows.values() for name in row)

    def name(text: str) -> str:
        about = columns.get(text)
        if about is None:
            return html.escape(text)
        says = f"{about['says']}; range {about['range']}; {about['source']}"
        return (
            f'<span title="{html.escape(says)}">{html.escape(text)} '
            f"{ARROWS.get(about['better'], '')}</span>"
        )

    head = "".join(f"<th>{html.escape(h) if across else name(h)}</th>" for h in heads)
    lines = "".join(
        f"<tr><td>{name(row) if across else html.escape(row)}</td>"
        + "".join(f"<td>{number(values.get(h))}</td>" for h in heads)
        + "</tr>"
        for row, values in rows.items()
    )
    return f"<table><tr><th>{html.escape(title)}</th>{head}</tr>{lines}</table><br>"


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def alarms(records: Sequence[Mapping[str, Any]]) -> str:
    """What the run sounded alarm for, and where it went back."""
    told = [
        (r["step"], r.get("text") or r["rollback"])
        for r in records
        if r.keys() & {"alarm", "rollback"}
    ]
    lines = "".join(f"<li>Step {step}: {html.escape(text)}</li>" for step, text in told)
    return f"<h2>Alarms</h2><ul class=alarms>{lines}</ul>" if told else ""


def validation(records: Sequence[Mapping[str, Any]]) -> str:
    """The quick figures on validation images, over the steps."""
    figures = [{"step": r["step"], "losses": r["figures"]} for r in records if "figures" in r]
    return f"<h2>On validation images</h2>{curves(figures)}" if figures else ""


def speed(log: Sequence[Mapping[str, Any]]) -> str:
    return f", {log[-1]['images_per_second']:.1f} images/s" if log else ""


def samples(folder: RunFolder) -> str:
    """The latest sheet of each kind, earlier ones behind a click."""
    kinds: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for path in sorted((folder.path / "samples").glob("*.png")):
        if match := re.fullmatch(r"(.+)-(\d{8})", path.stem):
            kinds[match[1]].append((int(match[2]), f"samples/{path.name}"))
    parts = []
    for kind, sheets in kinds.items():
        step, name = sheets[-1]
        earlier = "".join(figure(n, f"step {s}") for s, n in reversed(sheets[:-1]))
        more = (
            f"<details><summary>earlier, {len(sheets) - 1}</summary>{earlier}</details>"
            if earlier
            else ""
        )
        parts.append(figure(name, f"{kind}, step {step}") + more)
    return "".join(parts) or "<p class=soft>None yet.</p>"


def figure(source: str, caption: str) -> str:
    return (
        f'<figure><img loading="lazy" src="{html.escape(source)}" alt="{html.escape(caption)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def curves(log: Sequence[Mapping[str, Any]]) -> str:
    """One small plot for each loss."""
    series: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for record in log:
        for name, value in record["losses"].items():
            series[name].append((record["step"], value))
    return (
        f"<div class=grid>{''.join(plot(n, p) for n, p in series.items())}</div>"
        if series
        else "<p class=soft>None yet.</p>"
    )


def plot(
    name: str, points: Sequence[tuple[float, float]], width: int = 300, height: int = 130
) -> str:
    """A line over the steps as inline SVG, axes from 0 or the least value; of many points about 300 and the last."""
    points = [*points[: -1 : -(-len(points) // 300)], points[-1]]
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    low, high = min(0.0, *ys), max(ys)
    reach, span = max(xs[-1], 1), (high - low) or 1
    line = " ".join(
        f"{30 + (width - 38) * x / reach:.1f},{height - 18 - (height - 36) * (y - low) / span:.1f}"
        for x, y in zip(xs, ys, strict=True)
    )
    text = 'font-size="10" fill="currentColor" opacity=".6"'
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img"><title>{html.escape(name)}</title>'
        f'<polyline points="{line}" fill="none" stroke="var(--accent)" stroke-width="1.5"/>'
        f'<text x="30" y="13" font-size="12" fill="currentColor">{html.escape(name)} {ys[-1]:.3g}</text>'
        f'<text x="2" y="27" {text}>{high:.3g}</text><text x="2" y="{height - 18}" {text}>{low:.3g}</text>'
        f'<text x="{width - 6}" y="{height - 5}" text-anchor="end" {text}>step {int(xs[-1])}</text></svg>'
    )
