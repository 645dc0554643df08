"""Training: resuming is exact, signals save, bad numbers are skipped, requests that cannot be served are refused."""

import copy
import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import tiny
import torch
from lightning_fabric import Fabric
from PIL import Image

from unpaired import train
from unpaired.checkpoint import RunFolder, load_model
from unpaired.config import Decay, load
from unpaired.errors import ConfigProblem, Diverged, Problem, StorageProblem
from unpaired.method import Step
from unpaired.methods.munit import MUNIT
from unpaired.translator import NotFinite


def weights(path):
    """A digest of the whole state: networks, averages, optimizers, step."""
    step, tensors, _ = RunFolder(path).newest()
    digest = hashlib.sha256(str(step).encode())
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def fit(config, path, **kw):
    train.fit(config, RunFolder(path), say=lambda line: None, **kw)
    return path


@pytest.mark.parametrize("kind", ["adam", "rmsprop"])
def test_resume_equals_uninterrupted(kind, tmp_path, monkeypatch):
    config = tiny.run("munit", f"optim.default.kind={kind}", steps=6)
    whole = fit(config, tmp_path / "whole")
    parts = tmp_path / "in parts ä"
    play = train.Trainer.play

    def terminated(self, *args):
        if self.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return play(self, *args)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(train.Trainer, "play", terminated)
        fit(config, parts)
    assert stop.value.code == 143
    assert RunFolder(parts).read_status()["status"] == "preempted"
    page = (parts / "index.html").read_text()
    assert "stopped (signal 15), step 4 of 6" in page and 'http-equiv="refresh"' not in page
    fit(config, parts, resume=True)
    assert weights(parts) == weights(whole)
    assert (parts / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    steps = [r["step"] for r in RunFolder(parts).read_log()]
    assert steps == sorted(set(steps)) == [1, 2, 3, 4, 5, 6]


def tree(path):
    """What a folder holds, but for its lock, which tells of its latest holder."""
    return {p: p.read_bytes() for p in path.rglob("*") if p.is_file() and p.name != ".lock"}


def test_a_run_without_checkpoints_is_not_written_over(tmp_path):
    run = fit(tiny.run(steps=1), tmp_path / "x")
    shutil.rmtree(run / "checkpoints")
    before = tree(run)
    with pytest.raises(ConfigProblem, match="checkpoints were removed.*--fresh"):
        fit(tiny.run("munit", "train.seed=1", steps=1), run)
    assert tree(run) == before
    fit(tiny.run("munit", "train.seed=1", steps=1), run, fresh=True)
    model = run / "model.safetensors"
    assert before[model] == (run / "earlier" / model.name).read_bytes() != model.read_bytes()


def test_no_run_begins_over_checkpoints_that_cannot_be_read(tmp_path):
    run = fit(tiny.run(steps=2), tmp_path / "x")
    for manifest in run.glob("checkpoints/*/manifest.json"):
        manifest.write_text("{}")
    model = (run / "model.safetensors").read_bytes()
    with pytest.raises(StorageProblem, match="no checkpoint.*can be read"):
        fit(tiny.run("munit", "train.seed=1", steps=1), run)
    assert (run / "model.safetensors").read_bytes() == model
    assert RunFolder(run).read_status()["status"] == "done"


def test_a_start_that_was_killed_early_is_no_run(tmp_path):
    """Its config is written first: it can simply be said again."""
    (tmp_path / "config.yaml").write_text(tiny.run(steps=1).to_yaml())
    assert RunFolder(fit(tiny.run(steps=1), tmp_path)).newest()[0] == 1


def paint(root):
    for i in range(8):
        path = root / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (20 * i, 90, 200)).save(path)
    return root


def on(root, *overrides):
    return tiny.run("munit", f"data.root={root}", "data.domains=null", *overrides, steps=1)


def test_a_fresh_start_that_is_refused_moves_nothing(tmp_path):
    run, images = fit(tiny.run(steps=1), tmp_path / "x"), paint(tmp_path / "images")
    bad = paint(tmp_path / "bad")
    (bad / "a" / "0.png").write_bytes(b"no image")
    before = tree(run)
    for config, words in (
        (on(tmp_path / "typo"), {}),
        (on(bad, "data.max_bad=0.01"), {}),
        (on(images, "optim.E.lr=1"), {}),
        (on(images), {"init": tmp_path / "nowhere"}),
    ):
        with pytest.raises(Problem):
            fit(config, run, fresh=True, **words)
        assert tree(run) == before
    fit(on(bad, "data.max_bad=0.5"), run, fresh=True, init=run)
    earlier = {
        path.relative_to(run / "earlier"): data for path, data in tree(run / "earlier").items()
    }
    assert earlier == {path.relative_to(run): data for path, data in before.items()}
    assert (run / "bad_files.jsonl").read_text().count("\n") == 1
    assert RunFolder(run).read_status()["status"] == "done" and RunFolder(run).steps() == [0, 1]


def test_a_run_does_not_lie_among_its_images(tmp_path):
    images = paint(tmp_path / "images")
    for out in (images, images / "runs" / "x", images / "a" / ".." / "x"):
        with pytest.raises(ConfigProblem, match="among the images of .*another --out"):
            fit(on(images), out)
    with pytest.raises(ConfigProblem, match="among the images"):
        fit(on([str(images / "a"), str(images / "b")]), images / "b" / "x")
    assert sorted(p.name for p in images.iterdir()) == ["a", "b"]
    fit(on(images), tmp_path / "images-2")


@pytest.mark.parametrize("lost", ["mark", "model"])
def test_the_best_is_kept_although_a_kill_came_before_its(lost, tmp_path, monkeypatch):
    mark, export = RunFolder.mark_best, train.Trainer.export

    def marking(self, step):
        if step == 4 and lost == "mark":
            raise KeyboardInterrupt
        mark(self, step)

    def exporting(self, name="model.safetensors"):
        if self.step == 4 and lost == "model" and name == "model-best.safetensors":
            raise KeyboardInterrupt
        export(self, name)

    figures = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(train, "quick_validation", lambda *a: {"SWD": next(figures)})
    config = tiny.run("munit", "train.evaluate_every=2", "train.keep=1", steps=6)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunFolder, "mark_best", marking)
        patch.setattr(train.Trainer, "export", exporting)
        fit(config, tmp_path)
    folder = RunFolder(tmp_path)
    assert folder.newest()[0] == 4
    fit(config, tmp_path, resume=True)
    assert folder.best() == 4 and folder.steps() == [4, 6]
    assert load_model(tmp_path / "model-best.safetensors")[1]["step"] == "4"


def third_not_finite(method, update, batch, step):
    return update._replace(loss=update.loss * math.nan) if step.index == 2 else update


def test_a_skipped_step_is_in_the_log_once(tmp_path, monkeypatch):
    """Also where the run goes on from just before it."""
    play = train.Trainer.play

    def killed(self, *args):
        if self.step == 3:
            raise KeyboardInterrupt
        return play(self, *args)

    tiny.altered(monkeypatch, MUNIT, "G_1 G_2", third_not_finite)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train.Trainer, "play", killed)
        fit(tiny.run(steps=4), tmp_path)
    assert RunFolder(tmp_path).newest()[0] == 2
    fit(tiny.run(steps=4), tmp_path, resume=True)
    assert [r["step"] for r in RunFolder(tmp_path).read_log() if "skipped" in r] == [3]


def test_going_back_is_in_the_log_once(tmp_path, monkeypatch):
    """Also where a kill comes before it was saved."""
    save = train.Trainer.save

    def killed(self, *args):
        if self.rollbacks:
            raise KeyboardInterrupt
        return save(self, *args)

    monkeypatch.setattr(train, "MAX_SKIPPED", 1)
    monkeypatch.setattr(train, "MAX_ROLLBACKS", 1)
    tiny.altered(monkeypatch, MUNIT, "G_1 G_2", third_not_finite)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train.Trainer, "save", killed)
        fit(tiny.run(steps=4), tmp_path)
    with pytest.raises(Diverged):
        fit(tiny.run(steps=4), tmp_path, resume=True)
    log = RunFolder(tmp_path).read_log()
    assert sum("rollback" in r for r in log) == 1


def test_damaged_small_files_are_one_sentence(tmp_path):
    run, images = tmp_path / "x", paint(tmp_path / "images")
    fit(on(images), run)
    whole = (run / "dataset.json").read_text()
    for text in (whole[:20], "[]", "{}", "null"):
        (run / "dataset.json").write_text(text)
        with pytest.raises(StorageProblem, match="dataset.json is damaged.*delete it"):
            fit(on(images).model_copy(update={"train": tiny.run(steps=2).train}), run, resume=True)
    (run / "metrics.json").write_text(whole[:20])  # nothing depends on the page,
    fit(on(images), run, fresh=True)  # nor a fresh start on what was
    (run / "metrics.json").write_text(whole[:20])
    fit(on(images), run, resume=True)
    assert RunFolder(run).read_status()["status"] == "done"


def test_a_start_that_fails_leaves_its_reason(tmp_path):
    with pytest.raises(ConfigProblem):
        fit(tiny.run("munit", "optim.E.lr=1", steps=2), tmp_path / "x")
    status = RunFolder(tmp_path / "x").read_status()
    assert (status["status"], status["step"], status["exit_code"]) == ("failed", 0, 2)
    assert "failed (optim.E" in (tmp_path / "x" / "index.html").read_text()


def test_what_a_resume_changes_is_remembered(tmp_path):
    run = fit(tiny.run(steps=1), tmp_path / "x")
    fit(tiny.run(steps=3), run, resume=True)
    assert load(run / "config.yaml").train.steps == 3


def test_the_page_renews_itself_with_the_log(tmp_path, monkeypatch):
    seen, note = [], train.Trainer.note

    def noted(self, record):
        seen.append((tmp_path / "x" / "index.html").read_text())
        note(self, record)

    monkeypatch.setattr(train.Trainer, "note", noted)
    monkeypatch.setattr(train, "PAGE_SECONDS", 0)
    fit(tiny.run("munit", "train.log_every=1", "train.sample_every=9", steps=4), tmp_path / "x")
    assert ["training, step 2 of 4" in page for page in seen] == [False, False, True, False]


@pytest.mark.parametrize("workers", [1, 2])
def test_T25_any_number_of_workers(tmp_path, workers):
    alone = fit(tiny.run(steps=3), tmp_path / "alone")
    helped = fit(tiny.run("munit", f"data.workers={workers}", steps=3), tmp_path / "helped")
    assert weights(helped) == weights(alone)


def test_T37_two_processes_agree(tmp_path):
    for name, seed in (("a", "1"), ("b", "2")):
        config = tmp_path / f"{name}.yaml"
        config.write_text(tiny.run(steps=2).to_yaml())
        command = [
            sys.executable,
            "-m",
            "unpaired",
            "train",
            str(config),
            "--out",
            str(tmp_path / name),
        ]
        done = subprocess.run(
            command,
            env={**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


def test_T18_a_step_that_is_not_finite_moves_nothing(tmp_path, monkeypatch):
    seen = []

    def faulty(method, update, batch, step):
        if step.index != 2:
            return update
        seen.append({k: v.clone() for k, v in method.named_parameters() if k.startswith("G_")})
        return update._replace(
            loss=update.loss * math.nan, log={**update.log, "x_1": update.log["x_1"] * math.nan}
        )

    tiny.altered(monkeypatch, MUNIT, "G_1 G_2", faulty)
    monkeypatch.setattr(train.Trainer, "skip", spy := Spy(train.Trainer.skip))
    fit(tiny.run(steps=4), tmp_path / "x")
    ((trainer, fault, files, _),) = spy.calls
    assert "x_1" in str(fault) and len(files) == 8
    assert all(torch.equal(v, spy.states[0][k]) for k, v in seen[0].items())
    skips = [r for r in RunFolder(tmp_path / "x").read_log() if "skipped" in r]
    assert [r["step"] for r in skips] == [3] and skips[0]["files"] == files
    _, tensors, _ = RunFolder(tmp_path / "x").newest()
    assert all(torch.isfinite(t).all() for t in tensors.values())


class Spy:
    """Calls through, and keeps the arguments and the parameters of the method at that moment."""

    def __init__(self, function):
        self.function, self.calls, self.states = function, [], []

    def __get__(self, trainer, owner):
        def call(*args):
            self.calls.append((trainer, *args))
            self.states.append({k: v.clone() for k, v in trainer.method.named_parameters()})
            return self.function(trainer, *args)

        return call


def test_gives_up_when_nothing_is_finite(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "MAX_SKIPPED", 3)
    nan = lambda method, u, batch, step: u._replace(loss=u.loss * math.nan)  # noqa: E731
    tiny.altered(monkeypatch, MUNIT, "G_1 G_2", nan)
    with pytest.raises(Diverged) as problem:
        fit(tiny.run(steps=9), tmp_path / "x")
    assert problem.value.exit_code == 70
    assert RunFolder(tmp_path / "x").read_status()["status"] == "diverged"


def test_domains_keep_their_sides(tmp_path):
    run = fit(tiny.run(steps=2), tmp_path)
    other = tiny.run("munit", "data.domains=[painted,outline]", steps=4)
    with pytest.raises(ConfigProblem, match="began with the domains outline, painted"):
        fit(other, run, resume=True)
    assert RunFolder(run).newest()[0] == 2


def test_starts_from_another_run(tmp_path):
    first = fit(tiny.run(steps=2), tmp_path / "first")
    lines = []
    config = tiny.run("munit", "train.seed=5", steps=1)
    trainer = train.Trainer(config, RunFolder(tmp_path / "second"), lines.append)
    trainer.begin(resume=False, init=first, allow_dataset_change=False)
    _, tensors, _ = RunFolder(first).newest()
    for name, value in trainer.method.state_dict().items():
        assert torch.equal(value, tensors[f"method.{name}"])
    assert trainer.step == 0 and "Starting from" in lines[-1] and "anew" not in lines[-1]
    other = tiny.run("munit", "method.style_dim=3", steps=1)
    trainer = train.Trainer(other, RunFolder(tmp_path / "third"), lines.append)
    trainer.begin(resume=False, init=first, allow_dataset_change=False)
    assert "(G_1.E_s.fc.weight, G_1.E_s.fc.bias, ...) differ" in lines[-1]


def test_another_run_gives_its_networks_and_not_its_pools(tmp_path):
    first = fit(tiny.run("cyclegan", steps=2), tmp_path / "first")
    for size in 32, 40:
        config = tiny.run("cyclegan", size=size, steps=1)
        trainer = train.Trainer(config, RunFolder(tmp_path / f"{size}"), str)
        trainer.begin(resume=False, init=first, allow_dataset_change=False)
        counts = [v for k, v in trainer.method.state_dict().items() if k.endswith(".count")]
        assert len(counts) == 2 and not any(counts)


def test_samples_that_are_not_finite_are_a_divergence(tmp_path, monkeypatch):
    def broken(*args):
        sheets.append(None)
        if len(sheets) == 2:
            raise NotFinite("NaN")
        return sample(*args)

    sheets, sample = [], train.sample_sheets
    monkeypatch.setattr(train, "sample_sheets", broken)
    run = fit(tiny.run("munit", "train.sample_every=3"), tmp_path)
    log = RunFolder(run).read_log()
    assert [r["step"] for r in log if "rollback" in r] == [2]
    assert RunFolder(run).read_status()["status"] == "done"


def test_schedules_are_functions_of_the_step():
    assert [Decay(kind="linear", start=0.5).at(f) for f in (0, 0.5, 0.75, 1)] == [1, 1, 0.5, 0]
    steps = Decay(kind="steps", every=0.1, factor=0.5)
    assert [steps.at(i / 1000) for i in (0, 99, 100, 299, 300)] == [1, 1, 0.5, 0.25, 0.125]
    assert Decay().at(0.9) == 1


def test_draws_depend_on_their_key_alone():
    x = torch.zeros(1)
    step = Step(3, 10, seed=1)
    a, b = step.normal("s_1", 2, 8, like=x), step.normal("s_2", 2, 8, like=x)
    assert not torch.equal(a, b)
    assert torch.equal(a, Step(3, 10, seed=1).normal("s_1", 2, 8, like=x))
    others = [
        Step(4, 10, seed=1),
        Step(3, 10, seed=2),
        Step(3, 10, 1, rank=1),
        Step(3, 10, 1, microbatch=1),
    ]
    assert not any(torch.equal(a, other.normal("s_1", 2, 8, like=x)) for other in others)


def test_T29_a_second_run_in_the_same_folder_is_refused(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text(tiny.run("munit", steps=500).to_yaml())
    command = [sys.executable, "-m", "unpaired", "train", str(config), "--out", str(tmp_path / "x")]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not RunFolder(tmp_path / "x").read_status():
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.1)
    second = subprocess.run(command, capture_output=True, text=True)
    assert second.returncode == 75 and str(first.pid) in second.stderr
    first.send_signal(signal.SIGINT)  # T-05
    _, errors = first.communicate(timeout=60)
    assert first.returncode == 130 and "Traceback" not in errors
    assert json.loads((tmp_path / "x" / "status.json").read_text())["status"] == "preempted"


def test_a_loss_that_couples_the_batch_refuses_accumulation(tmp_path, monkeypatch):
    monkeypatch.setattr(MUNIT, "accumulates", False)
    with pytest.raises(ConfigProblem, match="train.accumulate"):
        fit(tiny.run("munit", "train.accumulate=2"), tmp_path / "x")


def test_the_page_opens_from_disk(tmp_path):
    path = fit(tiny.run(steps=2), tmp_path / "x")
    page = (path / "index.html").read_text()
    assert "http" not in page.replace("http-equiv", "")
    assert "polyline" in page and "method:" in page
    sources = [part.split('"')[0] for part in page.split('src="')[1:]]
    assert sources and all((path / s).is_file() for s in sources)


@pytest.mark.parametrize("largest", [1e-3, 1e9])
def test_the_gradient_of_each_network_is_clipped_by_its_own_norm(largest):
    """As torch's own clipping does, on a network after the other."""

    def moved(clips, hook=None):
        method, run = tiny.build("munit")
        optimizers = train.build_optimizers(method, run)
        for o in optimizers.values():
            if hook:
                o.register_step_pre_hook(lambda o, *_: [hook(o.param_groups[0]["params"])] and None)
        fabric = Fabric(accelerator="cpu", devices=1)
        train.train_step(fabric, method, optimizers, [tiny.batch("munit")], [tiny.step()], clips)
        return method.state_dict()

    ours = moved({"G_1": largest, "G_2": largest, "D_1": largest, "D_2": largest})
    none = dict.fromkeys(("G_1", "G_2", "D_1", "D_2"))
    theirs = moved(none, lambda params: torch.nn.utils.clip_grad_norm_(params, largest))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=2e-6)  # of steps of 1e-3
    free = moved(none)
    same = all(torch.allclose(ours[n], v, rtol=1e-5, atol=2e-6) for n, v in free.items())
    assert same == (largest == 1e9)


def test_training_goes_on_without_tensorboard(tmp_path, monkeypatch):
    """Its thread's error comes up again at every call."""
    from torch.utils.tensorboard import SummaryWriter

    def full(*args, **kw):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    said = []
    run = tiny.run("munit", "train.tensorboard=true", steps=3)
    train.fit(run, RunFolder(tmp_path), say=said.append)
    assert RunFolder(tmp_path).read_status()["status"] == "done"
    assert sum("TensorBoard" in line and "No space" in line for line in said) == 1


def test_tensorboard_gets_the_losses_each_once(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    def killed(self, *args):
        if self.step == 3:
            raise RuntimeError("DataLoader worker is lost. " if not lost else "killed")
        return play(self, *args)

    play, lost, closed = train.Trainer.play, [], []
    close = SummaryWriter.close
    monkeypatch.setattr(SummaryWriter, "close", lambda self: closed.append(1) or close(self))
    restore = train.Trainer.restore
    monkeypatch.setattr(train.Trainer, "restore", lambda self: lost.append(1) or restore(self))
    config = tiny.run("munit", "train.tensorboard=true", steps=5)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(train.Trainer, "play", killed)
        fit(config, tmp_path)
    fit(config, tmp_path, resume=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("loss/x_1")] == [1, 2, 3, 4, 5]  # step 3 was done thrice
    assert len(closed) == len(list((tmp_path / "tensorboard").iterdir())) == 3


def test_precision_is_bf16_only_where_it_pays(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert tiny.run().precision(cpu) == "32-true"
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert tiny.run().precision(cpu) == "bf16-mixed"
    assert tiny.run("munit", "train.precision=32-true").precision(cpu) == "32-true"


STARGAN = {
    "Sequential",
    "Decoder",
    "Generator",
    "StyleEncoder",
    "Discriminator",
}  # the first encodes content


def test_checkpointing_changes_no_number(tmp_path):
    plain = fit(tiny.run(steps=3), tmp_path / "plain")
    run = fit(tiny.run("munit", "train.checkpointing=true", steps=3), tmp_path / "run")
    assert [r["losses"] for r in RunFolder(run).read_log()] == [
        r["losses"] for r in RunFolder(plain).read_log()
    ]
    with pytest.raises(ConfigProblem, match="train.checkpointing and train.compile"):
        fit(tiny.run("munit", "train.checkpointing=true", "train.compile=true"), tmp_path / "both")


COMPILED = {  # of the networks that translate what is called, and the discriminators
    "munit": {"ContentEncoder", "StyleEncoder", "Decoder", "MultiScale"},
    "unit": {"Encoder", "Generator", "MultiScale"},
    "cyclegan": {"ResNet", "PatchGAN"},
    "augmented_cyclegan": {"Generator", "Encoder", "DiscriminatorA", "DiscriminatorB"},
    "pix2pix": {"UNet", "PatchGAN"},
    "bicyclegan": {"UNet", "Encoder", "TwoScales"},
    "stargan_v2": STARGAN | {"Mapping"},
    "smoothgan": STARGAN | {"Mapping"},
    "dsm": STARGAN | {"Flow", "StyleDiscriminator"},
    "tunit": {"GuidingNetwork", "Sequential", "Decoder", "Discriminator"},
}


def test_bf16_trains(tmp_path):
    config = tiny.run("munit", "train.precision=bf16-mixed", steps=2)
    fit(config, tmp_path)
    record = RunFolder(tmp_path).read_log()[-1]
    assert record["losses"]["x_1"] > 0


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # while it traces
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize(
    "method",
    ["munit", *(pytest.param(m, marks=pytest.mark.slow) for m in COMPILED if m != "munit")],
)
def test_compiled_networks_train(method, tmp_path, monkeypatch):
    """Traced, batches of two sizes included; the code that it would be made into is torch's affair."""
    compile = torch.nn.Module.compile
    used = set()

    def trace(net):
        def backend(graph, _):
            used.add(type(net).__name__)
            return graph.forward

        compile(net, backend=backend)

    monkeypatch.setattr(torch.nn.Module, "compile", trace)
    torch._dynamo.reset()
    run = tiny.run(
        method,
        "train.compile=true",
        "train.precision=bf16-mixed",
        *(["method.first_stage=0"] if method == "tunit" else []),
        steps=2,
    )
    fit(run, tmp_path)
    assert used == COMPILED[method]
    losses = RunFolder(tmp_path).read_log()[-1]["losses"]
    assert losses and all(math.isfinite(x) for x in losses.values())


@pytest.mark.parametrize("ema, decays", [(0.99, [0.1, 2 / 11, 3 / 12]), (0.15, [0.1, 0.15, 0.15])])
def test_averages_follow_faster_at_first(tmp_path, monkeypatch, ema, decays):
    seen = []
    monkeypatch.setattr(MUNIT, "update_averages", lambda self, decay: seen.append(decay))
    fit(tiny.run("munit", f"train.ema={ema}", steps=3), tmp_path)
    assert seen == pytest.approx(decays)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adam_takes_channels_last_weights_as_they_lie(dtype):
    """The same steps as torch's plain one, moments in the shape of the weights, and no weight is copied."""
    last = {"memory_format": torch.channels_last}
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(8, 6, 3), torch.nn.ConvTranspose2d(6, 4, 3))
    net.to(dtype=dtype, **last)
    plain = copy.deepcopy(net).to(memory_format=torch.contiguous_format)
    ours = train.optimizer(load(None, [], method={"name": "munit"}).optimizer("G_1"), net)
    theirs = torch.optim.Adam(plain.parameters(), **{k: ours.defaults[k] for k in ("lr", "betas")})
    theirs.param_groups[0]["weight_decay"] = ours.param_groups[0]["weight_decay"]
    for _ in range(3):
        for p, q in zip(net.parameters(), plain.parameters(), strict=True):
            q.grad = torch.randn_like(q)
            p.grad = q.grad.contiguous(**last) if p.dim() == 4 else q.grad.clone()
        with torch.profiler.profile() as trace:
            ours.step()
        theirs.step()
    for p, q in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q)
        assert ours.state[p]["exp_avg"].shape == p.shape
        assert ours.state[p]["exp_avg"].stride() == p.stride()
    assert "aten::clone" not in {e.key for e in trace.key_averages()}
