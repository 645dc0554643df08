"""Faults that a run must survive; the ids are those of docs/reliability.md. W: the digest of the whole state."""

import os
import random
import signal
import time

import pytest
import tiny
import torch
from test_train import weights

from unpaired import train
from unpaired.checkpoint import RunFolder
from unpaired.errors import OutOfMemory, StorageProblem

STEPS = 12


def config(*overrides):
    return tiny.run("munit", "train.log_every=1", "data.batch=2", *overrides, steps=STEPS)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The uninterrupted run: its W, and the seconds that it takes."""
    path = tmp_path_factory.mktemp("reference")
    begun = time.monotonic()
    fit(path)
    return weights(path), time.monotonic() - begun


def fit(path, *overrides, **kw):
    train.fit(config(*overrides), RunFolder(path), say=lambda line: None, **kw)


def start(path, *overrides):
    """The run, or what is left of it, in a process of its own."""
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        fit(path, *overrides, resume=bool(RunFolder(path).steps()))
        code = 0
    except SystemExit as stop:
        code = stop.code
    finally:
        os._exit(code)


def wait(pid):
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def interrupted(path, number, times, seconds, code):
    """Starts the run again and again, sending `number` at random moments; then lets it finish."""
    rng, sent = random.Random(times), 0
    while sent < times:
        pid = start(path)
        time.sleep(rng.uniform(0, seconds))
        os.kill(pid, number)
        ended = wait(pid)
        assert ended in (code, 0), ended
        if ended == 0:  # it had finished already: begin anew
            RunFolder(path).start_fresh()
        sent += 1
    assert wait(start(path)) == 0


@pytest.mark.parametrize("kills", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_T01_killed_at_random(tmp_path, reference, kills):
    digest, seconds = reference
    interrupted(tmp_path, signal.SIGKILL, kills, seconds, -signal.SIGKILL)
    assert weights(tmp_path) == digest
    steps = [r["step"] for r in RunFolder(tmp_path).read_log()]
    assert steps == list(range(1, STEPS + 1))  # none twice, none missing
    assert not list(tmp_path.rglob("*.tmp*"))


@pytest.mark.parametrize(
    "number, code", [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)]
)
def test_T04_T05_T06_asked_to_stop(tmp_path, reference, number, code):
    digest, seconds = reference
    pid = start(tmp_path)
    while len(RunFolder(tmp_path).read_log() if (tmp_path / "log.jsonl").exists() else []) < 3:
        time.sleep(0.01)
    begun = time.monotonic()
    os.kill(pid, number)
    assert wait(pid) == code and time.monotonic() - begun < 10
    status = RunFolder(tmp_path).read_status()
    assert status["status"] == "preempted" and status["step"] in RunFolder(tmp_path).steps()
    assert wait(start(tmp_path)) == 0
    assert weights(tmp_path) == digest


def test_T06_frozen_for_a_while(tmp_path, reference):
    pid = start(tmp_path)
    time.sleep(reference[1] / 3)
    os.kill(pid, signal.SIGSTOP)
    time.sleep(1)
    os.kill(pid, signal.SIGCONT)
    assert wait(pid) == 0
    assert weights(tmp_path) == reference[0]


def test_T07_a_full_disk_stops_saving_and_then_the_run(tmp_path, monkeypatch):
    save, said = RunFolder.save, []

    def full(self, step, *args, **kw):
        if 2 <= step < 6:
            raise StorageProblem("no space left: 10 bytes needed, 3 free")
        return save(self, step, *args, **kw)

    monkeypatch.setattr(RunFolder, "save", full)
    train.fit(
        config(), RunFolder(tmp_path / "a"), say=said.append
    )  # two failures, then space returns
    assert sum("was not written" in line for line in said) == 2
    assert RunFolder(tmp_path / "a").newest()[0] == STEPS

    monkeypatch.setattr(
        RunFolder, "save", lambda self, step, *a, **k: full(self, 2 if step else 0, *a, **k)
    )
    with pytest.raises(StorageProblem) as problem:
        train.fit(config(), RunFolder(tmp_path / "b"), say=said.append)
    assert problem.value.exit_code == 74
    assert RunFolder(tmp_path / "b").newest()[0] == 0  # what was there stays


def test_T09_T10_a_broken_checkpoint_is_stepped_over(tmp_path, reference):
    fit(tmp_path)
    newest = tmp_path / "checkpoints" / f"step-{STEPS:08d}" / "tensors.safetensors"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    fit(tmp_path, resume=True)
    assert weights(tmp_path) == reference[0]
    assert any("corrupt" in path.name for path in (tmp_path / "checkpoints").iterdir())


def test_T26_clocks_that_jump(tmp_path, reference, monkeypatch):
    rng, now = random.Random(0), time.time
    monkeypatch.setattr(time, "time", lambda: now() + rng.uniform(-3e7, 3e7))
    fit(tmp_path)
    assert weights(tmp_path) == reference[0]
    assert all(r["images_per_second"] > 0 for r in RunFolder(tmp_path).read_log())


def test_T30_out_of_memory(tmp_path, monkeypatch):
    play = train.Trainer.play

    def short(self, *args):
        if self.step == 3:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 4 bytes"
            )
        return play(self, *args)

    monkeypatch.setattr(train.Trainer, "play", short)
    with pytest.raises(OutOfMemory, match="data.batch") as problem:
        fit(tmp_path)
    assert problem.value.exit_code == 71
    assert RunFolder(tmp_path).read_status()["status"] == "failed"
    assert RunFolder(tmp_path).newest()[0] == 2


def test_T30_a_reading_process_is_killed(tmp_path, reference, monkeypatch):
    play, killed = train.Trainer.play, []

    def killing(self, *args):
        if self.step == 5 and not killed:
            children = [p for p in torch.multiprocessing.active_children()]
            killed.append(children[0].pid)
            os.kill(children[0].pid, signal.SIGKILL)
        return play(self, *args)

    monkeypatch.setattr(train.Trainer, "play", killing)
    said = []
    train.fit(config("data.workers=1"), RunFolder(tmp_path), say=said.append)
    assert killed and any("was lost" in line for line in said)
    assert weights(tmp_path) == reference[0]


def test_T33_a_torn_log_line(tmp_path):
    fit(tmp_path)
    log = tmp_path / "log.jsonl"
    log.write_bytes(log.read_bytes()[:-7])
    assert [r["step"] for r in RunFolder(tmp_path).read_log()] == list(range(1, STEPS))
    fit(tmp_path, resume=True)
