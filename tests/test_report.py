"""The page that compares runs: of other methods and sizes, alone on disk, the best in bold."""

import json
import os
import re
import shutil

import numpy as np
import pytest
import tiny
from PIL import Image
from test_evaluate import write_images

from unpaired import page, report, train
from unpaired.checkpoint import RunFolder
from unpaired.cli import main
from unpaired.metrics.features import sha256
from unpaired.translator import NotFinite, Translator


def write_metrics(run, swd, digest="abc"):
    figures = {"SWD": swd, "coverage": swd, "change": swd}
    data = {"root": "scenes", "size": [16, 16], "domains": {}}
    data["domains"]["outline"] = {"digest": digest, "train": 9}
    measured = {"protocol": {"name": "quick"}, "split": "test", "data": data, "step": 1}
    measured["seed"] = 0
    measured["format"] = "unpaired metrics 1"
    measured["model"] = {"sha256": sha256(run / "model.safetensors")}
    measured["means"] = {"latent": {"model": figures, "real": {"SWD": 0}}}
    (run / "metrics.json").write_text(json.dumps(measured))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The first on images in folders, which say which domains there are; the second on scenes."""
    path = tmp_path_factory.mktemp("zwei Läufe")
    images = write_images(path / "images", ["outline", "painted"], counts={"train": 4, "test": 2})
    for name, size, swd, root in (("munit", 16, 4.0, str(images)), ("cyclegan", 32, 3.0, "scenes")):
        run = tiny.run(name, size=size, steps=1)
        run = run.model_copy(update={"data": run.data.model_copy(update={"root": root})})
        train.fit(run, RunFolder(path / name), say=str)
        write_metrics(path / name, swd)
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
    assert "Inputs and references are test images." in text
    assert "outline to painted" in text and "painted to outline" in text
    assert text.count("between styles") == 4  # caption and alt; cyclegan has none
    assert text.count("nearest training images") == 8


def test_images_that_have_moved_can_be_named(runs, tmp_path, capsys):
    shutil.copytree(runs / "munit", tmp_path / "run")
    settings = (tmp_path / "run" / "config.yaml").read_text()
    (tmp_path / "run" / "config.yaml").write_text(settings.replace(str(runs), "/nowhere"))
    line = ["report", str(tmp_path / "run"), "--out", str(tmp_path / "report.html")]
    assert main(line) == 2
    assert "--data" in capsys.readouterr().err
    assert main([*line, "--data", str(runs / "images")]) == 0
    shutil.copytree(runs / "images" / "test", tmp_path / "held" / "test")
    assert main([*line, "--data", str(tmp_path / "held")]) == 0  # none to be nearest to
    assert "outline to painted" in (tmp_path / "report.html").read_text()


def test_figures_on_other_images_are_not_compared(runs):
    folders = [runs / name for name in ("munit", "cyclegan")]
    models = [(folder.name, None) for folder in folders]
    assert report.figures(models, folders).count("<table>") == 1
    write_metrics(runs / "cyclegan", 3.0, digest="other images")
    text = report.figures(models, folders)
    assert text.count("<table>") == 2 and "<b>" not in text
    assert text.count("quick, test images of scenes, 16 x 16: random styles") == 2
    write_metrics(runs / "cyclegan", 3.0)


def test_figures_of_another_model_are_not_shown(runs):
    """As of an earlier step, or of a file that lay there before."""
    path = runs / "munit" / "metrics.json"
    whole = path.read_text()
    path.write_text(whole.replace('"sha256": "', '"sha256": "0'))
    text = report.figures([("munit", None)], [runs / "munit"])
    path.write_text(whole)
    assert "<table>" not in text and "munit (measured at step 1)" in text
    assert "Not measured" not in text  # it was, as the page says
    for other in ("{}", '{"means": {}}', '{"format": "unpaired metrics 0", "model": {}}'):
        path.write_text(other)
        text = report.figures([("munit", None)], [runs / "munit"])
        assert "Not measured: munit" in text and "measured at step" not in text
    path.write_text(whole)


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
    shutil.copy(runs / "munit" / "model.safetensors", tmp_path / "model.safetensors")
    words = [str(tmp_path / "model.safetensors"), str(runs / "munit"), "--out", str(tmp_path / "r")]
    assert main(["report", *words]) == 2
    assert "where its images are" in capsys.readouterr().err and not (tmp_path / "r").exists()


def test_components_that_change_most_come_first(monkeypatch):
    """Each strip says its component and how much it changes; those left out are told."""

    class Model:
        domains = ["a", "b"]

        def index(self, name):
            return self.domains.index(name)

        def components(self, target, source):
            return report.COMPONENTS + 2

        def sweep(self, array, to, k, steps=9, source=None):
            ends = np.linspace(0, 10 * k, steps)
            return [Image.new("L", (8, 8), int(e)) for e in ends]

    words, sheets = [], []
    monkeypatch.setattr(report, "label", lambda text, size: words.append(text))
    monkeypatch.setattr(
        report, "sheet", lambda rows, **kw: sheets.append(rows) or Image.new("L", (8, 8))
    )
    text = report.components("dsm", Model(), np.zeros((8, 8, 3)), "a", "b")
    last = report.COMPONENTS + 1
    assert words[0] == f"{last}\n{10 * last / 255:.3f}" and len(words) == report.COMPONENTS
    assert [len(row) for row in sheets[0]] == [report.STEPS + 1] * report.COMPONENTS
    assert f"2 more change at most {10 / 255:.3f}" in text


def test_images_that_were_held_out_are_shown_where_there_are_any():
    def of(**counts):
        splits = {s: [range(counts.get(s, 0))] * 2 for s in ("train", "val", "test")}
        data = type("Data", (), {"splits": splits, "domains": ("a", "b")})
        return next(report.samples([], data))

    assert "test images" in of(train=9, val=2, test=3)
    assert "validation images" in of(train=9, val=2)
    assert "trained on" in of(train=9)


def test_what_cannot_be_written_is_refused_before_the_work(runs, tmp_path, monkeypatch, capsys):
    assert main(["report", str(runs / "munit"), "--out", str(tmp_path)]) == 73  # a folder
    assert "cannot be written" in capsys.readouterr().err
    closed = lambda path, mode: False  # noqa: E731  # root may write everywhere
    monkeypatch.setattr(os, "access", closed)
    for words in (
        ["report", str(runs / "munit"), "--out", str(tmp_path / "x.html")],
        ["evaluate", str(runs / "munit")],
    ):
        assert main(words) == 73
        said = capsys.readouterr()
        assert (
            "cannot be written" in said.err
            and said.err.count("\n") == 1
            and "Measured" not in said.out
        )


def test_a_model_of_nans_is_told_beside_the_others(runs, tmp_path, monkeypatch):
    render = Translator.translate

    def translate(self, *args, **kw):
        if self.run.method.name == "cyclegan":
            raise NotFinite("the model gives NaN")
        return render(self, *args, **kw)

    monkeypatch.setattr(Translator, "translate", translate)
    words = [str(runs / "munit"), str(runs / "cyclegan"), "--out", str(tmp_path / "r.html")]
    assert main(["report", *words]) == 0
    text = (tmp_path / "r.html").read_text()
    assert "cyclegan: the model gives NaN" in text and "munit: random styles" in text


@pytest.mark.parametrize(
    "text", ['{"format": ', "[]", f'{{"format": "{page.METRICS}", "step": 3}}']
)
def test_figures_that_are_damaged_are_one_sentence(runs, tmp_path, capsys, text):
    run = shutil.copytree(runs / "munit", tmp_path / "run")
    (run / "metrics.json").write_text(text)
    assert main(["report", str(run), "--out", str(tmp_path / "r.html")]) == 74
    said = capsys.readouterr().err
    assert "metrics.json is damaged" in said and said.count("\n") == 1


def test_a_list_of_images_that_is_damaged_is_one_sentence(runs, tmp_path, capsys):
    run = shutil.copytree(runs / "munit", tmp_path / "run")
    (run / "dataset.json").write_text('{"files": ')
    assert main(["evaluate", str(run)]) == 74
    said = capsys.readouterr().err
    assert "dataset.json is damaged" in said and said.count("\n") == 1


def test_figures_can_be_written_elsewhere(runs, tmp_path, capsys):
    """A run that is closed to us is measured, and what was measured before stays."""
    run = runs / "munit"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert main(["evaluate", str(run), "--out", str(tmp_path / "figures.json")]) == 0
    said = capsys.readouterr().out
    assert f"Written: {tmp_path / 'figures.json'}\n" in said
    assert json.loads((tmp_path / "figures.json").read_text())["format"] == "unpaired metrics 1"
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
