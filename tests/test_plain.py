"""The plain steps, by which speed is judged, play the same game as ours: same weights, same draws, same numbers."""

import sys
from pathlib import Path

import pytest
import tiny
import torch

from unpaired.config import load
from unpaired.registry import method_names

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import shares  # noqa: E402
import steps  # noqa: E402
import train_step  # noqa: E402
from plain import LayerNorm  # noqa: E402


def run(name, **settings):
    """A tiny method with the paper's optimizers, which the plain steps have too."""
    side, sizes = tiny.METHODS[name]
    method = {"name": name, **sizes, **settings}
    return load(None, method=method, data={"size": side, "batch": 4})


@pytest.mark.parametrize("name", method_names())
def test_the_plain_step_has_the_losses_and_gradients_of_ours(name):
    torch.set_default_dtype(torch.float64)
    plain, ours = steps.Plain(run(name)), steps.Ours(run(name))
    losses, gradients = steps.agreement(plain, ours, learn=True)
    assert losses < 1e-8 and gradients < 1e-6, (losses, gradients)


def test_another_weight_of_a_loss_is_seen():
    plain, ours = steps.Plain(run("unit")), steps.Ours(run("unit", lambda_cyc=10.1))
    before = {k: v.clone() for k, v in ours.method.named_parameters()}
    rates = [o.param_groups[0]["lr"] for o in ours.optimizers.values()]
    losses, gradients = steps.agreement(plain, ours)
    assert losses > 1e-3 and gradients > 1e-3
    assert all(torch.equal(v, before[k]) for k, v in ours.method.named_parameters())
    assert [o.param_groups[0]["lr"] for o in ours.optimizers.values()] == rates


def test_what_fp32_itself_differs_by():
    small = steps.Case({"method": run("pix2pix").method.model_dump(), "data": {"size": 32}}, ())
    losses, gradients = steps.rounding(small.run(["data.batch=2"]))
    assert 1e-9 < losses < 1e-4 and 1e-8 < gradients < 1e-2


def test_every_method_has_its_cases():
    assert set(steps.PLAIN) == set(steps.FAST) == set(method_names())
    for name, case in (steps.CASES | steps.FAST).items():
        assert name.startswith(case.run().method.name)


def test_the_table_of_a_step(tmp_path, monkeypatch, capsys):
    tiny_case = steps.Case({"method": run("pix2pix").method.model_dump(), "data": {"size": 32}}, ())
    monkeypatch.setitem(train_step.FAST, "pix2pix", tiny_case)
    monkeypatch.setattr(train_step, "peak", lambda which, *rest: {"plain": 200, "ours": 100}[which])
    monkeypatch.setattr(train_step, "Ceiling", Quick)
    out = tmp_path / "table.md"
    words = ["--only-fast", "--cases", "pix2pix", "--turns", "2", "--rounding", "--out", str(out)]
    train_step.main([*words, "data.batch=2", "train.precision=32-true"])
    text = out.read_text()
    assert text.strip() == capsys.readouterr().out.strip()
    plain, ours = (line.split(" | ") for line in text.splitlines()[-2:])
    assert plain[:4] == ["| pix2pix", "2", "plain", "32-true"] and plain[6] == "1.00"
    assert ours[2] == "ours" and ours[11:13] == ["100", "50%"]
    assert "fp32 from float64 by" in ours[13]


def test_the_peak_is_of_a_process_of_its_own():
    small = ["method.dim=4", "method.levels=5", "method.d_dim=4", "method.d_layers=2"]
    words = ["data.size=32", "data.batch=2", "train.precision=32-true", *small]
    line = [sys.executable, train_step.__file__, "--only-fast", "--cases", "pix2pix", *words]
    assert 0 < train_step.peak("ours", line) < 2000


@pytest.mark.parametrize(
    ("ends", "told"), [("import os; os.kill(os.getpid(), 9)", "memory"), ("1 / 0", "failed")]
)
def test_a_plain_step_that_fails_elsewhere_ends_the_turns(ends, told):
    line = [sys.executable, "-c", ends]
    with train_step.Elsewhere("plain", line) as elsewhere, pytest.raises(RuntimeError, match=told):
        elsewhere.step()


class Quick:
    """A ceiling that takes no time."""

    def __init__(self, precision):
        self.operations = 1e9

    def step(self):
        pass


def test_operations_are_counted_through_a_gradient_penalty():
    assert train_step.operations(steps.Plain(run("tunit"))) > 1e6


def test_out_of_memory_is_told(tmp_path, monkeypatch, capsys):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(train_step, "peak", lambda *args: float("nan"))
    monkeypatch.setattr(train_step, "measure", full)
    words = ["--only-fast", "--cases", "munit", "unit", "--out", str(tmp_path / "t.md")]
    train_step.main(words)
    assert capsys.readouterr().out.count("out of memory") == 2


def test_shares_of_the_time():
    ms, parts = shares.shares(steps.Ours(run("munit")), data=0.001)
    assert sum(parts.values()) == pytest.approx(1) and ms > 1
    named = ("convolutions", "normalisation", "padding", "elementwise", "optimizer", "data")
    assert all(parts[k] > 0 for k in named) and parts["rest"] >= 0


def test_what_is_within_a_norm_is_normalisation():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), LayerNorm(4))
    x = torch.randn(1, 3, 8, 8)
    with shares.marked_norms(), torch.profiler.profile() as trace:
        (net(x) + 1).sum().backward()
    kind_of = shares.Kinds()
    seen = {}
    for event in sorted(trace.events(), key=lambda e: e.time_range.start):
        seen.setdefault(event.name, set()).add(kind_of(event))
    assert seen["aten::std"] == {"normalisation"}
    assert seen["aten::convolution_backward"] == {"convolutions"}
    assert seen["aten::add"] >= {"normalisation", "elementwise"}  # eps within, + 1 without
    backward = {k: v for k, v in seen.items() if "StdBackward" in k}
    assert backward and all(v == {"normalisation"} for v in backward.values())


def test_a_batch_is_read_from_files():
    for name in ("tunit", "stargan_v2", "pix2pix"):
        assert shares.data_seconds(run(name)) > 0
