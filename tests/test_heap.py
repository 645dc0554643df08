"""What is freed stays with the process, and pages are large."""

import os
import platform
import subprocess
import sys
from pathlib import Path

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


LARGE = """
import resource, unpaired, torch
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_pages_are_large_unless_it_is_said_otherwise():
    offered = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not offered.exists() or "[never]" in offered.read_text():
        pytest.skip("this system has none")

    def pages(**said):
        line = [sys.executable, "-c", LARGE]
        env = {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"} | said
        return int(subprocess.run(line, capture_output=True, text=True, check=True, env=env).stdout)

    few = pages()
    if "[always]" not in offered.read_text():
        assert few < pages(THP_MEM_ALLOC_ENABLE="0") / 4
    assert few < 2**14 / 4
