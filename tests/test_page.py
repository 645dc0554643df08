"""The page of a run: how it stands, and curves that end where the run is."""

import re

import pytest
import tiny

from unpaired import page
from unpaired.checkpoint import RunFolder


@pytest.fixture
def folder(tmp_path):
    run = RunFolder(tmp_path / "my run")
    run.create()
    return run


@pytest.mark.parametrize(
    "status, said",
    [
        (("done", 4), "done, step 4 of 6"),
        (("preempted", 4, "signal 15", 143), "stopped (signal 15), step 4 of 6"),
        (("failed", 4, "no <room>"), "failed (no &lt;room&gt;), step 4 of 6"),
        (("diverged", 4, "lr"), "diverged (lr), step 4 of 6"),
        (("running", 4), "not finished, step 4 of 6"),
    ],
)
def test_says_how_a_run_ended(folder, status, said):
    folder.write_status(*status)
    page.write(folder, tiny.run(), 4, alive=False)
    text = (folder.path / "index.html").read_text()
    assert f"<p class=soft>{said}" in text and 'http-equiv="refresh"' not in text
    page.write(folder, tiny.run(), 4, alive=True)
    text = (folder.path / "index.html").read_text()
    assert "<p class=soft>training, step 4 of 6" in text and 'http-equiv="refresh"' in text
    assert f"unpaired translate &#x27;{folder.path}&#x27; IMAGE" in text  # can be pasted


@pytest.mark.parametrize("count", [1, 2, 300, 599, 1000, 100_001])
def test_a_curve_ends_at_the_last_point(count):
    svg = page.plot("x_1", [(step, step / count) for step in range(1, count + 1)])
    drawn = re.search('points="([^"]*)"', svg)[1].split()
    assert min(count, 150) <= len(drawn) <= 302
    assert f"step {count}<" in svg and "x_1 1<" in svg


@pytest.mark.parametrize("text", ["", "[]", '{"format": "unpaired metrics 1"}', "\udcff"])
def test_figures_that_are_damaged_are_left_out(folder, text):
    (folder.path / "metrics.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    page.write(folder, tiny.run(), 4, alive=True)
    text = (folder.path / "index.html").read_text()
    assert "training, step 4 of 6" in text and "<h2>Figures" not in text


def test_a_log_that_cannot_be_read_is_left_out(folder):
    folder.log.mkdir()
    page.write(folder, tiny.run(), 4, alive=True)
    assert "training, step 4 of 6" in (folder.path / "index.html").read_text()
