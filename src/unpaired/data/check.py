"""What is wrong with a data set, before hours are spent on it. Changes nothing in it.

`outline` is the cheap part, from the listing alone. `check` reads every image: what cannot be read,
what is blank, tiny or very narrow, and which images are there twice, within a split, across domains
and, loudest, across splits. Near duplicates are copies that were resized, recompressed or slightly
edited: their difference hashes (128 bits) differ in at most `NEAR_BITS`, and their thumbnails by at
most `NEAR_MEAN` levels in the mean and `NEAR_MOST` anywhere. Mirrored and cropped copies are not
found.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import os
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from unpaired.data.folders import Listing, scan
from unpaired.data.intake import BadImage, describe, escape, examine, read_file
from unpaired.errors import ConfigProblem, NotWritable

NARROW = 4.0  # longer over shorter side that deserves a look
TINY = 32  # pixels of the shorter side, where the training size is not known
UNEVEN = 3.0  # images of the largest domain over those of the smallest
FEW = 100  # training images of a domain
MAX_BAD = 0.05  # data.max_bad, unless the run says another
MANY = 5  # such domains that are told one by one
NEAR_BITS, NEAR_MEAN, NEAR_MOST = 10, 6.0, 40
MAX_PAIRS = 2_000_000  # that may look alike before the search for near duplicates ends
THUMB = 24  # pixels, for comparing
SHOWN = 200  # images on the page


@dataclass(frozen=True)
class Copies:
    """Images that are the same ("exact": equal bytes) or look the same ("near")."""

    kind: str
    ids: tuple[str, ...]
    splits: tuple[str, ...]
    domains: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """What `check` found. Images are named by id, the path within the data set.

    counts: split to domain to number of images. sizes, modes: domain to "width x height" or
    "format mode" to number of images, the most frequent first. skipped, unreadable, odd: (id, reason);
    what is odd is used all the same.
    warnings: sentences, the gravest first; empty if all is well.
    """

    roots: tuple[str, ...]
    layout: str
    counts: Mapping[str, Mapping[str, int]]
    sizes: Mapping[str, Mapping[str, int]]
    modes: Mapping[str, Mapping[str, int]]
    skipped: tuple[tuple[str, str], ...]
    unreadable: tuple[tuple[str, str], ...]
    odd: tuple[tuple[str, str], ...]
    blank: tuple[str, ...]
    tiny: tuple[str, ...]
    narrow: tuple[str, ...]
    copies: tuple[Copies, ...]
    warnings: tuple[str, ...]
    thumbnails: Mapping[str, bytes] = field(default_factory=dict, repr=False)  # id to JPEG

    @property
    def leaks(self) -> tuple[Copies, ...]:
        """Copies that are in more than one split."""
        return tuple(copies for copies in self.copies if len(copies.splits) > 1)


class _Look(NamedTuple):
    """What is kept of one image."""

    id: str
    split: str
    domain: str
    reason: str  # why it cannot be read, or ""
    content: str = ""
    mode: str = ""
    width: int = 0
    height: int = 0
    blank: bool = False
    thumb: np.ndarray | None = None  # (THUMB, THUMB, 3) uint8
    bits: np.ndarray | None = None  # (128,) bool
    odd: str = ""  # what is wrong with a file that can be read all the same


def check_command(
    roots: Iterable[str | os.PathLike[str]], layout: str, follow_links: bool = False
) -> str:
    """What to type to check the images of a run with a method of this layout."""
    flag = {"paired": ["--paired"], "unlabelled": ["--unlabelled"]}.get(layout, [])
    flag += ["--follow-links"] if follow_links else []
    return shlex.join(["unpaired", "data", "check", *(escape(Path(r)) for r in roots), *flag])


def outline(listing: Listing, max_bad: float = MAX_BAD) -> tuple[str, ...]:
    """Sentences about what the listing alone shows: skipped files, few images, uneven domains.

    max_bad: `data.max_bad` of the run.
    """
    train = {domain: len(listing.paths("train", domain)) for domain in listing.domains}
    said = list(listing.notes)
    if listing.skipped:
        path, reason = listing.skipped[0]
        n = len(listing.skipped)
        share = n / (n + len(listing.entries))
        said.append(
            f"{n} file{'s' * (n > 1)} cannot be used ({share:.0%} of all; training refuses above {max_bad:.0%}, "
            f"data.max_bad), as {escape(path)}: {reason}."
        )
    few = {d: n for d, n in train.items() if 0 < n < FEW}
    if len(few) > MANY:
        least = min(few, key=lambda d: few[d])
        said.append(
            f"{len(few)} domains have fewer than {FEW} training images, the fewest {escape(least)}: {few[least]}."
        )
    else:
        said += [
            f"Domain {escape(d)} has only {n} training image{'s' * (n > 1)}."
            for d, n in few.items()
        ]
    if train and max(train.values()) > UNEVEN * min(train.values()) > 0:
        most, least = max(train, key=lambda d: train[d]), min(train, key=lambda d: train[d])
        said.append(
            f"The domains are uneven: {escape(most)} has {train[most]} training images, "
            f"{escape(least)} {train[least]}."
        )
    return tuple(said)


def check(
    data: Listing | str | os.PathLike[str], size: int = TINY, workers: int | None = None
) -> Report:
    """Read every image of a listing, or of a folder, and report. Some 200 images a second and core.

    size: training size in pixels; images with a shorter side are tiny. workers: threads, by default
    one for each core. Raises what `scan` raises.
    """
    listing = data if isinstance(data, Listing) else scan(data)
    places = {
        path: (split, listing.entries[path].domain)
        for split, domains in listing.files.items()
        for paths in domains.values()
        for path in paths
    }
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        looks = list(
            pool.map(lambda item: _look(item[0], listing.id(item[0]), *item[1]), places.items())
        )
    good = [look for look in looks if not look.reason]
    copies, stopped = _copies(good)
    report = Report(
        roots=tuple(str(root) for root in listing.roots),
        layout=listing.layout,
        counts={s: {d: len(p) for d, p in of.items()} for s, of in listing.files.items()},
        sizes=_tally((look.domain, f"{look.width} x {look.height}") for look in good),
        modes=_tally((look.domain, look.mode) for look in good),
        skipped=tuple((str(path), reason) for path, reason in listing.skipped),
        unreadable=tuple((look.id, look.reason) for look in looks if look.reason),
        odd=tuple((look.id, look.odd) for look in good if look.odd),
        blank=tuple(look.id for look in good if look.blank),
        tiny=tuple(look.id for look in good if min(look.width, look.height) < size),
        narrow=tuple(
            look.id
            for look in good
            if max(look.width, look.height) > NARROW * min(look.width, look.height)
        ),
        copies=copies,
        warnings=(),
    )
    paths = {listing.id(path): path for path in places}
    values = {name: getattr(report, name) for name in Report.__dataclass_fields__}
    values["warnings"] = (*_warnings(report, len(looks)), *outline(listing), *stopped)
    values["thumbnails"] = {
        name: thumb for name in _suspicious(report) if (thumb := _thumbnail(paths[name]))
    }
    return Report(**values)


def _look(path: Path, name: str, split: str, domain: str) -> _Look:
    try:
        data = read_file(path)
        image, odd = examine(data)
    except BadImage as bad:
        return _Look(name, split, domain, bad.reason)
    picture = Image.fromarray(image)
    thumb = picture.resize((THUMB, THUMB), Image.Resampling.BOX)
    small = np.asarray(thumb.convert("L").resize((9, 9), Image.Resampling.BOX)).astype(int)
    across = small[:8, 1:] - small[:8, :8] > 1  # more than rounding
    down = small[1:, :8] - small[:8, :8] > 1
    pixels = np.array(thumb)
    spread = max(high - low for low, high in picture.getextrema())  # type: ignore[misc]
    return _Look(
        name,
        split,
        domain,
        "",
        hashlib.sha256(data).hexdigest(),
        describe(data),
        image.shape[1],
        image.shape[0],
        spread <= 4 or float(pixels.std(axis=(0, 1)).max()) < 0.5,
        pixels,
        np.concatenate([across.ravel(), down.ravel()]),
        odd,
    )


def _tally(pairs: Iterable[tuple[str, str]]) -> dict[str, dict[str, int]]:
    of: dict[str, Counter[str]] = {}
    for domain, value in pairs:
        of.setdefault(domain, Counter())[value] += 1
    return {domain: dict(of[domain].most_common()) for domain in sorted(of)}


# Copies.


def _copies(looks: list[_Look]) -> tuple[tuple[Copies, ...], tuple[str, ...]]:
    same: dict[str, list[_Look]] = {}
    for look in looks:
        same.setdefault(look.content, []).append(look)
    exact = [group for group in same.values() if len(group) > 1]
    firsts = [group[0] for group in same.values() if not group[0].blank]
    near, stopped = _near(firsts)
    groups = [("exact", group) for group in exact]
    groups += [("near", [x for first in g for x in same[first.content]]) for g in near]
    found = [
        Copies(
            kind,
            tuple(x.id for x in group),
            tuple(sorted({x.split for x in group})),
            tuple(sorted({x.domain for x in group})),
        )
        for kind, group in groups
    ]
    found.sort(key=lambda c: (-len(c.splits), -len(c.domains), c.kind, c.ids))
    return tuple(found), stopped


def _near(looks: list[_Look]) -> tuple[list[list[_Look]], tuple[str, ...]]:
    """Groups of images with different bytes that look alike."""
    if len(looks) < 2:
        return [], ()
    signs = np.stack([x.bits for x in looks if x.bits is not None]).astype(np.float32) * 2 - 1
    thumbs = np.stack([x.thumb for x in looks if x.thumb is not None]).reshape(len(looks), -1)
    parent, seen = list(range(len(looks))), 0
    for i, j in _alike(signs):
        seen += len(i)
        if seen > MAX_PAIRS:
            return _groups(looks, parent), ("The search for near duplicates ended early: too many "
                                            "images look alike.",)  # fmt: skip
        for start in range(0, len(i), 10_000):
            a, b = i[start : start + 10_000], j[start : start + 10_000]
            off = np.abs(thumbs[a].astype(np.int16) - thumbs[b])
            close = (off.mean(1) <= NEAR_MEAN) & (off.max(1) <= NEAR_MOST)
            for x, y in zip(a[close].tolist(), b[close].tolist(), strict=True):
                parent[_top(parent, x)] = _top(parent, y)
    return _groups(looks, parent), ()


def _alike(signs: np.ndarray, block: int = 512) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs i < j of rows of ±1 that differ in at most NEAR_BITS: as matrix products, which for
    tens of thousands of images is faster than any index."""
    bits = signs.shape[1]
    for start in range(0, len(signs), block):
        product = signs[start : start + block] @ signs[start:].T  # bits - 2 * differing ones
        i, j = np.nonzero(product >= bits - 2 * NEAR_BITS)
        later = j > i
        yield i[later] + start, j[later] + start


def _top(parent: list[int], i: int) -> int:
    while parent[i] != i:
        parent[i] = i = parent[parent[i]]
    return i


def _groups(looks: list[_Look], parent: list[int]) -> list[list[_Look]]:
    groups: dict[int, list[_Look]] = {}
    for i, look in enumerate(looks):
        groups.setdefault(_top(parent, i), []).append(look)
    return [group for group in groups.values() if len(group) > 1]


# Sentences.


def _warnings(report: Report, total: int) -> Iterator[str]:
    for copies in report.leaks:
        yield (
            f"LEAK: {_some(copies.ids)} are {_same(copies)} in {' and '.join(copies.splits)}: "
            "what is measured on them is not to be believed."
        )
    if report.unreadable:
        name, reason = report.unreadable[0]
        yield (
            f"{len(report.unreadable)} of {total} images cannot be read, as {escape(name)}: "
            f"{reason}."
        )
    if report.odd:
        name, reason = report.odd[0]
        yield f"{_are(len(report.odd))} used although odd, as {escape(name)}: {reason}."
    if report.blank:
        yield f"{_are(len(report.blank))} blank: {_some(report.blank)}."
    for copies in report.copies:
        if len(copies.splits) == 1 and len(copies.domains) > 1:
            yield f"{_some(copies.ids)} are {_same(copies)} in {_some(copies.domains)}."
    within = [c for c in report.copies if len(c.splits) == len(c.domains) == 1]
    for kind in ("exact", "near"):
        groups = [c for c in within if c.kind == kind]
        if groups:
            extra = sum(len(c.ids) - 1 for c in groups)
            yield f"{_are(extra)} {_same(groups[0])} as another of their domain and split."
    if report.tiny:
        yield f"{_are(len(report.tiny))} small and will be enlarged: {_some(report.tiny)}."
    if report.narrow:
        yield f"{_are(len(report.narrow))} very narrow or very wide: {_some(report.narrow)}."


def _same(copies: Copies) -> str:
    return "the same" if copies.kind == "exact" else "nearly the same"


def _are(n: int) -> str:
    return f"{n} image is" if n == 1 else f"{n} images are"


def _some(names: Iterable[str], most: int = 3) -> str:
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(escape(name) for name in listed[:most]) + more


def _suspicious(report: Report) -> list[str]:
    """Ids to show, the gravest first, each once, at most SHOWN."""
    names = [name for copies in report.copies for name in copies.ids]
    return list(dict.fromkeys([*report.blank, *names, *report.narrow, *report.tiny]))[:SHOWN]


def _thumbnail(path: Path) -> bytes | None:
    try:
        image = Image.fromarray(examine(path)[0])
    except BadImage:  # it changed since
        return None
    image.thumbnail((128, 128))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return file.getvalue()


# For people, for programs, for the browser.


def to_json(report: Report) -> str:
    """The report as JSON, without the thumbnails."""
    values: dict[str, Any] = asdict(report)
    del values["thumbnails"]
    values["leaks"] = [asdict(copies) for copies in report.leaks]
    return json.dumps(values, indent=2)


def to_text(report: Report) -> str:
    """The report for a terminal; every name is escaped."""
    lines = [f"{' '.join(map(escape, report.roots))} ({report.layout})", ""]
    for split, domains in report.counts.items():
        counts = ", ".join(f"{escape(domain)} {count}" for domain, count in domains.items())
        lines.append(f"  {split:5}  {counts}")
    lines.append("")
    for name, tally in (("sizes", report.sizes), ("modes", report.modes)):
        for domain, of in tally.items():
            common = ", ".join(f"{value} ({count})" for value, count in list(of.items())[:3])
            more = f" and {len(of) - 3} more" if len(of) > 3 else ""
            lines.append(f"  {name} of {escape(domain)}: {common}{more}")
    lines.append("")
    lines += [f"! {text}" for text in report.warnings] or ["Nothing suspicious."]
    return "\n".join(lines) + "\n"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; color: #222; background: #fff }}
table {{ border-collapse: collapse }} td, th {{ padding: .2rem .8rem; text-align: left }}
figure {{ display: inline-block; width: 9rem; margin: .3rem; vertical-align: top }}
figcaption {{ font-size: .75rem; overflow-wrap: anywhere }}
img {{ max-width: 8rem; max-height: 8rem; border: 1px solid #bbb }}
.leak {{ border-left: .4rem solid #b00; padding-left: .8rem }}
@media (prefers-color-scheme: dark) {{ body {{ color: #ddd; background: #181818 }} }}
</style></head><body>
<h1>{title}</h1>
{body}
</body></html>
"""


def to_page(report: Report, path: str | os.PathLike[str]) -> None:
    """Write the report as one HTML file that needs no other, with the suspicious images.

    Raises ConfigProblem if `path` is inside the data set, which stays as it is, NotWritable, and
    StorageProblem of a full disk.
    """
    from unpaired.checkpoint import write_atomic  # loads torch

    if any(Path(path).resolve().is_relative_to(Path(root).resolve()) for root in report.roots):
        raise ConfigProblem(
            f"{escape(path)} is inside the data set, where nothing is written; name a file "
            "elsewhere."
        )
    names = (os.path.basename(root) or root for root in report.roots)
    title = f"Data set {_safe(' '.join(names))}"
    page = _PAGE.format(title=title, body="\n".join(_sections(report)))
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NotWritable(
            f"{escape(path)} cannot be written ({error.strerror}); name another file."
        ) from None
    write_atomic(Path(path), page.encode())


def _sections(report: Report) -> Iterator[str]:
    heads = dict.fromkeys(domain for of in report.counts.values() for domain in of)
    cells = "".join(f"<th>{_safe(domain)}</th>" for domain in heads)
    yield f"<table><tr><th></th>{cells}</tr>"
    for split, of in report.counts.items():
        cells = "".join(f"<td>{of.get(domain, 0)}</td>" for domain in heads)
        yield f"<tr><th>{split}</th>{cells}</tr>"
    yield "</table>"
    said = "".join(f"<li>{html.escape(text)}</li>" for text in report.warnings)
    yield f"<ul>{said}</ul>" if said else "<p>Nothing suspicious.</p>"
    for copies in report.copies:
        loud = ' class="leak"' if len(copies.splits) > 1 else ""
        where = _safe(f"{' and '.join(copies.splits)}; {', '.join(copies.domains)}")
        yield f"<section{loud}><h2>{_same(copies).capitalize()} ({where})</h2>"
        yield _figures(report, copies.ids)
        yield "</section>"
    for head, names in (
        ("Blank", report.blank),
        ("Very narrow or very wide", report.narrow),
        ("Small", report.tiny),
    ):
        if names:
            yield f"<section><h2>{head}</h2>{_figures(report, names)}</section>"
    for head, pairs in (
        ("Unreadable", report.unreadable),
        ("Odd, and used", report.odd),
        ("Skipped", report.skipped),
    ):
        if pairs:
            rows = "".join(
                f"<tr><td>{_safe(name)}</td><td>{html.escape(reason)}</td></tr>"
                for name, reason in pairs
            )
            yield f"<section><h2>{head}</h2><table>{rows}</table></section>"


def _figures(report: Report, names: tuple[str, ...]) -> str:
    shown = [name for name in names if name in report.thumbnails]
    rest = len(names) - len(shown)
    figures = "".join(
        f'<figure><img alt="" src="data:image/jpeg;base64,'
        f'{base64.b64encode(report.thumbnails[name]).decode()}">'
        f"<figcaption>{_safe(name)}</figcaption></figure>"
        for name in shown
    )
    return figures + (f"<p>and {rest} more</p>" if rest else "")


def _safe(text: str) -> str:
    return html.escape(escape(text))
