"""How far a run is: step, losses, images a second, time left. One line that renews itself on a terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TypeVar

T = TypeVar("T")


unseen: list[OSError] = []  # why a line of `say` was lost, other than that nobody reads


def say(line: str) -> None:
    """A line for the user, seen at once also in a pipe; when nobody reads any more, work goes on unseen."""
    try:
        print(line, flush=True)
    except UnicodeEncodeError:  # a name that the terminal's encoding does not have
        encoding = sys.stdout.encoding or "ascii"
        print(line.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            unseen.append(error)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def patiently(items: Collection[T], what: str, every: float = 10) -> Iterator[T]:
    """The items; where they take long, how far they are is told on stderr every so many seconds."""
    told = time.monotonic()
    for n, item in enumerate(items):
        if time.monotonic() - told >= every and sys.stderr is not None:
            told = time.monotonic()
            print(f"{what}: {n:,} of {len(items):,}", file=sys.stderr, flush=True)
        yield item


def on_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


class Progress:
    """Durations come from the monotonic clock. Off a terminal a line is printed every `every` seconds."""

    def __init__(
        self, start: int, total: int, batch: int, say: Callable[[str], None], every: float = 15
    ) -> None:
        self.start, self.total, self.batch, self.say = start, total, batch, say
        self.every = 0.0 if on_terminal() else every
        self.begun = time.monotonic()
        self.shown = self.begun - every

    def rate(self, step: int) -> float:
        """Images of each domain a second since the start."""
        return (step - self.start) * self.batch / max(time.monotonic() - self.begun, 1e-9)

    def show(self, step: int, losses: Mapping[str, float]) -> None:
        now = time.monotonic()
        if now - self.shown < self.every and step < self.total:
            return
        self.shown = now
        left = (now - self.begun) / max(step - self.start, 1) * (self.total - step)
        parts = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
        line = (
            f"step {step}/{self.total}  {100 * step // self.total}%  {self.rate(step):.1f} images/s  "
            f"{duration(left)} left  {parts}"
        )
        if on_terminal():
            print(f"\r\x1b[2K{line[:200]}", end="", file=sys.stderr, flush=True)
        else:
            self.say(line)

    def done(self) -> None:
        if on_terminal():
            print(file=sys.stderr)
        self.say(
            f"Trained {self.total - self.start} steps in {duration(time.monotonic() - self.begun)}."
        )


def duration(seconds: float) -> str:
    """75 -> "1:15", 7384 -> "2:03:04"."""
    minutes, s = divmod(int(seconds + 0.5), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"
