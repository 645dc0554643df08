"""The two figures of the scenes cannot be gamed: perfect answers score 1, the usual cheats score low."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch

from unpaired import train
from unpaired.checkpoint import RunFolder
from unpaired.cli import main
from unpaired.data.scenes import STYLES, Scenes, draw
from unpaired.errors import ConfigProblem
from unpaired.metrics import classifier, evaluation, scenes

SIZE = (24, 24)


@pytest.fixture(scope="module")
def target():
    patch = pytest.MonkeyPatch()
    patch.setattr(scenes, "READER_SCENES", 1000)
    patch.setattr(scenes, "HELD_OUT", 80)
    patch.setattr(scenes, "INPUTS", 6)
    reader = scenes.train_reader("painted", SIZE, epochs=4)
    yield scenes.Target("painted", SIZE, reader, 0)
    patch.undo()


def painted(contents, styles):
    images = [draw("painted", c, s, SIZE).image for c, s in zip(contents, styles, strict=True)]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def test_the_figures(target):
    x, masks, _ = scenes.real("outline", SIZE, "test", 80)
    masks = masks > 0.5
    source = Scenes("outline", SIZE, "test", 0, 80)
    contents = [source.content(i) for i in range(80)]
    rng = np.random.default_rng(0)
    names = STYLES["painted"]
    random = lambda n: [dict(zip(names, rng.random(len(names)), strict=True)) for _ in range(n)]  # noqa: E731
    many = [c for c in contents[:6] for _ in range(scenes.STYLES_EACH)]

    def figures(contents_one, contents_many, styles_many):
        one, more = painted(contents_one, random(80)), painted(contents_many, styles_many)
        return list(target.figures(masks, one, more).values())

    kept, covered = figures(contents, many, random(len(many)))  # the perfect translator
    assert kept == pytest.approx(1, abs=0.1) and covered == pytest.approx(1, abs=0.1)

    kept, _ = figures(contents[::-1], many, random(len(many)))  # another's object
    assert kept < 0.6
    _, covered = figures(contents, many, random(1) * len(many))  # one style for all
    assert covered < 0.4
    by_input = [s for s in random(6) for _ in range(scenes.STYLES_EACH)]
    _, covered = figures(contents, many, by_input)  # the input chooses the style
    assert covered < 0.4
    identity = target.figures(masks, x, x[:6], scenes.STYLES_EACH)
    assert identity == target.figures(masks, x, x[:6].repeat_interleave(scenes.STYLES_EACH, 0))
    assert identity["content kept"] < 0.8 and identity["styles covered"] < 0.4


def test_coverage_counts_bins():
    even = (torch.arange(64) + 0.5).view(1, 64, 1) / 64
    assert scenes.coverage(even) == pytest.approx(1)
    assert scenes.coverage(torch.full((1, 64, 1), 0.3)) == pytest.approx(1 / 8)
    assert scenes.coverage(even.clamp(max=0.49)) == pytest.approx(0.5)


def test_evaluate_writes_figures_and_page(tmp_path, monkeypatch, capsys):
    for name, value in dict(READER_SCENES=600, HELD_OUT=20, INPUTS=2, STYLES_EACH=16).items():
        monkeypatch.setattr(scenes, name, value)
    quick = dict(inputs=12, real=24, varied=(2, 3))
    monkeypatch.setitem(
        evaluation.PROTOCOLS, "quick", replace(evaluation.PROTOCOLS["quick"], **quick)
    )
    monkeypatch.setattr(classifier, "STEPS", 40)
    train.fit(tiny.run(steps=1), RunFolder(tmp_path / "x"), say=lambda line: None)
    assert main(["evaluate", str(tmp_path / "x")]) == 0
    measured = json.loads((tmp_path / "x" / "metrics.json").read_text())
    assert set(measured["scenes"]) == {"painted to outline", "outline to painted"}
    for rows in measured["scenes"].values():
        floors = {"untranslated", "untrained", "one style", "reader"}
        assert {"model", "by references", *floors} == set(rows)
        assert rows["by references"] != rows["model"]
        assert rows["one style"]["styles covered"] <= rows["untrained"]["styles covered"] + 0.2
    page = (tmp_path / "x" / "index.html").read_text()
    assert "styles covered" in page and "KID (classifier)" in page
    assert 0 < measured["styles"]["painted"]["MCC"] < 1
    assert measured["networks"]["classifier"]["accuracy"] >= 0.9


def test_a_reader_that_cannot_read_is_not_believed():
    blind = scenes.Reader(len(STYLES["painted"])).eval()
    with pytest.raises(ConfigProblem, match="would mean nothing"):
        scenes.Target("painted", (16, 16), blind, 0)
