"""Which images there are: the layouts of a data set, found by looking, and its fingerprint.

`scan` understands, in this order:

- a list: a text, CSV or TSV file of `path[,domain[,split]]`, paths relative to the list;
- `trainA trainB testA testB` (and `valA valB`), domains A and B;
- `train/<domain>`, `val/<domain>`, `test/<domain>`; or `<domain>/train`, `<domain>/val`, ...;
- `<domain>` folders without splits, two or more; or several folders named one by one;
- images directly in the folder: one domain, named "images", without labels.

Paired data are two folders whose images have equal names up to the extension, or one folder of
images that show A on the left and B on the right.

Only the extension decides at this point: `IMAGES` are listed, `OTHER_IMAGES` are reported as
skipped, all others are passed over; a file without extension, or with an image extension before
another, is looked into. Never seen: hidden files (`.DS_Store`, `._x.jpg`) and `IGNORED`. Links are
followed within the folder only, unless asked; pipes, devices and sockets are skipped.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unpaired.data.intake import BadImage, escape, kind_of, read_file
from unpaired.errors import ConfigProblem, DataProblem
from unpaired.progress import patiently

IMAGES = frozenset(".jpg .jpeg .jpe .jfif .png .apng .webp .bmp .dib .gif .tif .tiff".split())
OTHER_IMAGES = frozenset(
    ".heic .heif .avif .svg .pdf .eps .ps .psd .jp2 .j2k .jpx .jxl .tga .ppm .pgm .exr .hdr .raw "
    ".cr2 .cr3 .nef .arw .dng .mp4 .mov .avi .mkv .webm .m4v".split()
)
IGNORED = frozenset({"thumbs.db", "desktop.ini", "__macosx", "@eadir", "lost+found"})
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
UNLABELLED = "images"
UNREADABLE = "unreadable"  # in place of a hash
LETTERED = re.compile(r"(train|val|test)([A-Z])")
UNDERSTOOD = (
    "understood are trainA trainB, train/<domain>, one folder per domain, images directly in the "
    "folder, and a list of path,domain,split"
)


class Entry(NamedTuple):
    """One file as the scan found it. `split` is the source's: "train" for a made validation."""

    id: str  # relative path with slashes: the name of the image in every report
    split: str
    domain: str
    stem: str  # path within the domain, without extension: pairs have equal ones
    size: int  # bytes
    mtime_ns: int


@dataclass(frozen=True)
class Fingerprint:
    """What a data set contains, whatever the path of its root and the order of its listing.

    digest: hex SHA-256 over split, domain, id and content of every file.
    files: id to (split, domain, size in bytes, mtime in ns, hex SHA-256 of the content).
    labels: id to the label that training learns, of those that have one; None where it was not written down.
    validation: ids of training images that were held out for want of others; None as with labels.
    """

    digest: str
    files: Mapping[str, tuple[str, str, int, int, str]]
    labels: Mapping[str, str] | None = None
    validation: tuple[str, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        files = {k: list(v) for k, v in self.files.items()}
        return {
            "digest": self.digest,
            "files": files,
            "labels": self.labels,
            "validation": self.validation,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Fingerprint:
        files = {k: tuple(v) for k, v in data["files"].items()}
        held = data.get("validation")
        return cls(data["digest"], files, data.get("labels"), None if held is None else tuple(held))


class Changes(NamedTuple):
    """Ids that differ between two fingerprints."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    relabelled: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return any(self[:])

    def __str__(self) -> str:
        n = len(self.relabelled)
        labels = f", labels of {n} image{'s' * (n > 1)} changed" if n else ""
        return f"{len(self.added)} added, {len(self.removed)} removed, {len(self.changed)} changed{labels}"


@dataclass(frozen=True)
class Listing:
    """The images of a data set.

    root: the folder, the list, or the first of several folders, which are `roots`; absolute.
    layout: the layout that was found, in words.
    domains: in the order of their numbers.
    files: split ("train", "val", "test") to domain to absolute paths. If `paired`, the n-th of one
        domain belongs to the n-th of the other; if `side_by_side`, both are halves of one file.
    entries: what the scan knew of each path.
    skipped: files that ought to be images and cannot be used, with the reason.
    notes: sentences for the user.
    made_validation: the split "val" was taken from the training images.
    """

    root: Path
    layout: str
    domains: tuple[str, ...]
    files: Mapping[str, Mapping[str, tuple[Path, ...]]]
    entries: Mapping[Path, Entry] = field(repr=False)
    skipped: tuple[tuple[Path, str], ...] = ()
    notes: tuple[str, ...] = ()
    paired: bool = False
    side_by_side: bool = False
    made_validation: bool = False
    roots: tuple[Path, ...] = ()

    def paths(self, split: str, domain: str) -> tuple[Path, ...]:
        """The images of a split and domain; empty where there are none."""
        return self.files.get(split, {}).get(domain, ())

    def unusable(self, domains: Iterable[str]) -> list[Path]:
        """Those of `skipped` that lie where the images of these domains do; of a list, all."""
        wanted = set(domains)
        if self.layout == "list":
            return [path for path, _ in self.skipped]
        homes = {
            path.parents[e.stem.count("/")]
            for path, e in self.entries.items()
            if e.domain in wanted or self.side_by_side
        }
        return [path for path, _ in self.skipped if not homes.isdisjoint(path.parents)]

    def id(self, path: Path) -> str:
        """The relative path with slashes: how reports name the image, on every machine."""
        return self.entries[path].id

    def fingerprint(
        self, known: Fingerprint | None = None, labels: Mapping[Path, str] | None = None
    ) -> Fingerprint:
        """Hash every file; those whose size and mtime are as in `known` are not read again.

        With all of them known: 0.1 s per 5,000 files at most. A file that cannot be read counts
        as content "unreadable". labels: of the files that have one.
        """
        files = {
            e.id: (e.split, e.domain, e.size, e.mtime_ns, _content(path, e, known))
            for path, e in patiently(self.entries.items(), "Reading the images once, to know them")
        }
        named = None if labels is None else {self.id(path): y for path, y in labels.items() if y}
        held = (self.entries[p] for of in self.files.get("val", {}).values() for p in of)
        chosen = tuple(sorted({e.id for e in held if e.split == "train"}))
        return Fingerprint(_digest(files), files, named, chosen)


def compare(old: Fingerprint, new: Fingerprint) -> Changes:
    """What happened between two fingerprints; a renamed file is one removed and one added."""

    def kept(entry: tuple[str, str, int, int, str]) -> tuple[str, str, str]:
        split, domain, _, _, content = entry
        return split, domain, content

    both = old.files.keys() & new.files.keys()
    told = old.labels is not None and new.labels is not None  # not by earlier versions
    before, now = old.labels or {}, new.labels or {}
    return Changes(
        tuple(sorted(new.files.keys() - both)),
        tuple(sorted(old.files.keys() - both)),
        tuple(sorted(i for i in both if kept(old.files[i]) != kept(new.files[i]))),
        tuple(sorted(i for i in both if told and before.get(i) != now.get(i))),
    )


def halves(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A and B of a side-by-side image (H, 2 W, 3). Raises DataProblem if the width is odd."""
    width = image.shape[1]
    if width % 2:
        raise DataProblem(f"A side-by-side image must have an even width, not {width} pixels.")
    return image[:, : width // 2], image[:, width // 2 :]


def scan(
    *roots: str | os.PathLike[str],
    paired: bool = False,
    follow_links: bool = False,
    subfolders: bool = False,
    domains: Iterable[str] | None = None,
    validation: float = 0.05,
    known: Fingerprint | None = None,
) -> Listing:
    """The images under one folder, in one list, or in several folders that are a domain each.

    paired: match the images of two domains by name, or take one folder as side-by-side images.
    follow_links: also out of the folder. subfolders: take the images of all folders below as one
    domain without labels. domains: the images of these alone, where all of them are found.
    validation: the fraction of training images that becomes the split "val" where there is none;
    chosen by content, so that equal images stay on one side and the choice does not depend on
    names; none from fewer than 20. known: an earlier fingerprint, whose validation stays, and to save
    time.

    Raises ConfigProblem for a folder that does not exist, DataProblem for one that has no images,
    or has them in no layout that we understand.
    """
    if not roots:
        raise ConfigProblem("No folder of images was named; name one.")
    tops = [Path(os.path.abspath(root)) for root in roots]
    for top in tops:
        if not top.exists():
            raise ConfigProblem(f"{escape(top)} does not exist; name a folder of images.")
        if len(tops) > 1 and not top.is_dir():
            raise ConfigProblem(f"{escape(top)} is not a folder; name folders of images.")
    _check_apart(tops)
    notes: list[str] = []
    if not tops[0].is_dir():
        found = _read_list(tops[0])
        layout, placed = "list", found.placed
        order: Sequence[str] = ()
    else:
        names = _domain_names(tops) if len(tops) > 1 else [""]
        found = _walk(dict(zip(names, tops, strict=True)), follow_links)
        if not found.files:
            raise DataProblem(_nothing(tops, found))
        if len(tops) > 1:
            layout, placed, notes = _place_folders(tops, found.files)
        else:
            layout, placed, notes = _place(tops[0], found.files, subfolders)
        order = names
    _check_domains(tops[0], placed)
    used = {e.domain for _, e in placed}
    if len(tops) == 1 and "<domain>" in layout:
        notes = notes + _empty(tops[0], layout, used)
    some = used if domains is None or not used.issuperset(domains) else set(domains)
    for name, top in zip(order, tops, strict=False):
        if name and name not in used and some == used:
            raise DataProblem(f"{escape(top)} has no images; {UNDERSTOOD}.")
    names = [d for d in dict.fromkeys([*order, *sorted(used)]) if d in some]
    placed = [(path, e) for path, e in placed if e.domain in some]
    listing = (_pair if paired else _listing)(
        tops[0], layout, placed, tuple(names), found.skipped, notes, validation, known
    )
    return replace(listing, roots=tuple(tops))


def images_below(folder: Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Every image in a folder and below it, whatever the layout; and files that ought to be images and cannot be used.

    Links are followed. Raises DataProblem for a folder without images.
    """
    found = _walk({"": Path(os.path.abspath(folder))}, follow_links=True)
    if not found.files:
        raise DataProblem(_nothing([folder], found))
    return [path for _, path, _ in found.files], found.skipped


# Finding.


class _Found(NamedTuple):
    files: list[tuple[tuple[str, ...], Path, os.stat_result]]  # parts below the root(s)
    skipped: list[tuple[Path, str]]
    others: list[str]
    placed: list[tuple[Path, Entry]]


def _walk(tops: Mapping[str, Path], follow_links: bool) -> _Found:
    found = _Found([], [], [], [])
    real = [os.path.realpath(top) for top in tops.values()]
    for name, top in tops.items():
        here = os.stat(top)
        _walk_folder(
            str(top),
            (name,) if name else (),
            found,
            None if follow_links else real,
            ((here.st_dev, here.st_ino),),
        )
    found.files.sort(key=lambda item: os.fsencode("/".join(item[0])))
    found.skipped.sort()
    return found


def _walk_folder(
    folder: str,
    parts: tuple[str, ...],
    found: _Found,
    real: list[str] | None,
    above: tuple[tuple[int, int], ...],
) -> None:
    """`real`: the folders that links must stay in; None if they may lead anywhere."""
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        found.skipped.append((Path(folder), f"the folder cannot be read ({error.strerror})"))
        return
    for entry in entries:
        if entry.name.startswith(".") or entry.name.lower() in IGNORED:
            continue
        inside, suffix, link = (*parts, entry.name), _suffix(entry.name), entry.is_symlink()
        try:
            info = entry.stat()
            if link and real is not None and not _within(entry.path, real):
                if stat.S_ISDIR(info.st_mode) or suffix in IMAGES:
                    reason = "the link leads out of the folder (data.follow_links=true allows it)"
                    found.skipped.append((Path(entry.path), reason))
                continue
        except OSError as error:
            reason = "the link leads nowhere" if link else str(error.strerror)
            found.skipped.append((Path(entry.path), reason))
            continue
        if stat.S_ISREG(info.st_mode):
            if suffix in IMAGES or _looks_like_image(entry.path, entry.name, suffix):
                found.files.append((inside, Path(entry.path), info))
            elif suffix in OTHER_IMAGES:
                reason = f"{suffix} is not supported; convert it to JPEG or PNG"
                found.skipped.append((Path(entry.path), reason))
            else:
                found.others.append("/".join(inside))
        elif stat.S_ISDIR(info.st_mode):
            key = (info.st_dev, info.st_ino)
            if key in above:
                found.skipped.append((Path(entry.path), "the link leads in a circle"))
            else:
                _walk_folder(entry.path, inside, found, real, (*above, key))
        else:
            found.skipped.append((Path(entry.path), "it is not a regular file"))


def _within(path: str, real: list[str]) -> bool:
    target = os.path.realpath(path)
    return any(target == top or target.startswith(top.rstrip(os.sep) + os.sep) for top in real)


def _suffix(name: str) -> str:
    dot = name.rfind(".")  # names that begin with it are not seen
    return name[dot:].lower() if dot > 0 else ""


def _looks_like_image(path: str, name: str, suffix: str) -> bool:
    """Look into a file without extension, or with one after that of an image."""
    if suffix and _suffix(name[: -len(suffix)]) not in IMAGES:
        return False
    try:
        with open(path, "rb") as file:
            return kind_of(file.read(16)) is not None
    except OSError:
        return False


def _nothing(tops: list[Path], found: _Found) -> str:
    where = " and ".join(escape(top) for top in tops)
    seen = [f"{len(found.skipped)} unusable"] if found.skipped else []
    seen += [f"{len(found.others)} other files"] if found.others else []
    first = found.skipped[0] if found.skipped else None
    because = f", the first {escape(first[0].name)}: {first[1]}" if first else ""
    what = " and ".join(seen) + because if seen else "nothing at all"
    return f"{where} has no images (there is {what}); {UNDERSTOOD}."


# Placing: from a relative path to split and domain.


def _entry(
    parts: tuple[str, ...], split: str, domain: str, inner: tuple[str, ...], info: os.stat_result
) -> Entry:
    name = "/".join(inner)
    stem = unicodedata.normalize("NFC", name[: len(name) - len(_suffix(inner[-1]))])
    return Entry("/".join(parts), split, domain, stem, info.st_size, info.st_mtime_ns)


_Placed = list[tuple[Path, Entry]]
_Files = list[tuple[tuple[str, ...], Path, os.stat_result]]


def _place(root: Path, files: _Files, subfolders: bool) -> tuple[str, _Placed, list[str]]:
    heads = {parts[0] for parts, _, _ in files if len(parts) > 1}
    lettered = {h: (m[1], m[2]) for h in heads if (m := LETTERED.fullmatch(h))}
    if lettered:
        used = [f for f in files if f[0][0] in lettered]
        placed = [
            (path, _entry(parts, split, UNLABELLED if subfolders else letter, parts[1:], info))
            for parts, path, info in used
            for split, letter in [lettered[parts[0]]]
        ]
        return "trainA trainB", placed, _beside(files, used, lettered)
    splits = {h: SPLITS[h.lower()] for h in heads if h.lower() in SPLITS}
    if splits:
        used = [f for f in files if f[0][0] in splits and len(f[0]) > 1]
        loose = {len(parts) == 2 for parts, _, _ in used}
        if len(loose) == 2 and not subfolders:
            raise DataProblem(
                f"{escape(root)} has images both directly in {_names(splits)} and in folders "
                "below; put each into the folder of its domain."
            )
        flat = subfolders or loose == {True}
        placed = [
            (path, _entry(parts, splits[parts[0]], UNLABELLED, parts[1:], info))
            if flat
            else (path, _entry(parts, splits[parts[0]], parts[1], parts[2:], info))
            for parts, path, info in used
        ]
        return "train" if flat else "train/<domain>", placed, _beside(files, used, splits)
    if subfolders and all(len(p) > 2 and p[1].lower() in SPLITS for p, _, _ in files):
        layout, placed, notes = _place_folders([root], files)
        return layout, [(path, e._replace(domain=UNLABELLED)) for path, e in placed], notes
    if subfolders or not heads:
        placed = [
            (path, _entry(parts, "train", UNLABELLED, parts, info)) for parts, path, info in files
        ]
        return "one folder", placed, []
    if any(len(parts) == 1 for parts, _, _ in files):
        loose_files = [parts[0] for parts, _, _ in files if len(parts) == 1]
        raise DataProblem(
            f"{escape(root)} has {len(loose_files)} images (such as {escape(loose_files[0])}) "
            f"beside folders of images ({_names(heads)}); move them into the folder of their domain, or away. "
            "As one folder without labels they are for tunit (data check --unlabelled)."
        )
    if len(heads) == 1:
        (head,) = heads
        below = {parts[1] for parts, _, _ in files}
        if any(name.lower() in SPLITS or LETTERED.fullmatch(name) for name in below):
            raise DataProblem(
                f"{escape(root)} has no images by itself; its folder {escape(head)} has "
                f"{_names(below)}: name {escape(root / head)}."
            )
    return _place_folders([root], files)


def _place_folders(tops: list[Path], files: _Files) -> tuple[str, _Placed, list[str]]:
    """`<domain>/...`, each with its splits inside, or all of them without."""
    split = {parts[0] for parts, _, _ in files if len(parts) > 2 and parts[1].lower() in SPLITS}
    plain = {p[0] for p, _, _ in files if len(p) < 3 or p[1].lower() not in SPLITS}
    if split and plain:
        raise DataProblem(
            f"In {escape(tops[0])}, {_names(split)} has folders such as train and test, and "
            f"{_names(plain)} has images outside of such folders; arrange both alike."
        )
    placed = [
        (path, _entry(parts, SPLITS[parts[1].lower()], parts[0], parts[2:], info))
        if split
        else (path, _entry(parts, "train", parts[0], parts[1:], info))
        for parts, path, info in files
    ]
    return "<domain>/train" if split else "<domain>", placed, []


def _domain_names(tops: list[Path]) -> list[str]:
    names = [top.name for top in tops]
    return (
        names
        if all(names) and len(set(names)) == len(names)
        else [chr(65 + i) for i in range(len(tops))]
    )


def _empty(top: Path, layout: str, used: set[str]) -> list[str]:
    """A sentence for folders that stand where domains do and hold no image."""
    above = [top]
    if layout.startswith("train"):
        above = [d for d in sorted(top.iterdir()) if d.is_dir() and d.name.lower() in SPLITS]
    empty = {
        d.name
        for folder in above
        for d in folder.iterdir()
        if d.is_dir() and not d.name.startswith(".") and d.name.lower() not in IGNORED
    } - used
    what = (
        "is empty of images, so it is no domain"
        if len(empty) == 1
        else "are empty of images, so they are no domains"
    )
    return [f"{_names(empty)} {what}."] if empty else []


def _beside(files: _Files, used: _Files, folders: Iterable[str]) -> list[str]:
    rest = len(files) - len(used)
    return [f"{rest} images beside {_names(folders)} are not used."] if rest else []


def _names(names: Iterable[str], most: int = 5) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(escape(name) for name in listed[:most]) + more


def _check_domains(root: Path, placed: _Placed) -> None:
    domains: dict[str, set[str]] = {}
    for _, entry in placed:
        domains.setdefault(entry.split, set()).add(entry.domain)
    train = domains.get("train")
    for split, names in domains.items():
        if train and names - train:
            raise DataProblem(
                f"{escape(root)} has {split} images but no training images of "
                f"{_names(names - train)}; add them or remove the {split} images."
            )


# Lists.


def _text_of(path: Path) -> str:
    """A file in UTF-8, or in UTF-16 as Windows writes it."""
    data = read_file(path)
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", "replace")
    return data.decode("utf-8-sig", "surrogateescape")


def _read_list(path: Path) -> _Found:
    """`path[,domain[,split]]` a line; a header line and lines that begin with # are passed over."""
    if path.suffix.lower() not in (".txt", ".csv", ".tsv"):
        raise ConfigProblem(
            f"{escape(path)} is not a folder, nor a list (.txt, .csv, .tsv); unpack it, or name a "
            "folder of images."
        )
    text = _text_of(path)
    found = _Found([], [], [], [])
    seen: dict[str, tuple[str, str]] = {}
    for number, name, domain, split in _rows(path, text):
        where = f"line {number} of {escape(path)}"
        if split.lower() not in SPLITS:
            raise DataProblem(f"{escape(split)} in {where} is no split: write train, val or test.")
        split, same = SPLITS[split.lower()], os.path.normpath(path.parent / name)
        if same in seen:
            if seen[same] != (domain, split):
                raise DataProblem(
                    f"{escape(name)} in {where} is listed twice, in different domains or splits; "
                    "remove one of the lines."
                )
            continue
        seen[same] = (domain, split)
        file = path.parent / name
        try:
            info = os.stat(file)
        except (OSError, ValueError):
            found.skipped.append((file, f"{where} names it, but it does not exist"))
            continue
        if not stat.S_ISREG(info.st_mode):
            found.skipped.append((file, "it is not a regular file"))
            continue
        entry = _entry((Path(name).as_posix(),), split, domain, (Path(name).name,), info)
        found.placed.append((file, entry))
    if not found.placed:
        raise DataProblem(
            f"{escape(path)} lists no image that exists ({len(found.skipped)} do not); its lines "
            "are path[,domain[,split]], with paths relative to the list."
        )
    found.placed.sort(key=lambda item: os.fsencode(item[1].id))
    return found


def _rows(
    path: Path, text: str, unlabelled: str = UNLABELLED
) -> Iterator[tuple[int, str, str, str]]:
    for number, cells in _cells(path, text):
        if not any(cells) or cells[0].startswith("#"):
            continue
        if number == 1 and cells[0].lower() in ("path", "file", "filename", "image"):
            continue
        if len(cells) > 3 or not cells[0]:
            raise DataProblem(
                f"Line {number} of {escape(path)} is not path[,domain[,split]]; put a "
                "path with commas between quotation marks."
            )
        domain = cells[1] if len(cells) > 1 and cells[1] else unlabelled
        split = cells[2] if len(cells) > 2 and cells[2] else "train"
        yield number, cells[0], domain, split


def _cells(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """The number and the cells of each line."""
    tabs = path.suffix.lower() == ".tsv"
    reader = csv.reader(text.splitlines(), delimiter="\t" if tabs else ",")
    try:
        for row in reader:
            yield reader.line_num, [cell.strip() for cell in row]
    except csv.Error as error:
        raise DataProblem(
            f"Line {reader.line_num} of {escape(path)} cannot be read as a list ({error}): mend it there."
        ) from None


# Labels.


def folder_label(entry: Entry) -> str:
    """The label that an image without domain has by its folder below the root and its split; "" for none.

    Of several folders, and of a list with domains, these are the labels.
    """
    if entry.domain != UNLABELLED:
        return entry.domain
    parts = [p for p in entry.id.split("/")[:-1] if p.lower() not in SPLITS]
    if not parts:
        return ""
    lettered = LETTERED.fullmatch(parts[0])
    return lettered[2] if lettered else parts[0]


def read_labels(path: Path, listing: Listing) -> dict[Path, str]:
    """`path,label` a line, paths relative to the file or to the images' folder; lines without a label are passed over.

    Raises ConfigProblem for a file that is not there, DataProblem for a line that names no image of the listing.
    """
    if not path.is_file():
        raise ConfigProblem(
            f"data.labels: there is no file {escape(path)}: name a CSV of path,label, or say folders."
        )
    text = _text_of(path)
    known = {os.path.normpath(p): p for p in listing.entries}
    outside = {os.path.normpath(p) for p, _ in listing.skipped}
    labels: dict[Path, str] = {}
    for number, name, label, _ in _rows(path, text, unlabelled=""):
        ways = [os.path.normpath(os.path.join(top, name)) for top in (path.parent, listing.root)]
        found = next((known[way] for way in ways if way in known), None)
        if found and labels.get(found, label) != label:
            raise DataProblem(
                f"Line {number} of {escape(path)} gives {escape(name)} another label than a line above: remove one."
            )
        if found and label:
            labels[found] = label
        elif not found and not outside & set(ways):
            raise DataProblem(
                f"Line {number} of {escape(path)} names {escape(name)}, which is not among the images of "
                f"{escape(listing.root)}: correct the line or remove it."
            )
    return labels


# Pairs and validation.


def _pair(
    root: Path,
    layout: str,
    placed: _Placed,
    domains: tuple[str, ...],
    skipped: list[tuple[Path, str]],
    notes: list[str],
    validation: float,
    known: Fingerprint | None,
) -> Listing:
    if len(domains) == 1:
        listing = _listing(root, layout, placed, domains, skipped, notes, validation, known)
        (domain,) = domains
        files = {s: {"A": of[domain], "B": of[domain]} for s, of in listing.files.items()}
        return Listing(
            root,
            f"{layout}, side by side",
            ("A", "B"),
            files,
            listing.entries,
            listing.skipped,
            listing.notes,
            paired=True,
            side_by_side=True,
            made_validation=listing.made_validation,
        )
    if len(domains) != 2:
        raise DataProblem(
            f"{escape(root)} has {len(domains)} domains ({_names(domains)}); pairs need two, "
            "chosen by 'data.domains=[one,another]', or one folder of side-by-side images."
        )
    a, b = ({(e.split, e.stem): e for _, e in placed if e.domain == d} for d in domains)
    if len(a) + len(b) < len(placed):
        twice = {e.id for _, e in placed} - {e.id for e in (*a.values(), *b.values())}
        raise DataProblem(
            f"{_names(twice)} in {escape(root)} has the name of another image up to the extension; "
            "pairs need one each, so rename or remove it."
        )
    if alone := [(a.get(k) or b[k]).id for k in a.keys() ^ b.keys()]:
        raise DataProblem(
            f"{len(alone)} images in {escape(root)} have no partner of the same name: "
            f"{_names(alone)}; add the partners or remove them."
        )
    placed = sorted(placed, key=lambda item: os.fsencode(item[1].stem))
    return _listing(root, layout, placed, domains, skipped, notes, validation, known, paired=True)


def _listing(
    root: Path,
    layout: str,
    placed: _Placed,
    domains: tuple[str, ...],
    skipped: list[tuple[Path, str]],
    notes: list[str],
    validation: float,
    known: Fingerprint | None,
    paired: bool = False,
) -> Listing:
    chosen: set[str] = set()
    make = validation > 0 and not any(e.split == "val" for _, e in placed)
    if make:
        chosen = _choose_validation(placed, validation, known, paired)
    files: dict[str, dict[str, list[Path]]] = {}
    for path, entry in placed:
        split = "val" if entry.id in chosen else entry.split
        files.setdefault(split, {d: [] for d in domains})[entry.domain].append(path)
    ordered = {split: files[split] for split in ("train", "val", "test") if split in files}
    return Listing(
        root,
        layout,
        domains,
        {split: {d: tuple(paths) for d, paths in of.items()} for split, of in ordered.items()},
        dict(placed),
        tuple(skipped),
        tuple(notes),
        paired=paired,
        made_validation=bool(chosen),
    )


def _choose_validation(
    placed: _Placed, fraction: float, known: Fingerprint | None, paired: bool
) -> set[str]:
    """Ids of the training images with the smallest hashes, at least 4 a domain that has 20.

    Equal content has equal hashes: its copies go together, if they are not more than are wanted, and
    what one domain gives away the others do not keep. A pair goes by the hash of its first image.
    """
    train = [(path, e) for path, e in placed if e.split == "train"]
    if known and known.validation is not None:  # what was held out stays so, and nothing else was
        return {e.id for _, e in train} & set(known.validation)
    told = patiently(train, "Reading the images once, to choose those of validation")
    hashes = {e.id: _content(path, e, known) for path, e in told}
    if paired:
        first = {e.stem: hashes[e.id] for _, e in reversed(train)}
        hashes = {e.id: first[e.stem] for _, e in train}
    low: set[str] = set()
    for domain in {e.domain for _, e in train}:
        copies = Counter(hashes[e.id] for _, e in train if e.domain == domain)
        n = copies.total()
        left = max(4, round(fraction * n)) if n >= 20 else 0
        for content, count in sorted(copies.items()):
            if count <= left and content != UNREADABLE:
                low.add(content)
                left -= count
    chosen = {e.id for _, e in train if hashes[e.id] in low}
    return chosen if len(chosen) < len(train) else set()


def _check_apart(tops: Sequence[Path]) -> None:
    """Refuses folders that hold the same images."""
    for a, b in permutations(tops, 2):
        inner, outer = a.resolve(), b.resolve()
        if inner == outer:
            raise ConfigProblem(f"{escape(a)} is given twice; name a folder for each domain.")
        if outer in inner.parents:
            raise ConfigProblem(
                f"{escape(a)} lies within {escape(b)}; name folders that have no images in common."
            )


# Content.


def _content(path: Path, entry: Entry, known: Fingerprint | None) -> str:
    before = known.files.get(entry.id) if known else None
    if before and before[2:4] == (entry.size, entry.mtime_ns):
        return before[4]
    return content_hash(path, entry.size, entry.mtime_ns)


@lru_cache(maxsize=1_000_000)
def content_hash(path: Path, size: int, mtime_ns: int) -> str:
    """Hex SHA-256 of a file, once per path, size and mtime; `UNREADABLE` if it cannot be read."""
    try:
        return hashlib.sha256(read_file(path)).hexdigest()
    except BadImage:
        return UNREADABLE


def _digest(files: Mapping[str, tuple[str, str, int, int, str]]) -> str:
    total = hashlib.sha256()
    for name in sorted(files):
        split, domain, _, _, content = files[name]
        line = "\0".join((split, domain, name, content)) + "\n"
        total.update(line.encode("utf-8", "surrogatepass"))
    return total.hexdigest()
