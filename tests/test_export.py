"""What is exported gives what the model gives, in a program that has neither torch nor us."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from unpaired import Translator
from unpaired.checkpoint import save_model
from unpaired.cli import main
from unpaired.errors import ConfigProblem
from unpaired.export import Graph, export, written
from unpaired.translator import metadata

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def saved(folder, name, *settings, size=None, seed=0):
    """An untrained model, whose biases are no zeros."""
    torch.manual_seed(seed)
    method, run = tiny.build(name, *settings, size=size)
    for parameter in method.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, std=0.2)
    if name == "tunit":
        method.C.count[:2], method.C.mean[:2] = 1, torch.randn(2, method.C.mean.shape[1])
    tensors = {
        f"{net}.{k}": v
        for net in method.averaged.split()
        for k, v in method.get_submodule(net).state_dict().items()
    }
    file = folder / "model.safetensors"
    save_model(file, tensors, metadata(run, method.domains, 7))
    return file


def run(folder, file, **given):
    session = onnxruntime.InferenceSession(folder / file)
    assert {i.name for i in session.get_inputs()} == set(given)
    return session.run(None, {k: v.numpy() for k, v in given.items()})[0]


def close(found, expected):
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-4 * expected.abs().max())


FILES = {  # of translations, and of styles
    "munit": (2, {"of-image-painted", "of-image-outline"}),
    "unit": (2, set()),
    "cyclegan": (2, set()),
    "augmented_cyclegan": (2, {"of-image"}),
    "pix2pix": (1, set()),
    "bicyclegan": (1, {"of-image"}),
    "stargan_v2": (
        1,
        {f"of-{k}-{d}" for k in ("image", "noise") for d in ("outline", "painted", "neon")},
    ),
    "tunit": (1, {"of-image"}),
}
FILES["smoothgan"] = FILES["dsm"] = FILES["stargan_v2"]


@pytest.mark.parametrize("name", tiny.METHODS)
@torch.inference_mode()
def test_every_file_gives_what_the_model_gives(name, tmp_path):
    file = saved(tmp_path, name)
    about = json.loads(export(file, say=lambda line: None).read_text())
    folder, t = tmp_path / "export", Translator.load(file, "cpu")
    m, k, c = t.method, t.method.stride, about["channels"]
    ways = {(a, b): f for a, found in about["translate"].items() for b, f in found.items()}
    assert len(set(ways.values())) == FILES[name][0]
    assert {p.stem.removeprefix("style-") for p in folder.glob("style-*")} == FILES[name][1]
    for (a, b), translate in ways.items():
        way = m.domains.index(a), m.domains.index(b)
        for shape in ((3, 4 * k, 2 * k), (1, 2 * k, 5 * k)):
            x = torch.rand(shape[0], c, *shape[1:]) * 2 - 1
            styles = about["styles"][b]
            if styles is None:
                assert not m.styles(*way)
                close(run(folder, translate, image=x), m.translate(x, *way, None))
                continue
            s = torch.randn(len(x), styles["numbers"])
            close(run(folder, translate, image=x, style=s), m.translate(x, *way, s))
    for b, styles in about["styles"].items():
        target = m.domains.index(b)
        if styles and styles["noise"]:
            z = torch.randn(5, styles["noise"])
            s = m.map_latent(z, target)
            assert (styles["of_noise"] is None) == torch.equal(s, z)
            if styles["of_noise"]:
                close(run(folder, styles["of_noise"], noise=z), s)
        if styles and styles["of_image"]:
            x = torch.rand(5, c, *about["size"]) * 2 - 1
            close(run(folder, styles["of_image"], image=x), m.encode_style(x, target))
    if name == "tunit":  # of the third no image was seen
        close(about["styles"][m.domains[1]]["mean"], m.C.mean[1])
        assert about["styles"][m.domains[2]]["mean"] is None


ALONE = """
import runpy, sys
for name in ("torch", "unpaired"):
    sys.modules[name] = None  # importing it fails
sys.argv = {words!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def alone(example, *words):
    code = ALONE.format(words=[str(w) for w in (example, *words)])
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_the_example_translates_without_torch_and_us(tmp_path, capsys):
    folder = tmp_path / "a rün"
    folder.mkdir()
    saved(folder, "munit")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (9, 7, 3), np.uint8).repeat(5, 0).repeat(5, 1)
    picture, reference = folder / "ä b.png", folder / "ref.png"
    Image.fromarray(pixels).save(picture)
    Image.fromarray(pixels[::-1, ::-1]).save(reference)
    assert main(["export", str(folder)]) == 0
    said = capsys.readouterr().out
    assert (
        "translate-to-painted.onnx" not in said and "translate-from-outline-to-painted.onnx" in said
    )
    example, out = folder / "export" / "translate.py", tmp_path / "out.png"
    assert str(example) in said

    done = alone(example, picture, out, "--to", "painted", "--style-from", reference)
    assert not done.returncode, done.stderr
    t = Translator.load(folder, "cpu")
    (expected,) = t.translate(picture, to="painted", style_from=reference)
    found = np.asarray(Image.open(out)).astype(int)
    assert found.shape == np.asarray(expected).shape
    assert np.abs(found - np.asarray(expected)).mean() < 1  # their resizing is Pillow's

    pictures = []
    for seed in ("1", "1", "2"):
        assert not alone(example, picture, out, "--to", "outline", "--seed", seed).returncode
        pictures.append(np.asarray(Image.open(out)))
    assert (pictures[0] == pictures[1]).all() and (pictures[0] != pictures[2]).any()

    asked = alone(example, picture, out)
    assert asked.returncode == 2 and "say --to: painted, outline" in asked.stderr


def test_what_cannot_be_exported_is_said_and_what_differs_is_not_written(
    tmp_path, monkeypatch, capsys
):
    file = saved(tmp_path, "pix2pix")
    monkeypatch.setattr("unpaired.export.FAR", -1.0)
    assert main(["export", str(file), "--out", str(tmp_path / "x")]) == 2
    assert "differs from the model" in capsys.readouterr().err
    assert not list((tmp_path / "x").iterdir())

    def refuse(*args, **kw):
        raise torch.onnx.OnnxExporterError("no way\nat all")

    monkeypatch.setattr(torch.onnx, "export", refuse)
    assert main(["export", str(file)]) == 2
    assert "pix2pix cannot be exported (no way)" in capsys.readouterr().err

    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(["export", str(file)]) == 2
    assert "needs onnxscript, of the extra `export`" in capsys.readouterr().err


class Counted(torch.nn.Module):
    def forward(self, x):
        return x[torch.arange(len(x))]  # which is 2 from then on


def test_a_side_that_came_out_fixed_is_refused():
    graph = Graph(
        Counted(), {"noise": (torch.rand(2, 3), {0: torch.export.Dim("batch", min=1)})}, "style"
    )
    with pytest.raises(ConfigProblem, match="side 0 of noise came out fixed at 2"):
        written(graph, {"method": "my_lab.cut", "step": 0, "unpaired": "0"})


def test_grey_images(tmp_path):
    file = saved(tmp_path, "stargan_v2", "data.channels=1")
    about = json.loads(export(file, say=lambda line: None).read_text())
    assert about["channels"] == 1
    picture, out = tmp_path / "a.png", tmp_path / "out.png"
    rgba = np.random.default_rng(0).integers(0, 255, (40, 50, 4), np.uint8)
    Image.fromarray(rgba).save(picture)  # laid on white
    done = alone(tmp_path / "export" / "translate.py", picture, out, "--to", "neon")
    assert not done.returncode, done.stderr
    with Image.open(out) as image:
        assert image.mode == "L" and image.size == (40, 32)
