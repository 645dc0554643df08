"""The benchmark of what is found without labels: two-step runs, not repeated, tables beside k-means."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import save_file

from unpaired.cli import main
from unpaired.metrics import classifier
from unpaired.metrics.matching import clustering
from unpaired.networks.squeezenet import SqueezeFeatures

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import no_labels  # noqa: E402
import running  # noqa: E402

TINY = "method.style_dim=4 method.c_dim=4 method.dim=4 method.d_dim=4 method.mlp_dim=4 data.batch=4 method.queue=8"


@pytest.fixture
def digits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arrays, rng = {}, np.random.default_rng(0)
    for name, shape in (("mnist", (28, 28)), ("usps", (16, 16)), ("mnistm", (32, 32, 3))):
        for split, n in (("train", 20), ("test", 10)):
            arrays[f"{name}_x_{split}"] = rng.integers(0, 255, (n, *shape), dtype=np.uint8)
            arrays[f"{name}_y_{split}"] = np.arange(n) % 10
    np.savez(tmp_path / "Ziffern ä.npz", **arrays)
    return tmp_path / "Ziffern ä.npz"


def test_a_table_of_two_step_runs(digits, tmp_path, monkeypatch, capsys):
    seen = []

    class Here:
        """A command that runs here, without a process."""

        def __init__(self, *words):
            self.words = [*map(str, words)]

        def wait(self, timeout=None):
            seen.append(self.words[0])
            return main(self.words)

    monkeypatch.setattr(running, "start", Here)
    monkeypatch.setattr(no_labels, "start", Here)
    monkeypatch.setattr(classifier, "STEPS", 1)
    torch.manual_seed(0)
    save_file(SqueezeFeatures().state_dict(), tmp_path / "squeezenet.safetensors")
    only = ["digits, seed 0", "three kinds of digits, seed 0", "digits, 10% of the labels"]
    words = ["--digits", str(digits), "--steps", "2", *TINY.split(), "--only", *only]
    words += ["--squeezenet", "squeezenet.safetensors"]
    no_labels.main(words)
    text = (no_labels.OUT / "table.md").read_text()
    assert text in capsys.readouterr().out
    rows, outputs = (
        [[c.strip() for c in line.split("|")[1:-1]] for line in part.splitlines()[2:]]
        for part in text.split("\n\n")
    )
    features = "k-means on SqueezeNet features"
    expected = ["digits: k-means on pixels", f"digits: {features}", *only]
    expected[3:3] = ["kinds: k-means on pixels", f"kinds: {features}"]
    assert [row[0] for row in rows] == expected and [row[0] for row in outputs] == only
    for row in rows:
        assert 0 <= float(row[1]) <= 1 and 0 <= float(row[2]) <= 1
        if row[0] in only:
            assert row[5] == "2" and float(row[6]) >= 0
    run = no_labels.OUT / "digits-10-of-the-labels"
    assert "CE" in json.loads((run / "log.jsonl").read_text().splitlines()[-1])["losses"]
    assert seen == ["train", "domains", "evaluate"] * 3
    no_labels.main(words)  # nothing is done again
    assert len(seen) == 9 and (no_labels.OUT / "table.md").read_text() == text


COLOURS = torch.tensor([[0.8, -0.9, -0.9], [-0.9, -0.9, 0.8]])  # of the kinds: blau, rot in order
PATTERNS = ("0", "1")  # the left half is bright, or the upper half


class Recolours:
    """A method that finds kinds by colour and gives an image the colour of another; or gives it back as it is."""

    def __init__(self, able):
        self.able = able

    def assign(self, x):
        return torch.stack([x[:, 2], x[:, 0]], 1).mean((2, 3))

    def encode_style(self, x, target):
        return self.assign(x).argmax(1)

    def translate(self, x, source, target, style):
        bright = (x.amax(1, keepdim=True) + 1) / 2
        return bright * (COLOURS.flip(0)[style][..., None, None] + 1) - 1 if self.able else x


@pytest.mark.parametrize("able, taken", [(True, 1.0), (False, 0.0)])
def test_which_labels_survive_translation(able, taken, tmp_path, monkeypatch):
    for split in ("train", "test"):
        for kind, colour in (("blau", COLOURS[1]), ("rot", COLOURS[0])):
            for pattern in PATTERNS:
                mask = torch.zeros(32, 32)
                mask[(slice(None), slice(16))[:: 1 if pattern == "0" else -1]] = 1
                image = ((colour[:, None, None] + 1) * 127 * mask).permute(1, 2, 0).byte()
                place = tmp_path / "data" / split / kind / pattern
                place.mkdir(parents=True)
                for i in range(4):
                    Image.fromarray(image.numpy() + np.uint8(i)).save(place / f"{i}.png")
    words = [f"data.root={tmp_path / 'data'}", "data.domains=null", "data.labels=folders"]
    (tmp_path / "run").mkdir()
    run = tiny.run("tunit", *words, "data.labelled=0.1")
    (tmp_path / "run" / "config.yaml").write_text(run.to_yaml())

    class Loaded:
        domains, device, method = ("a", "b"), torch.device("cpu"), Recolours(able)

    Loaded.run = run
    monkeypatch.setattr(no_labels.Translator, "load", lambda path: Loaded)

    def reads(parts, flip, what, tools):
        assert not torch.is_inference_mode_enabled()  # it learns
        assert [len(p.train) for p in parts.values()] == [8, 8]  # whatever share training is told
        if what.startswith("taken"):
            assert list(parts) == ["blau", "rot"]
            return Loaded.method.assign
        assert list(parts) == list(PATTERNS)
        return lambda x: torch.stack([x[:, :, 16:, :16], x[:, :, :16, 16:]], 1).mean((2, 3, 4))

    monkeypatch.setattr(no_labels, "learn", reads)
    shares = no_labels.survived(tmp_path / "run", "kinds")
    assert shares == {
        "taken": taken,
        "taken, untranslated": 0.0,
        "kept": 1.0,
        "kept, untranslated": 1.0,
    }


def test_figures_are_kept_with_their_step(tmp_path):
    file = tmp_path / "survival.json"
    assert running.kept(file, 3, lambda: {"taken": 0.5}) == {"taken": 0.5}
    assert running.kept(file, 3, lambda: 1 / 0) == {"taken": 0.5}
    assert running.kept(file, 4, lambda: {"taken": 0.25}) == {"taken": 0.25}


def test_what_images_show():
    run = tiny.run("tunit", "data.domains=[outline, neon]", "data.labels=folders")
    dataset = no_labels.open_dataset(run.data, "unlabelled")
    images = no_labels.Images(dataset.splits["train"][0], (32, 32), 3, None, [0, 41])
    assert no_labels.kinds(images, "scenes", dataset.labels) == ["outline", "neon"]
    assert set(no_labels.shown(images, "scenes", ())) <= set(no_labels.SHAPES)
    assert no_labels.shown(images, "emoji", ()) == ["", ""]


def test_cells_of_translations():
    def row(kid):
        return {"KID (classifier)": 9.0, "KID (squeezenet)": kid, "pixel diversity": 0.25}

    figures = {
        "means": {"reference": {"model": row(0.5), "untranslated": row(2.0), "real images": {}}},
        "directions": [
            {"way": "reference", "rows": {"model": row(0.25)}},
            {"way": "reference", "rows": {"model": {}}},
        ],
    }
    cells = no_labels.translations(figures, {"taken": 0.5, "taken, untranslated": 0.125})
    assert cells == ["0.5", "–", "2", "0.25, –", "–", "0.25", "0.50 (0.12)", "– (–)"]


def test_kmeans_finds_groups_that_are_apart():
    rng = np.random.default_rng(1)
    true = np.repeat(np.arange(4), 50)
    x = rng.normal(size=(200, 5)).astype(np.float32) + 8 * np.eye(5, dtype=np.float32)[true]
    found, away = no_labels.nearest(x, no_labels.kmeans(x, 4))
    assert clustering(true, found).accuracy == 1.0
    assert away.mean() == pytest.approx(5, rel=0.2)  # the variance within
