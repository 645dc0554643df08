"""Every method on another device than the CPU: trained, measured, translated, and waited for once a move."""

import json
from contextlib import nullcontext

import lightning_fabric
import numpy as np
import pytest
import second_device
import tiny
import torch
from PIL import Image
from test_evaluate import _small, data, quiet, trained, weights  # noqa: F401

from unpaired import Translator, convolution, evaluate, train, translator
from unpaired.checkpoint import RunFolder
from unpaired.networks import blocks, norms
from unpaired.registry import method_names
from unpaired.train import build_optimizers, fit, train_step

second_device.register()  # before the first backward pass
METHODS = method_names()


class Fabric:
    """As much of it as training uses, on the device."""

    global_rank = 0
    device = property(lambda self: torch.device(second_device.NAME))
    autocast = staticmethod(nullcontext)

    def __init__(self, **settings):
        pass

    def launch(self):
        pass

    def backward(self, loss, **kw):
        loss.backward(**kw)


@pytest.fixture
def there(monkeypatch):
    """The device, which trainers and translators take."""
    load = Translator.load.__func__
    monkeypatch.setattr(train, "Fabric", Fabric)
    monkeypatch.setattr(train, "VALIDATION_IMAGES", 4)
    monkeypatch.setattr(translator, "SHEET_DOMAINS", 1)
    monkeypatch.setattr(translator, "SPREAD", 8)
    on_it = classmethod(lambda cls, path: load(cls, path, device=second_device.NAME))
    monkeypatch.setattr(Translator, "load", on_it)
    with second_device.present() as device:
        yield device


def test_the_device_is_another(there):
    x = torch.ones(2, device=there.name)
    assert not x.is_cpu and x.device.type == there.name and x.sum().item() == 2
    assert (x + torch.tensor(1.0)).tolist() == [2, 2]
    with pytest.raises(RuntimeError, match="two devices"):
        x + torch.ones(2)
    there.waits.clear()
    x[x > 0]
    x.cpu()
    torch.ones(2).to(x)
    assert len(there.waits) == 3
    torch.ones(2).to(x, non_blocking=True)
    assert len(there.waits) == 3


def steps(name, device):
    """The losses of two steps late in a run, in float64."""
    method, run = tiny.build(name)
    method = method.double().to(device)
    method.begin()
    optimizers = build_optimizers(method, run)
    batch = {k: x.double() if x.is_floating_point() else x for k, x in tiny.batch(name).items()}
    batch = {k: x.to(device) for k, x in batch.items()}
    second_device.waits.clear()
    logs = []
    for i in (8, 9):
        clips = dict.fromkeys(optimizers)
        logs.append(train_step(Fabric(), method, optimizers, [batch], [tiny.step(i)], clips))
        method.update_averages(0.9)
    waits = list(second_device.waits)
    return [{k: float(x) for k, x in log.items()} for log in logs], waits


@pytest.mark.parametrize("name", METHODS)
def test_steps_are_those_of_the_cpu(name):
    here, _ = steps(name, "cpu")
    with second_device.present() as device:
        there, waits = steps(name, device.name)
    for a, b in zip(here, there, strict=True):
        assert a == pytest.approx(b, rel=1e-6, abs=1e-9)
    moves = [w for w in waits if "_local_scalar_dense" in w and "train.py" in w]
    assert len(moves) >= 2 and waits == moves  # is it finite? nothing else is asked


@pytest.mark.parametrize("name", METHODS)
def test_a_run_there(name, there, tmp_path):
    """Steps, figures, samples, a checkpoint, and translating."""
    folder = RunFolder(tmp_path / "run")
    settings = ("train.evaluate_every=1", "data.workers=0")
    fit(tiny.run(name, *settings, steps=1), folder, say=quiet)
    assert "figures" in (folder.path / "log.jsonl").read_text(encoding="utf-8")
    t = Translator.load(folder.path)
    assert t.step == 1 and t.device.type == there.name
    side, target = tiny.side(name), len(t.domains) - 1
    image = Image.fromarray(
        np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    )
    to = t.domains[target]
    ways = t.method.styles(0, target)
    if "latent" in ways:
        assert len(t.translate(image, to=to, styles=2)) == 2
    elif "reference" not in ways:
        assert len(t.translate(image, to=to)) == 1
    if "reference" in ways:
        assert len(t.translate(image, to=to, style_from=image)) == 1


@pytest.mark.parametrize("name", ["munit", "tunit"])
def test_measured_there(name, there, data, weights, tmp_path):  # noqa: F811
    run = trained(name, tmp_path / "run", data)
    trunk, heads = (weights / f"{part}.safetensors" for part in ("trunk", "heads"))
    evaluate(run, features=[trunk], lpips=[trunk, heads], say=quiet)
    assert json.loads((run / "metrics.json").read_text(encoding="utf-8"))["directions"]


@pytest.mark.parametrize("name", METHODS)
def test_bf16_by_torchs_own_layers(name, monkeypatch):
    """As on a GPU: autocast, and none of the ways that are for a CPU's kernels."""
    monkeypatch.setattr(convolution, "able", lambda *_: False)
    monkeypatch.setattr(norms, "fused", lambda _: False)
    monkeypatch.setattr(blocks.ConvToFew, "forward", torch.nn.Conv2d.forward)
    logs = []
    for precision in ("32-true", "bf16-mixed"):
        fabric = lightning_fabric.Fabric(accelerator="cpu", devices=1, precision=precision)
        fabric.launch()
        method, run = tiny.build(name)
        method.begin()
        optimizers = build_optimizers(method, run)
        clips = dict.fromkeys(optimizers)
        log = train_step(fabric, method, optimizers, [tiny.batch(name)], [tiny.step(9)], clips)
        logs.append({k: float(x) for k, x in log.items()})
        translated = method.eval()
        with fabric.autocast(), torch.no_grad():
            content = translated.encode_content(next(iter(tiny.batch(name).values())), 0)
        assert content.isfinite().all()
    exact, coarse = logs
    assert coarse == pytest.approx(exact, rel=0.1, abs=0.05)
