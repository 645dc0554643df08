"""Faults that a run must survive; the ids are those of docs/reliability.md. W: the digest of the whole state."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
import tiny
import torch
from PIL import Image
from test_train import weights

from unpaired import checkpoint, cli, train, translator
from unpaired.checkpoint import RunFolder
from unpaired.data import batches, intake
from unpaired.errors import OutOfMemory, StorageProblem

STEPS = 12
SOURCE = os.path.abspath(os.path.join(os.path.dirname(train.__file__), ".."))


def config(*overrides):
    words = ("train.log_every=1", "data.batch=2", "train.precision=32-true")  # in processes too
    return tiny.run("munit", *words, *overrides, steps=STEPS)


@pytest.fixture(autouse=True)
def terminal():
    """Whatever runs the tests: SIGHUP is not ignored, as under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The uninterrupted run: its W, and the seconds that it takes."""
    path = tmp_path_factory.mktemp("reference")
    begun = time.monotonic()
    fit(path)
    return weights(path), time.monotonic() - begun


def fit(path, *overrides, **kw):
    train.fit(config(*overrides), RunFolder(path), say=lambda line: None, **kw)


def start(path, *overrides, prepare=lambda: None):
    """The run, or what is left of it, in a process of its own that has done `prepare`."""
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        prepare()
        fit(path, *overrides, resume=bool(RunFolder(path).steps()))
        code = 0
    except SystemExit as stop:
        code = stop.code
    except StorageProblem as problem:
        code = problem.exit_code
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


def test_T04_the_whole_group_is_asked_to_stop(tmp_path, reference):
    """As service managers do: the reading processes get the signal too, and no step is lost."""
    words = ("data.workers=2", "train.save_every=1000")
    pid = start(tmp_path, *words, prepare=os.setsid)
    while len(RunFolder(tmp_path).read_log() if (tmp_path / "log.jsonl").exists() else []) < 3:
        time.sleep(0.01)
    os.killpg(pid, signal.SIGTERM)
    assert wait(pid) == 143
    folder = RunFolder(tmp_path)
    step = folder.read_status()["step"]
    assert step >= 3 and folder.newest()[0] == step
    assert [r["step"] for r in folder.read_log()] == list(range(1, step + 1))
    assert wait(start(tmp_path)) == 0 and weights(tmp_path) == reference[0]


def test_nohup_outlives_the_terminal(tmp_path, reference):
    digest, _ = reference
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        pid = start(tmp_path)
    finally:
        signal.signal(signal.SIGHUP, before)
    while not (tmp_path / "log.jsonl").exists():
        time.sleep(0.01)
    os.kill(pid, signal.SIGHUP)
    assert wait(pid) == 0 and weights(tmp_path) == digest


MOMENTS = {  # where a signal may find a run: a function, and its calls: the first that counts, one about midway
    "a move": (train, "gradient_norm", 1, 12),
    "a save": (checkpoint, "_write", 4, 12),  # three prove that the folder can be written
    "a sheet": (translator, "random_styles", 1, 4),
    "the page": (train.page, "document", 1, 3),
}


def signalled(moment, nth, numbers, pause=0.0):
    """In the process that calls it: the `nth` call of the moment's function sends the signals to its own process."""
    module, name, *_ = MOMENTS[moment]
    function, calls = getattr(module, name), []

    def signalling(*args, **kw):
        calls.append(None)
        if len(calls) == nth:
            for number in numbers:
                os.kill(os.getpid(), number)
                time.sleep(pause)
        return function(*args, **kw)

    setattr(module, name, signalling)


def asked_at(path, moment, nth, numbers, code):
    """The run is stopped at that moment and leaves with `code`, or had finished; resumed, it ends."""
    pid = start(path, "train.sample_every=3", prepare=lambda: signalled(moment, nth, numbers))
    ended = wait(pid)
    assert ended in (code, 0), (moment, nth, ended)
    if ended:
        status = RunFolder(path).read_status()
        assert status["status"] == "preempted" and status["exit_code"] == code
        assert wait(start(path, "train.sample_every=3")) == 0
    assert not list(path.rglob("*.tmp*"))
    return bool(ended)


@pytest.mark.parametrize("moment", MOMENTS)
def test_T04_asked_to_stop_in_the_middle_of(moment, tmp_path, reference):
    assert asked_at(tmp_path, moment, MOMENTS[moment][3], [signal.SIGTERM, signal.SIGTERM], 143)
    assert weights(tmp_path) == reference[0]
    steps = [r["step"] for r in RunFolder(tmp_path).read_log()]
    assert steps == list(range(1, STEPS + 1))


def test_T04_asked_to_stop_fifty_times(tmp_path, reference):
    """One run, stopped over and over; each time it has saved the step that it was in."""
    rng, stopped = random.Random(4), 0
    while stopped < 50:
        moment = rng.choice(list(MOMENTS))
        nth = MOMENTS[moment][2] + rng.randint(0, 3)
        ask = lambda m=moment, n=nth: signalled(m, n, [signal.SIGTERM])  # noqa: E731
        ended = wait(start(tmp_path, "train.sample_every=3", prepare=ask))
        assert ended in (143, 0), (moment, nth, ended)
        if ended:
            stopped += 1
            status = RunFolder(tmp_path).read_status()
            assert status["status"] == "preempted" and status["exit_code"] == 143
            assert RunFolder(tmp_path).steps()[-1] == status["step"]
        else:
            assert weights(tmp_path) == reference[0]
            RunFolder(tmp_path).start_fresh()
    assert wait(start(tmp_path)) == 0
    assert weights(tmp_path) == reference[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "number, code, times", [(signal.SIGTERM, 143, 50), (signal.SIGINT, 130, 20)]
)
def test_T04_T05_asked_to_stop_at_random(tmp_path, reference, number, code, times):
    rng = random.Random(number)
    stopped = 0
    for i in range(times):
        moment = rng.choice(list(MOMENTS))
        *_, first, midway = MOMENTS[moment]
        nth = rng.randint(first, 2 * midway)
        path = tmp_path / str(i)
        stopped += asked_at(path, moment, nth, [number] * rng.choice((1, 1, 2)), code)
        assert weights(path) == reference[0], (i, moment, nth)
    assert stopped > 0.7 * times


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("resume", [False, True])
def test_T04_asked_to_stop_while_the_images_are_looked_through(
    photos, tmp_path, capfd, number, code, resume
):
    """Which may take many minutes, and is done again all the same: so it ends soon, and nothing is lost."""
    run, settings = tmp_path / "run", [f"data.root={photos}", "data.domains=null"]
    if resume:
        fit(run, *settings, "train.steps=2")
    saved = RunFolder(run).steps()

    def slow():
        def reading(*args):
            os.kill(os.getpid(), number)
            time.sleep(30)

        train.open_dataset = reading

    begun = time.monotonic()
    assert wait(start(run, *settings, prepare=slow)) == code and time.monotonic() - begun < 20
    said = capfd.readouterr().err
    assert said == "Stopped before the first step.\n"
    status = RunFolder(run).read_status()
    assert (status["status"], status["exit_code"]) == ("preempted", code)
    assert RunFolder(run).steps() == saved
    assert wait(start(run, *settings)) == 0


def test_T04_what_gives_way_to_nothing_is_what_it_was(tmp_path):
    """A fresh start that is asked to stop before it has a step leaves the run that it was to replace."""
    fit(tmp_path)
    before = RunFolder(tmp_path).read_status()
    pid = os.fork()
    if not pid:
        try:
            train.open_dataset = lambda *args: os.kill(os.getpid(), signal.SIGTERM)
            fit(tmp_path, fresh=True)
        finally:
            os._exit(0)
    wait(pid)
    assert RunFolder(tmp_path).read_status() == before
    assert not (tmp_path / "earlier").exists() and RunFolder(tmp_path).newest()[0] == STEPS


def test_T04_asked_to_stop_says_so_at_once(tmp_path, capfd):
    pid = start(tmp_path, prepare=lambda: signalled("a save", 12, [signal.SIGTERM] * 2))
    assert wait(pid) == 143
    said = capfd.readouterr().err
    assert said.count("Stopping after this step, and saving; Ctrl-C again") == said.count("\n") == 1


def test_T04_asked_to_stop_before_the_first_step(tmp_path, reference):
    """The state of step 0 is saved, no step is done."""
    pid = start(tmp_path, prepare=lambda: signalled("a save", 6, [signal.SIGTERM]))
    assert wait(pid) == 143
    assert RunFolder(tmp_path).steps() == [0] and not (tmp_path / "log.jsonl").exists()
    assert wait(start(tmp_path)) == 0 and weights(tmp_path) == reference[0]


def test_T05_ctrl_c_twice_stops_at_once(tmp_path, reference):
    both = [signal.SIGINT, signal.SIGINT]
    pid = start(tmp_path, prepare=lambda: signalled("a save", 16, both, pause=0.05))
    assert wait(pid) == 130
    saved = RunFolder(tmp_path).newest()[0]
    status = RunFolder(tmp_path).read_status()
    assert status["status"] == "preempted" and status["step"] > saved  # it did not wait to save
    assert wait(start(tmp_path)) == 0
    assert weights(tmp_path) == reference[0] and not list(tmp_path.rglob("*.tmp*"))


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


def test_T07_a_run_whose_last_checkpoint_is_lost_has_not_ended_well(tmp_path, monkeypatch):
    def full(self, step, *args, **kw):
        if step == STEPS:
            raise StorageProblem("no space left: 10 bytes needed, 3 free")
        return save(self, step, *args, **kw)

    save = RunFolder.save
    monkeypatch.setattr(RunFolder, "save", full)
    folder = RunFolder(tmp_path)
    with pytest.raises(StorageProblem, match=rf"step {STEPS} could not be saved.*of step 10"):
        train.fit(config(), folder, say=lambda line: None)
    status = folder.read_status()
    assert (status["status"], status["exit_code"]) == ("failed", 74)
    monkeypatch.undo()
    train.fit(config(), folder, resume=True, say=lambda line: None)
    assert folder.newest()[0] == STEPS and folder.read_status()["status"] == "done"


def test_T07_a_run_that_is_asked_to_stop_and_cannot_save_says_so(tmp_path, monkeypatch):
    def full(self, step, *args, **kw):
        if step:
            os.kill(os.getpid(), signal.SIGTERM)
            raise StorageProblem("no space left: 10 bytes needed, 3 free")
        return save(self, step, *args, **kw)

    save = RunFolder.save
    monkeypatch.setattr(RunFolder, "save", full)
    said = []
    with pytest.raises(StorageProblem, match="the last checkpoint is of step 0"):
        train.fit(config(), RunFolder(tmp_path), say=said.append)
    assert RunFolder(tmp_path).read_status()["exit_code"] == 74
    assert not any("Stopped" in line for line in said)


def test_T07_output_that_does_not_reach_the_disk(tmp_path):
    """unpaired methods > /dev/full; and an error that cannot be told keeps its exit code"""
    for words, ends, code in (
        ("methods", ">/dev/full", 74),
        ("methods | true", "", 0),
        ("translate nowhere a.png --to b", "2>/dev/full", 2),
    ):
        done = subprocess.run(
            [
                "bash",
                "-c",
                f'"$0" -m unpaired {words} {ends}; exit ${{PIPESTATUS[0]}}',
                sys.executable,
            ],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": SOURCE},
            capture_output=True,
            timeout=300,
        )
        assert done.returncode == code and b"Traceback" not in done.stderr, done.stderr.decode()
        assert (b"could not be written" in done.stderr) == (code == 74)


def test_T07_a_fault_is_told_although_its_status_cannot_be_written(tmp_path, monkeypatch):
    def full(self, status, *args):
        if status != "running":
            raise StorageProblem("no space left")
        write(self, status, *args)

    def short(*args):
        raise MemoryError

    write = RunFolder.write_status
    monkeypatch.setattr(RunFolder, "write_status", full)
    said = []
    monkeypatch.setattr(train.Trainer, "play", short)
    with pytest.raises(OutOfMemory):
        train.fit(config(), RunFolder(tmp_path), say=said.append)
    assert any("status was not written" in line for line in said)


def test_T08_sheets_that_cannot_be_written_do_not_stop_a_run(tmp_path, reference, monkeypatch):
    def full(self, *args, **kw):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    said = []
    train.fit(config("train.sample_every=6"), RunFolder(tmp_path), say=said.append)
    assert sum("samples of step" in line for line in said) == 3
    assert weights(tmp_path) == reference[0]


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


def test_T30_the_ways_to_less_memory_are_those_open_to_the_run():
    def ways(method, *settings):
        return train.less_memory(tiny.run(method, *settings))

    assert "train.accumulate=3" in ways("munit", "data.batch=9") and "lower data.batch" in ways(
        "munit", "data.batch=9"
    )
    alone = ways("munit", "data.batch=1", "train.checkpointing=true")
    assert alone.endswith("does not fit: lower data.size")
    assert "accumulate" not in ways("tunit", "data.batch=4")
    assert "train.checkpointing=true" in ways("tunit", "data.batch=4")


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


def test_T30_a_reading_process_is_killed_while_the_method_translates(tmp_path, monkeypatch):
    """Training goes on in the mode of training, which BatchNorm knows."""

    def fit(path):
        run = tiny.run("pix2pix", "train.evaluate_every=3", "train.precision=32-true")
        train.fit(run, RunFolder(path), say=lambda line: None)

    fit(tmp_path / "whole")
    evaluate, lost = train.Trainer.evaluate, []

    def losing(self):
        if not lost:
            lost.append(self.method.translator())
            raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed. ")
        return evaluate(self)

    monkeypatch.setattr(train.Trainer, "evaluate", losing)
    fit(tmp_path / "again")
    assert lost and weights(tmp_path / "again") == weights(tmp_path / "whole")


# T-15: what blocks. Reading a pipe that nobody writes to holds a thread or a process like a network disk that is gone.


@pytest.fixture
def photos(tmp_path):
    for i in range(12):
        path = tmp_path / "photos" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (20 * i, 90, 200 - 15 * i)).save(path)
    os.mkfifo(tmp_path / "stuck")
    return tmp_path / "photos"


def of_photos(photos, *overrides):
    return config(f"data.root={photos}", "data.domains=null", "train.log_every=6", *overrides)


def hang(path):
    with open(path, "rb") as pipe:
        pipe.read()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("where", [(intake, "_bytes_of"), (os, "stat")])
def test_T15_an_image_that_blocks_is_named_and_stood_in_for(
    photos, tmp_path, monkeypatch, capfd, where, workers
):
    real, stat = getattr(*where), os.stat

    def blocked(path, *more, **named):
        if str(path).endswith("4.png") and under_way():
            hang(tmp_path / "stuck")
        return real(path, *more, **named)

    def under_way():
        try:
            return stat(tmp_path / "run" / "status.json")
        except OSError:
            return False

    monkeypatch.setattr(*where, blocked)
    monkeypatch.setattr(intake, "READ_SECONDS", 0.3)
    monkeypatch.setattr(batches, "CACHE_BYTES", 0)  # each image is read each time
    begun = time.monotonic()
    settings = ("data.cache=0", f"data.workers={workers}")
    train.fit(of_photos(photos, *settings), RunFolder(tmp_path / "run"))
    assert time.monotonic() - begun < 30
    (bad,) = (tmp_path / "run" / "bad_files.jsonl").read_text().splitlines()
    assert json.loads(bad)["path"] == str(photos / "a" / "4.png")
    assert "4.png: the file cannot be read (its storage did not" in capfd.readouterr().out
    assert RunFolder(tmp_path / "run").read_status()["status"] == "done"


@pytest.mark.parametrize("frozen", [False, True])
def test_T15_a_reader_that_hangs_is_replaced(tmp_path, reference, monkeypatch, frozen):
    os.mkfifo(tmp_path / "stuck")
    get = batches.Batches.__getitem__

    def hanging(self, step):
        if step == 5 and not (tmp_path / "pid").exists():
            (tmp_path / "pid").write_text(str(os.getpid()))
            if frozen:
                os.kill(os.getpid(), signal.SIGSTOP)
            hang(tmp_path / "stuck")
        return get(self, step)

    monkeypatch.setattr(batches.Batches, "__getitem__", hanging)
    monkeypatch.setattr(batches, "READER_SECONDS", 1)
    said, begun = [], time.monotonic()
    train.fit(config("data.workers=1"), RunFolder(tmp_path / "run"), say=said.append)
    assert time.monotonic() - begun < 1 + 5 + 3 * reference[1]
    assert sum("timed out after 1 seconds" in line for line in said) == 1
    assert weights(tmp_path / "run") == reference[0]
    assert gone([int((tmp_path / "pid").read_text())], 5)


def test_T15_readers_that_always_hang_end_the_run(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "stuck")
    get = batches.Batches.__getitem__
    monkeypatch.setattr(
        batches.Batches,
        "__getitem__",
        lambda self, step: get(self, step) if step < 3 else hang(tmp_path / "stuck"),
    )
    monkeypatch.setattr(batches, "READER_SECONDS", 0.5)
    with pytest.raises(StorageProblem, match="lost 4 times at step 3.*data.workers=0") as problem:
        fit(tmp_path / "run", "data.workers=1")
    assert problem.value.exit_code == 74
    assert RunFolder(tmp_path / "run").read_status()["status"] == "failed"


def test_a_problem_in_a_reader_arrives_as_one_sentence(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "CACHE_BYTES", 0)
    play = train.Trainer.play

    def emptied(self, *args):
        for path in (photos / "a").iterdir():
            path.unlink()
        return play(self, *args)

    monkeypatch.setattr(train.Trainer, "play", emptied)
    with pytest.raises(train.DataProblem) as problem:
        settings = ("data.cache=0", "data.workers=1")
        train.fit(of_photos(photos, *settings), RunFolder(tmp_path / "run"), say=str)
    assert "\n" not in str(problem.value) and "unpaired data check" in str(problem.value)


# T-31, T-32, T-36: the surroundings.


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="reads /proc")
def test_T31_few_open_files_are_enough_and_too_few_is_one_sentence(tmp_path, reference):
    resource = pytest.importorskip("resource")
    used = 1 + max(map(int, os.listdir("/proc/self/fd")))

    def few(free):
        def prepare():
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + free, used + free))
            held = []
            with suppress(OSError):
                while True:
                    held.append(os.open(os.devnull, os.O_RDONLY))
            for fd in held[:free]:
                os.close(fd)

        return prepare

    assert wait(start(tmp_path / "a", "data.workers=2", prepare=few(24))) == 0
    assert weights(tmp_path / "a") == reference[0]
    assert wait(start(tmp_path / "b", "data.workers=2", prepare=few(4))) == 74


def gone(pids, seconds):
    """Whether none of the processes runs within `seconds`."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        alive = []
        for pid in pids:
            with suppress(FileNotFoundError, ProcessLookupError):
                with open(f"/proc/{pid}/stat") as file:
                    alive += [pid] if file.read().rpartition(")")[2].split()[0] not in "ZX" else []
        if not alive:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="reads /proc")
@pytest.mark.parametrize("times", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_T32_no_reader_outlives_its_trainer(tmp_path, monkeypatch, times):
    get = batches.Batches.__getitem__

    def noted(self, step):
        (tmp_path / f"pid-{os.getpid()}").touch()
        return get(self, step)

    monkeypatch.setattr(batches.Batches, "__getitem__", noted)
    for i in range(times):
        for left in tmp_path.glob("pid-*"):
            left.unlink()
        pid = start(tmp_path / str(i), "data.workers=2", "train.steps=1000")
        while len(readers := list(tmp_path.glob("pid-*"))) < 2:
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        assert wait(pid) == -signal.SIGKILL
        assert gone([int(path.name[4:]) for path in readers], 15)


@pytest.mark.slow
def test_a_run_goes_on_within_5_seconds(tmp_path):
    """From the start of the process to the first new step, on a machine that does nothing else."""
    train.fit(config("train.steps=4", "train.log_every=1"), RunFolder(tmp_path), say=str)
    words = ["train", "--resume", str(tmp_path), "train.steps=1000000"]
    seconds = []
    for _ in range(3):
        before, begun = len(RunFolder(tmp_path).read_log()), time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "unpaired", *words], stdout=subprocess.DEVNULL
        )
        while len(RunFolder(tmp_path).read_log()) <= before:
            time.sleep(0.02)
        seconds.append(time.monotonic() - begun)
        process.terminate()
        assert process.wait() == 143
    assert min(seconds) < 5, seconds


@pytest.mark.slow
def test_checkpoints_cost_under_a_fiftieth_of_the_time(tmp_path):
    """MUNIT's preset small, and its interval."""
    run = tiny.load(None, (), method="munit", preset="small", data={"root": "scenes"})
    trainer = train.Trainer(run, folder := RunFolder(tmp_path), say=str)
    folder.create()
    trainer.begin(False, None, False)
    tensors, files = next(iter(batches.loader(trainer.batches, 0, 0)))
    images = batches.to_device(tensors, torch.device("cpu"), batches.View(jitter=None))
    moments = []
    for work in [lambda: trainer.play(images, files)] * 3 + [trainer.save] * 3:
        begun = time.monotonic()
        work()
        moments.append(time.monotonic() - begun)
    step, save = min(moments[:3]), max(moments[3:])
    assert save < 0.02 * run.train.save_every * step, (step, save)


@pytest.mark.parametrize("name", ["with spaces", "ünïcödé 猫", "new\nline", "-dash", "key=value"])
def test_T36_odd_names_of_a_run(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(config("train.steps=2").to_yaml())
    out = f"./{name}" if name.startswith("-") else name
    assert cli.main(["train", "c.yaml", "--out", out]) == 0
    assert cli.main(["train", "--resume", out, "train.steps=3"]) == 0
    assert RunFolder(tmp_path / name).newest()[0] == 3


@pytest.mark.skipif(
    not sys.prefix.isascii(), reason="in the C locale Python cannot read such a path in a .pth file"
)
def test_T36_odd_surroundings(tmp_path, reference):
    """The C locale, no home, no terminal, closed standard streams, optimised; a folder that was deleted."""
    config_file, run = tmp_path / "ä.yaml", tmp_path / "rün"
    config_file.write_text(config().to_yaml(), encoding="utf-8")
    arguments = [sys.executable, "train", str(config_file), "--out", str(run)]
    env = {"LC_ALL": "C", "LANG": "C", "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    env |= {"PYTHONPATH": SOURCE, "PYTHONHASHSEED": "3"}
    command = 'exec "$0" -O -m unpaired "$@" <&- >&- 2>&-'
    assert subprocess.run(["sh", "-c", command, *arguments], env=env, timeout=300).returncode == 0
    assert weights(run) == reference[0]
    (tmp_path / "gone").mkdir()
    command = f'cd \'{tmp_path}/gone\' && rmdir ../gone && exec "$0" -m unpaired "$@"'
    done = subprocess.run(["sh", "-c", command, *arguments], env=env, capture_output=True)
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1 and b"deleted" in done.stderr


def test_T36_a_reader_of_the_output_that_leaves(tmp_path):
    """unpaired train ... | head -1"""
    (tmp_path / "c.yaml").write_text(config().to_yaml())
    command = '"$0" -m unpaired train c.yaml --out run | head -1; exit ${PIPESTATUS[0]}'
    done = subprocess.run(
        ["bash", "-c", command, sys.executable],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": SOURCE},
        capture_output=True,
        timeout=300,
    )
    assert b"Traceback" not in done.stderr and done.stderr.count(b"\n") <= 1, done.stderr.decode()
    assert done.returncode == 0
    assert RunFolder(tmp_path / "run").read_status()["status"] == "done"


def test_T33_a_torn_log_line(tmp_path):
    fit(tmp_path)
    log = tmp_path / "log.jsonl"
    log.write_bytes(log.read_bytes()[:-7])
    assert [r["step"] for r in RunFolder(tmp_path).read_log()] == list(range(1, STEPS))
    fit(tmp_path, resume=True)
