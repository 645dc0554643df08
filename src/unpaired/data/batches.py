"""What a step trains on, as a pure function of (seed, step): the order, the crops and the flips.

Epoch and place in it follow from the step, the order from (seed, domain, epoch), a sample's crop and flip from (seed,
domain, epoch, index). So any number of workers reads the same batches, and resuming needs nothing but the step.
"""

from __future__ import annotations

import logging
import os
import signal
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from unpaired.data.augment import View
from unpaired.data.cache import ImageCache
from unpaired.data.folders import UNREADABLE, Entry, content_hash, halves
from unpaired.data.intake import answered, escape, examine, resize
from unpaired.errors import ConfigProblem, DataProblem, Problem, StorageProblem
from unpaired.pictures import from_array

log = logging.getLogger(__name__)

CACHE_BYTES = 2 << 30  # decoded and resized images of a split that a process keeps
READER_SECONDS = 120.0  # in which a batch must come from the reading processes


class Pictures(Protocol):
    """The images of one domain and split."""

    def __len__(self) -> int: ...
    def read(self, index: int) -> np.ndarray: ...  # (H, W, 3) uint8, at least the size of the crop
    def name(self, index: int) -> str: ...
    def usable(self, index: int) -> bool: ...
    def refuse(self, index: int, reason: str) -> None: ...  # from now on it is not usable
    def label(self, index: int) -> int: ...  # -1: not known, or another image stands in


class FilePictures:
    """Images on disk, upright, RGB, resized so that they just cover `cover` (height, width); kept once decoded.

    An image that cannot be read is reported once, with its reason, and the next one of the list stands in for it.
    entries: what the scan saw of the files; a file that has changed since is used, and told once. half: 0 or 1 takes
    the left or right half of side-by-side images. labels: of each file, -1 where it is not known. sides: domains that
    share the memory.
    """

    def __init__(
        self,
        files: Sequence[Path],
        cover: tuple[int, int],
        report: Callable[[Path, str], None],
        entries: Mapping[Path, Entry] = MappingProxyType({}),
        half: int | None = None,
        labels: Sequence[int] = (),
        sides: int = 1,
    ) -> None:
        self.files, self.cover, self.report, self.half = files, cover, report, half
        self.entries, self.labels = entries, labels
        self.changed: set[int] = set()
        self.cache: ImageCache | None = None
        self.contents: Mapping[Path, str] = {}
        self.kept: dict[int, np.ndarray] = {}
        self.bytes, self.room = 0, CACHE_BYTES // sides
        self.bad: set[int] = set()

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        return str(self.files[index])

    def read(self, index: int) -> np.ndarray:
        for i in range(len(self.files)):
            image = self.attempt((index + i) % len(self.files))
            if image is not None:
                return image
        raise DataProblem(
            f"No image of {self.files[0].parent} can be read: run `unpaired data check` there."
        )

    def inspect(self, most: int = 200) -> float:
        """The share of bad images among `most`, evenly spread; they are kept where there is room."""
        looked = np.unique(np.linspace(0, len(self) - 1, min(most, len(self))).astype(int)).tolist()
        return sum(not self.usable(i) for i in looked) / max(len(looked), 1)

    def usable(self, index: int) -> bool:
        return self.attempt(index) is not None

    def refuse(self, index: int, reason: str) -> None:
        if index in self.kept:
            self.bytes -= self.kept.pop(index).nbytes
        self.bad.add(index)
        self.report(self.files[index], reason)

    def label(self, index: int) -> int:
        return self.labels[index] if self.labels and index not in self.bad else -1

    def attempt(self, index: int) -> np.ndarray | None:
        if index in self.kept or index in self.bad:
            return self.kept.get(index)
        try:
            now = self.stat(index)
            self.compare(index, now)
            name = self.cached_as(index, now)
            if self.cache and name and (found := self.cache.get(name)) is not None:
                return found
            image, _ = examine(self.files[index])  # of what is odd `data check` tells
            if self.half is not None:
                image = halves(image)[self.half]
            image = covering(image, self.cover)
            unchanged = name == self.cached_as(index, self.stat(index))  # while it was read
        except DataProblem as error:
            self.refuse(index, str(error))
            return None
        if self.cache and name and unchanged and self.cache.put(name, image):
            return image
        if self.bytes + image.nbytes <= self.room:
            self.kept[index] = image
            self.bytes += image.nbytes
        return image

    def cache_in(self, cache: ImageCache, contents: Mapping[Path, str]) -> None:
        """Keeps images in `cache` from now on, where there is room. contents: the hash of each file's bytes."""
        self.cache, self.contents = cache, contents

    def stat(self, index: int) -> os.stat_result | None:
        """What the file is now; None where it is gone. Raises BadImage where the disk does not answer."""
        path = self.files[index]
        try:
            return answered(path, lambda: os.stat(path))
        except OSError:
            return None

    def cached_as(self, index: int, now: os.stat_result | None) -> str | None:
        """The name of the image in the cache, by what its file holds `now` (None: what the scan saw); None without
        a cache."""
        if self.cache is None:
            return None
        path = self.files[index]
        entry, content = self.entries.get(path), self.contents.get(path, UNREADABLE)
        if now and (not entry or (now.st_size, now.st_mtime_ns) != (entry.size, entry.mtime_ns)):
            content = content_hash(path, now.st_size, now.st_mtime_ns)
        side = "" if self.half is None else f"-{self.half}"
        return None if content == UNREADABLE else content + side

    def compare(self, index: int, now: os.stat_result | None) -> None:
        """Tells once of a file that is not what the scan saw."""
        entry = self.entries.get(self.files[index])
        if entry is None or now is None or index in self.changed:
            return
        if (now.st_size, now.st_mtime_ns) != (entry.size, entry.mtime_ns):
            self.changed.add(index)
            name = escape(entry.id)
            log.warning("%s changed since the run looked; its new content is used", name)


class ScenePictures:
    """The built-in scenes of one domain, or of several one after another, kept once drawn."""

    def __init__(self, *domains: Any, labels: Sequence[int] = ()) -> None:
        self.domains, self.labels = domains, labels
        self.kept: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return sum(map(len, self.domains))

    def place(self, index: int) -> tuple[Any, int]:
        d, i = divmod(index, len(self.domains[0]))  # all are of one length
        return self.domains[d], i

    def name(self, index: int) -> str:
        scenes, i = self.place(index)
        return f"{scenes.domain} scene {i}"

    def label(self, index: int) -> int:
        return self.labels[index] if self.labels else -1

    def usable(self, index: int) -> bool:
        return True

    def refuse(self, index: int, reason: str) -> None:
        raise AssertionError("scenes of one size are alike")

    def read(self, index: int) -> np.ndarray:
        if index not in self.kept:
            scenes, i = self.place(index)
            self.kept[index] = scenes[i].image
        return self.kept[index]


def covering(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`image`, aspect kept, resized to the smallest that covers `size`."""
    h, w = image.shape[:2]
    ratio = max(size[0] / h, size[1] / w)
    target = (max(size[0], round(h * ratio)), max(size[1], round(w * ratio)))
    return image if target == (h, w) else resize(image, target)


class Sample(NamedTuple):
    """One image of a batch: where it comes from and the numbers that its augmentation uses."""

    domain: int
    epoch: int
    index: int  # type: ignore[assignment]


class Batches(Sequence[tuple[dict[str, Tensor], list[str]]]):
    """Batch `step` of a run: tensors by name, images (B, H, W, C) uint8, and the names of the files in it."""

    def __init__(
        self,
        pictures: Sequence[Pictures],
        layout: str,
        batch: int,
        size: tuple[int, int],
        *,
        steps: int,
        seed: int = 0,
        flip: bool = True,
        channels: int = 3,
    ) -> None:
        self.pictures, self.layout, self.batch, self.size = pictures, layout, batch, size
        self.steps, self.seed, self.flip, self.channels = steps, seed, flip, channels
        self.make = getattr(self, layout)
        self.matched: set[int] = set()  # pairs that can be cut alike

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> tuple[dict[str, Tensor], list[str]]:  # type: ignore[override]
        tensors, samples = self.make(step)
        return tensors, [self.pictures[s.domain].name(s.index) for s in samples]

    # Layouts -------------------------------------------------------------------------------------

    def two_domains(self, step: int) -> tuple[dict[str, Tensor], list[Sample]]:
        a, b = self.samples(0, step), self.samples(1, step)
        return {"x_1": self.images(a), "x_2": self.images(b)}, a + b

    def paired(self, step: int) -> tuple[dict[str, Tensor], list[Sample]]:
        a = [self.whole(s) for s in self.samples(0, step)]
        b = [s._replace(domain=1) for s in a]
        return {"x_1": self.images(a, key=0), "x_2": self.images(b, key=0)}, a + b

    def whole(self, sample: Sample) -> Sample:
        """The sample, or the next one of which both images can be read and cut alike."""
        n = len(self.pictures[0])
        for index in ((sample.index + i) % n for i in range(n)):
            if all(p.usable(index) for p in self.pictures) and self.alike(index):
                return sample._replace(index=index)
        raise DataProblem(
            "Of no pair can both images be read and cut alike: run `unpaired data check --paired`."
        )

    def alike(self, index: int) -> bool:
        """Whether the images of a pair have the same proportions, within 2%; it is told once where they do not."""
        if index in self.matched:
            return True
        a, b = (p.read(index).shape for p in self.pictures)
        if all(abs(i - j) <= max(1, 0.02 * i) for i, j in zip(a, b, strict=True)):
            self.matched.add(index)
            return True
        first, second = self.pictures
        other = escape(Path(second.name(index)))
        first.refuse(
            index,
            f"{escape(Path(first.name(index)))}: its proportions are not those of its partner {other}",
        )
        return False

    def domains(self, step: int) -> tuple[dict[str, Tensor], list[Sample]]:
        """Domain-balanced sources and references; `x_ref2` is another image of the reference's domain, or
        another cut of its only one. No two references of a batch show the same file where the domain has enough."""
        n = len(self.pictures)
        source = self.balanced("source", step, n)
        target = self.balanced("target", step, n)
        src = [self.drawn("src", step, j, d) for j, d in enumerate(source)]
        pairs = {d: iter(self.references(step, d, target.count(d))) for d in set(target)}
        ref, ref2 = (list(side) for side in zip(*(next(pairs[d]) for d in target), strict=True))
        tensors = {
            "x_src": self.images(src),
            "x_ref": self.images(ref),
            "x_ref2": self.images(ref2, cut="crop ref2"),
            "y_src": torch.tensor(source),
            "y_ref": torch.tensor(target),
        }
        return tensors, src + ref + ref2

    def unlabelled(self, step: int) -> tuple[dict[str, Tensor], list[Sample]]:
        """Images, their labels y where these are known, else -1, and the numbers of each one's second view."""
        samples = self.samples(0, step)
        u = [
            generator(self.seed, "view", s.epoch, s.index).random(View.draws, np.float32)
            for s in samples
        ]
        tensors = {"x": self.images(samples), "u": torch.from_numpy(np.stack(u))}
        tensors["y"] = torch.tensor([self.pictures[0].label(s.index) for s in samples])  # once read
        return tensors, samples

    # Order ---------------------------------------------------------------------------------------

    def samples(self, domain: int, step: int) -> list[Sample]:
        """The next `batch` images of a domain, each once an epoch, in an order of its own."""
        n = len(self.pictures[domain])
        if n == 0:
            raise DataProblem(f"Domain {domain} holds no image.")
        places = (divmod(step * self.batch + j, n) for j in range(self.batch))
        return [
            Sample(domain, epoch, int(order(self.seed, domain, epoch, n)[i])) for epoch, i in places
        ]

    def balanced(self, what: str, step: int, n: int) -> list[int]:
        """Domains of a batch: as equal in number as can be, in random order."""
        rng = generator(self.seed, what, step)
        start = int(rng.integers(n))
        return rng.permutation([(start + j) % n for j in range(self.batch)]).tolist()

    def drawn(self, what: str, step: int, j: int, domain: int) -> Sample:
        """An image of `domain` at random; the step stands for the epoch in its augmentation."""
        rng = generator(self.seed, what, step, j)
        return Sample(domain, step, int(rng.integers(len(self.pictures[domain]))))

    def references(self, step: int, domain: int, pairs: int) -> list[tuple[Sample, Sample]]:
        """Pairs of images of `domain` at random: all different where it has so many, else at least the two of a pair,
        if it has two. Losses compare the references of a batch: none should be its own negative."""
        n = len(self.pictures[domain])
        rng = generator(self.seed, "ref", step, domain)
        chosen = rng.choice(n, min(2 * pairs, n), replace=False).tolist()
        apart = pairs if pairs % len(chosen) else pairs + 1
        places = [(i % len(chosen), (i + apart) % len(chosen)) for i in range(pairs)]
        return [
            (Sample(domain, step, chosen[i]), Sample(domain, step, chosen[j])) for i, j in places
        ]

    # Augmentation --------------------------------------------------------------------------------

    def images(
        self, samples: Sequence[Sample], key: int | None = None, cut: str = "crop"
    ) -> Tensor:
        """(B, H, W, C) uint8: a random crop, half of them mirrored. `key` ties the cuts of paired domains, `cut` names
        draws that differ for one and the same image."""
        return torch.from_numpy(
            np.stack([self.image(s, s.domain if key is None else key, cut) for s in samples])
        )

    def image(self, sample: Sample, key: int, cut: str = "crop") -> np.ndarray:
        image = self.pictures[sample.domain].read(sample.index)
        rng = generator(self.seed, cut, key, sample.epoch, sample.index)
        (h, w), (top, left, mirror) = self.size, rng.random(3)
        y, x = int(top * (image.shape[0] - h + 1)), int(left * (image.shape[1] - w + 1))
        image = image[y : y + h, x : x + w]
        image = mirrored(image) if self.flip and mirror < 0.5 else image
        return luminance(image) if self.channels == 1 else image


def mirrored(image: np.ndarray) -> np.ndarray:
    """`image[:, ::-1]`, copied ten times as fast as numpy does."""
    return torch.from_numpy(np.require(image, requirements="W")).flip(1).numpy()


def spread(n: int, total: int) -> list[int]:
    """`n` of `total` places, evenly: sorted images of one kind lie side by side. Some are named twice if n > total."""
    return [(2 * i + 1) * total // (2 * n) for i in range(n)]


def usable(pictures: Pictures, index: int) -> bool:
    """Whether `read` gives that image, and no stand-in."""
    return not isinstance(pictures, FilePictures) or pictures.usable(index)


def middle(image: np.ndarray, size: tuple[int, int], channels: int = 3) -> Tensor:
    """The middle of (H, W, 3) uint8, as (1, C, h, w) in [-1, 1]."""
    y, x = (image.shape[0] - size[0]) // 2, (image.shape[1] - size[1]) // 2
    image = image[y : y + size[0], x : x + size[1]]
    image = luminance(image) if channels == 1 else image
    return from_array(image)


def luminance(image: np.ndarray) -> np.ndarray:
    """RGB (H, W, 3) -> grey (H, W, 1), ITU-R 601."""
    return np.rint(image @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)[..., None]


@lru_cache(maxsize=64)
def order(seed: int, domain: int, epoch: int, n: int) -> np.ndarray:
    """The order in which an epoch goes through `n` images."""
    return generator(seed, "order", domain, epoch).permutation(n)


def generator(*key: int | str) -> np.random.Generator:
    """Random numbers that depend on `key` alone."""
    words = [k if isinstance(k, int) else int.from_bytes(k.encode(), "little") for k in key]
    return np.random.Generator(np.random.PCG64(words))


def to_device(
    batch: Mapping[str, Tensor], device: torch.device | str, view: View | None = None
) -> dict[str, Tensor]:
    """Images (B, H, W, C) uint8 -> (B, C, H, W) in [-1, 1], channels last in memory; labels as they are.

    Where the batch has the numbers `u` of a second view, `view` makes it of `x` and them: `x_tf`.
    """
    moved = {name: x.to(device, non_blocking=True) for name, x in batch.items()}
    ready = {
        name: (x.permute(0, 3, 1, 2).float() / 127.5 - 1) if x.dtype is torch.uint8 else x
        for name, x in moved.items()
    }
    if view and "u" in ready:
        ready["x_tf"] = view(ready["x"], ready.pop("u"))
    return ready


class Shifted(Sequence[tuple[dict[str, Tensor], list[str]]]):
    """The same number of batches, taken from `shift` steps later: how a run passes over what it diverged on."""

    def __init__(self, batches: Batches, shift: int) -> None:
        self.batches, self.shift = batches, shift

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, step: int) -> tuple[dict[str, Tensor], list[str]]:  # type: ignore[override]
        return self.batches[step + self.shift]


class Shipped(Sequence[Any]):
    """Batches as they travel from a worker: arrays, because tensors would need a file descriptor and shared memory
    each; and a `Problem` as it is, because raised there it would arrive as a traceback."""

    def __init__(self, batches: Sequence[tuple[dict[str, Tensor], list[str]]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, step: int) -> Any:  # type: ignore[override]
        try:
            tensors, files = self.batches[step]
        except Problem as problem:
            return problem
        return {name: x.numpy() for name, x in tensors.items()}, files


def loader(
    batches: Sequence[tuple[dict[str, Tensor], list[str]]], start: int, workers: int
) -> Generator[tuple[dict[str, Tensor], list[str]], None, None]:
    """Batches `start`, `start + 1`, ... read ahead by `workers` processes, which end with this one.

    Raises torch's RuntimeError ("DataLoader ...") where a worker was killed, or where a batch does not come in
    READER_SECONDS; `StorageProblem` where the system's limits allow no workers.
    """
    from torch.utils.data import DataLoader

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "This DataLoader will create"
            )  # more than cores: as asked
            source: Any = iter(
                DataLoader(
                    Shipped(batches),  # type: ignore[arg-type]
                    batch_size=None,
                    sampler=range(start, len(batches)),
                    collate_fn=as_it_is,
                    num_workers=workers,
                    # what they report, and the cache's counts, are shared by forking
                    multiprocessing_context="fork" if workers else None,
                    timeout=READER_SECONDS if workers else 0,
                    prefetch_factor=4 if workers else None,
                    persistent_workers=workers > 0,
                    worker_init_fn=die_with_parent,
                )
            )
    except OSError as error:
        raise StorageProblem(
            f"The {workers} reading processes cannot be started ({error.strerror}): raise the limits of this shell "
            "(ulimit -n 4096), or set data.workers=0."
        ) from None
    try:
        for _ in range(start, len(batches)):
            batch = next(source)
            if isinstance(batch, Problem):
                raise batch
            arrays, files = batch
            yield {name: torch.from_numpy(x) for name, x in arrays.items()}, files
    finally:
        if workers:
            end(source._workers)


def as_it_is(batch: Any) -> Any:
    """In the place of torch's collation, which would make tensors of the arrays."""
    return batch


def end(workers: Sequence[Any]) -> None:
    """Kills the workers, one of which may hang and outlive a gentler signal."""
    heard = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises for each
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join(5)
    signal.signal(signal.SIGCHLD, heard)


def die_with_parent(worker: int) -> None:
    """A signal that asks the whole group to stop is the trainer's to answer: it still needs the step's images.

    On Linux the kernel kills this process when the trainer dies, however it dies.
    """
    for number in signal.SIGTERM, signal.SIGINT, signal.SIGHUP:
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError, AttributeError, TypeError):
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def check_layout(layout: str, domains: Sequence[str], method: str) -> None:
    """Refuses domains that a method cannot train on."""
    wanted = {"two_domains": 2, "paired": 2}.get(layout)
    if layout == "two_domains" and len(domains) == 1:
        raise ConfigProblem(
            f"{method} needs two domains, here is one ({escape(domains[0])}): give a folder for each, as in "
            "--data cats dogs. One folder without labels is for tunit."
        )
    if wanted and len(domains) != wanted:
        found = ", ".join(escape(d) for d in domains) or "none"
        raise ConfigProblem(
            f"{method} needs exactly {wanted} domains, here are {len(domains)} ({found}): "
            "choose two by 'data.domains=[one,another]'."
        )
    if layout == "domains" and len(domains) < 2:
        raise ConfigProblem(
            f"{method} needs two or more domains, here is {len(domains)}: give a folder for each."
        )
