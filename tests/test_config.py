"""Bad input is answered by one sentence that names the key or the file and the remedy, with the exit code."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image

from unpaired.checkpoint import RunFolder
from unpaired.cli import main
from unpaired.config import changes, load, nearest, override
from unpaired.data.augment import View
from unpaired.data.batches import to_device
from unpaired.data.datasets import open_dataset
from unpaired.errors import ConfigProblem
from unpaired.registry import find_method, method_card, method_names
from unpaired.train import Trainer
from unpaired.translator import metadata


def munit(*settings):
    return ["train", "--method", "munit", "--data", "scenes", "--preset", "small", *settings]


def many(name, *settings):
    words = ["--method", name, "--data", "scenes", "--preset", "small"]
    return ["train", *words, "data.domains=[outline,painted,neon]", *settings]


@pytest.mark.parametrize(
    "arguments, code, words",
    [
        (munit("optim.default.lrr=1"), 2, ["optim.default.lrr", "lr"]),
        (["train", "--preset", "small", "x.yaml", "--out", "r", "train.stepss=1"], 2, ["x.yaml"]),
        (["train", "--method", "munit", "--data", "scenes", "train.stepss=1"], 2, ["train.stepss"]),
        (munit("optim.G1.lr=1"), 2, ["optim.G1", "G_1"]),
        (munit("method.lamda_x=1"), 2, ["method.lamda_x", "lambda_x"]),
        (munit("train.stepss=1"), 2, ["train.stepss", "steps"]),
        (munit("trian.steps=1"), 2, ["trian", "train"]),
        (munit("train.steps=many"), 2, ["train.steps", "many"]),
        (munit("data.batch=0"), 2, ["data.batch", "0"]),
        (munit("data.size=8"), 2, ["data.size", "16"]),
        (munit("data.domains=[outline, paintd]"), 2, ["paintd", "painted"]),
        (munit("data.domains=[outline, painted, neon]"), 2, ["exactly 2 domains", "data.domains"]),
        (munit("data.size=[0, 0]"), 2, ["data.size", "8"]),
        (many("stargan_v2", "optim.default=1e-4"), 2, ["optim.default"]),
        (["train", "--method", "munit", "data.root=2024-13-45"], 2, ["2024-13-45"]),
        (munit("data.domains=[1.5, 2]"), 2, ["data.domains", "double quotes"]),
        (munit("train.steps=1.5e0"), 2, ["train.steps", "1.5"]),
        (munit("data.domains=[outline,"), 2, ["data.domains", "in quotes"]),
        (munit("preset=[a]"), 2, ["preset", "small"]),
        (munit("method.lambda_x=.inf"), 2, ["method.lambda_x", "finite"]),
        (many("tunit", "method.labels=[a]"), 2, ["method.labels", "none"]),
        (many("dsm", "data.size=1024"), 2, ["method.width", "16384"]),
        (munit("method.lambda_vgg=1"), 2, ["method.vgg", "unpaired weights convert"]),
        (["train", "--method", "munitt"], 2, ["munitt", "munit"]),
        (["train", "--method", "munit"], 2, ["--data"]),
        (["train", "--method", "my_lab.nothing"], 2, ["my_lab.nothing", "PYTHONPATH"]),
        (["train"], 2, ["--method"]),
        (["train", "missing.yaml"], 2, ["missing.yaml"]),
        (["train", "--method", "munit", "--data", "nowhere"], 2, ["nowhere"]),
        (["train", "--method", "munit", "--data", "empty"], 65, ["empty"]),
        (["train", "--method", "munit", "--data", "one"], 2, ["two domains, here is one"]),
        (["train", "--resume", "empty"], 2, ["empty", "config.yaml"]),
        (["train", "--resume", "empty", "--method", "munit"], 2, ["--resume"]),
        (["translate", "empty", "a.png", "--to", "painted"], 2, ["empty", "model.safetensors"]),
        (["translate", "a.png", "a.png", "--to", "painted"], 65, ["a.png"]),
        (["evaluate", "empty"], 2, ["empty"]),
        (
            ["weights", "convert", "a.png", "x.safetensors", "--preprocessing", "caffe"],
            65,
            ["a.png"],
        ),
        (["weights", "import", "munit", "none.pt", "x.safetensors"], 2, ["none.pt"]),
    ],
)
def test_one_sentence(arguments, code, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "one").mkdir()
    for i in range(3):
        Image.new("RGB", (32, 32), (i * 80, 90, 200)).save(tmp_path / "one" / f"{i}.png")
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    assert main(arguments) == code
    printed = capsys.readouterr().err.strip()
    assert printed.startswith("unpaired: ") and "\n" not in printed and "Traceback" not in printed
    for word in words:
        assert word in printed


def test_files_of_weights_are_found_from_anywhere(tmp_path, monkeypatch):
    """And the model file that is shared does not say where they lay."""
    monkeypatch.chdir(tmp_path)
    run = tiny.run("smoothgan", "method.lpips=[a.pth, b/c.pth]")
    assert run.method.lpips == (tmp_path / "a.pth", tmp_path / "b" / "c.pth")
    said = json.loads(metadata(run, ("x", "y"), 0)["config"])["method"]
    assert said["lpips"] == ["a.pth", "c.pth"]
    run = tiny.run("munit", "method.vgg=v.safetensors")
    assert run.method.vgg == tmp_path / "v.safetensors"
    assert json.loads(metadata(run, ("x", "y"), 0)["config"])["method"]["vgg"] == "v.safetensors"


@pytest.mark.parametrize("name", method_names())
def test_a_model_file_cannot_ask_for_networks_without_end(name):
    """Every count and width has a bound: a file of a few bytes may name a million blocks."""
    fields = find_method(name).Config.model_fields.items()
    counts = {key for key, field in fields if field.annotation in (int, int | None)}
    assert counts
    for key in counts:
        with pytest.raises(ConfigProblem, match=f"method.{key}: input should be less than"):
            load(method={"name": name, key: 10**6})


def test_files_of_weights_may_move():
    old, moved = (tiny.run("smoothgan", f"method.lpips=[{d}/a.pth]") for d in ("here", "there"))
    assert changes(old, moved) == []
    other = tiny.run("smoothgan", "method.lpips=[here/b.pth]")
    assert changes(old, other) == ["method.lpips: ['a.pth'] -> ['b.pth']"]


def test_usage_errors_leave_with_2(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["translate"])
    assert stop.value.code == 2
    with pytest.raises(SystemExit) as stop:
        main(["train", "--metod", "munit"])
    assert stop.value.code == 2 and "--metod" in capsys.readouterr().err


def test_settings_stand_anywhere_in_the_line(capsys):
    assert (
        main(
            [
                "train",
                "data.batch=0",
                "--method",
                "munit",
                "train.steps=5",
                "--data",
                "scenes",
                "data.size=32",
            ]
        )
        == 2
    )
    assert "data.batch" in capsys.readouterr().err


def test_says_a_setting_in_one_way():
    assert override("optim.F.lr=5e-7") == {
        "optim": {"F": {"lr": "5e-7"}}
    }  # YAML 1.1 reads a string ...
    config = load(None, ["optim.G_1.lr=5e-7"], method={"name": "munit"})
    assert config.optimizer("G_1").lr == 5e-7  # ... which the types mend
    assert config.optimizer("D_1").lr == 1e-4
    assert (
        config.optimizer("G_1").weight_decay == 1e-4
    )  # what it does not say it takes from default


def test_what_yaml_takes_for_another_kind():
    words = ["train.steps=1e3", "method.queue=2e3", "data.domains=[0, 1]"]
    config = load(None, words, method={"name": "tunit"})
    assert (config.train.steps, config.method.queue) == (1000, 2000)
    assert config.data.domains == ("0", "1")


def test_a_tilde_is_the_home_of_the_user(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    data = load(None, ["data.root=[~/a, b]", "data.labels=~/l.csv"], method={"name": "munit"}).data
    assert data.root == ("/home/ann/a", str(Path("b").absolute()))
    assert data.labels == "/home/ann/l.csv"
    assert load(method={"name": "munit", "vgg": "~/v"}).method.vgg == Path("/home/ann/v")


def test_domains_of_digits(tmp_path):
    for name in ("007", "8"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (32, 32)).save(tmp_path / name / "a.png")
    for word, missing in (("[8, 007]", "'7'.*007.*double quotes"), ('[8, "007"]', None)):
        words = [f"data.root={tmp_path}", f"data.domains={word}"]
        data = load(None, words, method={"name": "munit"}).data
        if missing is None:
            assert open_dataset(data, "two_domains").domains == ("8", "007")
        else:
            with pytest.raises(ConfigProblem, match=f"(?i){missing}"):
                open_dataset(data, "two_domains")


def test_strength_of_what_is_said(tmp_path):
    path = tmp_path / "ä b.yaml"
    path.write_text("method: {name: munit, dim: 8}\npreset: small\ntrain: {steps: 10}\n")
    config = load(path, ["train.steps=20"])
    assert (config.method.dim, config.train.steps) == (8, 20)
    assert config.data.size == 32  # the preset's


def test_a_method_may_be_said_by_its_name_alone():
    assert load(None, ["method=munit"], preset="small") == load(
        preset="small", method={"name": "munit"}
    )


def test_broken_yaml_names_the_line(tmp_path, capsys):
    path = tmp_path / "c.yaml"
    path.write_text("method: {name: munit}\ntrain: {steps: [1, 2\n")
    assert main(["train", str(path)]) == 2
    assert "line" in capsys.readouterr().err


def test_methods_are_a_table_made_without_torch():
    words = [sys.executable, "-X", "importtime", "-m", "unpaired", "methods"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "| torch" not in done.stderr and "pydantic" not in done.stderr
    head, *lines = done.stdout.splitlines()
    assert head.split() == "method domains pairs labels outputs venue year paper".split()
    assert [line.split()[0] for line in lines] == list(method_names())
    rows = {line.split()[0]: line for line in lines}
    for name, line in rows.items():
        method = find_method(name)
        card = method_card(name)
        assert card == {"layout": method.layout, **method.card}
        assert line.endswith(method.card["title"]) and method.card["outputs"] in line
    columns = [head.index(word) for word in ("domains", "pairs", "labels", "outputs")]

    def row(name):
        return [rows[name][a:b].strip() for a, b in itertools.pairwise(columns)]

    assert row("cyclegan") == ["2", "no", "domain"]
    assert row("pix2pix") == ["2", "yes", "domain"]
    assert row("dsm") == ["2 or more", "no", "domain"]
    assert row("tunit") == ["found by itself", "no", "no"]


CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_loads_and_trains_two_steps_when_shrunk(path, tmp_path):
    full = load(path)
    assert path.stem.startswith(full.method.name)
    layout = full.method_class().layout
    domains = ["outline", "painted", "neon"][: tiny.DOMAINS[layout]]
    side, sizes = tiny.METHODS[full.method.name]
    small = [f"method.{key}={value}" for key, value in sizes.items()]
    small += [f"method.{key}=null" for key in ("vgg",) if getattr(full.method, key, None)]
    small += ["method.lambda_vgg=0"] if getattr(full.method, "lambda_vgg", 0) else []
    small += [f"data.domains=[{', '.join(domains)}]", "data.root=scenes", "data.count=8"]
    small += [f"data.size={side}", f"data.batch={min(full.data.batch, 4)}", "train.steps=2"]
    run = load(path, [*small, "train.precision=32-true"])
    trainer = Trainer(run, RunFolder(tmp_path), say=print)
    trainer.begin(resume=False, init=None, allow_dataset_change=False)
    before = [p.clone() for p in trainer.method.parameters()]
    view = View() if layout == "unlabelled" else None
    for step in range(2):
        tensors, files = trainer.batches[step]
        losses = trainer.play(to_device(tensors, "cpu", view), files)
        assert losses and all(loss.isfinite() for loss in losses.values())
    assert any(
        not torch.equal(a, b) for a, b in zip(before, trainer.method.parameters(), strict=True)
    )


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_fits_its_networks_at_full_size(path):
    full = load(path)
    if getattr(full.method, "lambda_vgg", 0):
        pytest.skip("needs weights")
    domains = (
        full.data.domains or ("a", "b", "c")[: max(2, tiny.DOMAINS[full.method_class().layout])]
    )
    with torch.device("meta"):
        method = full.build(tuple(domains))
    nets = dict(method.named_children())
    assert set(full.optim) - {"default"} <= nets.keys()


def test_data_check_prints_text_json_and_a_page(tmp_path, capsys):
    for domain in "ab":
        (tmp_path / "data" / domain).mkdir(parents=True)
        for i in range(3):
            image = Image.new("RGB", (32, 32), (i * 80, 90, 200))
            image.putpixel((i, 3), (255, 0, 0))
            image.save(tmp_path / "data" / domain / f"{i}.png")
    (tmp_path / "data" / "a" / "bad.jpg").write_text("hello")
    assert (
        main(["data", "check", str(tmp_path / "data"), "--page", str(tmp_path / "page.html")]) == 0
    )
    assert (
        "bad.jpg" in capsys.readouterr().out and "bad.jpg" in (tmp_path / "page.html").read_text()
    )
    assert main(["data", "check", str(tmp_path / "data"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)


def test_a_method_may_be_named_in_short(tmp_path):
    (tmp_path / "run.yaml").write_text("method: munit\npreset: small\n")
    run = load(tmp_path / "run.yaml", ["method.dim=6"])
    assert run.method.name == "munit" and run.method.dim == 6
    assert load(None, ["method=unit"], method={"name": "munit"}).method.name == "unit"


def test_dates_that_are_none_are_words(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("data: {root: 2024-13-45}\n")
    assert main(["train", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "run.yaml" in said and said.count("\n") == 1


def test_settings_may_be_longer_than_file_names(tmp_path, capsys):
    domains = ",".join(f"domain-{i:03d}" for i in range(100))
    (tmp_path / "data").mkdir()
    words = [*many("stargan_v2"), "--data", str(tmp_path / "data"), f"data.domains=[{domains}]"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 65
    assert "has no images" in capsys.readouterr().err


def test_a_folder_that_is_closed_to_the_user_is_one_sentence(tmp_path, monkeypatch, capsys):
    def closed(*args, **kw):
        raise PermissionError(13, "Permission denied", str(tmp_path / "closed"))

    monkeypatch.setattr("unpaired.data.folders.scan", closed)
    assert main(["data", "check", str(tmp_path / "closed")]) == 65
    said = capsys.readouterr().err
    assert "closed: Permission denied" in said and said.count("\n") == 1
    monkeypatch.setattr("unpaired.data.folders.scan", lambda *a, **k: open(tmp_path))
    assert main(["data", "check", str(tmp_path)]) == 74


def test_the_nearest_name_is_the_one_meant(capsys):
    assert nearest("Munit", ["munit", "unit"]) == "did you mean munit?"
    assert nearest("domain_9", ["domain_1", "domain_2"]).startswith("choose from")
    for words, meant in (
        (["--method", "Munit"], "munit?"),
        (["--method", "munit", "train.stps=4"], "did you mean train.steps?"),
        (["--method", "munit", "steps=4"], "did you mean train.steps?"),
        (["--method", "munit", "lr=1e-4"], "did you mean optim.default.lr?"),
        (["--method", "munit", "optim.lr=1e-4"], "optim.default.lr"),
    ):
        assert main(["train", "--data", "scenes", *words]) == 2
        assert meant in capsys.readouterr().err
