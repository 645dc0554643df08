"""Alarms and rolling back: each injected failure is told, once, with its remedy; a healthy run is left in peace."""

import json
import math
import random

import pytest
import tiny
import torch
from safetensors.torch import load_file
from test_train import weights

from unpaired import alarms, train
from unpaired.checkpoint import RunFolder
from unpaired.errors import ConfigProblem, Diverged
from unpaired.methods.dsm import DSM
from unpaired.methods.munit import MUNIT
from unpaired.methods.tunit import TUNIT


def fit(path, method="munit", *overrides, steps=4, **kw):
    said = []
    run = tiny.run(method, "train.evaluate_every=1", *overrides, steps=steps)
    train.fit(run, RunFolder(path), say=said.append, **kw)
    return said


def rung(path):
    return [r["alarm"] for r in RunFolder(path).read_log() if "alarm" in r]


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    monkeypatch.setattr(train, "VALIDATION_IMAGES", 8)


@pytest.mark.parametrize("method", ["munit", "dsm"])
def test_a_healthy_run_is_left_in_peace(method, tmp_path):
    said = fit(tmp_path, method)
    assert rung(tmp_path) == [] and not any("ALARM" in line for line in said)
    assert sum("figures" in r for r in RunFolder(tmp_path).read_log()) == 4


def told_once(path, said, name, remedy):
    assert rung(path) == [name]
    (line,) = [line for line in said if "ALARM" in line]
    assert remedy in line
    assert "<h2>Alarms</h2>" in (path / "index.html").read_text()


def test_a_style_that_is_ignored(tmp_path, monkeypatch):
    decode = MUNIT.decode
    monkeypatch.setattr(
        MUNIT, "decode", lambda self, c, s, t: decode(self, c, torch.zeros_like(s), t)
    )
    told_once(tmp_path, fit(tmp_path), "style ignored", "lambda_s")


def test_a_content_that_is_ignored(tmp_path, monkeypatch):
    decode = MUNIT.decode
    monkeypatch.setattr(
        MUNIT, "decode", lambda self, c, s, t: decode(self, torch.zeros_like(c), s, t)
    )
    told_once(tmp_path, fit(tmp_path), "content ignored", "lambda_c")


@pytest.mark.parametrize("used", [1, 3])
def test_clusters_that_collapse(tmp_path, monkeypatch, used):
    monkeypatch.setattr(TUNIT, "assign", lambda self, x: torch.eye(3)[torch.arange(len(x)) % used])
    said = fit(tmp_path, "tunit")
    assert rung(tmp_path).count("clusters collapsed") == (used == 1)
    assert any("method.clusters" in line for line in said) == (used == 1)


@pytest.mark.parametrize("share", [0.01, 1])
def test_styles_that_collapse(tmp_path, monkeypatch, share):
    def collapsing(method, update, batch, step):
        return update._replace(log={**update.log, "spread": update.log["spread"] * share})

    tiny.altered(monkeypatch, DSM, "D_s", collapsing)
    said = fit(tmp_path, "dsm", steps=6)
    assert rung(tmp_path).count("styles collapsed") == (share < 1)
    assert any("lambda_smooth" in line for line in said) == (share < 1)


def test_a_discriminator_that_wins(tmp_path, monkeypatch):
    def winning(method, update, batch, step):
        share = 1.0 if step.index < 3 else 0.001
        return update._replace(log={k: v * share for k, v in update.log.items()})

    tiny.altered(monkeypatch, MUNIT, "D_1 D_2", winning)
    told_once(tmp_path, fit(tmp_path, steps=10), "discriminator wins", "optim.D")


def test_a_loss_that_explodes(tmp_path, monkeypatch):
    def exploding(method, update, batch, step):
        factor = 1.0 if step.index < 9 else 1e4
        return update._replace(log={**update.log, "x_1": update.log["x_1"] * factor})

    tiny.altered(monkeypatch, MUNIT, "G_1 G_2", exploding)
    told_once(tmp_path, fit(tmp_path, steps=12), "loss explodes", "optim.default.clip")


def test_one_bad_figure_and_one_spike_are_no_alarm():
    log = [{"figures": {"pixel diversity": 0.0}}, {"figures": {"pixel diversity": 0.1}}]
    log += 2 * [{"figures": {"clusters used": 1.0}, "step": 390}]  # they may still be forming
    log += [{"losses": {"D_1": 1.0, "x": 1.0}} for _ in range(20)]
    log += [{"losses": {"D_1": 0.001, "x": 1e6}}, {"losses": {"D_1": 1.0, "x": 1.0}}]
    assert alarms.sounding([{"step": 500, **record} for record in log], 1000) == {}


def test_a_weight_that_begins_to_rise_and_a_count_are_no_explosion():
    rising = [max(0.0, (i / 40 - 0.4) / 0.6) for i in range(40)]  # SmoothGAN's lambda_kl
    log = [
        {"losses": {"kl": 1.5 * r, "domains_empty": float(r > 0), "share_largest": 0.5}}
        for r in rising
    ]
    for n in range(1, len(log) + 1):
        assert "loss explodes" not in alarms.sounding(log[:n], 1000)
    assert "loss explodes" in alarms.sounding(log + 2 * [{"losses": {"kl": 90.0}}], 1000)


def test_a_figure_that_is_not_a_number_ends_nothing(tmp_path, monkeypatch):
    """It is left out of the log, and no best checkpoint."""
    figures = iter([2.0, math.nan, 1.0])
    monkeypatch.setattr(train, "quick_validation", lambda *a: {"SWD": next(figures), "change": 1.0})
    fit(tmp_path, steps=3)
    folder = RunFolder(tmp_path)
    assert [r["figures"].get("SWD") for r in folder.read_log() if "figures" in r] == [
        2.0,
        None,
        1.0,
    ]
    assert folder.best() == 3 and folder.read_status()["status"] == "done"


def test_any_fault_is_in_the_status(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "quick_validation", lambda *a: {}[0])
    with pytest.raises(KeyError):
        fit(tmp_path)
    status = RunFolder(tmp_path).read_status()
    assert status["status"] == "failed" and "KeyError" in status["reason"]


def test_an_alarm_is_not_repeated_when_the_run_goes_on(tmp_path, monkeypatch):
    decode = MUNIT.decode
    monkeypatch.setattr(
        MUNIT, "decode", lambda self, c, s, t: decode(self, c, torch.zeros_like(s), t)
    )
    fit(tmp_path, steps=4)
    said = fit(tmp_path, steps=6, resume=True)
    assert rung(tmp_path) == ["style ignored"] and not any("ALARM" in line for line in said)


def test_the_best_checkpoint_is_kept(tmp_path, monkeypatch):
    figures = iter([3.0, 1.0, 2.0, 4.0, 5.0, 6.0])
    monkeypatch.setattr(train, "quick_validation", lambda *a: {"SWD": next(figures)})
    fit(tmp_path, "munit", "train.keep=1", steps=6)
    folder = RunFolder(tmp_path)
    assert folder.best() == 2 and folder.steps() == [2, 6]
    best = (tmp_path / "model-best.safetensors").read_bytes()
    assert best != (tmp_path / "model.safetensors").read_bytes()
    monkeypatch.setattr(train, "quick_validation", lambda *a: {"SWD": 0.5})
    fit(tmp_path, steps=7, resume=True)  # what was best is known after resuming
    assert folder.best() == 7


def test_best_by_a_figure_that_the_method_has_not(tmp_path):
    with pytest.raises(ConfigProblem, match="paired error"):
        fit(tmp_path, "munit", "train.best=paired error")
    assert not RunFolder(tmp_path).read_log()  # told before the first step


def test_evaluating_changes_nothing(tmp_path):
    fit(tmp_path / "a")
    train.fit(tiny.run(steps=4), RunFolder(tmp_path / "b"), say=str)
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


# T-18, T-19 ------------------------------------------------------------------------------------------------------


def faulty(monkeypatch, bad):
    """Makes the loss of a move NaN or its gradient infinite where `bad(step, files' number of the batch)` says so."""

    def play(method, update, batch, step):
        kind = bad(step.index, batch["x_1"])
        return update._replace(loss=update.loss * kind) if kind else update

    tiny.altered(monkeypatch, MUNIT, "G_1 G_2", play)


def test_T18_fifty_bad_steps(tmp_path, monkeypatch):
    rng = random.Random(0)
    bad = {s: rng.choice((math.nan, math.inf, -math.inf)) for s in rng.sample(range(100), 50)}
    for first in range(100 - train.MAX_SKIPPED + 1):  # but never so many in a row
        window = range(first, first + train.MAX_SKIPPED)
        if all(s in bad for s in window):
            del bad[window[-1]]
    faulty(monkeypatch, lambda index, x: bad.get(index))
    monkeypatch.setattr(train, "sample_sheets", lambda *a: {})
    run = tiny.run("munit", "train.save_every=5", "train.keep=100", steps=100)
    train.fit(run, RunFolder(tmp_path), say=str)
    folder = RunFolder(tmp_path)
    skipped = [r["step"] - 1 for r in folder.read_log() if "skipped" in r]
    assert skipped == sorted(bad)
    assert len(bad) > 40
    for path in folder.checkpoints.iterdir():
        tensors = load_file(path / "tensors.safetensors")
        assert all(t.isfinite().all() for t in tensors.values())


def rolled_back(path, *overrides):
    run = tiny.run("munit", *overrides, steps=12)
    said = []
    train.fit(run, RunFolder(path), say=said.append)
    return said


def test_T19_a_run_that_diverges_goes_back_and_on(tmp_path, monkeypatch):
    seen = []

    def bad(index, x):
        seen.append((index, float(x.sum())))
        return math.nan if 5 <= len(seen) - 1 < 5 + train.MAX_SKIPPED else None

    faulty(monkeypatch, bad)
    said = rolled_back(tmp_path)
    (line,) = [line for line in said if "half the learning rate" in line]
    assert "back from step 10 to 4" in line
    assert [i for i, _ in seen] == [*range(10), *range(4, 12)]
    assert not {x for _, x in seen[4:10]} & {x for _, x in seen[10:]}  # other batches
    log = RunFolder(tmp_path).read_log()
    rates = {r["step"]: r["lr"]["G_1"] for r in log if "losses" in r}
    assert list(rates) == list(range(1, 13)) and rates[5] == rates[1] / 2
    assert [r["at"] for r in log if "skipped" in r] == [6, 7, 8, 9, 10]
    assert "back from step 10" in (tmp_path / "index.html").read_text()


def test_T19_resumes_exactly_after_going_back(tmp_path, monkeypatch):
    faulty(monkeypatch, lambda index, x: math.nan if index in WINDOW and not ROLLED else None)
    restore, WINDOW, ROLLED = train.Trainer.roll_back, range(3, 3 + train.MAX_SKIPPED), []

    def once(self, fault):
        restore(self, fault)
        ROLLED.append(1)

    monkeypatch.setattr(train.Trainer, "roll_back", once)
    rolled_back(tmp_path / "whole")
    assert ROLLED
    ROLLED.clear()
    play, stopped = train.Trainer.play, []

    def stopping(self, *args):
        if ROLLED and self.step == 6 and not stopped:
            stopped.append(1)
            raise KeyError("a kill")
        return play(self, *args)

    monkeypatch.setattr(train.Trainer, "play", stopping)
    with pytest.raises(KeyError):
        rolled_back(tmp_path / "parts")
    train.fit(tiny.run(steps=12), RunFolder(tmp_path / "parts"), say=str, resume=True)
    assert weights(tmp_path / "whole") == weights(tmp_path / "parts")


def test_T19_weights_that_are_not_finite_are_never_written(tmp_path, monkeypatch):
    play, spoilt = train.Trainer.play, []

    def spoiling(self, *args):
        losses = play(self, *args)
        if self.step == 4 and not spoilt:
            spoilt.append(1)
            with torch.no_grad():
                next(self.method.parameters()).fill_(math.inf)
        return losses

    monkeypatch.setattr(train.Trainer, "play", spoiling)
    rolled_back(tmp_path, "train.keep=100")
    folder = RunFolder(tmp_path)
    for path in folder.checkpoints.iterdir():
        tensors = load_file(path / "tensors.safetensors")
        assert all(t.isfinite().all() for t in tensors.values())
    assert json.loads((tmp_path / "status.json").read_text())["status"] == "done"
    assert any("rollback" in r for r in folder.read_log())


def test_T19_gives_up_after_three_times(tmp_path, monkeypatch):
    faulty(monkeypatch, lambda index, x: math.nan if index > 2 else None)
    with pytest.raises(Diverged, match="4th time") as problem:
        rolled_back(tmp_path)
    assert problem.value.exit_code == 70
    assert RunFolder(tmp_path).read_status()["status"] == "diverged"
    assert sum("rollback" in r for r in RunFolder(tmp_path).read_log()) == train.MAX_ROLLBACKS


@pytest.mark.parametrize(
    "cluster, words", [(lambda i: 0 * i, "collapsed"), (lambda i: i % 2, "1 of")]
)
def test_domains_that_stay_empty(tmp_path, monkeypatch, cluster, words):
    """Whatever C says, all images count for one domain of three, or for two."""
    shares = TUNIT.shares

    def given(self, logits, settled):
        for _ in range(100):  # long since
            shares(self, torch.eye(3)[cluster(torch.arange(len(logits)))], settled)
        return shares(self, torch.eye(3)[cluster(torch.arange(len(logits)))], settled)

    monkeypatch.setattr(TUNIT, "shares", given)
    config = tiny.run("tunit", "method.first_stage=1.0", steps=10)
    said = []
    train.fit(config, RunFolder(tmp_path), say=said.append)
    assert rung(tmp_path) == ["domains empty"]
    (line,) = [line for line in said if "ALARM" in line]
    assert words in line and ("train.seed" in line or "method.first_stage" in line)
    (record,) = [r for r in RunFolder(tmp_path).read_log() if "alarm" in r]
    assert record["step"] >= 5 + 4  # from the middle of the first stage on, five lines in a row


def test_empty_domains_of_the_beginning_are_no_alarm():
    early = [{"step": i, "losses": {"share_largest": 0.8, "domains_empty": 2.0}} for i in range(4)]
    late = [{"step": 9, "losses": {"share_largest": 0.4, "domains_empty": 0.0}}]
    assert alarms.domains_empty(early) is None
    assert alarms.domains_empty(early + late) is None
    assert "2 of" in alarms.domains_empty([*early, early[0] | {"step": 5}])
