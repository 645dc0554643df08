"""The reference of settings, which the comments beside them in the source are."""

import pytest

from unpaired.cli import main
from unpaired.config import Data, Decay, Optim, Train
from unpaired.registry import find_method, method_names
from unpaired.settings import notes, reference


@pytest.mark.parametrize("name", method_names())
def test_every_setting_says_what_it_means(name):
    for section in (find_method(name).Config, Data, Optim, Train):
        said = notes(section)
        silent = set(section.model_fields) - {k for k, note in said.items() if len(note) > 3}
        assert silent <= {"name", "decay"}, silent
    assert set(notes(Decay)) == set(Decay.model_fields)


@pytest.mark.parametrize("name", ["munit", "tunit"])
def test_what_a_setting_may_be_is_said(name):
    rows = {line.split()[0]: line for line in reference(name).splitlines() if line}
    assert rows["optim.default.kind"].endswith("Which optimizer (adam, rmsprop)")
    assert rows["train.best"].endswith("(SWD, cycle error, paired error, style gap)")
    assert rows["train.precision"].endswith("(auto, 32-true, bf16-mixed)")
    assert rows["data.channels"].endswith("1 for grey images (1, 3)")
    assert rows["data.workers"].endswith("auto: none on a CPU")
    if name == "munit":
        assert rows["method.gan"].endswith("(lsgan, nsgan)")
    else:
        assert rows["method.labels"].endswith("learn from: none, some, all")


def test_settings_of_another_layout_are_left_out():
    for name, kept in (("munit", False), ("tunit", True)):
        text = reference(name)
        assert all(
            (f"\ndata.{key} " in text) == kept for key in "labels labelled jitter hue".split()
        )


def test_comments_above_and_beside_belong_to_their_setting():
    said = notes(Data)
    assert said["flip"] == "mirror half of the images"
    assert said["workers"] == "Processes that read; auto: none on a CPU"
    assert said["cache"].startswith("GiB of") and said["cache"].endswith("free disk")


def test_a_line_for_each_setting_with_its_value_in_each_preset(capsys):
    assert main(["methods", "dsm"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Disentangling") and "not known to us" in lines[1]
    rows = {line.split()[0]: line.split()[1:] for line in lines[2:] if line}
    assert rows["setting"] == ["paper", "small"]
    assert rows["method.style_dim"][:2] == ["64", "4"]
    assert rows["method.flow"][:3] == ["true", "true", "Splines;"]
    assert rows["optim.F.lr"] == ["1e-06", "1e-05"]
    assert "optim.F.betas" not in rows and "method.name" not in rows and "preset" not in rows
    assert rows["data.size"][:3] == ["256", "32", "Side"]


def test_a_method_that_does_not_exist_is_one_sentence(capsys):
    assert main(["methods", "munitt"]) == 2
    said = capsys.readouterr().err
    assert "munit?" in said and said.count("\n") == 1


def test_a_method_without_presets_and_card(monkeypatch):
    cls = find_method("unit")
    monkeypatch.setattr(cls, "presets", {})
    monkeypatch.setattr(cls, "card", {})
    text = reference("unit")
    assert text.startswith("unit\n") and "\nmethod.lambda_kl" in text
