"""Memory of a process whose maps of many megabytes come and go at every step: what is freed stays with it, and pages
are large."""

from __future__ import annotations

import ctypes
import os
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # M_... of malloc.h
LARGE = 2**25  # bytes of a map that is handed back all the same
_kept = False


def keep_freed() -> bool:
    """From now on memory that was freed is used again, not handed back to the system; whether that could be arranged.

    The system hands memory out page by page, each cleared: with glibc's defaults a step of MUNIT at 256 px asks for up
    to 100,000 pages. `LARGE` maps are few for their pages, and kept they leave holes that others do not fill: a sixth
    of TUNIT's peak at 128 px. C libraries other than glibc are left as they are.
    """
    global _kept
    # The top of the heap is never given back, and the least size of what is mapped on its own does not move
    _kept = set_malloc({MMAP_THRESHOLD: LARGE, TRIM_THRESHOLD: -1})
    return _kept


def huge_pages() -> None:
    """Torch asks for pages of 2 MB, where the system has any; it looks at this when it makes the first tensor.

    A gradient of 32 MB is 8,000 pages of the usual size, each cleared and entered by itself.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def freed_is_kept() -> bool:
    """Whether that was arranged in this process."""
    return _kept


def set_malloc(options: dict[int, int]) -> bool:
    """glibc's `mallopt` for each; whether all were taken."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return mallopt is not None and all(mallopt(name, value) for name, value in options.items())
