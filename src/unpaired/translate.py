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
from unpaired.translator import Style, Translator, linspace, safe

SHEET_ROWS = 24


def translate_files(args: argparse.Namespace) -> int:
    """Translates `args.images`; returns 65 where no image, or with --strict not every image, could be read."""
    if args.styles < 1 or args.steps < 2:
        raise ConfigProblem("--styles needs at least 1 and --steps at least 2.")
    if args.sweep and args.component is None:
        raise ConfigProblem("--sweep needs --component K: which component of the style to move.")
    translator = Translator.load(args.run)
    out = args.out or (args.run if args.run.is_dir() else args.run.parent) / "translations"
    everywhere = args.to == "all" and "all" not in translator.domains
    targets = [d for d in translator.domains if d != args.source] if everywhere else [args.to]
    rows: dict[str, list[list[Image.Image | None]]] = {to: [] for to in targets}
    done = bad = 0
    for path, name in inputs(args.images):
        try:
            source = translator.shown(path, args.size)
            for to in targets:
                outputs = one(translator, path, to, args)
                for i, image in enumerate(outputs):
                    write(out / f"{name}-{safe(to)}-{i:02d}.png", image)
                if len(rows[to]) < SHEET_ROWS:
                    rows[to].append([enlarged(source), *(enlarged(image) for image in outputs)])
        except BadImage as error:
            say(f"Skipped: {error}")
            bad += 1
            continue
        done += 1
    if not done:
        raise DataProblem(f"No image of {escape(args.images)} can be read: see the lines above.")
    swept = args.component is not None
    captions = ["", *(f"{v:.2g}" for v in linspace(*ends(args), args.steps))] if swept else ()
    for to in targets:
        title = f"to {to}" + (f"   component {args.component}" if swept else "")
        write(out / f"sheet-{safe(to)}.png", sheet(rows[to], captions, title))
        say(
            f"{done} images to {to}, {len(outputs)} each; all on one sheet: {out / f'sheet-{safe(to)}.png'}"
        )
    return DataProblem.exit_code if bad and args.strict else 0


def ends(args: argparse.Namespace) -> tuple[float, float]:
    """From where to where a component is swept, in standard deviations."""
    low, high = args.sweep or (-2.0, 2.0)
    return low, high


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


def one(translator: Translator, path: Path, to: str, args: argparse.Namespace) -> list[Image.Image]:
    if args.interpolate:
        a, b = (style(word) for word in args.interpolate)
        return translator.interpolate(path, a, b, to, args.steps, args.source, args.size)
    if args.component is not None:
        at = (args.component, *ends(args), args.steps)
        return translator.sweep(path, to, *at, args.seed, args.style_from, args.source, args.size)
    return translator.translate(
        path, to, args.styles, args.seed, args.style_from, args.source, args.size
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
