"""Properties that every method has: one suite over the folder of methods."""

import os
import signal
from typing import ClassVar

import pytest
import tiny
import torch
from lightning_fabric import Fabric

from unpaired import Translator
from unpaired.checkpoint import RunFolder
from unpaired.config import resolve
from unpaired.data.scenes import Scenes
from unpaired.errors import ConfigProblem
from unpaired.method import Step
from unpaired.networks import memory
from unpaired.registry import find_method, method_names
from unpaired.train import Trainer, build_optimizers, fit, train_step

METHODS = method_names()


@pytest.fixture(scope="module")
def fabric():
    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.launch()
    return fabric


def directions(method):
    """Every (source, target) that the method translates."""
    n = len(method.domains)
    for source in range(n):
        for target in range(n):
            if source != target or n == 1:
                try:
                    method.styles(source, target)
                except ConfigProblem:
                    continue
                yield source, target


def images(name, n, seed=0):
    return next(iter(tiny.batch(name, n, seed=seed).values()))


def style(method, ways, target, n):
    if "latent" in ways:
        return method.sample_style(n, target, torch.Generator().manual_seed(0))
    if "reference" in ways:
        return method.encode_style(images(method.name, n, seed=9), target)
    return None


@pytest.mark.parametrize("name", METHODS)
def test_maps_that_are_made_again_change_nothing(name, monkeypatch):
    """Every gradient of every move: maps kept, made again, and by whole blocks (`networks/memory.py`)."""
    found = []
    for least, blocks in ((float("inf"), False), (0, False), (0, True)):
        monkeypatch.setattr(memory, "LEAST", least)
        torch.manual_seed(0)
        method = tiny.build(name)[0].double()
        if blocks:
            memory.checkpointed(method)
        batch = {k: x.double() if x.is_floating_point() else x for k, x in tiny.batch(name).items()}
        gradients = []
        for update in method.updates(batch, tiny.step(9)):
            params = [p for n in update.nets.split() for p in method.get_submodule(n).parameters()]
            gradients += torch.autograd.grad(update.loss, params, allow_unused=True)
        found.append(gradients)
    assert len(found[0]) > 0
    for a, *others in zip(*found, strict=True):
        for b in others:
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, rtol=0, atol=1e-9 * (1 + a.abs().max().item()))


@pytest.mark.parametrize("name", METHODS)
def test_gradients_reach_exactly_the_named_networks(name):
    method, _ = tiny.build(name)
    nets = {
        n
        for n, net in method.named_children()
        if n != "ema" and any(True for _ in net.parameters())
    }
    moved = set()
    for update in method.updates(tiny.batch(name), tiny.step(9)):
        named = update.nets.split()
        assert set(named) <= nets
        moved |= set(named)
        params = [p for n in named for p in method.get_submodule(n).parameters() if p.requires_grad]
        update.loss.backward(inputs=params)
        for net in named:
            gradients = [p.grad for p in method.get_submodule(net).parameters()]
            assert any(g is not None and g.abs().sum() > 0 for g in gradients), net
        assert all(torch.isfinite(part).all() for part in update.log.values())
        method.zero_grad()
    assert moved == nets


@pytest.mark.parametrize("name", METHODS)
def test_a_round_moves_every_network_and_the_averages_follow(name, fabric):
    method, config = tiny.build(name)
    before = {k: v.clone() for k, v in method.named_parameters()}
    optimizers = build_optimizers(method, config)
    clips = dict.fromkeys(optimizers)
    log = train_step(fabric, method, optimizers, [tiny.batch(name)], [tiny.step(9)], clips)
    method.update_averages(0.5)
    after = dict(method.named_parameters())
    for net in optimizers:
        assert any(
            not torch.equal(after[k], before[k]) for k in after if k.startswith(f"{net}.")
        ), net
    for net in method.averaged.split():
        for k in (k for k in after if k.startswith(f"{net}.")):
            torch.testing.assert_close(after[f"ema.{k}"], (before[f"ema.{k}"] + after[k]) / 2)
    assert log


class OneDraw(Step):
    """D's draws are G's; `asked` holds all their names."""

    asked: ClassVar[set[str]] = set()

    def draw(self, name, kind, shape):
        self.asked.add(name)
        return super().draw(name.replace("D.", "G."), kind, shape)


@pytest.mark.parametrize("name", ["munit", "unit"])
def test_shared_fakes_are_the_same_game_where_draws_are_the_same(name, fabric):
    rounds = []
    for words in ((), ("method.share_fakes=true",)):
        torch.manual_seed(0)
        method, run = tiny.build(name, *words)
        method, step = method.double(), OneDraw(9, 10)
        step.asked.clear()
        optimizers = build_optimizers(method, run)
        batch = {k: x.double() for k, x in tiny.batch(name).items()}
        log = train_step(fabric, method, optimizers, [batch], [step], dict.fromkeys(optimizers))
        rounds.append((log, method.state_dict()))
        assert any(n.startswith("D.") for n in step.asked) != bool(words)  # none of D's own
    torch.testing.assert_close(*rounds, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "name, settings", [*((name, ()) for name in METHODS), ("dsm", ("method.flow=false",))]
)
def test_a_round_in_bf16(name, settings):
    """Parts that leave autocast meet what bf16 networks gave."""
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    fabric.launch()
    method, run = tiny.build(name, *settings)
    optimizers = build_optimizers(method, run)
    clips = dict.fromkeys(optimizers)
    for step in (tiny.step(1), tiny.step(9)):  # early, and with all that comes later
        log = train_step(fabric, method, optimizers, [tiny.batch(name)], [step], clips)
        assert log and all(part.isfinite() for part in log.values())
    assert all(p.dtype is torch.float32 and p.isfinite().all() for p in method.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_translates_every_way_it_offers(name):
    method, _ = tiny.build(name)
    method = method.translator()
    x = images(name, 2)
    ways = list(directions(method))
    assert ways
    for source, target in ways:
        s = style(method, method.styles(source, target), target, 2)
        with torch.no_grad():
            y = method.translate(x, source, target, s)
            assert y.shape == x.shape
            assert torch.equal(y, method.translate(x, source, target, s))  # same style, same image
            content = method.encode_content(x, source)
            assert torch.equal(y, method.decode(content, s, target))


@pytest.mark.parametrize("name", METHODS)
def test_accumulation_equals_the_whole_batch_or_is_refused(name, fabric, tmp_path):
    if not find_method(name).accumulates:
        with pytest.raises(ConfigProblem, match="train.accumulate"):
            fit(tiny.run(name, "train.accumulate=2"), RunFolder(tmp_path))
        return
    torch.set_default_dtype(torch.float64)
    method, config = tiny.build(name)
    whole = tiny.batch(name)
    whole = {k: v.double() if v.is_floating_point() else v for k, v in whole.items()}
    results = []
    for parts in (1, 2):
        torch.manual_seed(0)
        method, _ = tiny.build(name)
        optimizers = build_optimizers(method, config)
        micro = [{k: v[m::parts] for k, v in whole.items()} for m in range(parts)]
        steps = [Shared(9, 10, microbatch=m, parts=parts) for m in range(parts)]
        train_step(fabric, method, optimizers, micro, steps, dict.fromkeys(optimizers))
        results.append(dict(method.named_parameters()))
    for k, v in results[0].items():
        torch.testing.assert_close(
            v, results[1][k], rtol=0, atol=1e-6, msg=k
        )  # Adam divides rounding by itself


class Shared(tiny.Step):
    """Microbatches that see the draws of the whole batch."""

    def __init__(self, *args, parts, **kw):
        super().__init__(*args, **kw)
        object.__setattr__(self, "parts", parts)

    def draw(self, name, kind, shape):
        whole = tiny.Step(self.index, self.total).draw(
            name, kind, (shape[0] * self.parts, *shape[1:])
        )
        return whole[self.microbatch :: self.parts]


@pytest.mark.parametrize("name", METHODS)
def test_resumes_exactly_and_translates(name, tmp_path, monkeypatch):
    config = tiny.run(name, steps=4)
    fit(config, RunFolder(tmp_path / "whole"), say=quiet)
    play = Trainer.play

    def terminated(self, *args):
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return play(self, *args)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Trainer, "play", terminated)
        fit(config, RunFolder(tmp_path / "parts"), say=quiet)
    fit(config, RunFolder(tmp_path / "parts"), resume=True, say=quiet)
    (_, whole, _), (_, parts, _) = (RunFolder(tmp_path / n).newest() for n in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    for key, value in whole.items():
        assert torch.equal(value, parts[key]), key

    t = Translator.load(tmp_path / "parts")
    assert set(t.domains) == set(t.method.domains)
    for source, target in directions(t.method):
        ways = t.method.styles(source, target)
        image = Scenes("outline", 32, "test", 0, 1)[0].image
        reference = None if "latent" in ways or not ways else image
        outputs = t.translate(image, t.domains[target], 2, 0, reference, t.domains[source])
        assert outputs and outputs[0].size == (tiny.side(name),) * 2
        break
    else:
        raise AssertionError("no direction")


def quiet(line):
    pass


@pytest.mark.parametrize("name", METHODS)
def test_config_round_trip(name):
    for preset in find_method(name).presets:
        config = resolve({"method": {"name": name}, "preset": preset})
        assert resolve(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("name", METHODS)
def test_card_and_docstring(name):
    method = find_method(name)
    assert {"title", "authors", "venue", "year", "url"} <= set(method.card)
    text = __import__(method.__module__, fromlist=["_"]).__doc__
    assert method.card["title"] in " ".join(text.split())
    assert (
        "Differences from the official code" in " ".join(text.split())
        or "no official code" in text.lower()
    )
    assert {"paper", "small"} <= set(method.presets)


PUBLISHED = {  # size, batch, steps; kind, rate, betas, weight decay of each optimizer; how the rate falls
    "munit": ((256, 1, 1_000_000), {"default": ("adam", 1e-4, (0.5, 0.999), 1e-4)}, "steps"),
    "unit": ((256, 1, 1_000_000), {"default": ("adam", 1e-4, (0.5, 0.999), 1e-4)}, "steps"),
    "cyclegan": ((256, 1, 200_000), {"default": ("adam", 2e-4, (0.5, 0.999), 0)}, "linear"),
    "pix2pix": ((256, 1, 200_000), {"default": ("adam", 2e-4, (0.5, 0.999), 0)}, "linear"),
    "bicyclegan": ((256, 2, 200_000), {"default": ("adam", 2e-4, (0.5, 0.999), 0)}, "linear"),
    "stargan_v2": (
        (256, 8, 100_000),
        {"default": ("adam", 1e-4, (0, 0.99), 1e-4), "F": ("adam", 1e-6, (0, 0.99), 1e-4)},
        "constant",
    ),
    "tunit": (
        (128, 32, 200_000),
        {"default": ("rmsprop", 1e-4, None, 1e-4), "C": ("adam", 1e-4, (0.9, 0.999), 1e-3)},
        "constant",
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_paper_preset_is_the_published_schedule(name):
    """Golden numbers come with optimizers of their own: these are what a run gets."""
    run = resolve({"method": {"name": name}})
    schedule, optimizers, decay = PUBLISHED[name]
    assert (run.data.size, run.data.batch, run.train.steps) == schedule
    assert run.optim.keys() == optimizers.keys()
    for net, (kind, lr, betas, weight_decay) in optimizers.items():
        o = run.optim[net]
        assert (o.kind, o.lr, o.weight_decay, o.decay.kind) == (kind, lr, weight_decay, decay)
        assert betas is None or o.betas == betas


def test_a_translation_looks_like_its_own_source_to_the_perceptual_loss(monkeypatch):
    """MUNIT's and UNIT's code compare with the image that was translated, not with one of the target domain."""
    method, seen = tiny.build("munit", "method.lambda_vgg=1")[0], []
    method.vgg = lambda x: seen.append(x) or x
    batch = tiny.batch("munit")
    D, G = method.updates(batch, tiny.step(1))
    assert {"vgg_1", "vgg_2"} <= G.log.keys()
    x_21, of_21, x_12, of_12 = seen
    assert of_21 is batch["x_2"] and of_12 is batch["x_1"]
    for x, own, other in ((x_21, method.G_1, method.G_2), (x_12, method.G_2, method.G_1)):
        reached = [
            torch.autograd.grad(x.sum(), g.mlp.parameters(), allow_unused=True, retain_graph=True)
            for g in (own, other)
        ]
        assert any(g is not None for g in reached[0]) and all(g is None for g in reached[1])
