"""From `data.root` to the pictures of every domain and split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import PIL
import simplejpeg
import torch

from unpaired.checkpoint import read_json
from unpaired.config import Data, nearest
from unpaired.data.batches import FilePictures, Pictures, ScenePictures, generator
from unpaired.data.cache import ImageCache
from unpaired.data.folders import (
    UNLABELLED,
    Fingerprint,
    Listing,
    folder_label,
    read_labels,
    scan,
)
from unpaired.data.intake import escape
from unpaired.errors import ConfigProblem, DataProblem

SPLITS = ("train", "val", "test")
SCENE_COUNTS = {"val": 200, "test": 500}


class Dataset(NamedTuple):
    """The pictures of each split, in the order of `domains`; `listing` is that of the files, None for scenes.

    Unlabelled data are one domain; `labels` names the labels of its pictures, where they have any, and `given` says
    those of its files.
    """

    domains: tuple[str, ...]
    splits: Mapping[str, tuple[Pictures, ...]]
    listing: Listing | None = None
    labels: tuple[str, ...] = ()
    given: Mapping[Path, str] = MappingProxyType({})


Report = Callable[[Path, str], None]


def ignore(path: Path, reason: str) -> None:
    """For callers that do not tell of bad files."""


def refuse_moved(data: Data, remedy: str) -> None:
    """Refuses images of a run that do not lie where it had them, on another machine perhaps."""
    roots = (data.root,) if isinstance(data.root, str) else data.root or ()
    if gone := [root for root in roots if root != "scenes" and not Path(root).exists()]:
        raise ConfigProblem(
            f"{escape(gone[0])}, where the run had its images, does not exist: say {remedy}."
        )


def known_images(folder: Path) -> Fingerprint | None:
    """What a run's images were when it was last trained; None where it has not said."""
    path = folder / "dataset.json"
    return read_json(path, Fingerprint.from_json) if path.is_file() else None


def open_dataset(
    data: Data,
    layout: str,
    seed: int = 0,
    report: Report = ignore,
    known: Fingerprint | None = None,
) -> Dataset:
    """What `data.root` holds: "scenes", a folder of any layout of docs/data.md, a list, or a folder for each domain."""
    if data.root is None:
        raise ConfigProblem(
            "There are no images to train on: say --data FOLDER, or data.root=scenes."
        )
    if data.labels and layout != "unlabelled":
        raise ConfigProblem(
            "data.labels is for methods that train on one folder, such as tunit; this one takes its domains from the "
            "folders: leave data.labels out."
        )
    if data.root == "scenes":
        return open_scenes(data, layout, seed)
    roots = [data.root] if isinstance(data.root, str) else data.root
    listing = scan(
        *roots,
        paired=layout == "paired",
        follow_links=data.follow_links,
        subfolders=layout == "unlabelled",
        domains=None if layout == "unlabelled" else data.domains,
        known=known,
    )
    h, w = data.hw
    cover = (round(h * data.zoom), round(w * data.zoom))
    if layout == "unlabelled":
        return one_domain(data, listing, cover, seed, report)
    domains = chosen(listing.domains, data.domains)

    def pictures(split: str) -> tuple[Pictures, ...]:
        return tuple(
            FilePictures(
                listing.paths(split, d),
                cover,
                report,
                listing.entries,
                half=listing.domains.index(d) if listing.side_by_side else None,
                sides=len(domains),
            )
            for d in domains
        )

    return Dataset(domains, {split: pictures(split) for split in SPLITS}, listing)


def cache_training(data: Data, dataset: Dataset, contents: Fingerprint) -> ImageCache | None:
    """Where the training images are kept once decoded; None for scenes, and where `data.cache` says 0."""
    files = [p for p in dataset.splits["train"] if isinstance(p, FilePictures)]
    if data.cache == 0 or not files or dataset.listing is None:
        return None
    h, w = files[0].cover
    recipe = (
        f"1: upright RGB covering {h} x {w}, bicubic, antialiased; torch {torch.__version__} "
        f"{torch.backends.cpu.get_cpu_capability()}, Pillow {PIL.__version__}, simplejpeg {simplejpeg.__version__}"
    )
    cache = ImageCache(recipe, None if data.cache == "auto" else int(data.cache * 2**30))
    hashes = {path: contents.files[e.id][4] for path, e in dataset.listing.entries.items()}
    for pictures in files:
        pictures.cache_in(cache, hashes)
    names = (p.cached_as(i, None) for p in files for i in range(len(p)))  # as the scan saw them
    cache.prepare([name for name in names if name], 4 * h * w)  # a photograph of 4 to 3
    return cache


def one_domain(
    data: Data, listing: Listing, cover: tuple[int, int], seed: int, report: Report
) -> Dataset:
    """All images of a listing as one domain, with the labels that `data.labels` gives them."""
    given: Mapping[Path, str] = {}
    if data.labels == "folders":
        given = {path: folder_label(entry) for path, entry in listing.entries.items()}
    elif data.labels:
        given = read_labels(Path(data.labels), listing)
    names = tuple(sorted({label for label in given.values() if label}))
    if data.labels and not names:
        raise DataProblem(
            f"No image of {escape(listing.root)} has a label: put images into a folder for each label for "
            "data.labels=folders, or name a CSV of path,label."
        )
    index = {name: i for i, name in enumerate(names)}

    def pictures(split: str) -> tuple[Pictures, ...]:
        files = [f for d in listing.domains for f in listing.paths(split, d)]
        labels = [index.get(given.get(f, ""), -1) for f in files]
        if split == "train":
            labels = fewer(labels, data.labelled, seed)
        return (FilePictures(files, cover, report, listing.entries, labels=labels),)

    return Dataset((UNLABELLED,), {s: pictures(s) for s in SPLITS}, listing, names, given)


def fewer(labels: Sequence[int], share: float, seed: int) -> list[int]:
    """`share` of the images of each label, at least one, keep it: the others get -1."""
    kept = [-1] * len(labels)
    for label in set(labels) - {-1}:
        places = [i for i, found in enumerate(labels) if found == label]
        order = generator(seed, "labelled", label).permutation(len(places))
        for i in order[: max(1, round(share * len(places)))]:
            kept[places[i]] = label
    return kept


def training_labels(supervision: str, dataset: Dataset, method: str) -> None:
    """Refuses data that lack the labels that a method was told to learn from."""
    if supervision == "none":
        return
    if not dataset.labels:
        raise ConfigProblem(
            f"method.labels={supervision}: {method} learns from labels, and none are given: say data.labels=folders, "
            "or data.labels=FILE.csv with path,label a line."
        )
    (pictures,) = dataset.splits["train"]
    unknown = [i for i in range(len(pictures)) if pictures.label(i) < 0]
    if supervision == "all" and unknown:
        raise ConfigProblem(
            f"method.labels=all: {len(unknown)} of {len(pictures)} training images have no label, such as "
            f"{escape(pictures.name(unknown[0]))}: label them, or set method.labels=some."
        )


def chosen(found: Sequence[str], wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The domains that are asked for, in their order; all that were found otherwise."""
    for domain in wanted or ():
        if domain not in found:
            numbers = domain.isdigit() and any(name.startswith("0") for name in found)
            zeros = " Double quotes keep zeros, as in 'data.domains=[\"007\"]'." if numbers else ""
            raise ConfigProblem(
                f"data.domains: there is no domain '{domain}' in the data: {nearest(domain, found)}{zeros}"
            )
    return tuple(wanted or found)


def open_scenes(data: Data, layout: str, seed: int) -> Dataset:
    from unpaired.data.scenes import Scenes

    domains = data.domains or ("outline", "painted")
    if data.labels not in (None, "folders"):
        raise ConfigProblem(
            "data.labels: the scenes have their own labels: say data.labels=folders."
        )

    def scenes(split: str, domain: str) -> Scenes:
        count = SCENE_COUNTS.get(split, data.count)
        return Scenes(domain, data.hw, split, seed, count, layout == "paired")

    def pictures(split: str) -> tuple[Pictures, ...]:
        drawn = [scenes(split, d) for d in domains]
        if layout != "unlabelled":
            return tuple(ScenePictures(of) for of in drawn)
        labels = [i for i, of in enumerate(drawn) for _ in range(len(of))] if data.labels else []
        if split == "train":
            labels = fewer(labels, data.labelled, seed)
        return (ScenePictures(*drawn, labels=labels),)

    if layout == "unlabelled":
        names = domains if data.labels else ()
        return Dataset((UNLABELLED,), {split: pictures(split) for split in SPLITS}, labels=names)
    return Dataset(domains, {split: pictures(split) for split in SPLITS})
