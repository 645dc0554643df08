"""The benchmark of what is found without labels: two-step runs, not repeated, a table beside k-means."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from unpaired.cli import main
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
    torch.manual_seed(0)
    save_file(SqueezeFeatures().state_dict(), tmp_path / "squeezenet.safetensors")
    only = ["digits, seed 0", "digits, 10% of the labels", "three kinds of digits"]
    words = ["--digits", str(digits), "--steps", "2", *TINY.split(), "--only", *only]
    words += ["--squeezenet", "squeezenet.safetensors"]
    no_labels.main(words)
    text = (no_labels.OUT / "table.md").read_text()
    assert text in capsys.readouterr().out
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines()[2:]]
    features = "k-means on SqueezeNet features"
    expected = ["digits: k-means on pixels", f"digits: {features}", *only]
    expected[4:4] = ["kinds: k-means on pixels", f"kinds: {features}"]
    assert [row[0] for row in rows] == expected
    for row in rows:
        assert 0 <= float(row[1]) <= 1 and 0 <= float(row[2]) <= 1
        if row[0] in only:
            assert row[5] == "2" and float(row[6]) >= 0
    run = no_labels.OUT / "digits-10-of-the-labels"
    assert "CE" in json.loads((run / "log.jsonl").read_text().splitlines()[-1])["losses"]
    assert seen == ["train", "domains"] * 3
    no_labels.main(words)  # nothing is done again
    assert seen == ["train", "domains"] * 3 and (no_labels.OUT / "table.md").read_text() == text


def test_kmeans_finds_groups_that_are_apart():
    rng = np.random.default_rng(1)
    true = np.repeat(np.arange(4), 50)
    x = rng.normal(size=(200, 5)).astype(np.float32) + 8 * np.eye(5, dtype=np.float32)[true]
    found, away = no_labels.nearest(x, no_labels.kmeans(x, 4))
    assert clustering(true, found).accuracy == 1.0
    assert away.mean() == pytest.approx(5, rel=0.2)  # the variance within
