"""What is freed stays with the process."""

import platform
import subprocess
import sys

import pytest

from unpaired import heap

# Pages that some steps ask for once a process has come to its rest
PAGES = """
import ctypes, resource, sys
from unpaired.heap import keep_freed

which, *sizes = sys.argv[1:]
if which == "kept":
    assert keep_freed()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
for i in range(30):
    if i == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    maps = [(libc.malloc(n), n) for n in (int(size) << 20 for size in sizes)]
    for at, n in maps:
        ctypes.memset(at, 1, n)
    for at, n in reversed(maps):
        libc.free(ctypes.c_void_p(at))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(which, *sizes):
    line = [sys.executable, "-c", PAGES, which, *map(str, sizes)]
    return int(subprocess.run(line, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
def test_freed_memory_is_used_again_but_for_the_largest_maps():
    many = (2, 15, 8, 12) * 4  # MB
    given_back, kept = pages("given back", *many), pages("kept", *many)
    assert kept < given_back / 10 and given_back > 100_000
    assert pages("kept", 80) > 100_000  # else they leave holes that others do not fill


def test_other_systems_are_left_as_they_are(monkeypatch):
    monkeypatch.setattr(heap.sys, "platform", "darwin")
    assert not heap.keep_freed()
