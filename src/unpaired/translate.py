"""`unpaired translate`: files in, files and one sheet out."""

from __future__ import annotations

import argparse
import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unpaired.data.folders import images_below
from unpaired.data.intake import BadImage, escape, examine, placed, write_png
from unpaired.errors import ConfigProblem, DataProblem
from unpaired.heap import keep_freed
from unpaired.pictures import enlarged, sheet, stack, to_images
from unpaired.progress import say
from unpaired.translator import (
    NotFinite,
    Style,
    TooLarge,
    Translator,
    file_names,
    linspace,
    room,
    short,
)

SHEET_ROWS = 24
LONGEST = 240  # bytes of a picture's file name before its number; systems allow 255
PENDING = 64  # pictures that wait to be written
ALL = -1  # `--component all`
Rows = list[list[Image.Image | None]]
Way = tuple[int, int, Tensor | None]  # source, target, styles
K = TypeVar("K")


def translate_files(args: argparse.Namespace) -> int:
    """Translates `args.images`; returns 65 where with --strict not every one could be.

    Raises `DataProblem` where none could be.
    """
    check_options(args)
    if args.run.is_file() and (args.images / "model.safetensors").is_file():
        raise ConfigProblem(
            "The run comes first, then the image: unpaired translate RUN IMAGE --to DOMAIN."
        )
    translator = Translator.load(args.run)
    if args.run.is_dir() and not translator.step:
        say(
            "Nothing is learned yet: this is the model of step 0, and training saves it anew each train.save_every."
        )
    out = args.out or (args.run if args.run.is_dir() else args.run.parent) / "translations"
    everywhere = args.to == "all" and "all" not in translator.domains
    targets = translator.targets(args.source) if everywhere else [args.to]
    if len(targets) == len(translator.domains) == 2 and translator.method.layout == "two_domains":
        raise ConfigProblem(
            f"--to all: say --source, the domain of the images: {' or '.join(targets)}."
        )
    ways: dict[tuple[str, int | None], Way] = {}
    lacking: list[ConfigProblem] = []
    for to in targets:
        for k in components(translator, to, args):
            try:
                ways[to, k] = request(translator, to, k, args)
            except ConfigProblem as problem:  # such as a found domain without a mean style
                lacking.append(problem)
    if lacking and not (everywhere and ways):
        raise lacking[0]
    for lack in lacking:
        say(f"Left out: {lack}")
    sheets = {key: Rows() for key in ways}
    files = file_names(translator.domains)
    bad: list[Path] = []
    done = 0
    if translator.device.type == "cpu":
        keep_freed()
    with Writer() as writer:
        alone = not args.images.is_dir()
        found = groups(translator, inputs(args.images, out, bad), args.size, bad, alone)
        for group, made in translated(translator, found, ways, bad):
            for (to, k), pictures in made.items():
                each, rows = len(pictures) // len(group), sheets[to, k]
                which = files[to] + way(k, args)
                for i, one in enumerate(group):
                    outputs = pictures[i * each : (i + 1) * each]
                    stem = short(one.name, LONGEST - len(os.fsencode(which)))
                    for j, output in enumerate(outputs):
                        writer.add(placed(out / f"{stem}-{which}-{j:02d}.png"), output)
                    if len(rows) < SHEET_ROWS:
                        rows.append([enlarged(to_images(one.x)[0]), *map(enlarged, outputs)])
            done += len(group)
    if not done:
        raise DataProblem(
            f"No image of {escape(args.images)} could be translated: see the lines above."
        )
    for to in dict.fromkeys(to for to, _ in ways):
        pages = [
            sheet(rows, captions(args), f"to {to}" + ("" if k is None else f"   component {k}"))
            for (of, k), rows in sheets.items()
            if of == to
        ]
        written = out / f"sheet-{files[to]}{way(args.component, args)}.png"
        page = stack(pages) if len(pages) > 1 else pages[0]
        write_png(placed(written), np.asarray(page))
        say(
            f"{done} image{'s' * (done > 1)} to {to}, {len(pages) * each} each; "
            f"{'all' if done <= SHEET_ROWS else f'the first {SHEET_ROWS}'} on one sheet: {written}"
        )
    return DataProblem.exit_code if bad and args.strict else 0


def check_options(args: argparse.Namespace) -> None:
    """Refuses options that mean nothing together; gives those that were not said their defaults."""
    if args.sweep and args.component is None:
        raise ConfigProblem("--sweep needs --component K: which component of the style to move.")
    if args.interpolate and (args.style_from or args.component is not None):
        raise ConfigProblem(
            "--interpolate says both styles by itself: leave --style-from and --component out."
        )
    strip = args.interpolate or args.component is not None
    if args.steps is not None and not strip:
        raise ConfigProblem(
            "--steps needs --interpolate A B or --component K: it counts the pictures on the way."
        )
    if args.styles is not None and (strip or args.style_from):
        raise ConfigProblem(
            "--styles counts random styles: leave it out with --style-from, --interpolate and --component."
        )
    if args.seed is not None and (args.interpolate or args.style_from):
        raise ConfigProblem(
            "--seed is of random styles: leave it out with --style-from and --interpolate (whose A and B may be seeds)."
        )
    for name, default in (("styles", 8), ("steps", 9), ("seed", 0)):
        if getattr(args, name) is None:
            setattr(args, name, default)
    if args.styles < 1 or args.steps < 2:
        raise ConfigProblem("--styles needs at least 1 and --steps at least 2.")


class Writer:
    """Writes pictures beside the translating, as many at a time as there are cores: packing takes milliseconds each."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(os.cpu_count())
        self.pending: deque[Future[None]] = deque()

    def __enter__(self) -> Writer:
        return self

    def add(self, file: Path, picture: Image.Image) -> None:
        """Waits where many are still to be written. Raises what writing an earlier one raised."""
        self.pending.append(self.pool.submit(write_png, file, np.asarray(picture)))
        while self.pending and (self.pending[0].done() or len(self.pending) > PENDING):
            self.pending.popleft().result()

    def __exit__(self, kind: Any, *error: Any) -> None:
        self.pool.shutdown()  # what was translated is written, whatever came after
        for picture in () if kind else self.pending:
            picture.result()


def way(component: int | None, args: argparse.Namespace) -> str:
    """How the styles came about, as a part of file names: outputs of several ways lie beside each other."""
    if args.interpolate:
        return "-between-" + "-and-".join(short(Path(end).stem, 50) for end in args.interpolate)
    if args.style_from is not None:
        style = f"-from-{short(args.style_from.stem, 50)}"
    else:
        style = f"-seed-{args.seed}" if args.seed else ""
    if component is None:
        return style
    return f"{style}-component-{'all' if component == ALL else component}"


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


def inputs(path: Path, out: Path, bad: list[Path]) -> Iterator[tuple[Path, str]]:
    """The images that a path names, and the stem of what is written to `out` for each; what cannot be used is told, and
    goes to `bad`."""
    if not path.exists():
        raise ConfigProblem(f"There is no {escape(path)}: name an image or a folder of images.")
    if not path.is_dir():
        yield path, path.stem
        return
    results, folder = out.resolve(), path.resolve()
    if folder == results:
        raise ConfigProblem(
            f"--out {escape(out)} is the folder of the images: name another, so that results stay apart from them."
        )
    files, unusable = images_below(path)
    for skipped, reason in unusable:
        skip(f"{escape(skipped)}: {reason}", skipped, bad)
    taken: set[str] = set()
    for file in files:
        if file.resolve().is_relative_to(results) and not folder.is_relative_to(results):
            continue  # what an earlier call has written
        name = "-".join(file.relative_to(os.path.abspath(path)).with_suffix("").parts)
        longer = f"{name}-{file.suffix[1:]}"
        names = itertools.chain((name, longer), (f"{longer}-{n}" for n in itertools.count(2)))
        name = next(n for n in names if n.casefold() not in taken)
        taken.add(name.casefold())
        yield file, name


class Prepared(NamedTuple):
    """An image to translate: its path, the stem of its results, and what the model sees (1, C, H, W)."""

    path: Path
    name: str
    x: Tensor


def groups(
    translator: Translator,
    files: Iterable[tuple[Path, str]],
    size: int | None,
    bad: list[Path],
    alone: bool,
) -> Iterator[list[Prepared]]:
    """Images that are worth rendering together; those that cannot be used are told, and go to `bad`. Of one `alone` a
    size that is too large is refused."""
    group: list[Prepared] = []
    for path, name in files:
        try:
            image, odd = examine(path)
            x = translator.prepare(image, size)
        except BadImage as error:
            skip(str(error), path, bad)
            continue
        except TooLarge as error:
            if alone:
                raise
            skip(f"{escape(path)}: {error}", path, bad)
            continue
        if odd:
            say(f"{escape(path)}: {odd}; it is used.")
        if group and x.shape != group[0].x.shape:
            yield group
            group = []
        group.append(Prepared(path, name, x))
        if len(group) >= room(x):
            yield group
            group = []
    if group:
        yield group


def translated(
    translator: Translator,
    groups: Iterable[list[Prepared]],
    ways: Mapping[K, Way],
    bad: list[Path],
) -> Iterator[tuple[list[Prepared], dict[K, list[Image.Image]]]]:
    """Each group and its pictures of each way; an image whose pictures are not finite is told, and goes to `bad`."""
    sources = {source for source, _, _ in ways.values()}
    for group in groups:
        x = torch.cat([image.x for image in group])
        try:
            contents = {source: translator.contents(x, source) for source in sources}
            made = {
                key: translator.pictures(contents[source], x, target, codes)
                for key, (source, target, codes) in ways.items()
            }
        except NotFinite as error:
            if len(group) > 1:
                yield from translated(translator, ([image] for image in group), ways, bad)
            else:
                skip(f"{escape(group[0].path)}: {error}", group[0].path, bad)
        else:
            yield group, made


def skip(reason: str, path: Path, bad: list[Path]) -> None:
    say(f"Skipped: {reason}")
    bad.append(path)


def request(
    translator: Translator, to: str, component: int | None, args: argparse.Namespace
) -> Way:
    """Source, target and styles of what is asked for, the same for every image."""
    source, target = translator.direction(to, args.source)
    if args.interpolate:
        a, b = (style(word) for word in args.interpolate)
        return source, target, translator.between(a, b, args.steps, target, source)
    if component is not None:
        values = linspace(*ends(args), args.steps)
        translator.components(target, source)
        start = args.seed if args.style_from is None else args.style_from
        code = translator.style(start, target, source)
        return source, target, translator.swept(code, component, values, target)
    codes = translator.codes(target, source, args.styles, args.seed, args.style_from)
    return source, target, codes


def style(word: str) -> Style:
    """A seed, or the path of a reference image."""
    if word.isdecimal():
        return int(word)
    if not os.path.exists(word):
        raise ConfigProblem(
            f"--interpolate: {escape(word)} is neither a seed nor an image that exists."
        )
    return Path(word)
