"""Measuring a trained model: every direction, each way to a style, beside its floors, by a named protocol.

`evaluate` is `unpaired evaluate` and `unpaired.evaluate`. What each number means: `metrics/table.py`, docs/metrics.md.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import unpaired
from unpaired import page
from unpaired.checkpoint import RunFolder, write_atomic
from unpaired.config import nearest
from unpaired.data.intake import escape, placed
from unpaired.errors import ConfigProblem, Problem
from unpaired.method import Method
from unpaired.metrics import scenes
from unpaired.metrics.classifier import (
    LEAST_ACCURACY,
    LEAST_IMAGES,
    MOST,
    Trained,
    train_classifier,
)
from unpaired.metrics.features import RESIZE, Features, load_distance, load_features, sha256
from unpaired.metrics.images import Images, held_out, open_images, saved_run, trained_on
from unpaired.metrics.matching import clustering
from unpaired.metrics.rows import (
    Direction,
    Protocol,
    Row,
    Say,
    Side,
    Tools,
    measured,
    round_row,
    styles,
)
from unpaired.metrics.table import metric
from unpaired.metrics.validation import CHUNK, effective_number
from unpaired.progress import say
from unpaired.translator import Translator, check_seed

PROTOCOLS = {
    p.name: p
    for p in (
        Protocol("quick", "for a look within minutes", 250, 1, 1000, (25, 6), "all", least=0.4),
        Protocol("munit", "100 inputs, 19 pairs of outputs each", None, 1, None, (100, 38), "disjoint"),
        Protocol("starganv2", "10 outputs of every input, all pairs", None, 10, None, (None, 10), "all"),
        Protocol("tunit", "each domain from all others, 5 references each", None, 5, None, (100, 6), "all", "target"),
    )
}  # fmt: skip

BY_LABELS = ", by true labels"  # a way's name where domains are found, but its directions are between labels


def evaluate(
    run: str | PathLike[str],
    data: str | PathLike[str] | Sequence[str | PathLike[str]] | None = None,
    protocol: str = "quick",
    features: str | PathLike[str] | Sequence[str | PathLike[str]] = (),
    lpips: Sequence[str | PathLike[str]] = (),
    paired: bool = False,
    seed: int = 0,
    say: Say = say,
    out: str | PathLike[str] | None = None,
) -> dict[str, Any]:
    """Measures a run folder or a model.safetensors; returns what it writes to `out` (default: `metrics_file`).

    data: other images than the run's, with its domains. protocol: quick, munit, starganv2 or tunit. features: files of
    SqueezeNet 1.1 or Inception-v3, or "inception" to fetch it. lpips: files of a trunk and of heads. paired: held-out
    images of equal name in two domains show the same thing. Raises `Problem`, and then has written nothing.
    """
    begun = time.monotonic()
    if protocol not in PROTOCOLS:
        raise ConfigProblem(f"--protocol: there is no '{protocol}': {nearest(protocol, PROTOCOLS)}")
    check_seed(seed)
    path = Path(run)
    translator, digest = unchanging(path)
    folder = RunFolder(path) if path.is_dir() else None
    written = placed(Path(out) if out else metrics_file(path))  # before long work
    method, config = translator.method, translator.run
    share = PROTOCOLS[protocol].share(count_directions(method, PROTOCOLS[protocol]))
    tools = Tools(PROTOCOLS[protocol].scaled(share), seed, translator.device, say)
    tools.features = [load_features(Path(f), say).to(tools.device) for f in listed(features)]
    about_lpips = None
    if lpips:
        net, about_lpips = load_distance([Path(p) for p in listed(lpips)])
        tools.lpips = net.to(tools.device)
    roots = [data] if isinstance(data, str | PathLike) else data
    named = [fspath(root) for root in roots] if roots else None
    settings, dataset = open_images(config, folder, translator.domains, named, paired)
    split = held_out(dataset)
    if split == "val":
        seen = "" if data else ", which judged the samples too"
        tools.leave_out(f"there are no test images, so figures are of validation images{seen}.")

    def images(of: str, domain: int) -> Images:
        return Images(dataset.splits[of][domain], settings.hw, settings.channels, dataset.listing)

    kept = readable(
        [images(split, i) for i in range(len(dataset.domains))],
        config.method_class().layout == "paired",
        tools,
    )
    own = [Side(d, images("train", i), kept[i]) for i, d in enumerate(dataset.domains)]
    if n := trained_on(folder, [side.held for side in own], split):
        total = sum(len(side.held) for side in own)
        tools.leave_out(
            f"nothing, but {n} of {total} {split} images were trained on: figures flatter."
        )
    result: dict[str, Any] = {
        "format": page.METRICS,
        "unpaired": unpaired.__version__,
        "method": config.method.name,
        "step": translator.step,
        "model": {
            "file": "model.safetensors" if folder else path.name,
            "sha256": digest,
            "averaged": bool(config.train.ema),
        },
        "protocol": asdict(tools.protocol),
        "seed": seed,
        "split": split,
        "data": {
            "root": root_name(settings.root),
            "size": list(settings.hw),
            "resize": f"shorter side covers the size, {RESIZE}; the middle is cut out",
            "domains": {
                side.name: {
                    "train": len(side.train),
                    split: len(side.held),
                    "digest": side.held.digest(),
                }
                for side in own
            },
        },
    }
    flip = settings.mirrors
    unlabelled = config.method_class().layout == "unlabelled"
    told = by_label(own[0], dataset.labels) if unlabelled else own
    learn_domains(told, flip, tools)
    groups = [(told, tools, "")]
    if not unlabelled:
        learn_labels(told, flip, tools)
    elif getattr(method, "assign", None):
        # Labels judge the found domains; the classifier knows the labels alone.
        result["clusters"], found = found_domains(method, own[0], dataset.labels, tools)
        groups = [(found, replace(tools, made={}, domains=None), ""), (told, tools, BY_LABELS)]
    sides = groups[0][0]
    result["directions"] = rows = []
    untrained = config.build(method.domains).eval().to(tools.device)
    for group, its_tools, of in groups:
        for d, ways in directions(method, group, its_tools):
            rows += measured(method, untrained, d, ways, paired, its_tools, of)
    if not rows:
        tools.leave_out(
            "every direction: fewer than two domains hold training and held-out images."
        )
    result["means"] = means(rows, tools)
    result["styles"] = styles(method, sides, tools)
    if settings.root == "scenes" and config.method_class().layout != "unlabelled":
        try:
            if settings.channels == 1:
                raise ConfigProblem("content kept, styles covered: their readers need colour.")
            result["scenes"] = scenes.evaluate(translator, seed, say, share)
        except ConfigProblem as problem:  # images too small for its readers
            tools.leave_out(str(problem))
    missing_weights(tools)
    stand_ins(own, tools)
    result["networks"] = {f.name: f.about for f in tools.features}
    for target, (trained, _) in tools.labels.items():
        result["networks"][f"classifier of labels of {sides[target].name}"] = reliability(trained)
    if tools.lpips:
        result["networks"][tools.lpips.name] = about_lpips
    result["left out"] = tools.left_out
    result["columns"] = columns(result)
    result["seconds"] = round(time.monotonic() - begun, 1)
    result = finite(result)
    write_atomic(written, json.dumps(result, indent=1, ensure_ascii=False).encode())
    if folder and not out:
        running = (folder.read_status() or {}).get("status") == "running"
        page.write(folder, saved_run(config, folder), translator.step, alive=running)
    return result


def listed(
    files: str | PathLike[str] | Sequence[str | PathLike[str]],
) -> Sequence[str | PathLike[str]]:
    return [files] if isinstance(files, str | PathLike) else files


def unchanging(path: Path) -> tuple[Translator, str]:
    """The model of a run that may be training, and the hash of just this one."""
    file = model_file(path)
    after = sha256(file) if file.is_file() else ""  # what is no model is refused by loading it
    while True:
        before, translator = after, Translator.load(path)
        if (after := sha256(file)) == before:
            return translator, after


def evaluate_run(args: argparse.Namespace) -> None:
    """`unpaired evaluate`: measures, prints the means, writes `metrics.json` and the page of the run."""
    result = evaluate(
        args.run,
        args.data,
        args.protocol,
        args.features,
        args.lpips,
        args.paired,
        args.seed,
        say,
        args.out,
    )
    for line in told(result):
        say(line)
    shown = args.run.is_dir() and not args.out
    on_page = f", and on the page {args.run / 'index.html'}" if shown else ""
    say(f"Written: {args.out or metrics_file(args.run)}{on_page}")


def model_file(run: Path) -> Path:
    """The model of a run folder, or a model file itself."""
    return run / "model.safetensors" if run.is_dir() else run


def metrics_file(run: Path) -> Path:
    """Where the figures of a run folder or a model file are."""
    return run / "metrics.json" if run.is_dir() else run.with_suffix(".metrics.json")


def root_name(root: str | tuple[str, ...] | None) -> str | list[str]:
    """The folders' names, not where they lie on this machine."""
    return Path(root or "").name if not isinstance(root, tuple) else [Path(r).name for r in root]


def readable(held: Sequence[Images], pairs: bool, tools: Tools) -> list[Images]:
    """Held-out images of each domain without those that cannot be read; of pairs both sides go."""
    lost = [images.unreadable() for images in held]
    if pairs:
        lost = [set().union(*lost)] * len(lost)
    if n := sum(map(len, lost)):
        total = sum(map(len, held))
        tools.leave_out(
            f"{n} of {total} held-out images, which cannot be read{' (or their partners)' if pairs else ''}: "
            "`unpaired data check` names them."
        )
    return [images.without(bad) for images, bad in zip(held, lost, strict=True)]


def stand_ins(sides: Sequence[Side], tools: Tools) -> None:
    """Tells of training images, real ones to compare with, in whose place others stood."""
    n = sum(len(getattr(side.train.pictures, "bad", ())) for side in sides)
    if n:
        tools.leave_out(
            f"{n} training image{'s' * (n > 1)} that cannot be read: the next ones stood in."
        )


# Domains ------------------------------------------------------------------------------------------


def pooled(method: Method, protocol: Protocol) -> bool:
    return protocol.to == "target" or method.layout == "unlabelled"


def count_directions(method: Method, protocol: Protocol) -> int:
    """How many there are where every domain holds images and the method serves both ways."""
    n = len(method.domains)
    return n if pooled(method, protocol) else n * (n - 1)


def directions(
    method: Method, sides: Sequence[Side], tools: Tools
) -> Iterator[tuple[Direction, list[str]]]:
    """Each direction that the method serves, with its ways to a style: latent, reference, or output without a style.

    Found domains, and the protocol `tunit`, have a direction to each domain from all others, else from each other.
    """
    protocol = tools.protocol
    for target, side in enumerate(sides):
        if not len(side.train) or not len(side.held):
            tools.leave_out(f"to {escape(side.name)}: it holds no training or no held-out images.")
            continue
        others = [s for s in range(len(sides)) if s != target and len(sides[s].held)]
        groups = [others] if pooled(method, protocol) else [[s] for s in others]
        for group in groups:
            if not group:
                continue
            try:
                ways = method.styles(group[0], target)
            except Problem:
                continue  # a one-way method
            most = protocol.inputs
            if protocol.to == "target":  # as many as the domains hold, halfway from least to most
                sizes = [len(s.held) for s in sides if len(s.held)]
                most = (min(sizes) + max(sizes)) // 2
            share = None if most is None else max(1, most // len(group))
            inputs = {s: sides[s].held.some(share) for s in group}
            source = sides[group[0]].name if len(group) == 1 else None
            d = Direction(
                source, side.name, inputs, target, side.train.some(protocol.real), side.held
            )
            yield d, sorted(ways - {"mean"}) or ["output"]


@torch.inference_mode()
def found_domains(
    method: Method, side: Side, labels: Sequence[str], tools: Tools
) -> tuple[Row, list[Side]]:
    """The images sorted by the domains that the method finds, and how well these agree with true labels."""

    def assigned(images: Images) -> np.ndarray:
        parts = [method.assign(x).argmax(1) for x, _ in images.batches(CHUNK, tools.device)]  # type: ignore[operator]
        return torch.cat(parts).cpu().numpy() if parts else np.array([], int)

    train, held = assigned(side.train), assigned(side.held)
    sides = [
        Side(
            name,
            side.train.at(np.flatnonzero(train == k).tolist()),
            side.held.at(np.flatnonzero(held == k).tolist()),
        )
        for k, name in enumerate(method.domains)
    ]
    row = {"clusters used": effective_number(torch.from_numpy(held))}
    true = np.array([side.held.pictures.label(place) for place in side.held.places])
    known = true >= 0
    if labels and known.any():
        agreement = clustering(true[known], held[known])
        row |= {"NMI": agreement.nmi, "ARI": agreement.ari}
        if len(labels) == len(sides):
            row["cluster accuracy"] = agreement.accuracy
        else:
            tools.leave_out(
                f"cluster accuracy: {len(sides)} clusters and {len(labels)} labels cannot be matched one to one."
            )
    else:
        tools.leave_out(
            "cluster accuracy, NMI, ARI: no true labels are known; train with data.labels=folders or a CSV."
        )
    return round_row(row), sides


def by_label(side: Side, labels: Sequence[str]) -> list[Side]:
    """The images of one folder, sorted by their true labels."""

    def of(images: Images, label: int) -> Images:
        known = [images.pictures.label(place) for place in images.places]
        return images.at([i for i, found in enumerate(known) if found == label])

    return [Side(n, of(side.train, k), of(side.held, k)) for k, n in enumerate(labels)]


# Classifiers --------------------------------------------------------------------------------------


def learn_domains(sides: Sequence[Side], flip: bool, tools: Tools) -> None:
    """A classifier of the domains: its features carry distances, its answers say how many outputs are of the target."""
    if len(sides) < 2:
        tools.leave_out(
            "distances (classifier): a classifier needs two domains or labels of the images."
        )
        return
    trained = learn({s.name: s for s in sides}, flip, "distances (classifier)", tools)
    if trained is None:
        return
    tools.domains = trained
    tools.features.insert(
        0, Features("classifier", Pooled(trained), trained.side, reliability(trained))
    )


def reliability(trained: Trained) -> dict[str, float]:
    """What stands beside every number that comes from a classifier."""
    return {"accuracy": round(trained.accuracy, 4), "images": trained.images}


class Pooled(torch.nn.Module):
    """The features of a trained classifier."""

    def __init__(self, trained: Trained) -> None:
        super().__init__()
        self.trained = trained

    def forward(self, x: Tensor) -> Tensor:
        return self.trained.features(x)


def learn_labels(sides: Sequence[Side], flip: bool, tools: Tools) -> None:
    """For each target whose images lie in folders of their own, a classifier of these."""
    lacking = []
    for target, side in enumerate(sides):
        train, held = np.array(side.train.labels()), np.array(side.held.labels())
        names = sorted(set(train.tolist()) - {""})
        if len(names) < 2:
            lacking.append(side.name)
            continue
        parts = {
            name: Side(
                name,
                side.train.at(np.flatnonzero(train == name).tolist()),
                side.held.at(np.flatnonzero(held == name).tolist()),
            )
            for name in names
        }
        if trained := learn(parts, flip, f"IS, CIS and label kept to {side.name}", tools):
            tools.labels[target] = trained, names
    if lacking:
        tools.leave_out(
            f"IS, CIS, label kept to {', '.join(map(escape, lacking))}: they need a folder for each label inside the "
            "folder of the domain."
        )


def learn(parts: Mapping[str, Side], flip: bool, what: str, tools: Tools) -> Trained | None:
    """A classifier of `parts` where there are images enough and it is right often enough, else a sentence."""
    few = min(parts, key=lambda name: len(parts[name].train))
    if len(parts[few].train) < LEAST_IMAGES:
        tools.leave_out(
            f"{what}: {escape(few)} has {len(parts[few].train)} training images, and a classifier needs {LEAST_IMAGES}."
        )
        return None
    if not any(len(part.held) for part in parts.values()):
        tools.leave_out(f"{what}: no held-out image has a label to judge a classifier by.")
        return None
    most = MOST // len(parts)
    train = [part.train.some(most) for part in parts.values()]
    held = [part.held.some(most) for part in parts.values()]
    key = " ".join(images.digest() for images in train)
    trained = train_classifier(
        [of.pixels() for of in train], [of.pixels() for of in held], flip, key, tools.say
    )
    tools.say(
        f"Classifier of {', '.join(map(escape, parts))}: {trained.accuracy:.1%} of held-out images right."
    )
    if trained.accuracy < LEAST_ACCURACY:
        tools.leave_out(
            f"{what}: the classifier is right for {trained.accuracy:.0%} of the held-out images only, and below "
            f"{LEAST_ACCURACY:.0%} its numbers are not believed."
        )
        return None
    return trained.to(tools.device)


# What is told -------------------------------------------------------------------------------------


def told(result: Mapping[str, Any]) -> Iterator[str]:
    """The means of the model and its floors as lines: a metric each."""
    for way, rows in result["means"].items():
        yield f"{way:<34}" + "".join(f"{name:>14}" for name in rows)
        for column in rows["model"]:
            cells = [rows[name].get(column) for name in rows]
            arrow = metric(column).arrow or " "
            yield f"{arrow} {column:<32}" + "".join(
                " " * 14 if v is None else f"{v:>14.4g}" for v in cells
            )
    for name, value in result.get("clusters", {}).items():
        yield f"{metric(name).arrow or ' '} {name:<32}{value:>14.4g}"


def means(rows: Sequence[Mapping[str, Any]], tools: Tools) -> dict[str, dict[str, Row]]:
    """For each way the mean of every metric over the directions that have it, the same ones for all rows.

    A direction to a domain of few images lacks some; how many are left out is said.
    """
    found: dict[str, dict[str, Row]] = {}
    few: dict[int, dict[str, None]] = {}
    for way in dict.fromkeys(r["way"] for r in rows):
        of = [r["rows"] for r in rows if r["way"] == way]
        found[way] = {name: {} for name in of[0]}
        for column in dict.fromkeys(c for r in of for row in r.values() for c in row):
            names = [name for name in of[0] if any(column in r[name] for r in of)]
            those = [r for r in of if all(column in r[name] for name in names)]
            if not those:
                continue
            if len(those) < len(of):
                few.setdefault(len(of) - len(those), {})[column] = None
            for name in names:
                found[way][name][column] = round(
                    sum(r[name][column] for r in those) / len(those), 6
                )
    for n, columns in few.items():
        ways = f"{n} direction{'s' * (n > 1)}"
        tools.leave_out(
            f"{ways} from the means of {', '.join(columns)}: too few images for it there."
        )
    return found


def missing_weights(tools: Tools) -> None:
    """What weights would add."""
    if all(f.name == "classifier" for f in tools.features):
        tools.leave_out(
            "distances on ImageNet features: say --features FILE with the published weights of SqueezeNet 1.1, or "
            "--features inception for FID."
        )
    if tools.lpips is None:
        tools.leave_out(
            "LPIPS diversity and PS: say --lpips with the files of a trunk (SqueezeNet 1.1, VGG-16 or AlexNet) and of "
            "LPIPS's heads for it."
        )


def columns(result: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Direction, range and source of every number in the result."""
    rows = [row for d in result["directions"] for row in d["rows"].values()]
    rows += [*result["styles"].values(), result.get("clusters", {})]
    names = dict.fromkeys(name for row in rows for name in row)
    if "scenes" in result:
        names |= dict.fromkeys(["content kept", "styles covered"])
    found = {}
    for name in names:
        m = metric(name)
        found[name] = {"better": m.better, "range": m.range, "source": m.source, "says": m.says}
    return found


def finite(value: Any) -> Any:
    """JSON has no nan: it becomes null."""
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
