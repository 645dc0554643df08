"""What can go wrong for a user, and the exit code of each: one sentence, never a traceback.

Every error that a user can cause is raised as a `Problem`; its text is one sentence that names the file or the key
and says what to do. The command line prints it and leaves with `exit_code`.
"""

from __future__ import annotations


class Problem(Exception):
    """A mistake or a fault that the user can mend. The text names the thing and the remedy."""

    exit_code = 2


class ConfigProblem(Problem):
    """A bad command line, config key or value, or a request that the method cannot serve (2)."""


class DataProblem(Problem):
    """Images or files that cannot be used (65)."""

    exit_code = 65


class Diverged(Problem):
    """Training became non-finite and could not be mended (70)."""

    exit_code = 70


class OutOfMemory(Problem):
    """The allocator failed (71)."""

    exit_code = 71


class NotWritable(Problem):
    """The output folder cannot be written (73)."""

    exit_code = 73


class StorageProblem(Problem):
    """Reading or writing failed midway: a full disk, a broken checkpoint (74)."""

    exit_code = 74


class Locked(Problem):
    """Another process trains in this run folder (75)."""

    exit_code = 75
