"""Published files: imported without running code of theirs, refused when they are not what they say."""

import pickle
import zipfile

import golden_numbers as golden
import numpy as np
import pytest
import tiny
import torch

from unpaired import Translator, official
from unpaired.checkpoint import RunFolder, load_model, save_model
from unpaired.cli import main
from unpaired.errors import ConfigProblem, DataProblem, Problem
from unpaired.networks.vgg import VGG16
from unpaired.train import Trainer, fit


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


@pytest.mark.parametrize("words", [["import", "munit"], ["convert", "--preprocessing", "caffe"]])
def test_a_forgotten_output_writes_over_no_checkpoint(words, munit_file, capsys):
    before = munit_file.read_bytes()
    assert main(["weights", *words, str(munit_file), str(munit_file)]) == 2
    said = capsys.readouterr().err
    assert ".safetensors" in said and str(munit_file) in said and said.count("\n") == 1
    assert munit_file.read_bytes() == before


def test_domains_of_one_name_are_refused(munit_file, tmp_path, capsys):
    out = tmp_path / "m.safetensors"
    words = ["weights", "import", "munit", str(munit_file), str(out), "--domains", "x", "x"]
    assert main(words) == 2 and "named twice" in capsys.readouterr().err
    assert not out.exists()


# Checkpoints of the other methods: our networks, written under the official names.

NAMES = {
    "cyclegan": {
        "latest_net_G_A.pth": ("G", official.resnet(1)),
        "latest_net_G_B.pth": ("F", official.resnet(1)),
        "latest_net_D_A.pth": ("D_Y", official.patchgan(3)),
        "latest_net_D_B.pth": ("D_X", official.patchgan(3)),
    },
    "pix2pix": {
        "latest_net_G.pth": ("G", official.unet(5)),
        "latest_net_D.pth": ("D", official.patchgan(3)),
    },
    "bicyclegan": {
        "latest_net_G.pth": ("G", official.bicyclegan_unet(5)),
        "latest_net_E.pth": ("E", official.bicyclegan_encoder(2)),
        "latest_net_D.pth": ("D_vae", official.bicyclegan_discriminator(2)),
        "latest_net_D2.pth": ("D_lr", official.bicyclegan_discriminator(2)),
    },
}
CHANGES = {
    "cyclegan": ["method.d_layers=3"],
    "pix2pix": ["method.d_layers=3", "method.norm=instance"],  # as their script for testing does
    "bicyclegan": [],
}


def theirs(net, names):
    """A network's parameters under the official names, with statistics that instance norm used to keep."""
    state = {official.translated(names, name): v.clone() for name, v in net.state_dict().items()}
    if not any("running_" in name for name in state):
        first = next(iter(state))
        state[first.rsplit(".", 1)[0] + ".running_mean"] = torch.zeros(3)
    return state


def write_files(name, folder):
    """The official files of a tiny method, which is returned."""
    method, _ = tiny.build(name, *CHANGES[name])
    generator = torch.Generator().manual_seed(0)
    for buffer_name, buffer in method.named_buffers():
        if "running_" in buffer_name:  # so that a test sees them used
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    for file, (net, names) in NAMES[name].items():
        torch.save(theirs(method.get_submodule(net), names), folder / file)
    return method.eval()


def same_translations(method, translator, ways=((0, 1),)):
    size = min(translator.run.data.hw)
    x = tiny.batch(method.name, 2, size)["x_1" if len(method.domains) == 2 else "x_src"]
    for source, target in ways:
        generator = torch.Generator().manual_seed(0)
        latent = "latent" in method.styles(source, target)
        style = method.sample_style(2, target, generator) if latent else None
        with torch.no_grad():
            expected = method.translate(x, source, target, style)
            assert torch.equal(translator.method.translate(x, source, target, style), expected)


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_translate_as_the_networks_they_are_of(name, tmp_path, capsys):
    method, out = write_files(name, tmp_path), tmp_path / "mödel.safetensors"
    assert (
        main(["weights", "import", name, str(tmp_path), str(out), "--domains", "edge", "ä b"]) == 0
        if name == "cyclegan"
        else main(["weights", "import", name, str(tmp_path), str(out), "--size", "32"]) == 0
    )
    t = Translator.load(out)
    assert t.domains == (("edge", "ä b") if name == "cyclegan" else ("a", "b"))
    same_translations(method, t, [(0, 1), (1, 0)] if name == "cyclegan" else [(0, 1)])
    if name == "bicyclegan":
        x = tiny.batch(name, 2)["x_2"]
        with torch.no_grad():
            assert torch.equal(t.method.encode_style(x, 1), method.encode_style(x, 1))


@pytest.mark.parametrize("name", NAMES)
def test_training_goes_on_from_a_checkpoint_with_its_discriminators(name, tmp_path):
    method, out = write_files(name, tmp_path), tmp_path / "model.safetensors"
    assert main(["weights", "import", name, str(tmp_path), str(out), "--size", "32"]) == 0
    run = tiny.run(name, *CHANGES[name])
    folder = RunFolder(tmp_path / "run")
    trainer = Trainer(run, folder, say=lambda line: None)
    trainer.begin(resume=False, init=out, allow_dataset_change=False)
    started = trainer.method
    for net, _ in NAMES[name].values():
        for k, v in method.get_submodule(net).state_dict().items():
            assert torch.equal(started.get_submodule(net).state_dict()[k], v), f"{net}.{k}"
    for net in method.averaged.split():
        for k, v in method.get_submodule(net).state_dict().items():
            assert torch.equal(started.ema[net].state_dict()[k], v), f"ema.{net}.{k}"


@pytest.mark.parametrize("file", ["horse2zebra.pth", "latest_net_G.pth"])
def test_a_published_generator_alone_translates_one_way(file, tmp_path):
    method, out = write_files("cyclegan", tmp_path), tmp_path / "model.safetensors"
    alone = tmp_path / file
    (tmp_path / "latest_net_G_A.pth").rename(alone)
    assert main(["weights", "import", "cyclegan", str(alone), str(out), "--size", "32"]) == 0
    t = Translator.load(out)
    same_translations(method, t)
    image = np.zeros((32, 32, 3), np.uint8)
    assert len(t.translate(image, to="b")) == 1
    with pytest.raises(ConfigProblem, match="from a to b only"):
        t.translate(image, to="a")
    with pytest.raises(ConfigProblem, match="method.one_way"):
        t.method.begin()


def test_edges_of_one_channel_become_the_grey_of_three(tmp_path):
    method = write_files("bicyclegan", tmp_path)
    held = torch.load(tmp_path / "latest_net_G.pth")
    first = held["model.down.0.weight"]
    held["model.down.0.weight"] = torch.cat([first[:, :1], first[:, 3:]], 1)
    torch.save(held, tmp_path / "latest_net_G.pth")
    out = tmp_path / "model.safetensors"
    assert main(["weights", "import", "bicyclegan", str(tmp_path), str(out), "--size", "32"]) == 0
    got = Translator.load(out).method
    x, z = tiny.batch("bicyclegan", 2)["x_1"], torch.randn(2, 4)
    grey = (x * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    with torch.no_grad():
        method.G.down[0][0].weight[:, 1:3] = 0  # sees the first channel alone
        expected = method.translate(grey.expand_as(x), 0, 1, z)
        torch.testing.assert_close(got.translate(x, 0, 1, z), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("file", ["100000_nets_ema.ckpt", "100000_nets.ckpt"])
def test_stargan_v2_checkpoint(file, tmp_path):
    method, _ = tiny.build("stargan_v2")
    method.eval()
    names = {
        "generator": ("G", official.stargan_v2_generator(1)),
        "mapping_network": ("F", official.stargan_v2_mapping()),
        "style_encoder": ("E", official.stargan_v2_style_encoder(1)),
    }
    if "ema" not in file:
        names["discriminator"] = ("D", official.stargan_v2_discriminator(1))
    prefix = "" if "ema" in file else "module."  # of several GPUs
    states = {
        part: {prefix + k: v for k, v in theirs(method.get_submodule(net), table).items()}
        for part, (net, table) in names.items()
    }
    for state in states.values():
        for k in [k for k in state if k.endswith("running_mean")]:
            del state[k]
    torch.save(states, tmp_path / file)
    out, words = tmp_path / "model.safetensors", ["weights", "import", "stargan_v2"]
    words += [str(tmp_path / file), str(out)]
    assert main([*words, "--domains", "cat", "dog"]) == 2  # there are three
    assert main([*words, "--domains", "cat", "dog", "wild"]) == 0
    t = Translator.load(out)
    assert t.domains == ("cat", "dog", "wild") and t.run.data.hw == (32, 32)
    same_translations(method, t, [(0, 1), (2, 0)])
    x = tiny.batch("stargan_v2", 2)["x_src"]
    with torch.no_grad():
        assert torch.equal(t.method.encode_style(x, 2), method.encode_style(x, 2))


def test_stargan_v2_with_the_skip_for_faces_is_refused(tmp_path, capsys):
    method, _ = tiny.build("stargan_v2")
    names = official.stargan_v2_generator(1)
    G = theirs(method.G, names) | {"encode.3.conv1.weight": torch.zeros(16, 16, 3, 3)}
    F = theirs(method.F, official.stargan_v2_mapping())
    E = theirs(method.E, official.stargan_v2_style_encoder(1))
    torch.save({"generator": G, "mapping_network": F, "style_encoder": E}, tmp_path / "faces.ckpt")
    words = [str(tmp_path / "faces.ckpt"), str(tmp_path / "out.safetensors")]
    assert main(["weights", "import", "stargan_v2", *words]) == 65
    assert "w_hpf=1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "method, files, code, words",
    [
        ("cyclegan", ["latest_net_G_B.pth"], 2, ["latest_net_G_A.pth"]),
        ("cyclegan", ["latest_net_D_A.pth", "latest_net_G_B.pth"], 2, ["latest_net_G_A.pth"]),
        ("cyclegan", ["a.pth", "b.pth"], 65, ["a.pth", "CycleGAN's generator"]),
        ("cyclegan", ["none.pth"], 2, ["none.pth"]),
        ("cyclegan", ["."], 0, []),
        ("pix2pix", ["latest_net_G_A.pth"], 65, ["latest_net_G_A.pth", "U-Net"]),
        ("cyclegan", ["."] + ["a.pth"], 2, ["a.pth", "one file too many"]),
        ("pix2pix", ["a.pth"], 65, ["a.pth", "U-Net"]),
        ("pix2pix", ["list.pth"], 65, ["list.pth"]),
        ("bicyclegan", ["a.pth"], 65, ["a.pth", "BicycleGAN's generator"]),
        ("stargan_v2", ["a.pth"], 65, ["a.pth", "StarGAN v2"]),
        ("stargan_v2", ["a.pth", "b.pth"], 2, ["one file"]),
        ("munit", ["a.pth"], 65, ["a.pth", "gen_"]),
        ("cyclegan", ["half.pth"], 65, ["half.pth", "up.0.0.weight"]),
        ("cyclegan", ["wide.pth"], 65, ["wide.pth", "rgb.conv.weight"]),
        ("cyclegan", ["more.pth"], 65, ["unknown parameter", "model.99.weight"]),
    ],
)
def test_files_that_are_not_what_they_say(
    method, files, code, words, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    write_files("cyclegan", tmp_path)
    held = torch.load("latest_net_G_A.pth")
    torch.save({"features.0.weight": torch.zeros(3)}, "a.pth")
    torch.save([torch.zeros(3)], "list.pth")
    torch.save({k: v for k, v in held.items() if "model.11." not in k}, "half.pth")
    torch.save(held | {"model.18.weight": torch.zeros(4, 4, 7, 7)}, "wide.pth")
    torch.save(held | {"model.99.weight": torch.zeros(4)}, "more.pth")
    assert main(["weights", "import", method, *files, "out.safetensors"]) == code
    printed = capsys.readouterr().err.strip()
    assert "Traceback" not in printed and "\n" not in printed
    for word in words:
        assert word in printed
    assert (tmp_path / "out.safetensors").exists() == (code == 0)


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
            official.read("munit", [path])
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
        official.read("munit", [tmp_path / "other.pt"])
    with pytest.raises(DataProblem, match="VGG-16"):
        official.vgg16(tmp_path / "other.pt")


@pytest.mark.parametrize("held", [torch.zeros(3), [torch.zeros(3)], {"a": 1, "b": 2}, {1: 2}, 7])
def test_a_file_without_named_tensors_is_refused(held, tmp_path):
    path = tmp_path / "odd.pth"
    torch.save(held, path)
    for method in official.READERS:
        with pytest.raises(DataProblem, match="odd.pth"):
            official.read(method, [path])
    with pytest.raises(DataProblem, match="odd.pth"):
        official.vgg16(path)
    if not isinstance(held, dict):
        with pytest.raises(DataProblem, match="--lpips: .*odd.pth"):
            official.read_weights(path, "--lpips")


def test_a_file_that_holds_itself_is_refused(tmp_path):
    held = {}
    held["again"] = held
    torch.save(held, tmp_path / "again.pt")
    with pytest.raises(DataProblem, match="again.pt"):
        official.read_pickle(tmp_path / "again.pt")


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
    out = tmp_path / "new folder" / "vgg.safetensors"
    assert (
        main(["weights", "convert", str(tmp_path / "vgg.pth"), str(out), "--preprocessing", kind])
        == 0
    )
    beside = str(tmp_path / "vgg.pth" / "a.safetensors")  # a file where the folder should be
    words = ["weights", "convert", str(tmp_path / "vgg.pth"), beside, "--preprocessing", kind]
    assert main(words) == 73
    tensors, about = load_model(out)
    assert about["preprocessing"] == kind
    assert all(torch.equal(tensors[n], v) for n, v in net.state_dict().items())

    method, _ = tiny.build("munit", f"method.vgg={out}", "method.lambda_vgg=1", size=32)
    assert not any(k.startswith("vgg") for k in method.state_dict())  # never saved, never trained
    method.begin()
    *_, update = method.updates(tiny.batch("munit", 2, 32), tiny.step())
    assert update.log["vgg_1"] > 0


def test_a_model_trained_with_vgg_translates_without_it(tmp_path):
    out = tmp_path / "vgg.safetensors"
    save_model(out, VGG16("caffe").state_dict(), {"network": "vgg16", "preprocessing": "caffe"})
    run = tiny.run("munit", f"method.vgg={out}", "method.lambda_vgg=1", size=32, steps=1)
    fit(run, RunFolder(tmp_path / "run"), say=lambda line: None)
    out.unlink()
    assert Translator.load(tmp_path / "run").translate(np.zeros((32, 32, 3), np.uint8), "painted")
    with pytest.raises(Problem, match="vgg.safetensors"):
        fit(run, RunFolder(tmp_path / "run"), resume=True, say=lambda line: None)
