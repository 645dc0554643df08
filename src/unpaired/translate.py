"""`unpaired translate`: files in, files and one sheet out."""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from unpaired.data.folders import scan
from unpaired.data.intake import BadImage, escape, examine, read_image, write_png
from unpaired.errors import ConfigProblem, DataProblem, NotWritable
from unpaired.pictures import enlarged, sheet, stack
from unpaired.progress import say
from unpaired.translator import Style, Translator, linspace, safe

SHEET_ROWS = 24
ALL = -1  # `--component all`
Rows = list[list[Image.Image | None]]


def translate_files(args: argparse.Namespace) -> int:
    """Translates `args.images`; returns 65 where no image, or with --strict not every image, could be read."""
    if args.styles < 1 or args.steps < 2:
        raise ConfigProblem("--styles needs at least 1 and --steps at least 2.")
    if args.sweep and args.component is None:
        raise ConfigProblem("--sweep needs --component K: which component of the style to move.")
    if args.interpolate and (args.style_from or args.component is not None):
        raise ConfigProblem(
            "--interpolate says both styles by itself: leave --style-from and --component out."
        )
    translator = Translator.load(args.run)
    for reference in (args.style_from, *(style(word) for word in args.interpolate or ())):
        if isinstance(reference, Path):
            read_image(reference)  # a bad one is not the fault of the images
    out = args.out or (args.run if args.run.is_dir() else args.run.parent) / "translations"
    everywhere = args.to == "all" and "all" not in translator.domains
    targets = translator.targets(args.source) if everywhere else [args.to]
    sheets = {(to, k): Rows() for to in targets for k in components(translator, to, args)}
    done = bad = 0
    for path, name in inputs(args.images, out):
        try:
            image, odd = examine(path)
            if odd:
                say(f"{escape(path)}: {odd}; it is used.")
            source = translator.shown(image, args.size)
            for (to, k), rows in sheets.items():
                outputs = one(translator, image, to, k, args)
                which = f"-component-{k}" if args.component == ALL else ""
                for i, output in enumerate(outputs):
                    write(out / f"{name}-{safe(to)}{which}-{i:02d}.png", output)
                if len(rows) < SHEET_ROWS:
                    rows.append([enlarged(source), *(enlarged(output) for output in outputs)])
        except BadImage as error:
            say(f"Skipped: {error}")
            bad += 1
            continue
        done += 1
    if not done:
        raise DataProblem(f"No image of {escape(args.images)} can be read: see the lines above.")
    for to in targets:
        pages = [
            sheet(rows, captions(args), f"to {to}" + ("" if k is None else f"   component {k}"))
            for (of, k), rows in sheets.items()
            if of == to
        ]
        write(out / f"sheet-{safe(to)}.png", stack(pages) if len(pages) > 1 else pages[0])
        say(
            f"{done} image{'s' * (done > 1)} to {to}, {len(pages) * len(outputs)} each; "
            f"{'all' if done <= SHEET_ROWS else f'the first {SHEET_ROWS}'} on one sheet: "
            f"{out / f'sheet-{safe(to)}.png'}"
        )
    return DataProblem.exit_code if bad and args.strict else 0


def components(
    translator: Translator, to: str, args: argparse.Namespace
) -> Sequence[int] | Sequence[None]:
    """The components that are swept, one after the other; [None] for no sweep."""
    if args.component != ALL:
        return [args.component]
    source, target = translator.direction(to, args.source)
    return range(translator.components(target, source))


def captions(args: argparse.Namespace) -> Sequence[str]:
    """The values of a sweep, above the columns of a sheet."""
    if args.component is None:
        return ()
    return ["", *(f"{value:.2g}" for value in linspace(*ends(args), args.steps))]


def ends(args: argparse.Namespace) -> tuple[float, float]:
    """From where to where a component is swept, in standard deviations."""
    low, high = args.sweep or (-2.0, 2.0)
    return low, high


def inputs(path: Path, out: Path) -> Iterator[tuple[Path, str]]:
    """The images that a path names, and the stem of what is written to `out` for each."""
    if not path.exists():
        raise ConfigProblem(f"There is no {escape(path)}: name an image or a folder of images.")
    if not path.is_dir():
        yield path, short(path.stem)
        return
    if path.resolve() == out.resolve():
        raise ConfigProblem(
            f"--out {escape(out)} is the folder of the images: name another, so that results stay apart from them."
        )
    results = out.resolve()
    listing = scan(path, subfolders=True, validation=0, follow_links=True)
    for skipped, reason in listing.skipped:
        say(f"Skipped: {escape(skipped)}: {reason}")
    taken: set[str] = set()
    for file in (f for domains in listing.files.values() for of in domains.values() for f in of):
        if file.resolve().is_relative_to(results):
            continue  # what an earlier call has written
        name = short("-".join(file.relative_to(path.absolute()).with_suffix("").parts))
        name = name if name not in taken else f"{name}-{file.suffix[1:]}"
        taken.add(name)
        yield file, name


def short(name: str) -> str:
    """`name`, or its beginning and a digest where a file name could not hold it and what is added to it."""
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()
    return name if len(os.fsencode(name)) <= 150 else f"{name[:30]}-{digest[:12]}"


def one(
    translator: Translator,
    image: np.ndarray,
    to: str,
    component: int | None,
    args: argparse.Namespace,
) -> list[Image.Image]:
    if args.interpolate:
        a, b = (style(word) for word in args.interpolate)
        return translator.interpolate(image, a, b, to, args.steps, args.source, args.size)
    if component is not None:
        at = (component, *ends(args), args.steps)
        return translator.sweep(image, to, *at, args.seed, args.style_from, args.source, args.size)
    return translator.translate(
        image, to, args.styles, args.seed, args.style_from, args.source, args.size
    )


def style(word: str) -> Style:
    """A seed, or the path of a reference image."""
    if word.isdecimal():
        return int(word)
    if not os.path.exists(word):
        raise ConfigProblem(
            f"--interpolate: {escape(word)} is neither a seed nor an image that exists."
        )
    return Path(word)


def write(path: Path, image: Image.Image) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NotWritable(
            f"The folder {escape(path.parent)} cannot be made ({error.strerror}): name another by --out."
        ) from None
    write_png(path, np.asarray(image))
