"""From `data.root` to the pictures of every domain and split."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from unpaired.config import Data
from unpaired.data.batches import Pictures, ScenePictures
from unpaired.errors import ConfigProblem

SCENE_COUNTS = {"val": 200, "test": 500}


class Dataset(NamedTuple):
    """The pictures of each split, in the order of `domains`."""

    domains: tuple[str, ...]
    splits: Mapping[str, tuple[Pictures, ...]]


def ignore(path: Path, reason: str) -> None:
    """For callers that report bad files elsewhere."""


def open_dataset(
    data: Data, layout: str, seed: int = 0, report: Callable[[Path, str], None] = ignore
) -> Dataset:
    """What `data.root` holds: "scenes", a folder of any layout of docs/data.md, or two folders."""
    if data.root is None:
        raise ConfigProblem(
            "There are no images to train on: say --data FOLDER, or data.root=scenes."
        )
    if data.root == "scenes":
        return open_scenes(data, layout, seed)
    raise ConfigProblem("folders soon")


def open_scenes(data: Data, layout: str, seed: int) -> Dataset:
    from unpaired.data.scenes import Scenes

    domains = data.domains or ("outline", "painted")

    def pictures(split: str) -> tuple[Pictures, ...]:
        count = SCENE_COUNTS.get(split, data.count)
        return tuple(
            ScenePictures(Scenes(d, data.hw, split, seed, count, layout == "paired"))
            for d in domains
        )

    return Dataset(domains, {split: pictures(split) for split in ("train", "val", "test")})
