"""Real images of one domain and split, read in batches; which of them are held out, and what they contain."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unpaired.checkpoint import RunFolder
from unpaired.config import Data, Run, absolute, load
from unpaired.data.batches import FilePictures, Pictures, ScenePictures, luminance, usable
from unpaired.data.datasets import Dataset, known_images, open_dataset, refuse_moved
from unpaired.data.folders import Listing, content_hash
from unpaired.data.intake import escape
from unpaired.errors import ConfigProblem, DataProblem

ROOM = 256 << 20  # bytes of decoded images that a set may keep


class Images:
    """Some pictures of a domain: the middle of each, at the size of the model."""

    def __init__(
        self,
        pictures: Pictures,
        size: tuple[int, int],
        channels: int,
        listing: Listing | None,
        places: Sequence[int] | None = None,
    ) -> None:
        self.pictures, self.size, self.channels, self.listing = pictures, size, channels, listing
        self.places = list(range(len(pictures)) if places is None else places)
        if isinstance(pictures, FilePictures):
            pictures.room = ROOM

    def __len__(self) -> int:
        return len(self.places)

    def some(self, most: int | None) -> Images:
        """At most `most` of them, evenly spread over their order."""
        if most is None or len(self) <= most:
            return self
        spread = np.linspace(0, len(self) - 1, most).astype(int)
        return self.at(spread.tolist())

    def at(self, numbers: Sequence[int]) -> Images:
        """Those of these numbers, counted from 0."""
        places = [self.places[i] for i in numbers]
        return Images(self.pictures, self.size, self.channels, self.listing, places)

    def without(self, numbers: Collection[int]) -> Images:
        return self.at([i for i in range(len(self)) if i not in numbers])

    def unreadable(self) -> set[int]:
        """The numbers of those that cannot be read, in whose place `read` gives the next one. It reads all."""
        return {i for i, place in enumerate(self.places) if not usable(self.pictures, place)}

    def pixels(self) -> Tensor:
        """All of them, (N, H, W, C) uint8."""
        if not self.places:
            return torch.zeros((0, *self.size, self.channels), dtype=torch.uint8)
        return torch.from_numpy(np.stack([self.read(place) for place in self.places]))

    def read(self, place: int) -> np.ndarray:
        image = self.pictures.read(place)
        (h, w), (y, x) = (
            self.size,
            ((a - b) // 2 for a, b in zip(image.shape, self.size, strict=False)),
        )
        image = image[y : y + h, x : x + w]
        return luminance(image) if self.channels == 1 else image

    def batches(self, size: int, device: torch.device) -> Iterator[tuple[Tensor, Images]]:
        """Images (B, C, H, W) in [-1, 1], and which they are."""
        for at in range(0, len(self), size):
            part = self.at(range(at, min(at + size, len(self))))
            x = part.pixels().to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
            yield x, part

    def tensor(self, device: torch.device) -> Tensor:
        """All of them, (N, C, H, W) in [-1, 1]."""
        parts = [x for x, _ in self.batches(64, device)]
        return torch.cat(parts) if parts else torch.zeros(0, self.channels, *self.size)

    # What is known of them ---------------------------------------------------------------------

    @property
    def files(self) -> list[Path]:
        assert isinstance(self.pictures, FilePictures)
        return [self.pictures.files[place] for place in self.places]

    def names(self) -> list[str]:
        """The path of each within its domain, without extension, or the number of a scene: pairs have equal ones."""
        if self.listing is None:
            return [self.pictures.name(place).rpartition(" ")[2] for place in self.places]
        return [self.listing.entries[file].stem for file in self.files]

    def labels(self) -> list[str]:
        """The folder of each below its domain; "" for none."""
        if self.listing is None:
            return [""] * len(self)
        return [name.rpartition("/")[0].partition("/")[0] for name in self.names()]

    def factors(self) -> np.ndarray | None:
        """The true style factors of scenes, (N, n); None for other images, and for scenes of several domains."""
        if self.listing is not None or len(getattr(self.pictures, "domains", ())) != 1:
            return None
        (of,) = self.pictures.domains  # type: ignore[attr-defined]
        return np.array([list(of.style(place).values()) for place in self.places])

    def contents(self) -> list[str]:
        """Hex SHA-256 of each file."""
        assert self.listing is not None
        entries = [(file, self.listing.entries[file]) for file in self.files]
        return [content_hash(file, e.size, e.mtime_ns) for file, e in entries]

    def digest(self) -> str:
        """Changes with any of the images, with their size, and with nothing else."""
        total = hashlib.sha256(f"{self.size} {self.channels}".encode())
        if self.listing is None:
            assert isinstance(self.pictures, ScenePictures)
            for scenes in self.pictures.domains:
                about = (scenes.domain, scenes.split, scenes.seed, scenes.paired, len(scenes))
                total.update(repr(about).encode())
            total.update(repr(self.places).encode())
            total.update(self.some(8).pixels().numpy().tobytes())  # another way of drawing shows
        else:
            half = getattr(self.pictures, "half", None)
            total.update(f"{half} {' '.join(self.contents())}".encode())
        return total.hexdigest()


def saved_run(run: Run, folder: RunFolder | None) -> Run:
    """The config in the run folder, which says where the images are, else that of the model file, which does not."""
    path = folder.path / "config.yaml" if folder else None
    return load(path) if path and path.is_file() else run


def open_images(
    run: Run,
    folder: RunFolder | None,
    domains: Sequence[str],
    data: Sequence[str] | None,
    paired: bool = False,
) -> tuple[Data, Dataset]:
    """The images that a run is measured on: those it was trained from, or `data`, in the order of its domains.

    paired: of the built-in scenes, test images of equal number show the same content in all domains. Raises
    `ConfigProblem` where they are not known or lack a domain.
    """
    settings = saved_run(run, folder).data
    if data and settings.labels != "folders":  # a list of other images
        settings = settings.model_copy(update={"labels": None})
    if data:
        root = absolute(data[0] if len(data) == 1 else tuple(data))
        settings = settings.model_copy(update={"root": root})
    elif settings is run.data and settings.root != "scenes":
        raise ConfigProblem(
            "A model file does not say where its images are: say --data DIR, or name the run folder."
        )
    else:
        refuse_moved(settings, "--data DIR")
    layout = run.method_class().layout
    unlabelled = layout == "unlabelled"
    wanted = settings.domains if unlabelled else tuple(domains)
    update = {
        "zoom": 1.0,
        "labelled": 1.0,  # what training was not told may be measured
        "domains": wanted if settings.root == "scenes" or layout == "paired" else None,
    }
    settings = settings.model_copy(update=update)
    known = known_images(folder.path) if folder and not data else None
    dataset = open_dataset(settings, layout, run.train.seed, known=known)
    if unlabelled:
        return settings, dataset
    if lacking := [d for d in domains if d not in dataset.domains]:
        raise ConfigProblem(
            f"The run translates between {', '.join(map(escape, domains))}, and {escape(str(settings.root))} holds "
            f"{', '.join(map(escape, dataset.domains))}: name images with a domain {escape(lacking[0])}."
        )
    order = [dataset.domains.index(d) for d in domains]
    splits = {s: tuple(of[i] for i in order) for s, of in dataset.splits.items()}
    if paired and settings.root == "scenes":
        splits["test"] = open_dataset(settings, "paired", run.train.seed).splits["test"]
    return settings, dataset._replace(domains=tuple(domains), splits=splits)


def held_out(dataset: Dataset) -> str:
    """ "test" where every domain has test images, else "val". Raises `DataProblem` where there is neither."""
    for split in ("test", "val"):
        if all(len(p) for p in dataset.splits[split]):
            return split
    counts = {s: [len(p) for p in dataset.splits[s]] for s in ("train", "val", "test")}
    said = ", ".join(f"{s} {n}" for s, n in counts.items())
    raise DataProblem(
        f"Not every domain has held-out images ({said}): put some into a folder `test` (docs/data.md) and say --data."
    )


def trained_on(folder: RunFolder | None, images: Sequence[Images], split: str) -> int:
    """How many of the held-out images of a split the run was trained on, by their content."""
    then = known_images(folder.path) if folder else None
    if then is None or (split == "val" and then.validation is None):
        return 0  # of before it was written down
    held = set(then.validation or ())
    known = {
        content
        for name, (of, _, _, _, content) in then.files.items()
        if of == "train" and name not in held
    }
    return sum(c in known for part in images if part.listing is not None for c in part.contents())
