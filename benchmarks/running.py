"""What the benchmarks share: runs that are trained and measured once, within a limit of time, and tables."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

STOPPED = (128 + signal.SIGTERM, -signal.SIGTERM)


def apart(p: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, and in `settings` the words key=value, which are for every run."""
    words = sys.argv[1:] if argv is None else argv
    p.epilog = "Words key=value are settings of all runs."
    args = p.parse_args([w for w in words if "=" not in w])
    args.settings = [w for w in words if "=" in w]
    return args


def weights(p: argparse.ArgumentParser) -> None:
    """The options that name weights for measuring."""
    for option in ("--features", "--lpips"):
        p.add_argument(option, nargs="+", default=[], metavar="FILE", help="as for evaluate")


def tools(args: argparse.Namespace) -> list[str]:
    """Those that were named, as words of `unpaired evaluate`."""
    named = {"--features": args.features, "--lpips": args.lpips}
    return [word for option, files in named.items() if files for word in (option, *files)]


def start(*words: object) -> subprocess.Popen[bytes]:
    """A command of the tool, in a process of its own."""
    return subprocess.Popen([sys.executable, "-m", "unpaired", *map(str, words)])


def trained(run: Path, *words: object, minutes: float) -> int:
    """Trains into `run`, goes on where it was stopped, does nothing where it is done; returns the step it is at.

    A run that has had its minutes is stopped, saved, and counts as done. After Ctrl-C the same call goes on.
    """
    clock, said = run / "seconds.json", run / "words.json"
    asked = [str(w) for w in words]
    if said.exists() and (before := json.loads(said.read_text())) != asked:
        other = sorted(set(before) ^ set(asked))
        raise SystemExit(
            f"{run} was trained with other settings ({', '.join(other)}): move it away first."
        )
    spent = json.loads(clock.read_text()) if clock.exists() else 0.0
    if status(run)["status"] != "done" and spent < 60 * minutes:
        go_on = ["--resume", run] if (run / "config.yaml").exists() else [*words, "--out", run]
        begun = time.monotonic()
        process = start("train", *go_on)
        try:
            code = process.wait(60 * minutes - spent)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)  # it finishes the step and saves
            code = process.wait()
        except KeyboardInterrupt:
            process.wait()  # it has had the signal too
            raise
        finally:
            if run.is_dir():
                clock.write_text(json.dumps(spent + time.monotonic() - begun))
                said.write_text(json.dumps(asked))
        if code not in (0, *STOPPED):
            raise SystemExit(f"Training {run} ended with code {code}.")
    return int(status(run)["step"])


def status(run: Path) -> Mapping[str, Any]:
    """What a run folder says of itself."""
    file = run / "status.json"
    return json.loads(file.read_text()) if file.exists() else {"status": "none", "step": 0}


def measured(run: Path, step: int, *words: object) -> Mapping[str, Any]:
    """`metrics.json` of a run at `step`, by `unpaired evaluate` where it is not there yet, or was told otherwise."""
    file, told = run / "metrics.json", run / "measured.json"
    asked = [str(word) for word in words]
    known = json.loads(told.read_text()) if told.exists() else asked  # kept figures come without
    if not file.exists() or json.loads(file.read_text())["step"] != step or known != asked:
        if code := start("evaluate", run, *words).wait():
            raise SystemExit(
                f"Measuring {run} ended with code {code}: the same command goes on from here."
            )
        told.write_text(json.dumps(asked))
    return json.loads(file.read_text())


def kept(file: Path, step: int, make: Callable[[], Mapping[str, float]]) -> Mapping[str, float]:
    """The figures that `make` finds of a run at `step`; they are in the file from then on."""
    known = json.loads(file.read_text()) if file.exists() else {}
    if known.get("step") != step:
        known = {"step": step, "figures": dict(make())}
        file.write_text(json.dumps(known))
    return known["figures"]


def digit_folders(file: Path, target: Path, sets: Sequence[str], folder: str) -> Path:
    """Arrays <set>_<x|y>_<train|test> of digits as images, equally many of each set, in `folder`: "{set}/{digit}"."""
    if target.exists():
        return target
    arrays, made = np.load(file), target.with_name(f".{target.name}-{os.getpid()}")
    for split in ("train", "test"):
        n = min(len(arrays[f"{s}_y_{split}"]) for s in sets)
        for s in sets:
            x, y = arrays[f"{s}_x_{split}"][:n], arrays[f"{s}_y_{split}"][:n]
            for i, (image, digit) in enumerate(zip(x, y, strict=True)):
                place = made / split / folder.format(set=s, digit=digit)
                place.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(place / f"{i}.png")
    try:
        made.rename(target)
    except OSError:  # another call was faster
        shutil.rmtree(made)
    return target


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"


def figures_table(
    rows: Mapping[str, Mapping[str, float]], wanted: Sequence[str], notes: Mapping[str, str]
) -> str:
    """A row for each run, a column for each figure of which the name begins with one of `wanted`; then its note."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    columns = [name for w in wanted for name in names if name.partition(" (")[0] == w]
    lines = [
        [run, *(f"{row[c]:.3g}" if c in row else "" for c in columns), notes.get(run, "")]
        for run, row in rows.items()
    ]
    return table(["run", *columns, "steps"], lines)
