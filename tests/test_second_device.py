"""Runs `second_device_suite.py` in a process of its own: torch asks for devices once, and keeps threads for each."""

import subprocess
import sys
from pathlib import Path


def test_every_method_on_a_second_device():
    suite = Path(__file__).with_name("second_device_suite.py")
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(suite)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2_000:]
