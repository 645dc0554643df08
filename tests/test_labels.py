"""Labels of unlabelled data: from folders and from a CSV, for a share of the images; and what is refused."""

import json
import re

import numpy as np
import pytest
import tiny
from PIL import Image

from unpaired import evaluate, train
from unpaired.checkpoint import RunFolder
from unpaired.cli import main
from unpaired.data.batches import Batches
from unpaired.data.datasets import open_dataset
from unpaired.errors import ConfigProblem, DataProblem


def fill(root, *names):
    """Small images of noise."""
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 99, (36, 36, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path, "PNG")
    return root


def dataset(root, seed=0, **settings):
    data = tiny.run("tunit").data
    data = data.model_copy(update={"root": str(root), "domains": None} | settings)
    return open_dataset(data, "unlabelled", seed)


def found(data, split="train"):
    """File names and what their labels are."""
    (pictures,) = data.splits[split]
    names = (*data.labels, None)
    return {
        pictures.name(i).rpartition("/")[2]: names[pictures.label(i)] for i in range(len(pictures))
    }


def test_folders_are_labels_and_loose_images_have_none(tmp_path):
    fill(tmp_path, "Käse é/a.png", "Käse é/deep/b.png", "cat/c.png", "loose.png")
    data = dataset(tmp_path, labels="folders")
    assert data.domains == ("images",) and data.labels == ("Käse é", "cat")
    assert found(data) == {"a.png": "Käse é", "b.png": "Käse é", "c.png": "cat", "loose.png": None}
    assert set(found(dataset(tmp_path)).values()) == {None}


@pytest.mark.parametrize(
    "layout", ["{split}/{domain}/{name}", "{domain}/{split}/{name}", "{split}{domain}/{name}"]
)
def test_splits_stay_apart_and_are_no_labels(tmp_path, layout):
    places = [("train", "A", "1.png"), ("train", "B", "2.png"), ("test", "A", "3.png")]
    fill(tmp_path, *(layout.format(split=s, domain=d, name=n) for s, d, n in places))
    data = dataset(tmp_path, labels="folders")
    assert found(data) == {"1.png": "A", "2.png": "B"} and found(data, "test") == {"3.png": "A"}
    assert set(found(dataset(tmp_path))) == {"1.png", "2.png"}


def test_several_folders_and_lists_with_domains_are_one_domain(tmp_path):
    fill(tmp_path, "x/1.png", "y/2.png")
    roots = (str(tmp_path / "x"), str(tmp_path / "y"))
    data = tiny.run("tunit").data.model_copy(update={"root": roots, "labels": "folders"})
    assert found(open_dataset(data, "unlabelled")) == {"1.png": "x", "2.png": "y"}
    (tmp_path / "list.csv").write_text("x/1.png,one\ny/2.png,two\n")
    assert found(dataset(tmp_path / "list.csv", labels="folders")) == {
        "1.png": "one",
        "2.png": "two",
    }
    assert len(found(dataset(tmp_path / "list.csv"))) == 2


def test_a_csv(tmp_path):
    root = fill(tmp_path / "meine Bilder", "a.png", "b.png", "c.png", "d.png", "e.heic")
    table = tmp_path / "labels ü.csv"
    table.write_text(
        'path,label\n# said by Ann\n"meine Bilder/a.png",tabby\nb.png,siamese\nc.png,\ne.heic,tabby\n'
    )
    data = dataset(root, labels=str(table))
    assert data.labels == ("siamese", "tabby")
    assert found(data) == {"a.png": "tabby", "b.png": "siamese", "c.png": None, "d.png": None}


def test_a_share_of_each_label(tmp_path):
    fill(tmp_path, *(f"{d}/{i}{d}.png" for d, n in (("a", 10), ("b", 4)) for i in range(n)))
    kept = {}
    for seed in (0, 0, 1):
        labels = found(dataset(tmp_path, seed, labels="folders", labelled=0.2))
        kept.setdefault(seed, []).append({name for name, label in labels.items() if label})
        assert sorted(filter(None, labels.values())) == ["a", "a", "b"]
    assert kept[0][0] == kept[0][1] != kept[1][0]


def test_batches_carry_labels_but_not_those_of_missing_images(tmp_path):
    fill(tmp_path, "a/0.png", "a/1.png", "b/2.png", "b/3.png", "4.png")
    (tmp_path / "a" / "1.png").write_bytes(b"broken")
    data = dataset(tmp_path, labels="folders")
    batches = Batches(data.splits["train"], "unlabelled", 5, (32, 32), steps=3)
    for step in range(3):
        tensors, files = batches[step]
        said = {f.rpartition("/")[2]: y for f, y in zip(files, tensors["y"].tolist(), strict=True)}
        assert said == {"0.png": 0, "1.png": -1, "2.png": 1, "3.png": 1, "4.png": -1}


def test_scenes_of_several_domains():
    run = tiny.run(
        "tunit", "data.domains=[outline, neon]", "data.labels=folders", "data.labelled=0.5"
    )
    data = open_dataset(run.data, "unlabelled")
    (pictures,) = data.splits["train"]
    assert data.labels == ("outline", "neon") and data.domains == ("images",)
    labels = [pictures.label(i) for i in range(len(pictures))]
    assert [labels.count(y) for y in (-1, 0, 1)] == [40, 20, 20]
    known = [(pictures.name(i).split()[0], data.labels[y]) for i, y in enumerate(labels) if y >= 0]
    assert all(a == b for a, b in known)
    assert pictures.read(0).shape == pictures.read(79).shape == (32, 32, 3)


@pytest.mark.parametrize("kind", ["some", "all"])
def test_training_learns_the_labels_domains(tmp_path, kind):
    fill(tmp_path / "data", *(f"{d}/{i}{d}.png" for d in ("tabby", "siamese") for i in range(6)))
    words = ["data.domains=null", f"data.root={tmp_path / 'data'}", "data.labels=folders"]
    config = tiny.run("tunit", *words, f"method.labels={kind}", steps=3)
    run = RunFolder(tmp_path / "run")
    train.fit(config, run, say=lambda line: None)
    _, _, state = run.newest()
    assert state["domains"] == ["siamese", "tabby", "domain_3"]
    losses = set(run.read_log()[-1]["losses"])
    assert ("CE" in losses) == (kind == "some")


@pytest.mark.parametrize("kind", ["none", "some"])
def test_labels_that_training_learns_may_not_change(tmp_path, kind):
    fill(tmp_path / "data", *(f"{d}/{i}{d}.png" for d in ("b", "c") for i in range(6)))
    words = ["data.domains=null", f"data.root={tmp_path / 'data'}", "data.labels=folders"]
    run = RunFolder(tmp_path / "run")

    def fit(steps, **kw):
        config = tiny.run("tunit", *words, f"method.labels={kind}", steps=steps)
        train.fit(config, run, say=lambda line: None, **kw)

    fit(2)
    fill(tmp_path / "data", *(f"a/{i}a.png" for i in range(6)))
    if kind == "some":
        with pytest.raises(ConfigProblem, match="began with the labels b, c"):
            fit(4, resume=True, allow_dataset_change=True)
    else:
        fit(4, resume=True, allow_dataset_change=True)
    assert run.newest()[0] == (2 if kind == "some" else 4)


def test_other_labels_of_the_same_images_are_another_data_set(tmp_path, capsys):
    names = [f"{i}{d}.png" for d in "ab" for i in range(6)]
    fill(tmp_path / "data", *names)
    table, elsewhere = tmp_path / "labels.csv", tmp_path / "elsewhere.csv"

    def label(table, *labels):
        lines = (f"data/{name},{y}\n" for name, y in zip(names, labels, strict=True))
        table.write_text("".join(lines))

    words = ["data.domains=null", f"data.root={tmp_path / 'data'}", f"data.labels={table}"]
    label(table, *"bbbbbbcccccc")
    folder = RunFolder(tmp_path / "run")
    config = tiny.run("tunit", *words, "method.labels=all", steps=2)
    train.fit(config, folder, say=lambda line: None)
    label(table, *"ccccccbbbbbb")
    go_on = ["train", "--resume", str(tmp_path / "run"), "train.steps=3"]
    assert main(go_on) == 2
    assert "labels of 12 images changed" in capsys.readouterr().err
    table.unlink()
    label(elsewhere, *"bbbbbbcccccc")
    assert main([*go_on, f"data.labels={elsewhere}"]) == 0  # the file alone has moved
    known = json.loads((tmp_path / "run" / "dataset.json").read_text())
    del known["labels"]  # as earlier versions wrote it
    (tmp_path / "run" / "dataset.json").write_text(json.dumps(known))
    assert main([*go_on[:3], "train.steps=4"]) == 0


def test_the_second_view_mirrors_only_where_images_do(monkeypatch, tmp_path):
    seen = []

    def caught(tensors, device, view):
        seen.append(view)
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "to_device", caught)
    for flip in ("true", "false"):
        fill(tmp_path / "data", "a.png", "b.png")
        config = tiny.run(
            "tunit", f"data.root={tmp_path / 'data'}", "data.domains=null", f"data.flip={flip}"
        )
        with pytest.raises(KeyboardInterrupt):
            train.fit(config, RunFolder(tmp_path / flip), say=lambda line: None)
    assert [view.flip for view in seen] == [True, False]


def refused(problem, words, root, method="tunit", **settings):
    with pytest.raises(problem, match=words) as caught:
        data = tiny.run(method).data.model_copy(
            update={"root": str(root), "domains": None} | settings
        )
        open_dataset(data, tiny.find_method(method).layout)
    assert str(caught.value).count("\n") == 0


def test_refusals(tmp_path):
    root = fill(tmp_path / "flat", "a.png", "b.png")
    table = tmp_path / "labels.csv"
    refused(DataProblem, "folder for each label", root, labels="folders")
    refused(
        ConfigProblem, "no file .*nowhere.csv.*folders", root, labels=str(tmp_path / "nowhere.csv")
    )
    table.write_text("a.png,x\nz.png,y\n")
    refused(DataProblem, "Line 2 of .*names z.png", root, labels=str(table))
    table.write_text("a.png,x\na.png,y\n")
    refused(DataProblem, "Line 2 of .*another label", root, labels=str(table))
    table.write_text("a.png\n")
    refused(DataProblem, "has a label", root, labels=str(table))
    table.write_text("a.png," + 200_000 * "x")
    refused(DataProblem, "Line 1 of .*cannot be read", root, labels=str(table))
    refused(ConfigProblem, "leave data.labels out", root, method="munit", labels="folders")
    refused(ConfigProblem, "scenes", "scenes", labels=str(table))


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["method.labels=some"], "data.labels=folders"),
        (
            ["method.labels=all", "data.labels=folders"],
            "1 of 3 training images have no label.*loose",
        ),
        (["method.labels=all", "data.labels=folders", "method.clusters=1"], "clusters"),
        (["data.labelled=0"], "data.labelled"),
        (["method.labels=all", "data.labels=folders", "method.training=separate"], "joint"),
    ],
)
def test_refusals_of_training(tmp_path, capsys, words, sentence):
    fill(tmp_path / "data", "a/1.png", "b/2.png", "loose.png")
    command = ["train", "--method", "tunit", "--preset", "small", "--data", str(tmp_path / "data")]
    assert main([*command, "--out", str(tmp_path / "run"), *words]) == 2
    said = capsys.readouterr().err
    assert re.search(sentence, said) and said.count("\n") == 1


def test_a_folder_with_splits_is_translated_whole(tmp_path):
    from unpaired.translate import inputs

    fill(tmp_path, "trainA/1.png", "testA/2.png", "3.png", "cats/test/4.png")
    stems = sorted(stem for _, stem in inputs(tmp_path, tmp_path / "out", []))
    assert stems == ["3", "cats-test-4", "testA-2", "trainA-1"]


def test_where_labels_tell_all_domains_none_are_found(tmp_path, capsys):
    """The head of C that finds domains does not learn then: nothing may ask it."""
    run = tiny.run("tunit", "method.labels=all", "data.labels=folders", "train.evaluate_every=1")
    run = run.model_copy(
        update={"data": run.data.model_copy(update={"domains": ("outline", "neon", "painted")})}
    )
    train.fit(run, RunFolder(tmp_path), say=lambda line: None)
    figures = [r["figures"] for r in RunFolder(tmp_path).read_log() if "figures" in r]
    assert figures and not any("clusters used" in f for f in figures)
    result = evaluate(tmp_path, say=lambda line: None)
    assert "clusters" not in result
    assert {d["target"] for d in result["directions"]} == {"outline", "neon", "painted"}
    assert main(["domains", str(tmp_path)]) == 2 and "told its domains" in capsys.readouterr().err
