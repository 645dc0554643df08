"""From `data.root` to the pictures of every domain and split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from unpaired.config import Data, nearest
from unpaired.data.batches import FilePictures, Pictures, ScenePictures
from unpaired.data.folders import Fingerprint, Listing, scan
from unpaired.errors import ConfigProblem

SPLITS = ("train", "val", "test")
SCENE_COUNTS = {"val": 200, "test": 500}


class Dataset(NamedTuple):
    """The pictures of each split, in the order of `domains`; `listing` is that of the files, None for scenes."""

    domains: tuple[str, ...]
    splits: Mapping[str, tuple[Pictures, ...]]
    listing: Listing | None = None


def ignore(path: Path, reason: str) -> None:
    """For callers that do not tell of bad files."""


def open_dataset(
    data: Data,
    layout: str,
    seed: int = 0,
    report: Callable[[Path, str], None] = ignore,
    known: Fingerprint | None = None,
) -> Dataset:
    """What `data.root` holds: "scenes", a folder of any layout of docs/data.md, a list, or a folder for each domain."""
    if data.root is None:
        raise ConfigProblem(
            "There are no images to train on: say --data FOLDER, or data.root=scenes."
        )
    if data.root == "scenes":
        return open_scenes(data, layout, seed)
    roots = [data.root] if isinstance(data.root, str) else data.root
    listing = scan(
        *roots, paired=layout == "paired", subfolders=layout == "unlabelled", known=known
    )
    domains = chosen(listing.domains, data.domains)
    h, w = data.hw
    cover = (round(h * data.zoom), round(w * data.zoom))

    def pictures(split: str) -> tuple[Pictures, ...]:
        return tuple(
            FilePictures(
                listing.paths(split, d),
                cover,
                report,
                half=listing.domains.index(d) if listing.side_by_side else None,
            )
            for d in domains
        )

    return Dataset(domains, {split: pictures(split) for split in SPLITS}, listing)


def chosen(found: Sequence[str], wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The domains that are asked for, in their order; all that were found otherwise."""
    for domain in wanted or ():
        if domain not in found:
            raise ConfigProblem(
                f"data.domains: there is no domain '{domain}' in the data: {nearest(domain, found)}"
            )
    return tuple(wanted or found)


def open_scenes(data: Data, layout: str, seed: int) -> Dataset:
    from unpaired.data.scenes import Scenes

    domains = data.domains or ("outline", "painted")

    def pictures(split: str) -> tuple[Pictures, ...]:
        count = SCENE_COUNTS.get(split, data.count)
        return tuple(
            ScenePictures(Scenes(d, data.hw, split, seed, count, layout == "paired"))
            for d in domains
        )

    return Dataset(domains, {split: pictures(split) for split in SPLITS})
