"""What is freed stays with the process."""

import platform
import subprocess
import sys

import pytest

from unpaired import heap

# Pages that some steps ask for once a process has come to its rest
PAGES = """
import resource, sys
import torch
from unpaired.heap import keep_freed

if sys.argv[1] == "kept":
    assert keep_freed()
for i in range(30):
    if i == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    maps = [torch.ones(n * 1_000_000) for n in (1, 4, 12, 20, 3)]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(which):
    line = [sys.executable, "-c", PAGES, which]
    return int(subprocess.run(line, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
def test_freed_memory_is_used_again():
    given_back, kept = pages("given back"), pages("kept")
    assert kept < given_back / 10 and given_back > 100_000


def test_other_systems_are_left_as_they_are(monkeypatch):
    monkeypatch.setattr(heap.sys, "platform", "darwin")
    assert not heap.keep_freed()
