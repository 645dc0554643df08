"""What a user may get wrong with a trained run, or with data that does not fit: one sentence, its code."""

import io
import sys

import pytest
import tiny
from PIL import Image

from unpaired import Translator, train
from unpaired.checkpoint import RunFolder
from unpaired.cli import main


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Trained runs of three kinds of methods, and folders and files of the wrong sort."""
    path = tmp_path_factory.mktemp("ein Ort ä")
    for name in ("munit", "cyclegan", "tunit"):
        train.fit(tiny.run(name, steps=1), RunFolder(path / name), say=lambda line: None)
    for i, names in enumerate((("cats", "a.png"), ("cats", "b.png"), ("dogs", "c.png"))):
        (path / "two" / names[0]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (i * 80, 90, 200)).save(path / "two" / names[0] / names[1])
    (path / "empty").mkdir()
    (path / "texts").mkdir()
    (path / "begun").mkdir()
    (path / "begun" / "status.json").write_text('{"status": "failed", "reason": "no images"}')
    (path / "solo.py").write_text("")
    for name in ("texts/note.txt", "note.txt", "note.png", "list.yaml"):
        (path / name).write_text("- hello")
    Image.new("RGB", (32, 32), "red").save(path / "a.png")
    return path


def translate(run, *words, image="a.png", to="painted"):
    return ["translate", run, image, "--to", to, *words]


def training(method, data, *words):
    return ["train", "--method", method, "--preset", "small", "--data", data, *words]


@pytest.mark.parametrize(
    "arguments, code, words",
    [
        # a domain, an image, a style that is not there
        (translate("munit", to="paintd"), 2, ["paintd", "painted"]),
        (translate("munit", "--source", "outlin"), 2, ["outlin", "outline"]),
        (translate("munit", image="b.png"), 2, ["b.png"]),
        (translate("munit", image="empty"), 65, ["empty"]),
        (translate("munit", image="texts"), 65, ["texts"]),
        (translate("munit", image="note.png"), 65, ["note.png"]),
        (translate("munit", "--style-from", "b.png"), 65, ["b.png"]),
        (translate("munit", "--style-from", "note.txt"), 65, ["note.txt", "JPEG"]),
        (translate("munit", "--style-from", "two"), 65, ["two"]),
        (translate("munit", "--interpolate", "1", "nowhere"), 2, ["nowhere"]),
        (translate("munit", "--styles", "0"), 2, ["--styles"]),
        (translate("munit", "--size", "2"), 2, ["--size"]),
        (translate("munit", "--size", "0"), 2, ["--size"]),
        (translate("munit", "--size", "9999"), 2, ["--size", "40 megapixels"]),
        (translate("munit", "--seed", "-1"), 2, ["seed"]),
        (translate("munit", "--seed", str(2**64)), 2, ["seed"]),
        (
            translate("munit", "--interpolate", "1", "2", "--style-from", "a.png"),
            2,
            ["--style-from"],
        ),
        (translate("munit", "--interpolate", "1", "2", "--component", "0"), 2, ["--component"]),
        # options that mean nothing together
        (translate("munit", "--style-from", "a.png", "--styles", "3"), 2, ["--styles"]),
        (translate("munit", "--style-from", "a.png", "--seed", "7"), 2, ["--seed"]),
        (translate("munit", "--style-from", "a.png", "--steps", "5"), 2, ["--steps"]),
        (translate("munit", "--steps", "5"), 2, ["--steps", "--component"]),
        (translate("munit", "--interpolate", "1", "2", "--styles", "3"), 2, ["--styles"]),
        (translate("munit", "--interpolate", "1", "2", "--seed", "3"), 2, ["--seed"]),
        (translate("munit", "--component", "0", "--styles", "3"), 2, ["--styles"]),
        (translate("munit", "--out", "a.png"), 73, ["a.png", "--out"]),
        # what the method cannot do
        (translate("cyclegan", "--style-from", "a.png"), 2, ["cyclegan", "--style-from"]),
        (translate("cyclegan", "--interpolate", "1", "2"), 2, ["cyclegan"]),
        (translate("tunit", to="domain_1"), 2, ["domain_1", "reference image"]),
        # a RUN that is not one
        (translate("empty"), 2, ["empty", "unpaired train"]),
        (translate("nowhere"), 2, ["nowhere", "unpaired train"]),
        (translate("note.txt"), 65, ["note.txt"]),
        (["evaluate", "nowhere"], 2, ["nowhere"]),
        (["evaluate", "munit", "--seed", "-1"], 2, ["seed"]),
        (["report", "munit", "--out", "a.png/x.html"], 73, ["a.png", "name another"]),
        (["train", "--resume", "nowhere"], 2, ["nowhere"]),
        (training("munit", "scenes", "--init", "empty"), 2, ["--init", "empty"]),
        (training("munit", "scenes", "--out", "a.png"), 73, ["a.png"]),
        (training("munit", "scenes", "--out", "munit"), 2, ["--resume", "--fresh"]),
        (["serve", "begun"], 2, ["begun", "holds no model so far", "no images"]),
        # a method of one's own
        (training("solo", "two"), 2, ["folder.solo", "folder/solo.py"]),
        (training("solo.py", "two"), 2, ["folder.solo", "folder/solo.py"]),
        # data that does not fit the method, or is none
        (training("munit", "empty"), 65, ["empty"]),
        (training("munit", "texts"), 65, ["texts"]),
        (training("munit", "two/cats"), 2, ["two domains", "--data cats dogs", "tunit"]),
        (training("dsm", "two/cats"), 2, ["two or more domains"]),
        (training("pix2pix", "two"), 65, ["two"]),
        (training("munit", "two", "data.domains=[cats, dgs]"), 2, ["dgs", "dogs"]),
        (["data", "check", "nowhere"], 2, ["nowhere"]),
        (["data", "check", "empty"], 65, ["empty"]),
        (["data", "check", "two", "--page", "two/x.html"], 2, ["two/x.html", "elsewhere"]),
        (["data", "check", "empty", "two/cats", "two/dogs"], 65, ["empty"]),
        # values of the wrong kind
        (training("tunit", "scenes", "train.accumulate=2"), 2, ["train.accumulate"]),
        (training("munit", "scenes", "train.precision=fp16"), 2, ["train.precision", "bf16-mixed"]),
        (training("munit", "scenes", "data.size=[32, 32, 32]"), 2, ["data.size"]),
        (training("munit", "scenes", "optim.default.betas=1"), 2, ["optim.default.betas=[a,b]"]),
        (training("munit", "two", "data.domains=cats,dogs"), 2, ["data.domains=[a,b]"]),
        (training("tunit", "two", "clusters=3"), 2, ["method.clusters"]),
        (training("munit", "scenes", "lambda_cyc=3"), 2, ["method.lambda_cyc"]),
        (training("munit", "scenes", "optim=fast"), 2, ["optim"]),
        (training("munit", "scenes", "method.dim=wide"), 2, ["method.dim", "wide"]),
        (training("munit", "scenes", "train.steps=0"), 2, ["train.steps"]),
        (training("munit", "scenes", "train.seed=4294967296"), 2, ["train.seed"]),
        (
            training("munit", "scenes", "train.accumulate=3"),
            2,
            ["train.accumulate", "data.batch=8"],
        ),
        (training("munit", "scenes", "optim.default.lr=.inf"), 2, ["optim.default.lr"]),
        (training("munit", "scenes", "optim.default.betas=[0.5, 1]"), 2, ["optim.default.betas"]),
        (training("munit", "scenes", "data.workers=-1"), 2, ["data.workers"]),
        (training("munit", "two", "data.domains=[cats, cats]"), 2, ["data.domains", "twice"]),
        (training("munit", "scenes", "train.steps=yes"), 2, ["train.steps", "number"]),
        (training("munit", "scenes", "data.size=[32]"), 2, ["data.size", "lacking"]),
        (training("munit", "scenes", "data.zoom=500"), 2, ["data.zoom"]),
        (training("munit", "scenes", f"train.steps={10**20}"), 2, ["train.steps"]),
        (training("munit", "scenes", f"data.batch={10**9}"), 2, ["data.batch"]),
        (training("munit", "scenes", f"train.steps={'[' * 2000}"), 2, ["train.steps"]),
        (training("this.that", "scenes"), 2, ["this.that", "Python"]),
        (translate("munit", "--styles", "100000000"), 2, ["100,000,000 styles"]),
        (translate("munit", "--interpolate", "1", "2", "--steps", "10001"), 2, ["10,001 styles"]),
        (translate("munit", image="x" * 300), 2, ["so long a name"]),
        # one folder for two domains
        ([*training("munit", "two/cats"), "--data", "two/cats", "two/cats"], 2, ["given twice"]),
        (["data", "check", "two/cats", "two/cats"], 2, ["two/cats is given twice"]),
        (["data", "check", "two/cats", "two"], 2, ["two/cats lies within", "in common"]),
        (["train", "list.yaml"], 2, ["list.yaml", "method:"]),
        (["train", "--data", "two", "list.yaml"], 2, ["list.yaml", "method:"]),
        (["train", "train.steps=3", "list.yaml"], 2, ["list.yaml", "method:"]),
        (["train", "list.yaml", "--data", "two", "b.yml"], 2, ["list.yaml", "b.yml", "name one"]),
        (["train", "texts"], 2, ["--data texts"]),
        (["train", "munit"], 2, ["--resume munit"]),
    ],
)
def test_one_sentence(arguments, code, words, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    before = {path for path in place.rglob("*") if "runs" not in path.parts}
    assert main(arguments) == code
    printed = capsys.readouterr().err.strip()
    assert printed.startswith("unpaired: ") and "\n" not in printed and "Traceback" not in printed
    for word in words:
        assert word in printed
    assert {path for path in place.rglob("*") if "runs" not in path.parts} == before


def test_images_that_were_moved(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for i in range(24):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.new("RGB", (32, 32), (i * 10, 90, 200)).save(tmp_path / "photos" / f"{i}.png")
    run = tiny.run("tunit", f"data.root={tmp_path / 'photos'}", "data.domains=null", steps=2)
    train.fit(run, RunFolder(tmp_path / "t"), say=lambda line: None)
    (tmp_path / "photos").rename(tmp_path / "pictures")
    for words, remedy in (
        (["train", "--resume", "t", "train.steps=3"], "data.root=DIR"),
        (["domains", "t"], "--data DIR"),
        (["evaluate", "t"], "--data DIR"),
    ):
        assert main(words) == 2
        printed = capsys.readouterr().err.strip()
        assert "photos, where the run had its images, does not exist" in printed
        assert printed.endswith(f"say {remedy}.") and "\n" not in printed
    assert main(["train", "--resume", "t", "train.steps=3", "data.root=pictures"]) == 0
    assert main(["domains", "t", "--data", "pictures"]) == 0


def test_a_size_that_memory_does_not_hold(place, monkeypatch, capsys):
    def exhausted(*args):
        raise RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        )

    monkeypatch.chdir(place)
    monkeypatch.setattr(Translator, "prepare", exhausted)
    assert main(translate("munit")) == 71
    printed = capsys.readouterr().err.strip()
    assert "--size" in printed and "\n" not in printed


def test_a_run_does_not_go_back(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setattr(RunFolder, "steps", lambda self: [0, 7])
    assert main(["train", "--resume", "munit", "train.steps=6"]) == 2
    assert "7 steps" in capsys.readouterr().err


def test_T11_a_run_that_cannot_be_read_is_not_begun_anew(tmp_path, capsys):
    run = RunFolder(tmp_path / "x")
    run.create()
    run.save(3, {}, {})
    (run.checkpoints / "step-00000003" / "manifest.json").unlink()
    assert main([*training("munit", "scenes"), "--out", str(run.path)]) == 74
    assert "--fresh" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--steps=10"], ["--steps", "10"]])
def test_settings_are_no_options(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--method", "munit", *words])
    assert stop.value.code == 2
    assert "settings are written as key=value, such as train.steps=1000" in capsys.readouterr().err


def test_a_config_may_stand_anywhere(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(tiny.run(steps=1).to_yaml())
    config = str(tmp_path / "c.yaml")
    for i, words in enumerate((["train.steps=1", config], ["--data", "scenes", config])):
        assert main(["train", *words, "--out", str(tmp_path / str(i))]) == 0, (
            capsys.readouterr().err
        )
        assert RunFolder(tmp_path / str(i)).newest()[0] == 1


def test_a_finished_run_needs_no_images(tmp_path, capsys):
    for i in range(8):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (20 * i, 90, 200)).save(path)
    words = [f"data.root={tmp_path / 'images'}", "data.domains=null"]
    train.fit(tiny.run("munit", *words, steps=1), RunFolder(tmp_path / "run"), say=str)
    (tmp_path / "images").rename(tmp_path / "moved")
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert "All 1 steps are done already" in capsys.readouterr().out
    assert main(["train", "--resume", str(tmp_path / "run"), "train.steps=2"]) == 2


def test_names_that_the_terminal_cannot_show(place, monkeypatch):
    (place / "zwei" / "Bäume").mkdir(parents=True)
    Image.new("RGB", (32, 32), "green").save(place / "zwei" / "Bäume" / "ä.png")
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["data", "check", str(place / "zwei")]) == 0
    assert b"B\\xe4ume" in out.buffer.getvalue()
