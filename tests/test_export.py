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
from unpaired.errors import ConfigProblem, Problem
from unpaired.export import Graph, export, noise_of, translations, written
from unpaired.translator import metadata

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def saved(folder, name, *settings, size=None):
    """An untrained model, whose biases are no zeros; of TUNIT's last domain no image was seen."""
    torch.manual_seed(0)
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


def exported(file):
    listing = export(file, say=lambda line: None)
    return listing.parent, json.loads(listing.read_text())


def run(folder, file, **given):
    session = onnxruntime.InferenceSession(folder / file)
    assert {i.name for i in session.get_inputs()} == set(given)
    return session.run(None, {k: v.numpy() for k, v in given.items()})[0]


def close(found, expected):
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-4 * expected.abs().max())


BOTH = {"translate-from-outline-to-painted", "translate-from-painted-to-outline"}
IMAGE, NOISE = (
    {f"style-of-{k}-{d}" for d in ("outline", "painted", "neon")} for k in ("image", "noise")
)
FILES = {
    "munit": BOTH | {"style-of-image-painted", "style-of-image-outline"},
    "unit": BOTH,
    "cyclegan": BOTH,
    "augmented_cyclegan": BOTH | {"style-of-image"},
    "pix2pix": {"translate"},
    "bicyclegan": {"translate", "style-of-image"},
    "stargan_v2": {"translate"} | IMAGE | NOISE,
    "smoothgan": {"translate"} | IMAGE | NOISE,
    "dsm": {"translate"} | IMAGE | NOISE,
    "tunit": {"translate", "style-of-image"},
}
CASES = [(name, ()) for name in tiny.METHODS] + [
    ("unit", ("method.shared=1", "data.size=[16,20]")),
    pytest.param("cyclegan", ("method.noise=true",), marks=pytest.mark.slow),
    pytest.param("dsm", ("method.flow=false",), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("name, settings", CASES)
@torch.inference_mode()
def test_every_file_gives_what_the_model_gives(name, settings, tmp_path):
    file = saved(tmp_path, name, *settings)
    (folder, about), t = exported(file), Translator.load(file, "cpu")
    m, k, c = t.method, t.method.stride, about["channels"]
    ways = {(a, b): f for a, found in about["translate"].items() for b, f in found.items()}
    assert {p.stem for p in folder.glob("*.onnx")} == FILES[name]
    if FILES[name] >= IMAGE:
        assert len(ways) == 9  # one network serves all, also a domain to itself
    for (a, b), translate in ways.items():
        way = m.domains.index(a), m.domains.index(b)
        for shape in ((3, 4 * k, 2 * k), (1, 2 * k, 5 * k), (1, *about["size"])):
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
            z = torch.randn(5, styles["noise"]) * 4  # also beyond the ends of a spline
            s = m.map_latent(z, target)
            assert (styles["of_noise"] is None) == torch.equal(s, z)
            if styles["of_noise"]:
                close(run(folder, styles["of_noise"], noise=z), s)
        if styles and styles["of_image"]:
            x = torch.rand(5, c, *about["size"]) * 2 - 1
            close(run(folder, styles["of_image"], image=x), m.encode_style(x, target))
    if name == "tunit":
        close(about["styles"][m.domains[1]]["mean"], m.C.mean[1])
        assert about["styles"][m.domains[2]]["mean"] is None


ALONE = """
import runpy, sys
for name in ("torch", "unpaired"):
    sys.modules[name] = None  # importing it fails
sys.argv = {words!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def alone(folder, *words):
    """The example: its exit code and what it said."""
    code = ALONE.format(words=[str(w) for w in (folder / "example.py", *words)])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def pixels(image):
    return np.asarray(image).astype(int)


def far(a, b):
    assert a.shape == b.shape
    return np.abs(a - b).mean()


def test_the_example_translates_without_torch_and_us(tmp_path, capsys):
    run = tmp_path / "a rün"
    run.mkdir()
    saved(run, "munit", "data.size=[16,24]")
    blocks = np.random.default_rng(0).integers(0, 255, (9, 7, 4), np.uint8)
    blocks = Image.fromarray(blocks.repeat(5, 0).repeat(5, 1))  # transparent in places
    turned = Image.Exif()
    turned[0x0112] = 6
    picture, reference, out = run / "ä b.png", run / "ref.png", tmp_path / "out.png"
    blocks.save(picture)
    blocks.convert("RGB").save(reference, exif=turned)
    assert main(["export", str(run)]) == 0
    folder = run / "export"
    assert "example.py' --help" in capsys.readouterr().out

    def made(*words):
        code, said = alone(folder, picture, out, *words)
        assert not code, said
        with Image.open(out) as image:
            return pixels(image)

    t = Translator.load(run, "cpu")
    for style in (reference, picture):
        (expected,) = t.translate(picture, to="painted", style_from=style)
        found = made("--to", "painted", "--style-from", style)
        assert far(found, pixels(expected)) < 1  # it resizes by Pillow
    (other,) = t.translate(picture, to="painted", style_from=reference)
    assert far(found, pixels(other)) > 2

    one, again, two = (made("--to", "outline", "--seed", seed) for seed in "112")
    assert (one == again).all() and far(one, two) > 2

    text = tmp_path / "text.png"
    text.write_text("no image")
    for words, code, reason in (
        ((picture, out), 2, "say --to: painted, outline"),
        ((picture, out, "--to", "outline", "--source", "outline"), 2, "no way from outline to outline"),
        ((picture, out, "--to", "outline", "--seed", "-1"), 2, "0 or more"),
        ((picture, tmp_path / "out", "--to", "outline"), 2, "name a .png"),
        ((picture, tmp_path / "out.psd", "--to", "outline"), 2, "name a .png"),
        ((picture, tmp_path / "no" / "out.png", "--to", "outline"), 2, "a folder that exists"),
        ((text, out, "--to", "outline"), 1, "cannot be read as an image"),
        ((tmp_path / "none.png", out, "--to", "outline"), 1, "cannot be read as an image"),
    ):  # fmt: skip
        found = alone(folder, *words)
        assert found[0] == code and reason in found[1]


def test_the_example_reads_images_as_translate_does(tmp_path):
    """Transparent, grey of 16 bits; with the mean style of a domain, where there is one."""
    file = saved(tmp_path, "tunit", "data.channels=1")
    folder, about = exported(file)
    t, rng, out = Translator.load(file, "cpu"), np.random.default_rng(0), tmp_path / "out.png"
    first, second, third = t.domains
    rgba = rng.integers(0, 255, (8, 10, 4), np.uint8).repeat(5, 0).repeat(5, 1)
    deep = rng.integers(0, 65535, (8, 10), np.uint16).repeat(5, 0).repeat(5, 1)
    for name, array in (("rgba", rgba), ("deep", deep)):
        picture = tmp_path / f"{name}.png"
        Image.fromarray(array).save(picture)
        code, said = alone(folder, picture, out, "--to", second)
        assert not code, said
        (expected,) = t.translate(picture, to=second)
        (other,) = t.translate(picture, to=first)
        with Image.open(out) as image:
            assert image.mode == "L"
            assert far(pixels(image), pixels(expected)) < 1 < far(pixels(image), pixels(other))
    assert "no mean style of" in alone(folder, picture, out, "--to", third)[1]


def test_a_new_export_takes_the_place_of_the_old_one(tmp_path, monkeypatch, capsys):
    folder, _ = exported(saved(tmp_path, "bicyclegan"))
    mine, example = folder / "mine.onnx", folder / "example.py"
    assert folder == tmp_path / "model-export" and (folder / "style-of-image.onnx").exists()
    mine.write_text("mine")
    example.write_text("print('mine')")
    file = saved(tmp_path, "pix2pix")
    names = {"export.json", "translate.onnx", "mine.onnx", "example.py"}
    exported(file)
    assert {p.name for p in folder.iterdir()} == names and example.read_text() == "print('mine')"

    class Wrong(onnxruntime.InferenceSession):
        by = np.nan

        def run(self, *given):
            return [super().run(*given)[0] + self.by]

    with monkeypatch.context() as patched:
        patched.setattr(onnxruntime, "InferenceSession", Wrong)
        for Wrong.by in (np.float32("nan"), np.float32(0.01)):
            assert main(["export", str(file), "--out", str(folder)]) == 2
            assert "differs from the model" in capsys.readouterr().err
            # what is left does not say that it belongs together
            assert {p.name for p in folder.iterdir()} == {"mine.onnx", "example.py"}

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
    free = {0: torch.export.Dim("batch", min=1)}
    graph = Graph(Counted(), {"noise": (torch.rand(2, 3), free)}, [torch.rand(1, 3)], "style")
    with pytest.raises(ConfigProblem, match="side 0 of noise came out fixed at 2"):
        written(graph, {"method": "my_lab.cut", "step": 0, "unpaired": "0"})


def test_names_of_files_stay_apart(tmp_path):
    file = saved(tmp_path, "cyclegan", "data.domains=[outline,painted]")
    t = Translator.load(file, "cpu")
    t.domains = t.method.domains = ("x", "x-to-x")
    ways, codes = ((0, 1), (1, 0)), {0: None, 1: None}
    files, graphs = translations(t, ways, codes)
    assert len(graphs) == 2 and files["x"]["x-to-x"] != files["x-to-x"]["x"]
    t.domains = t.method.domains = ("𝔞" * 60, "𝔟" * 60)
    assert all(len(name.encode()) < 200 for name in translations(t, ways, codes)[1])


def test_a_method_of_ones_own_whose_styles_are_no_function_of_noise(tmp_path):
    method, _ = tiny.build("munit")
    method.latent_dim = lambda target: 0
    with pytest.raises(Problem, match="give it latent_dim and map_latent"):
        noise_of(method, 0)
