"""`unpaired translate`: files in, files and one sheet out."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from unpaired.data.folders import scan
from unpaired.data.intake import BadImage, escape, write_png
from unpaired.errors import ConfigProblem, DataProblem
from unpaired.pictures import enlarged, sheet
from unpaired.progress import say
from unpaired.translator import Style, Translator, safe

SHEET_ROWS = 24


def translate_files(args: argparse.Namespace) -> int:
    """Translates `args.images`; returns 65 where no image, or with --strict not every image, could be read."""
    if args.styles < 1 or args.steps < 2:
        raise ConfigProblem("--styles needs at least 1 and --steps at least 2.")
    translator = Translator.load(args.run)
    out = args.out or (args.run if args.run.is_dir() else args.run.parent) / "translations"
    rows: list[list[Image.Image | None]] = []
    done = bad = 0
    for path, name in inputs(args.images):
        try:
            outputs = one(translator, path, args)
            source = translator.shown(path, args.size)
        except BadImage as error:
            say(f"Skipped: {error}")
            bad += 1
            continue
        for i, image in enumerate(outputs):
            write(out / f"{name}-{safe(args.to)}-{i:02d}.png", image)
        if len(rows) < SHEET_ROWS:
            rows.append([enlarged(source), *(enlarged(image) for image in outputs)])
        done += 1
    if not done:
        raise DataProblem(f"No image of {escape(args.images)} can be read: see the lines above.")
    write(out / f"sheet-{safe(args.to)}.png", sheet(rows, title=f"to {args.to}"))
    say(
        f"{done} images to {args.to}, {len(outputs)} each; all on one sheet: {out / f'sheet-{safe(args.to)}.png'}"
    )
    return DataProblem.exit_code if bad and args.strict else 0


def inputs(path: Path) -> Iterator[tuple[Path, str]]:
    """The images that a path names, and the stem of what is written for each."""
    if not path.exists():
        raise ConfigProblem(f"There is no {escape(path)}: name an image or a folder of images.")
    if not path.is_dir():
        yield path, path.stem
        return
    listing = scan(path, subfolders=True, validation=0)
    for skipped, reason in listing.skipped:
        say(f"Skipped: {escape(skipped)}: {reason}")
    taken: set[str] = set()
    for file in (f for domains in listing.files.values() for of in domains.values() for f in of):
        name = "-".join(file.relative_to(path.absolute()).with_suffix("").parts)
        name = name if name not in taken else f"{name}-{file.suffix[1:]}"
        taken.add(name)
        yield file, name


def one(translator: Translator, path: Path, args: argparse.Namespace) -> list[Image.Image]:
    if args.interpolate:
        a, b = (style(word) for word in args.interpolate)
        return translator.interpolate(path, a, b, args.to, args.steps, args.source, args.size)
    return translator.translate(
        path, args.to, args.styles, args.seed, args.style_from, args.source, args.size
    )


def style(word: str) -> Style:
    """A seed, or the path of a reference image."""
    if word.lstrip("-").isdecimal():
        return int(word)
    if not os.path.exists(word):
        raise ConfigProblem(
            f"--interpolate: {escape(word)} is neither a seed nor an image that exists."
        )
    return Path(word)


def write(path: Path, image: Image.Image) -> None:
    import numpy as np

    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, np.asarray(image))
