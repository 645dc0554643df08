"""How many domains: the first stage for each K, two figures, resumable."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from test_domains import paint

from unpaired import choose, train
from unpaired.cli import main
from unpaired.errors import StorageProblem

TINY = "method.style_dim=4 method.c_dim=4 method.dim=4 method.d_dim=4 method.mlp_dim=4 data.batch=4 method.queue=8"


def test_a_table_and_a_page(tmp_path, capsys, monkeypatch):
    data, out = paint(tmp_path / "Bilder ä"), tmp_path / "wie viele"
    command = ["domains", "--choose", "3", "2", "--data", str(data), *TINY.split(), "train.steps=2"]
    assert main([*command, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    rows = json.loads((out / "choose.json").read_text())
    assert [row["K"] for row in rows] == [2, 3]
    for row in rows:
        assert len(row["information"]) == 3 and all(0 <= i <= 1 for i in row["information"])
        best = row["information"].index(max(row["information"]))
        assert row["best"] == str(out / f"K{row['K']}-seed{best}") and -1 <= row["stability"] <= 1
        assert 1 <= row["used"] <= row["K"]
        assert choose.line(row) in printed
    page = (out / "choose.html").read_text()
    assert "src=" not in page and page.count("<circle") == 4

    monkeypatch.setattr(choose, "fit", lambda *args, **kw: 1 / 0)  # nothing is trained again
    assert main([*command, "--out", str(out)]) == 0
    assert json.loads((out / "choose.json").read_text()) == rows
    other = [*command, "--out", str(out), "method.lambda_mi=4"]
    labelled = [*command, "data.labels=folders"]
    for words, key in (
        (other, "lambda_mi"),
        (labelled, "data.labels"),
        ([*command[:-1], "train.steps=3"], "train.steps: 2 -> 3"),
        ([*command[:5], str(out), *command[6:]], "data.root"),
    ):
        assert main([*words, "--out", str(out)]) == 2  # nor taken for runs of other settings
        said = capsys.readouterr().err
        assert key in said and "another --out" in said and said.count("\n") == 1
    assert not (set(train.RunFolder(out / "K2-seed0").read_log()[-1]["losses"]) & {"D_real", "rec"})


def test_training_goes_on_from_the_best(tmp_path, capsys):
    """As the output says: with the clusters of that run, and G and D from the first step on."""
    data, out = paint(tmp_path / "images"), tmp_path / "out"
    words = ["--data", str(data), *TINY.split(), "train.steps=2"]
    assert main(["domains", "--choose", "2", *words, "--out", str(out)]) == 0
    (row,) = json.loads((out / "choose.json").read_text())
    go_on = f"unpaired train --method tunit --preset small --data {data} {TINY} train.steps=4050"
    go_on += f" --init {row['best']} method.clusters=2 method.first_stage=0"
    assert go_on in capsys.readouterr().out and go_on in (out / "choose.html").read_text()
    run = tmp_path / "run"
    on = ["--method", "tunit", "--preset", "small", "--init", row["best"], "--out", str(run)]
    settings = ["method.clusters=2", "method.first_stage=0", "train.steps=1"]
    assert main(["train", *on, *words, *settings]) == 0
    _, before, _ = train.RunFolder(Path(row["best"])).newest()
    said = capsys.readouterr().out
    beside = ("method.queue", "method.queued", "method.share")  # of earlier images
    networks = [k for k in before if k.startswith("method.") and k not in beside]
    assert f"Starting from {len(networks)} of {len(networks)} tensors" in said
    assert "rec" in train.RunFolder(run).read_log()[-1]["losses"]


def test_equal_groups_give_full_information(monkeypatch, tmp_path):
    """The figures of perfect runs, of runs that know nothing, and of one good among poor ones, which is the best."""
    y = np.arange(100) % 4
    for runs, information, stability in (
        ([(y, np.log(4)), ((y + 1) % 4, np.log(4)), (y, np.log(4))], [1.0] * 3, 1.0),
        ([(0 * y, 0.0)] * 3, [0.0] * 3, 1.0),
        ([(0 * y, 0.0), (y, np.log(4)), (0 * y, 0.0)], [0.0, 1.0, 0.0], 1 / 3),
    ):
        given = iter(runs)
        monkeypatch.setattr(choose, "trained", lambda *args: Path(os.fsdecode(b"not \xff UTF-8")))
        monkeypatch.setattr(choose, "measured", lambda path, given=given: next(given))
        choose.choose([4], ["x"], [], None, tmp_path, print)
        (row,) = json.loads((tmp_path / "choose.json").read_text())
        assert row["information"] == information
        assert row["stability"] == pytest.approx(stability, abs=1e-3)
        assert row["used"] == (4 if max(information) else 1)


def test_steps_are_those_of_the_first_stage(tmp_path, monkeypatch):
    """Of the preset where nothing is said; the rest is for what comes after."""
    assert choose.stages(["scenes"], [], "small") == (1950, 4050)
    assert choose.stages(["scenes"], [], "paper") == (65_000, 135_000)
    asked = []
    monkeypatch.setattr(
        choose, "trained", lambda K, s, d, words, *a: asked.append(words) or Path("x")
    )
    monkeypatch.setattr(choose, "measured", lambda path: (np.arange(8) % 2, 0.5))
    choose.choose([2], ["scenes"], ["data.size=64"], None, tmp_path, print)
    choose.choose([2], ["scenes"], ["train.steps=7"], None, tmp_path, print)
    steps = [choose.whole(["scenes"], words, "small").train.steps for words in asked]
    assert steps == [1950] * 3 + [7] * 3


def test_refusals(tmp_path, capsys):
    for words in (
        ["--choose", "1", "5", "--data", str(tmp_path)],
        ["--choose", "2"],
        ["--choose", "2", "--name", "1=x", "--data", str(tmp_path)],
        [],
        ["a", "b"],
        ["a", "train.steps=3"],
    ):
        assert main(["domains", *words]) == 2
        said = capsys.readouterr().err
        assert said.startswith("unpaired: ") and said.count("\n") == 1


def test_runs_that_cannot_be_read_are_not_begun_anew(tmp_path):
    run = train.RunFolder(tmp_path / "K2-seed0")
    run.create()
    run.save(3, {}, {})
    (run.checkpoints / "step-00000003" / "manifest.json").write_text("{}")
    run.status.write_text("{}")
    with pytest.raises(StorageProblem, match="no checkpoint"):
        choose.trained(2, 0, ["scenes"], [], "small", tmp_path, str)
