"""A method in a file outside the repository trains and translates."""

import os
import subprocess
import sys

import pytest
from PIL import Image

from unpaired.cli import main
from unpaired.data.scenes import Scenes
from unpaired.registry import find_method

METHOD = '''
"""Colour transfer by one linear layer: a toy."""
from pydantic import Field
from torch import nn
from unpaired.losses import l1
from unpaired.method import Method, MethodConfig, Update


class Config(MethodConfig):
    depth: int = Field(1, ge=1)


class Cut(Method):
    layout = "two_domains"
    averaged = "G"

    def __init__(self, config, domains, shape):
        super().__init__(config, domains, shape)
        self.G = nn.Sequential(*(nn.Conv2d(shape.channels, shape.channels, 1) for _ in range(config.depth)))

    def updates(self, batch, step):
        means = self.G(batch["x_1"]).mean((0, 2, 3)), batch["x_2"].mean((0, 2, 3))
        L = l1(*means)
        yield Update("G", L, {"mean": L.detach()})

    def styles(self, source, target):
        return frozenset()

    def encode_content(self, x, source):
        return x

    def decode(self, content, style, target):
        return self.G(content)
'''


def test_my_lab_cut(tmp_path):
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab" / "cut.py").write_text(METHOD)
    (tmp_path / "cut.yaml").write_text(
        "method: {name: my_lab.cut, depth: 2}\n"
        "data: {root: scenes, size: 16, batch: 2, count: 20}\n"
        "train: {steps: 3, log_every: 1}\n"
    )
    (tmp_path / "small.yaml").write_text((tmp_path / "cut.yaml").read_text() + "preset: small\n")
    Image.fromarray(Scenes("outline", 16, "test", 0, 1)[0].image).save(tmp_path / "in.png")

    def unpaired(*words):
        command = [sys.executable, "-m", "unpaired", *words]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    done = unpaired("train", "cut.yaml", "--out", "run")
    assert done.returncode == 0, done.stderr
    done = unpaired("translate", "run", "in.png", "--to", "painted")
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "run" / "translations" / "in-painted-00.png") as image:
        assert image.size == (16, 16)
    done = unpaired("train", "cut.yaml", "--out", "other", "method.dept=3")
    assert done.returncode == 2 and "depth" in done.stderr
    done = unpaired("train", "small.yaml", "--out", "small")
    assert done.returncode == 2 and "preset: my_lab.cut has none" in done.stderr


@pytest.mark.parametrize(
    "change, said",
    [
        ('Update("H",', "names H, which is no network that learns"),
        ('Update("G F",', "names F, which its loss does not reach"),
    ],
)
def test_a_move_that_names_the_wrong_network(change, said, tmp_path, monkeypatch, capsys):
    lab = f"lab_{len(change)}"
    (tmp_path / lab).mkdir()
    text = METHOD.replace('Update("G",', change)
    text = text.replace("        self.G =", "        self.F = nn.Linear(1, 1)\n        self.G =")
    (tmp_path / lab / "cut.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    words = ["train", "--method", f"{lab}.cut", "--data", "scenes", "--out", "run"]
    settings = ["data.size=16", "data.batch=2", "data.count=20", "train.steps=2"]
    assert main([*words, *settings]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", [".x", "./cut.py", "my_lab..cut", "my-lab.cut"])
def test_what_is_no_module_is_one_sentence(name, capsys):
    assert main(["train", "--method", name, "--data", "scenes"]) == 2
    said = capsys.readouterr().err
    assert f"'{name}' is not the name of a module" in said and said.count("\n") == 1


def test_a_file_that_has_the_name_of_a_method_is_in_nobodys_way(tmp_path, monkeypatch):
    (tmp_path / "munit.py").write_text("")
    monkeypatch.chdir(tmp_path)
    assert find_method("munit").__name__ == "MUNIT"


def test_the_folder_of_the_user_stays_off_the_path(tmp_path, monkeypatch):
    (tmp_path / "lab_of_one").mkdir()
    (tmp_path / "lab_of_one" / "cut.py").write_text(METHOD)
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert find_method("lab_of_one.cut").__name__ == "Cut"
    assert sys.path == before
