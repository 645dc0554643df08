"""Published files: imported without running code of theirs, refused when they are not what they say."""

import pickle
import zipfile

import golden_numbers as golden
import numpy as np
import pytest
import tiny
import torch

from unpaired import Translator, official
from unpaired.checkpoint import load_model
from unpaired.cli import main
from unpaired.errors import DataProblem
from unpaired.networks.vgg import VGG16


@pytest.fixture
def munit_file(tmp_path):
    """A generator checkpoint with the official names, filled by the golden rule."""
    networks = golden.load("munit")["networks"]
    states = {}
    for domain in "ab":
        states[domain] = {
            k: v.float() for k, v in golden.parameters(networks[f"gen_{domain}"]).items()
        }
        for name, shape in networks[f"gen_{domain}"]["buffers"]:
            states[domain][name] = torch.zeros(shape)
    torch.save(states, tmp_path / "gen_00000001.pt")
    return tmp_path / "gen_00000001.pt"


def test_munit_checkpoint(munit_file, tmp_path):
    model = tmp_path / "model.safetensors"
    assert (
        main(
            [
                "weights",
                "import",
                "munit",
                str(munit_file),
                str(model),
                "--domains",
                "cat",
                "dog",
                "--size",
                "64",
            ]
        )
        == 0
    )
    t = Translator.load(model)
    data = golden.load("munit")
    x = golden.given(data, "munit.x_a.0").float()
    s = golden.given(data, "munit.gen.s_b.0").float().flatten(1)
    with torch.no_grad():
        y = t.method.translate(x, 0, 1, s)
    golden.same(y, data["forward"]["x_ab"], tolerance=1e-4)
    assert len(t.translate(np.zeros((64, 64, 3), np.uint8), to="dog", styles=2)) == 2


def test_T_M01_pickled_code_is_not_run(tmp_path):
    canary = tmp_path / "canary"

    class Payload:
        def __reduce__(self):
            return (open, (str(canary), "w"))

    for name, write in {
        "torch.pt": lambda p: torch.save({"a": Payload()}, p),
        "plain.pt": lambda p: p.write_bytes(pickle.dumps(Payload())),
    }.items():
        path = tmp_path / name
        write(path)
        with pytest.raises(DataProblem, match=name):
            official.munit(path)
    assert not canary.exists()


def test_T_M03_bombs(tmp_path):
    torch.save({"a": torch.zeros(1000)}, tmp_path / "x.pt")
    with (
        zipfile.ZipFile(tmp_path / "x.pt") as plain,
        zipfile.ZipFile(tmp_path / "zip.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in plain.namelist():
            bomb.writestr(entry, plain.read(entry))
    torch.save({"a": torch.zeros(1).expand(200_000, 200_000)}, tmp_path / "stride.pt")
    for name in ("zip.pt", "stride.pt"):
        with pytest.raises(DataProblem, match=name):
            official.read_pickle(tmp_path / name)


def test_a_file_of_another_kind_is_refused(tmp_path):
    torch.save({"features.0.weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(DataProblem, match="gen_"):
        official.munit(tmp_path / "other.pt")
    with pytest.raises(DataProblem, match="VGG-16"):
        official.vgg16(tmp_path / "other.pt")


@pytest.mark.parametrize("kind", ["imagenet", "caffe"])
def test_vgg_weights(kind, tmp_path):
    net = VGG16(kind)
    state = net.state_dict()
    places = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    if kind == "imagenet":
        convs = dict(zip(dict.fromkeys(n.split(".")[0] for n in state), places, strict=True))
        state = {
            f"features.{convs[n.split('.')[0]]}.{n.split('.')[1]}": v for n, v in state.items()
        }
    torch.save(state, tmp_path / "vgg.pth")
    out = tmp_path / "vgg.safetensors"
    assert (
        main(["weights", "convert", str(tmp_path / "vgg.pth"), str(out), "--preprocessing", kind])
        == 0
    )
    tensors, about = load_model(out)
    assert about["preprocessing"] == kind
    assert all(torch.equal(tensors[n], v) for n, v in net.state_dict().items())

    method, _ = tiny.build("munit", f"method.vgg={out}", "method.lambda_vgg=1", size=32)
    assert not any(k.startswith("vgg") for k in method.state_dict())  # never saved, never trained
    *_, update = method.updates(tiny.batch("munit", 2, 32), tiny.step())
    assert update.log["vgg_1"] > 0
