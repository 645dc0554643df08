"""The page that compares runs: of other methods and sizes, alone on disk, the best in bold."""

import json
import re

import numpy as np
import pytest
import tiny
from PIL import Image

from unpaired import report, train
from unpaired.checkpoint import RunFolder
from unpaired.cli import main


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    path = tmp_path_factory.mktemp("zwei Läufe")
    for name, size, swd in (("munit", 16, 4.0), ("cyclegan", 32, 3.0)):
        train.fit(tiny.run(name, size=size, steps=1), RunFolder(path / name), say=str)
        figures = {"SWD": swd, "coverage": swd, "change": swd}
        measured = {"protocol": {"name": "quick"}, "split": "test", "means": {}}
        measured["means"]["latent"] = {"model": figures, "real": {"SWD": 0}}
        (path / name / "metrics.json").write_text(json.dumps(measured))
    return path


def test_one_page_of_two_methods(runs, tmp_path, capsys):
    out = tmp_path / "réport.html"
    assert main(["report", str(runs / "munit"), str(runs / "cyclegan"), "--out", str(out)]) == 0
    text = out.read_text()
    sources = re.findall(r'src="([^"]{0,30})', text)
    assert sources and all(s.startswith("data:image/png;base64,") for s in sources)
    assert "http" not in text and "<script" not in text
    cells = {
        name: re.findall(r"<td>(.*?)</td>", line)
        for name, line in re.findall(r'<tr><td title="[^"]*">([\w ]+?) ?[↑↓]?</td>(.*?)</tr>', text)
    }
    assert cells["SWD"] == ["4", "<b>3</b>"] and cells["coverage"] == ["<b>4</b>", "3"]
    assert "<b>" not in "".join(cells["change"])  # neither end is good
    assert "outline to painted" in text and "painted to outline" in text
    assert text.count("between styles") == 4  # caption and alt; cyclegan has none
    assert text.count("nearest training images") == 8


def test_a_memorised_image_is_its_own_neighbour():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (24, 24, 3), dtype=np.uint8) for _ in range(5)]

    class Five:
        def __len__(self):
            return 5

        def read(self, index):
            return images[index]

    near = report.neighbours([Image.fromarray(images[3]), Image.fromarray(images[1])], Five())
    assert np.array_equal(near[0], images[3]) and np.array_equal(near[1], images[1])


def test_what_is_no_run_is_told(runs, tmp_path, capsys):
    assert main(["report", str(runs / "munit"), str(tmp_path), "--out", str(tmp_path / "r")]) == 2
    assert "not a run" in capsys.readouterr().err
