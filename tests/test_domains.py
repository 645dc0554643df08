"""The domains that are found without labels: looked at, named, translated to."""

import html
import json
import os
import re
import shlex
import shutil

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from unpaired import Translator, domains, train
from unpaired.checkpoint import RunFolder, load_model, save_model
from unpaired.cli import main
from unpaired.config import load
from unpaired.data.datasets import open_dataset
from unpaired.domains import Found
from unpaired.errors import ConfigProblem, Locked


def quiet(line):
    pass


def paint(root):
    """Eight reddish and eight bluish images in folders, two of each held out."""
    for label, colour in (("rot", (200, 30, 30)), ("blau ü", (30, 30, 200))):
        for i in range(8):
            path = root / ("test" if i > 5 else "train") / label / f"Bild {i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(i).integers(-30, 30, (32, 32, 3)) + np.array(colour)
            Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = paint(tmp_path_factory.mktemp("data ä"))
    words = ["data.domains=null", f"data.root={root}", "method.first_stage=0.5"]
    run = tmp_path_factory.mktemp("runs") / "ein Lauf"
    train.fit(tiny.run("tunit", *words, steps=4), RunFolder(run), say=quiet)
    return run, root


@pytest.fixture
def run(made, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(made[0], tmp_path / "ein Lauf")


def test_the_page_shows_sizes_images_map_and_agreement(run, made, capsys):
    assert main(["domains", str(run), "--labels", "folders"]) == 0
    printed, page = capsys.readouterr().out, (run / "domains.html").read_text()
    record = json.loads((run / "domains.json").read_text())
    assert record["names"] == ["domain_1", "domain_2", "domain_3"] and record["step"] == 4
    for split, n in (("train", 12), ("test", 4)):
        figures = record["splits"][split]
        assert sum(figures["sizes"]) == figures["images"] == figures["labelled"] == n
        assert np.array(figures["table"]).sum(1).tolist() == [n // 2, n // 2]
        assert np.array(figures["table"]).sum(0).tolist() == figures["sizes"]
        assert f"accuracy {figures['agreement']['accuracy']:.3f}" in printed
        assert f"Accuracy {figures['agreement']['accuracy']:.3f}" in page
    assert not re.search(r'(src|href)="(?!data:image/png;base64,)', page)  # it needs no other file
    assert page.count("<img ") == 12 and "blau ü" in page
    found, true = page.split("<svg")[1:]  # one map by domains, one by labels
    for drawn, groups in (
        (found, record["splits"]["train"]["sizes"]),
        (true, [6, 6]),
    ):
        assert [g.count("<circle ") for g in drawn.split("<g ")[1:]] == groups
    train.page.write(RunFolder(run), Translator.load(run).run, 4, alive=False)
    assert "domains.html" in (run / "index.html").read_text()


def test_without_labels_there_is_no_agreement(run):
    assert main(["domains", str(run)]) == 0
    record = json.loads((run / "domains.json").read_text())
    assert "agreement" not in record["splits"]["train"]
    page = (run / "domains.html").read_text()
    assert "true labels" not in page and page.count("<svg") == 1


def test_other_images_and_a_model_file_alone(run, tmp_path, capsys):
    assert main(["domains", str(run / "model.safetensors")]) == 2
    assert "--data DIR" in capsys.readouterr().err
    other = tmp_path / "anderswo"
    other.mkdir()
    model = other / "model.safetensors"
    model.write_bytes((run / "model.safetensors").read_bytes())
    assert main(["domains", str(model), "--data", str(paint(tmp_path / "neu"))]) == 0
    record = json.loads((other / "model.domains.json").read_text())
    assert record["splits"]["train"]["images"] == 12 and (other / "model.domains.html").is_file()
    assert main(["domains", str(model), "--name", "2=tabby"]) == 0
    assert Translator.load(model).domains[1] == "tabby"


def test_another_model_takes_no_page_from_the_run(run, made):
    """Nor its names, which going on takes up."""
    assert main(["domains", str(run), "--name", "2=tabby"]) == 0
    other = shutil.copy(made[0] / "model.safetensors", run / "older.safetensors")
    assert main(["domains", str(other), "--data", str(made[1])]) == 0
    assert domains.saved_names(run)[1] == "tabby" and not (run / "domains.html").exists()


def test_a_run_that_came_without_its_config(run, made, capsys):
    (run / "config.yaml").unlink()
    assert main(["domains", str(run)]) == 2
    assert "say --data DIR" in capsys.readouterr().err
    assert main(["domains", str(run), "--data", str(made[1])]) == 0
    assert (run / "domains.html").is_file()


def test_what_cannot_be_written_is_told_before_the_looking(run, monkeypatch, capsys):
    monkeypatch.setattr(domains, "look", lambda *args: 1 / 0)
    (run / "domains.html").mkdir()
    assert main(["domains", str(run)]) == 73
    said = capsys.readouterr().err
    assert "domains.html cannot be written" in said and said.count("\n") == 1


def test_commands_on_the_page_can_be_copied(run):
    """With names of several words, and of the largest domain, which has a mean style."""
    words = [f"{k}=Katze {k}" for k in (1, 2, 3)]
    assert main(["domains", str(run), "--name", *words]) == 0
    assert main(["domains", str(run)]) == 0
    sizes = json.loads((run / "domains.json").read_text())["splits"]["train"]["sizes"]
    page = html.unescape((run / "domains.html").read_text())
    largest = f"'Katze {np.argmax(sizes) + 1}'"
    assert f"unpaired translate {shlex.quote(str(run))} IMAGE --to {largest}<" in page


def test_labels_that_are_not_utf_8(run, tmp_path):
    data = paint(tmp_path / "neu")
    os.rename(data / "train" / "rot", data / "train" / os.fsdecode(b"r\xf6t"))
    assert main(["domains", str(run), "--data", str(data), "--labels", "folders"]) == 0
    assert r"r\udcf6t" in (run / "domains.html").read_text()


def test_images_that_are_all_of_a_test_split(run, tmp_path):
    data = tmp_path / "neu"
    shutil.copytree(paint(tmp_path / "alle") / "test", data / "test")
    assert main(["domains", str(run), "--data", str(data)]) == 0
    assert set(json.loads((run / "domains.json").read_text())["splits"]) == {"test"}
    assert "4 test images" in (run / "domains.html").read_text()


def test_the_best_model_is_named_too(run):
    shutil.copy(run / "model.safetensors", run / "model-best.safetensors")
    assert main(["domains", str(run), "--name", "2=tabby"]) == 0
    assert Translator.load(run / "model-best.safetensors").domains[1] == "tabby"


@pytest.mark.parametrize("name", domains.MODELS)
def test_a_model_within_its_run_names_the_run(run, name):
    shutil.copy(run / "model.safetensors", run / "model-best.safetensors")
    assert main(["domains", str(run / name), "--name", "2=tabby"]) == 0
    for model in domains.MODELS:
        assert Translator.load(run / model).domains[1] == "tabby"
    assert domains.saved_names(run)[1] == "tabby"  # which going on takes up


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"names": 3}'])
def test_names_that_are_damaged_are_one_sentence(run, text, capsys):
    (run / "domains.json").write_text(text)
    assert main(["train", "--resume", str(run), "train.steps=5"]) == 74
    said = capsys.readouterr().err
    assert "domains.json is damaged" in said and "delete it" in said and said.count("\n") == 1


def test_names_are_kept_and_translated_to(run, made, tmp_path, capsys):
    image = next((made[1] / "test" / "rot").iterdir())
    t = Translator.load(run)
    k = int(t.method.C.count.argmax())
    assert main(["domains", str(run), "--name", f"{k + 1}=Tigerkatze ä"]) == 0
    assert f"{k + 1} Tigerkatze ä" in capsys.readouterr().out
    named = Translator.load(run)
    assert named.domains[k] == "Tigerkatze ä"
    for key, value in named.method.state_dict().items():
        assert (value == t.method.state_dict()[key]).all()

    out = tmp_path / "out"
    words = ["translate", str(run), str(image), "--to", "Tigerkatze ä", "--out", str(out)]
    assert main(words) == 0
    (file,) = out.glob("Bild*.png")
    (mean,) = named.translate(image, "Tigerkatze ä")
    assert np.array_equal(np.asarray(Image.open(file)), np.asarray(mean))
    style = named.method.C.mean[k : k + 1]
    (same,) = named.render(named.prepare(image), 0, k, style)
    assert np.array_equal(np.asarray(same), np.asarray(mean))
    (like,) = named.translate(image, "Tigerkatze ä", style_from=image)
    assert not np.array_equal(np.asarray(like), np.asarray(mean))

    assert main(["domains", str(run)]) == 0  # the names outlive the page,
    assert main(["train", "--resume", str(run), "train.steps=5"]) == 0  # and going on
    assert Translator.load(run).domains[k] == "Tigerkatze ä" == domains.saved_names(run)[k]
    assert RunFolder(run).newest()[2]["domains"][k] == "Tigerkatze ä"
    assert main(["domains", str(run), "--name", "Tigerkatze ä=cat"]) == 0
    assert Translator.load(run).domains[k] == "cat"


def test_a_fresh_start_forgets_names(run):
    assert main(["domains", str(run), "--name", "1=tabby"]) == 0
    RunFolder(run).start_fresh()
    assert domains.saved_names(run) is None


def test_names_that_are_refused(run, capsys):
    for words, sentence in [
        (["1"], "NUMBER=NAME"),
        (["1="], "NUMBER=NAME"),
        (["1=7"], "no number"),
        (["4=tabby"], "from 1 to 3"),
        (["0=tabby"], "from 1 to 3"),
        (["domain_4=tabby"], "choose from domain_1, domain_2, domain_3"),
        (["1=tabby", "2=tabby"], "two domains"),
        (["1=domain_2"], "two domains"),
        (["1=x", "--labels", "folders"], "leave"),
    ]:
        assert main(["domains", str(run), "--name", *words]) == 2
        said = capsys.readouterr().err
        assert sentence in said and said.count("\n") == 1, words
    assert domains.renamed(("a", "b"), ["1=b", "2=a"]) == ("b", "a")
    with RunFolder(run).lock(), pytest.raises(Locked):
        domains.rename(run, ["1=tabby"])


def test_methods_that_find_no_domains_are_refused(tmp_path, capsys):
    train.fit(tiny.run(steps=1), RunFolder(tmp_path / "run"), say=quiet)
    assert main(["domains", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "munit is told its domains" in said and said.count("\n") == 1
    assert main(["domains", str(tmp_path / "run"), "--name", "1=dogs"]) == 2
    assert "munit is told its domains" in capsys.readouterr().err
    assert Translator.load(tmp_path / "run").domains == ("outline", "painted")


def test_to_all_leaves_domains_without_a_mean_style_out(run, made, tmp_path, capsys):
    tensors, about = load_model(run / "model.safetensors")
    image, out = next((made[1] / "test" / "rot").iterdir()), tmp_path / "out"
    words = ["translate", str(run), str(image), "--to", "all", "--out", str(out)]
    for counts, kept in (([1, 0, 1], {"domain_1", "domain_3"}), ([0, 0, 0], set())):
        save_model(
            run / "model.safetensors",
            tensors | {"C.count": torch.tensor(counts).to(tensors["C.count"])},
            about,
        )
        assert main(words) == (0 if kept else 2)
        said = capsys.readouterr()
        if kept:
            assert "Left out: Domain domain_2 has no mean style" in said.out
            assert {p.name for p in out.iterdir()} == {
                f"{name}.png" for d in kept for name in (f"{image.stem}-{d}-00", f"sheet-{d}")
            }
        else:
            assert "Domain domain_1 has no mean style" in said.err and said.err.count("\n") == 1
    assert main([*words, "--style-from", str(image)]) == 0
    assert len(list(out.glob("sheet-*-from-*.png"))) == 3


def test_a_domain_without_images_has_no_mean_style(run):
    t = Translator.load(run)
    t.method.C.count.zero_()
    with pytest.raises(ConfigProblem, match="domain_2 has no mean style"):
        t.translate(np.zeros((32, 32, 3), np.uint8), "domain_2")


def test_looking_evenly_at_some(made):
    run, root = made
    t = Translator.load(run)
    (pictures,) = open_dataset(load(run / "config.yaml").data, "unlabelled").splits["train"]
    whole, some = domains.look(t, pictures), domains.look(t, pictures, most=3)
    assert whole.places.tolist() == list(range(12)) and some.places.tolist() == [0, 5, 11]
    assert (some.domain == whole.domain[some.places]).all()
    assert np.allclose(some.style, whole.style[some.places], atol=1e-5)


def test_the_map_keeps_the_two_largest_directions():
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(50, 2)) * [5, 2]
    turn, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    xy, explained = domains.principal(flat @ turn[:2] + 3)
    assert explained == pytest.approx(1)
    assert np.allclose(np.linalg.norm(xy, axis=1), np.linalg.norm(flat - flat.mean(0), axis=1))
    assert domains.principal(np.ones((3, 1)))[0].shape == (3, 2)


def test_typical_images_are_nearest_to_the_mean_style():
    style = np.array([[0.0], [9.0], [1.0], [1.2], [5.0]])
    found = Found(np.arange(5), np.array([0, 0, 0, 0, 1]), style, np.full(5, -1))
    assert domains.typical(found, 0, most=2) == [3, 2] and domains.typical(found, 2) == []


def test_agreement_of_a_known_table():
    label, mine = np.array([0, 0, 0, 1, 1, -1]), np.array([2, 2, 0, 1, 1, 1])
    found = Found(np.arange(6), mine, np.zeros((6, 2)), label)
    figures = domains.figures(found, ("a", "b", "c"), ("x", "y"))
    assert figures["sizes"] == [1, 3, 2] and figures["table"] == [[1, 0, 2], [0, 2, 0]]
    assert figures["labelled"] == 5 and figures["agreement"]["accuracy"] == 0.8
    lines = domains.confusion(figures, ("a", "b", "c"))
    assert "<th>c</th><th>b</th><th>a</th>" in lines  # the matches stand on the diagonal
    assert "<td class=hit>2</td><td>0</td><td>1</td>" in lines


@pytest.mark.parametrize(
    "sizes, word",
    [
        ([100, 0, 0], "collapsed"),
        ([50, 50, 1], "method.clusters=2"),
        ([70, 15, 15], "70%"),
        ([40, 30, 30], None),
        ([90, 10], None),
    ],
)
def test_concerns(sizes, word):
    said = domains.concerns(sizes, "abc"[: len(sizes)])
    assert [word in s for s in said] == ([True] if word else [])
