"""Training: plays a method's game, step after step, and writes the run folder. It knows no method."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from unpaired import alarms, page
from unpaired.checkpoint import RunFolder, load_model, save_model, write_atomic
from unpaired.config import Optim, Run, Train, nearest, refuse_changes, resolve
from unpaired.data.augment import View
from unpaired.data.batches import (
    Batches,
    FilePictures,
    Shifted,
    check_layout,
    loader,
    middle,
    spread,
    to_device,
    usable,
)
from unpaired.data.cache import ImageCache
from unpaired.data.check import check_command, outline
from unpaired.data.datasets import (
    Dataset,
    cache_training,
    known_images,
    open_dataset,
    training_labels,
)
from unpaired.data.folders import Fingerprint, compare
from unpaired.data.intake import escape
from unpaired.domains import saved_names
from unpaired.errors import (
    ConfigProblem,
    DataProblem,
    Diverged,
    OutOfMemory,
    Problem,
    StorageProblem,
)
from unpaired.heap import keep_freed
from unpaired.method import Batch, Method, Step
from unpaired.metrics.table import METRICS
from unpaired.metrics.validation import quick_validation
from unpaired.networks.memory import checkpointed
from unpaired.pictures import png
from unpaired.progress import Progress, on_terminal, say
from unpaired.translator import NotFinite, metadata, sample_sheets

logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # what it tells, `begin` tells

MAX_SKIPPED = 5  # steps in a row that are not finite: then the run goes back to its last checkpoint
MAX_ROLLBACKS = 3
VALIDATION_IMAGES = 100  # of each domain ...
VALIDATION_TOTAL = 1000  # ... but of very many domains no more than these in all
MAX_FAILED_SAVES = 3
MAX_LOST_READERS = 3
PAGE_SECONDS = 20  # at most so often the page is written for its figures alone


class RollBack(Exception):
    """Training is no longer finite, and skipping steps does not help."""


class Skipped(Exception):
    """A move whose loss or gradient is not finite."""


def train_step(
    fabric: Fabric,
    method: Method,
    optimizers: Mapping[str, torch.optim.Optimizer],
    microbatches: Sequence[Batch],
    steps: Sequence[Step],
    clips: Mapping[str, float | None],
) -> dict[str, Tensor]:
    """Plays one round of the method's game, accumulating each move over the microbatches; returns the losses.

    Raises `Skipped`, with no parameter moved by the faulty move, where a loss or a gradient is not finite.
    """
    rounds = [method.updates(batch, step) for batch, step in zip(microbatches, steps, strict=True)]
    log: dict[str, Any] = {}
    while True:
        for updates in rounds:
            with fabric.autocast():  # entered anew for each move: it caches weights
                update = next(updates, None)
            if update is None:
                return log
            for name in update.nets.split():
                if name not in optimizers:
                    raise ConfigProblem(
                        f"A move of {method.name} names {name}, which is no network that learns: "
                        f"{nearest(name, optimizers)}"
                    )
            moved = {net: learned(optimizers[net]) for net in update.nets.split()}
            params = [p for net in moved.values() for p in net]
            fabric.backward(update.loss / len(rounds), inputs=params)
            for name, part in update.log.items():
                log[name] = log.get(name, 0) + part.detach() / len(rounds)
        if still := [name for name, net in moved.items() if all(p.grad is None for p in net)]:
            raise ConfigProblem(
                f"A move of {method.name} names {still[0]}, which its loss does not reach: no weight of it has a "
                "gradient."
            )
        norms = {name: gradient_norm(net) for name, net in moved.items()}
        if not torch.stack(list(norms.values())).isfinite().all():  # the one wait of a move
            method.zero_grad()
            odd = [name for name, part in log.items() if not part.isfinite()]
            raise Skipped(", ".join(odd) or f"the gradient of {' '.join(moved)}")
        for name, net in moved.items():
            if clip := clips[name]:
                grads = [p.grad for p in net if p.grad is not None]
                torch._foreach_mul_(grads, (clip / norms[name]).clamp(max=1.0))
            optimizers[name].step()
            optimizers[name].zero_grad()


def prepare(method: Method, train: Train) -> None:
    """Blocks that are run again and compiled networks, as a run asks for.

    Networks that translate are called in parts as well as whole. A discriminator is called whole, or by its plain
    `forward` where a penalty differentiates twice: there its parts have to stay plain.
    """
    if train.checkpointing:
        checkpointed(method)
    if train.compile:
        for name, net in learning(method).items():
            for part in (net, *net.children()) if name in method.averaged.split() else (net,):
                part.compile()


def learned(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The weights that it moves: at hand, where a walk through the network costs a small step one part in twenty."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


def gradient_norm(params: Sequence[Tensor]) -> Tensor:
    """The norm of a network's gradient, not waited for."""
    norms = torch._foreach_norm([p.grad for p in params if p.grad is not None])
    return torch.linalg.vector_norm(torch.stack(norms))


def build_optimizers(method: Method, run: Run) -> dict[str, torch.optim.Optimizer]:
    """One optimizer a network, for the children of the method that learn."""
    nets = learning(method)
    for name in run.optim:
        if name != "default" and name not in nets:
            raise ConfigProblem(
                f"optim.{name}: {run.method.name} has no network {name}: {nearest(name, nets)}"
            )
    return {name: optimizer(run.optimizer(name), net) for name, net in nets.items()}


def learning(method: Method) -> dict[str, torch.nn.Module]:
    """The children of a method that learn, by name."""
    return {
        name: net
        for name, net in method.named_children()
        if name != "ema" and any(p.requires_grad for p in net.parameters())
    }


def optimizer(o: Optim, net: torch.nn.Module) -> torch.optim.Optimizer:
    params = list(net.parameters())
    if o.kind == "rmsprop":
        return torch.optim.RMSprop(params, o.lr, weight_decay=o.weight_decay)
    fused = params[0].dtype is torch.float32 or None
    return ChannelsLastAdam(params, o.lr, o.betas, weight_decay=o.weight_decay, fused=fused)


class ChannelsLastAdam(torch.optim.Adam):
    """Adam that takes channels-last weights in the order of memory: a fused step copies each to and fro otherwise."""

    def _init_group(self, group: Any, *lists: list[Tensor]) -> bool:
        complex_numbers = super()._init_group(group, *lists)
        for tensors in lists:
            tensors[:] = [t.permute(0, 2, 3, 1) if t.dim() == 4 else t for t in tensors]
        return complex_numbers


def fit(
    run: Run,
    folder: RunFolder,
    *,
    resume: bool = False,
    init: Path | None = None,
    fresh: bool = False,
    allow_dataset_change: bool = False,
    say: Callable[[str], None] = say,
) -> None:
    """Trains `run` in `folder` to its last step. Exit codes: docs/cli.md. Raises `Problem`.

    resume: go on from the newest checkpoint. init: start from the networks of that run. fresh: set what the folder
    holds aside and begin anew. allow_dataset_change: resume although the images are not those of the start.
    """
    stay_apart(run, folder)
    folder.create()
    with folder.lock(), signals() as asked:
        held = folder.held()
        if held and not (resume or fresh):
            spare(folder)
        trainer = Trainer(run, folder, say, held and fresh)
        lost, reached = 0, -1

        def ended(kind: str, reason: str, code: int | None = None) -> None:
            if not trainer.occupied and (asked.begun or not resume):
                trainer.status(kind, reason, code)  # else the run that is there is what it was

        try:
            trainer.begin(resume, init, allow_dataset_change)
            asked.begun = True
            if fresh:  # nothing was wrong with the new run
                trainer.set_aside()
            while True:
                try:
                    trainer.train(asked)
                    return
                except RollBack as fault:
                    trainer.roll_back(str(fault))
                except RuntimeError as error:  # raised anywhere, when torch hears that one died
                    if not str(error).startswith("DataLoader"):
                        raise
                    reason = str(error).split(". ")[0].rstrip(". ")
                    lost = lost + 1 if trainer.step <= reached else 1
                    reached = max(reached, trainer.step)
                    if lost > MAX_LOST_READERS:
                        raise StorageProblem(
                            f"Reading processes were lost {lost} times at step {trainer.step} ({reason}): look at the "
                            f"disk of {run.data.root}, free memory and /dev/shm, or set data.workers=0."
                        ) from None
                    say(
                        f"A reading process was lost ({reason}): going on from the last checkpoint."
                    )
                    trainer.restore()
        except Stopped as stop:
            raise SystemExit(stop.code) from None
        except SystemExit as stop:  # a signal before training, or the second Ctrl-C
            if not trainer.occupied:
                trainer.status("preempted", "stopped at once, without saving", int(stop.code or 0))
            raise stop
        except Problem as problem:
            kind = "diverged" if isinstance(problem, Diverged) else "failed"
            ended(kind, str(problem), problem.exit_code)
            raise
        except Exception as error:
            if not ran_out_of_memory(error):
                ended("failed", repr(error))
                raise
            no_memory = OutOfMemory(
                f"Out of memory at step {trainer.step}: {less_memory(run)}. The last checkpoint is intact."
            )
            ended("failed", str(no_memory), no_memory.exit_code)
            raise no_memory from None


def stay_apart(run: Run, folder: RunFolder) -> None:
    """Refuses a run folder among the images: its samples would be images of the data from then on."""
    root = run.data.root
    for top in () if root in (None, "scenes") else (root,) if isinstance(root, str) else root:
        if Path(top).is_dir() and folder.path.resolve().is_relative_to(Path(top).resolve()):
            raise ConfigProblem(
                f"The run folder {escape(folder.path)} lies among the images of {escape(top)}, and would become a part "
                "of them: choose another --out, or move a run that is there already."
            )


def spare(folder: RunFolder) -> None:
    """Refuses to begin over a run."""
    if not folder.steps():
        folder.newest()  # refuses where there are checkpoints and none can be read
        raise ConfigProblem(
            f"{folder.path} holds a run, whose checkpoints were removed: choose another --out, or begin anew by "
            "--fresh, which sets it aside."
        )
    raise ConfigProblem(
        f"{folder.path} holds a run already: go on with it by --resume {quote(str(folder.path))}, choose "
        "another --out, or begin anew by --fresh, which sets it aside."
    )


def less_memory(run: Run) -> str:
    """What a run that does not fit can do, of the ways that are open to it."""
    h, w = run.data.hw
    ways = ["lower data.size"] + ["lower data.zoom"] * (run.data.zoom > 2)
    if run.data.batch > 1:
        ways.insert(0, "lower data.batch")
        parts = next(n for n in range(2, run.data.batch + 1) if run.data.batch % n == 0)
        if run.method_class().accumulates and run.train.accumulate == 1:
            ways.append(f"split the batch by train.accumulate={parts}")
    if not (run.train.checkpointing or run.train.compile):
        ways.append("keep less by train.checkpointing=true")
    return f"batch {run.data.batch} at {h} x {w} does not fit: {', or '.join(ways)}"


class Stopped(Exception):
    """The run was asked to stop, and has saved."""

    def __init__(self, code: int) -> None:
        self.code = code


class Trainer:
    """The state of one run: method, optimizers, data and where it stands."""

    def __init__(
        self, run: Run, folder: RunFolder, say: Callable[[str], None], occupied: bool = False
    ) -> None:
        self.run, self.folder, self.say = run, folder, say
        self.occupied = occupied  # by another run: nothing is written before `set_aside`
        self.bad: list[str] = []  # lines of bad_files.jsonl that are not written yet
        self.step = max(folder.steps(), default=0)
        self.skipped = self.failed_saves = 0
        self.rollbacks = self.shift = 0  # the batches of `step` are those of step + shift
        self.history: list[dict[str, Any]] = []  # the log
        self.contents: Fingerprint | None = None  # what the images are
        self.cache: ImageCache | None = None
        self.paged = 0.0  # when the page was written

    def begin(self, resume: bool, init: Path | None, allow_dataset_change: bool) -> None:
        """Opens the data, builds the networks, and takes up the state to go on from."""
        run, say, cls = self.run, self.say, self.run.method_class()
        self.dataset = self.open(cls.layout, resume and not allow_dataset_change)
        check_layout(cls.layout, self.dataset.domains, run.method.name)
        supervision = cls.supervision(run.method)
        training_labels(supervision, self.dataset, run.method.name)
        domains = self.dataset.domains if supervision == "none" else self.dataset.labels
        if run.train.accumulate > 1 and not cls.accumulates:
            raise ConfigProblem(
                f"train.accumulate: a loss of {run.method.name} couples the images of a batch, so it cannot be "
                "split: set train.accumulate=1 and lower data.batch instead."
            )
        if run.train.compile and run.train.checkpointing:
            raise ConfigProblem(
                "train.checkpointing and train.compile do not go together: set one of them to false."
            )
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
        precision: Any = run.precision(torch.device(accelerator))
        self.fabric = Fabric(accelerator=accelerator, devices=1, precision=precision)
        say(f"Training on {accelerator}, {precision}.")
        if accelerator == "cpu":
            keep_freed()
        self.fabric.launch()
        if accelerator == "cpu" and run.preset == "paper" and run.method_class().presets:
            say(
                "This is the paper's setting, on a CPU: --preset small (32 to 64 px) takes minutes instead of weeks."
            )
        if resume:
            domains = saved_names(self.folder.path) or domains
        self.method = run.build(domains).to(self.fabric.device)
        self.method.begin()
        self.optimizers = build_optimizers(self.method, run)
        saved = self.method.state_dict().keys()
        self.buffers = [b for name, b in self.method.named_buffers() if name in saved]
        self.batches = Batches(
            self.dataset.splits["train"],
            cls.layout,
            run.data.batch,
            run.data.hw,
            steps=run.train.steps,
            seed=run.train.seed,
            flip=run.data.mirrors,
            channels=run.data.channels,
        )
        if resume:
            self.restore()
        elif init is not None:
            self.initialise(init)
        if (best := run.train.best) != "SWD":  # which every method has
            few = [x[:4] for x in self.validation()]
            if best not in (figures := quick_validation(self.method.translator(), few)):
                raise ConfigProblem(
                    f"train.best: {run.method.name} has no {best}: {nearest(best, figures)}"
                )
            self.method.train()
        prepare(self.method, run.train)

    def set_aside(self) -> None:
        """Takes the folder from the run that it holds."""
        self.folder.start_fresh()
        self.occupied, self.step = False, 0
        self.write_bad()

    def open(self, layout: str, unchanged: bool) -> Dataset:
        """The data; refuses too many bad images, and with `unchanged` other images than those of the start."""
        run = self.run
        known = None if self.occupied else known_images(self.folder.path)
        dataset = open_dataset(run.data, layout, run.train.seed, self.report_bad, known)
        if (listing := dataset.listing) is None:
            return dataset
        for sentence in outline(listing, run.data.max_bad):
            self.say(sentence)
        learned = run.method_class().supervision(run.method) != "none"
        now = listing.fingerprint(known, dataset.given if learned else {})
        if unchanged and known and (changes := compare(known, now)):
            raise ConfigProblem(
                f"The images in {listing.root} are not those that the run began with ({changes}): bring them back, or "
                "say --allow-dataset-change to go on with them."
            )
        self.contents = now
        self.cache = cache_training(run.data, dataset, now)
        for domain, p in zip(dataset.domains, dataset.splits["train"], strict=False):
            if not len(p):
                raise DataProblem(
                    f"{escape(listing.root)} has no images to train on of the domain {escape(domain)}: put some into "
                    "its folder outside test and val."
                )
        good = sum(len(p) for p in dataset.splits["train"])
        unusable = len(
            listing.unusable(dataset.domains if layout != "unlabelled" else listing.domains)
        )
        shares = [unusable / max(good + unusable, 1)]
        shares += [p.inspect() for p in dataset.splits["train"] if isinstance(p, FilePictures)]
        if max(shares) > run.data.max_bad:
            to_look = check_command(listing.roots, layout, run.data.follow_links)
            raise DataProblem(
                f"{max(shares):.0%} of the images in {listing.root} cannot be read, and data.max_bad allows "
                f"{run.data.max_bad:.0%}: run `{to_look}`, and mend or remove them."
            )
        return dataset

    # Training ------------------------------------------------------------------------------------

    def train(self, asked: Sequence[int]) -> None:
        with self.tensorboard() as write:
            self.go_on(asked, write)

    def go_on(self, asked: Sequence[int], write: Callable[[Mapping[str, Any]], None]) -> None:
        """From the present step to the last."""
        run, folder = self.run, self.folder
        if self.contents:
            text = json.dumps(self.contents.to_json())
            write_atomic(folder.path / "dataset.json", text.encode())
        write_atomic(folder.path / "config.yaml", run.to_yaml().encode())
        if self.step == 0:
            self.save()
            if not asked:
                self.sample()
        self.heed(asked)
        self.status("running")
        workers = self.workers()
        view = View.of(run.data)
        progress = Progress(self.step, run.train.steps, run.data.batch, self.say)
        recent: deque[dict[str, Tensor]] = deque(maxlen=run.train.log_every)
        with closing(loader(Shifted(self.batches, self.shift), self.step, workers)) as source:
            for tensors, files in source:
                losses = self.play(to_device(tensors, self.fabric.device, view), files)
                self.step += 1
                recent.append(losses)
                if self.step % run.train.log_every == 0 or self.step == run.train.steps:
                    record = self.record(recent, progress)
                    self.note(record)
                    progress.show(self.step, record["losses"])
                    if time.monotonic() - self.paged >= PAGE_SECONDS:
                        self.write_page()
                    write(record)
                    recent.clear()
                    self.listen()
                best = self.step % run.train.evaluate_every == 0 and self.evaluate()
                stop = tuple(asked)  # who asks after this waits for the next step
                if self.step % run.train.sample_every == 0 or self.step == run.train.steps:
                    self.sample()
                due = self.step % run.train.save_every == 0 and not self.skipped
                if due or self.step == run.train.steps or stop or best:
                    self.save(best)
                self.heed(stop)
        self.export()
        self.check_saved()
        self.status("done", code=0)
        progress.done()

    def heed(self, asked: Sequence[int]) -> None:
        """Ends a run that was asked to stop, and has saved."""
        if asked and self.step < self.run.train.steps:
            self.check_saved()
            self.status("preempted", f"signal {asked[0]}", 128 + asked[0])
            self.say(
                f"Stopped at step {self.step}; go on with: unpaired train --resume {quote(str(self.folder.path))}"
            )
            raise Stopped(128 + asked[0])

    def check_saved(self) -> None:
        """Refuses to end well where the present step is not on the disk."""
        if (last := max(self.folder.steps(), default=0)) < self.step:
            raise StorageProblem(
                f"step {self.step} could not be saved, the last checkpoint is of step {last}: make room, then "
                f"go on from there by `unpaired train --resume {quote(str(self.folder.path))}`."
            )

    def play(self, batch: dict[str, Tensor], files: Sequence[str]) -> dict[str, Tensor]:
        """One round of the game at the present step; a non-finite move ends the round and is counted."""
        run, n = self.run, self.run.train.accumulate
        for net, o in self.optimizers.items():
            settings = run.optimizer(net)
            o.param_groups[0]["lr"] = (
                settings.lr * settings.decay.at(self.step / run.train.steps) / 2**self.rollbacks
            )
        torch.manual_seed(
            run.train.seed * 1_000_003 + self.step
        )  # dropout: a function of the step too
        steps = [
            Step(self.step, run.train.steps, run.train.seed, self.fabric.global_rank, m)
            for m in range(n)
        ]
        microbatches = [{k: x[m::n] for k, x in batch.items()} for m in range(n)]
        clips = {net: run.optimizer(net).clip for net in self.optimizers}
        buffers = [b.clone() for b in self.buffers]
        try:
            losses = train_step(
                self.fabric, self.method, self.optimizers, microbatches, steps, clips
            )
        except Skipped as fault:
            self.skip(fault, files, buffers)
            return {}
        self.skipped = 0
        self.method.update_averages(min(run.train.ema, (1 + self.step) / (10 + self.step)))
        return losses

    def skip(self, fault: Skipped, files: Sequence[str], buffers: Sequence[Tensor]) -> None:
        """Takes back what the step did to the buffers, tells what was not finite and in which files."""
        with torch.no_grad():
            for now, before in zip(self.buffers, buffers, strict=True):
                now.copy_(before)
        self.skipped += 1
        step = self.step + 1  # as its losses would have: a checkpoint of `self.step` is without it
        self.note({"step": step, "skipped": str(fault), "files": list(files)})
        self.say(
            f"Step {step} is skipped: {fault} is not finite. Images: {', '.join(map(escape, files[:8]))}"
        )
        if self.skipped >= MAX_SKIPPED:
            self.step += 1  # this batch is over too
            raise RollBack(f"{MAX_SKIPPED} steps in a row were not finite, the last by {fault}")

    def roll_back(self, fault: str) -> None:
        """Goes on from the last checkpoint with other batches and half the learning rate, MAX_ROLLBACKS times."""
        reached, rollbacks, shift = self.step, self.rollbacks, self.shift
        if rollbacks == MAX_ROLLBACKS:
            raise Diverged(
                f"{fault}, for the {rollbacks + 1}th time, at step {reached}: lower optim.default.lr, and look at the "
                f"images named in {self.folder.path / 'log.jsonl'}."
            )
        skips = [r for r in self.history if "skipped" in r]
        self.restore()
        self.rollbacks, self.shift, self.skipped = rollbacks + 1, shift + reached - self.step, 0
        lost = [r for r in skips if r["step"] > self.step]
        text = (
            f"{fault}: back from step {reached} to {self.step}, with other batches and half the learning rate "
            f"({self.rollbacks} of {MAX_ROLLBACKS} times). If it comes again, lower optim.default.lr and look at the "
            "images."
        )
        self.say(text)
        self.save()
        for record in lost:  # they stay in the log, at the step gone back to
            self.note({**record, "step": self.step, "at": record["step"]})
        self.note({"step": self.step, "rollback": text})  # once saved: else a kill brings it twice

    def evaluate(self) -> bool:
        """Quick figures of the averaged networks on validation images; whether they are the best so far."""
        figures = quick_validation(self.method.translator(), self.validation())
        figures = {k: v for k, v in figures.items() if math.isfinite(v)}
        self.method.train()
        self.note({"step": self.step, "figures": {k: round(v, 6) for k, v in figures.items()}})
        self.listen()
        return self.best() == self.step

    def best(self) -> int | None:
        """The step whose figures are the best in the log, of equal ones the first."""
        name = self.run.train.best
        sign = 1 if METRICS[name].better == "higher" else -1
        known = [r for r in self.history if "figures" in r and r["figures"].get(name) is not None]
        return max(known, key=lambda r: sign * r["figures"][name])["step"] if known else None

    def validation(self) -> list[Tensor]:
        """The middles of some validation images of each domain, of training images where there are none."""
        run, splits = self.run, self.dataset.splits
        sides = splits["val"] if all(len(p) for p in splits["val"]) else splits["train"]
        most = min(VALIDATION_IMAGES, max(2, VALIDATION_TOTAL // len(sides)))
        places = [spread(min(len(p), most), len(p)) for p in sides]
        if self.method.layout == "paired":  # a stand-in is no partner
            pairs = min(places, key=len)
            whole = [i for i in pairs if all(usable(p, i) for p in sides)]
            places = [whole or pairs] * len(sides)
        return [
            torch.cat([middle(p.read(i), run.data.hw, run.data.channels) for i in of]).to(
                self.fabric.device, memory_format=torch.channels_last
            )
            for p, of in zip(sides, places, strict=True)
        ]

    def note(self, record: dict[str, Any]) -> None:
        """A line of the log."""
        self.history.append(record)
        self.folder.append_log(record)

    def listen(self) -> None:
        """Tells of alarms that the log gives cause for, each once."""
        for name, text in alarms.sounding(self.history, self.run.train.steps).items():
            self.note({"step": self.step, "alarm": name, "text": text})
            self.say(f"ALARM at step {self.step}. {text}")

    def record(self, recent: Sequence[Mapping[str, Tensor]], progress: Progress) -> dict[str, Any]:
        """The means of the latest losses, for the log."""
        names = dict.fromkeys(name for losses in recent for name in losses)
        parts = {
            n: torch.stack([losses[n].float() for losses in recent if n in losses]).mean()
            for n in names
        }
        values = {n: round(float(part), 6) for n, part in parts.items() if bool(part.isfinite())}
        lr = {net: o.param_groups[0]["lr"] for net, o in self.optimizers.items()}
        record = {
            "step": self.step,
            "losses": values,
            "lr": lr,
            "images_per_second": round(progress.rate(self.step), 2),
        }
        return record | ({"cache": self.cache.counts()} if self.cache else {})

    def workers(self) -> int:
        if self.run.data.workers != "auto":
            return self.run.data.workers
        return 0 if self.fabric.device.type == "cpu" else 4

    # What is written -----------------------------------------------------------------------------

    def save(self, best: bool = False) -> None:
        """A checkpoint and model.safetensors, and model-best.safetensors of the `best`. A full disk is told and
        survived, three times in a row; weights that are not finite are never written."""
        tensors = {f"method.{k}": v for k, v in self.method.state_dict().items()}
        for net, o in self.optimizers.items():
            for i, state in o.state_dict()["state"].items():
                tensors |= {f"optim.{net}.{i}.{k}": torch.as_tensor(v) for k, v in state.items()}
        if odd := [
            k for k, v in tensors.items() if v.is_floating_point() and not v.isfinite().all()
        ]:
            raise RollBack(f"The weights are not finite ({', '.join(odd[:3])})")
        state = {
            "step": self.step,
            "rollbacks": self.rollbacks,
            "shift": self.shift,
            "skipped": self.skipped,
            "domains": list(self.method.domains),
            "labels": list(self.dataset.labels),
            "run": self.run.model_dump(mode="json"),
        }
        lacking = f"Checkpoint {self.step} was not written, the earlier ones stay"
        try:
            self.folder.save(self.step, tensors, state, keep=self.run.train.keep)
            lacking = f"The model of step {self.step} was not written, its checkpoint was"
            self.export()
            if best:
                self.keep_best()
            self.failed_saves = 0
        except StorageProblem as problem:
            self.failed_saves += 1
            self.say(f"{lacking}: {problem}")
            if self.failed_saves >= MAX_FAILED_SAVES:
                raise

    def keep_best(self) -> None:
        self.folder.mark_best(self.step)
        self.export("model-best.safetensors")

    def export(self, name: str = "model.safetensors") -> None:
        """The file that translates: the averaged networks, with all that is needed to use them."""
        source = self.method.ema if self.run.train.ema else self.method
        tensors = {
            f"{net}.{k}": v
            for net in self.method.averaged.split()
            for k, v in source.get_submodule(net).state_dict().items()
        }
        save_model(
            self.folder.path / name,
            tensors,
            metadata(self.run, self.method.domains, self.step),
        )

    def restore(self) -> None:
        found = self.folder.newest()
        if found is None:
            model = self.folder.path / "model.safetensors"
            remedy = (
                f"begin another run from its model by --init {quote(str(model))}"
                if model.is_file()
                else "train it first"
            )
            raise ConfigProblem(
                f"{escape(self.folder.path)} holds no checkpoint to resume from: {remedy}."
            )
        self.step, tensors, state = found
        self.rollbacks, self.shift = state.get("rollbacks", 0), state.get("shift", 0)
        self.skipped = state.get("skipped", 0)
        self.compare_domains(state)
        refuse_changes(resolve(state["run"]), self.run, self.folder.path)
        load_tensors(self.method, tensors)
        self.method.zero_grad()
        self.method.train()  # a reader may have been lost while the method was translating
        for net, o in self.optimizers.items():
            prefix = f"optim.{net}."
            params = o.param_groups[0]["params"]
            states: dict[int, dict[str, Tensor]] = {}
            for name, value in tensors.items():
                if name.startswith(prefix):
                    index, key = name.removeprefix(prefix).split(".")
                    p = params[int(index)]
                    if (
                        value.shape == p.shape
                    ):  # a fused step needs the memory layout of the parameter
                        value = torch.empty_like(p, requires_grad=False).copy_(value)
                    states.setdefault(int(index), {})[key] = value
            o.load_state_dict({"state": states, "param_groups": o.state_dict()["param_groups"]})
        self.folder.truncate_log(self.step)
        self.history = self.folder.read_log()
        if self.best() == self.step:  # a kill may have come between its checkpoint and its mark
            self.keep_best()

    def compare_domains(self, state: Mapping[str, Any]) -> None:
        """Refuses domains or labels of other names, or in another order: the networks would change sides."""
        if self.method.layout != "unlabelled":
            kind, now = "domains", self.method.domains
        elif self.method.supervision(self.run.method) != "none":
            kind, now = "labels", self.dataset.labels
        else:
            return  # found domains have the names that they were given
        begun = state.get(kind, list(now))
        if begun != list(now):
            raise ConfigProblem(
                f"The run began with the {kind} {', '.join(map(escape, begun))}, here are "
                f"{', '.join(map(escape, now))}: name the folders and their order as they were, or begin another run "
                "by --init."
            )

    def initialise(self, path: Path) -> None:
        """Starts from the networks of another run, or of a model file, as far as names and shapes agree."""
        nets = {*learning(self.method), "ema"}  # and no pools of earlier images
        own = {k: v for k, v in self.method.state_dict().items() if k.split(".")[0] in nets}
        if path.is_file():
            theirs, _ = load_model(path)
            theirs |= {f"ema.{k}": v for k, v in theirs.items() if f"ema.{k}" in own}
        elif found := RunFolder(path).newest():
            theirs = {
                k.removeprefix("method."): v for k, v in found[1].items() if k.startswith("method.")
            }
        else:
            raise ConfigProblem(
                f"--init: {path} holds no checkpoint: name a run folder that was trained, or a model file."
            )
        fitting = {k: v for k, v in theirs.items() if k in own and own[k].shape == v.shape}
        if not fitting:
            raise ConfigProblem(
                f"--init: nothing in {path} fits this method and its sizes: use the same method.* settings."
            )
        self.method.load_state_dict(fitting, strict=False)
        said = f"Starting from {len(fitting)} of {len(own)} tensors of {path}."
        if odd := [k for k in own if k not in fitting]:
            said += (
                f" The others ({', '.join(odd[:2])}, ...) differ in name or shape and begin anew: --preset and "
                "method.* decide these."
            )
        self.say(said)

    def sample(self) -> None:
        """The fixed inputs of the validation split in fixed styles, and the page."""
        try:
            sheets = sample_sheets(self.method.translator(), self.dataset, self.run)
        except NotFinite:
            raise RollBack("The outputs are not finite") from None
        self.method.train()
        try:
            for name, image in sheets.items():
                path = self.folder.path / "samples" / f"{name}-{self.step:08d}.png"
                path.parent.mkdir(exist_ok=True)
                write_atomic(path, png(image))
            self.write_page()
        except (OSError, StorageProblem) as error:
            self.say(f"The samples of step {self.step} were not written: {error}")

    def status(self, status: str, reason: str = "", code: int | None = None) -> None:
        """status.json, and the page of a run that ended. Nothing depends on it, least of all the report of another
        fault."""
        try:
            self.folder.write_status(status, self.step, reason, code)
        except StorageProblem as problem:
            self.say(f"The status was not written: {problem}")
        if status != "running":
            self.write_page(alive=False)

    def write_page(self, alive: bool = True) -> None:
        page.write(self.folder, self.run, self.step, alive)
        self.paged = time.monotonic()

    @contextmanager
    def tensorboard(self) -> Iterator[Callable[[Mapping[str, Any]], None]]:
        """A writer of the log's records for TensorBoard, where it is asked for."""
        if not self.run.train.tensorboard:
            yield lambda record: None
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ConfigProblem(
                "train.tensorboard needs the extra `log`: in the checkout, pip install -e '.[log]'."
            ) from None
        folder = str(self.folder.path / "tensorboard")
        writer = SummaryWriter(folder, purge_step=self.step + 1)  # later ones are made again
        told: list[str] = []

        def write(record: Mapping[str, Any]) -> None:
            try:
                for name, value in record["losses"].items():
                    writer.add_scalar(f"loss/{name}", value, record["step"])
                writer.flush()
            except OSError as error:  # its thread's, raised again at every call
                if not told:
                    self.say(
                        f"TensorBoard is no longer written ({error}); log.jsonl holds the losses."
                    )
                told.append(str(error))

        try:
            yield write
        finally:
            with suppress(OSError):
                writer.close()

    def report_bad(self, path: Path, reason: str) -> None:
        bad = self.folder.path / "bad_files.jsonl"
        known = not self.occupied and bad.exists()
        if known and json.dumps(str(path)) in bad.read_text(encoding="utf-8"):
            return
        self.say(f"Bad image, another stands in: {reason}")
        self.bad.append(json.dumps({"path": str(path), "reason": reason}) + "\n")
        if not self.occupied:
            self.write_bad()

    def write_bad(self) -> None:
        bad, lines, self.bad = self.folder.path / "bad_files.jsonl", self.bad, []
        if not lines:
            return
        try:
            with open(bad, "a", encoding="utf-8") as file:
                file.writelines(lines)
        except OSError as error:
            self.say(f"{bad} was not written: {error}.")


def load_tensors(method: Method, tensors: Mapping[str, Tensor]) -> None:
    """The method's state out of a checkpoint; names what does not fit."""
    state = {k.removeprefix("method."): v for k, v in tensors.items() if k.startswith("method.")}
    own = method.state_dict()
    odd = sorted(own.keys() ^ state.keys()) or sorted(
        k for k in own if own[k].shape != state[k].shape
    )
    if odd:
        raise ConfigProblem(
            f"The checkpoint does not fit the config: {', '.join(odd[:4])} differ; resume with its own config."
        )
    method.load_state_dict(state)


class Asked(list[int]):
    """The signals that asked to stop, in their order."""

    begun = False  # whether there are steps to save: before, a signal ends the run at once


@contextmanager
def signals() -> Iterator[Asked]:
    """Collects SIGTERM, SIGINT and SIGHUP; the step is finished and saved first. A second Ctrl-C stops at once."""
    asked = Asked()
    last = [0.0]

    def handle(number: int, frame: object) -> None:
        if asked and number == signal.SIGINT and time.monotonic() - last[0] < 2:
            raise SystemExit(130)
        last[0] = time.monotonic()
        asked.append(number)
        if len(asked) > 1:
            return
        if not asked.begun:
            answer("Stopped before the first step.")
            raise SystemExit(128 + number)
        answer(
            "Stopping after this step, and saving; Ctrl-C again within two seconds stops at once."
        )

    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
        numbers.append(signal.SIGHUP)
    before = {n: signal.signal(n, handle) for n in numbers}
    try:
        yield asked
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)


def answer(line: str) -> None:
    """A line from within a signal's handler, where `print` may be under way already."""
    with suppress(AttributeError, OSError, ValueError):  # no stderr, or one that is closed
        line = f"\n{line}\n" if on_terminal() else f"{line}\n"  # after the line of progress
        os.write(sys.stderr.fileno(), line.encode())


def ran_out_of_memory(error: BaseException) -> bool:
    text = str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in text
