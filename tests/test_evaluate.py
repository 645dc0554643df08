"""`unpaired evaluate`: every method, every way, what decides each number, and one sentence for what cannot be done."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import save_file
from test_feature_networks import published

import unpaired
from unpaired import train
from unpaired.checkpoint import RunFolder, load_model, save_model
from unpaired.cli import main
from unpaired.data.intake import write_png
from unpaired.data.scenes import draw
from unpaired.errors import ConfigProblem, DataProblem
from unpaired.metrics import classifier, evaluation, features, rows, scenes
from unpaired.metrics.images import open_images
from unpaired.networks.lpips import LPIPS
from unpaired.networks.squeezenet import SqueezeFeatures
from unpaired.registry import find_method, method_names

COUNTS = {"train": 24, "test": 8}
SCALES = (0.3, 0.9)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(classifier, "STEPS", 30)
    monkeypatch.setattr(evaluation, "LEAST_IMAGES", 5)
    monkeypatch.setattr(rows, "LEAST", 8)
    monkeypatch.setattr(SqueezeFeatures, "side", 48)
    monkeypatch.setattr(LPIPS, "least", 32)
    monkeypatch.setattr(rows, "PATHS", 2)
    monkeypatch.setattr(rows, "POINTS", 4)
    for name, p in list(evaluation.PROTOCOLS.items()):
        small = replace(p, inputs=8, real=20, varied=(2, 4), outputs=min(p.outputs, 2))
        monkeypatch.setitem(evaluation.PROTOCOLS, name, small)


def write_images(root, domains, size=16, counts=COUNTS, labels=False):
    """root/<split>/<domain>/[<label>/]N.png: scenes; equal names have equal contents."""
    for split, n in counts.items():
        for i in range(n):
            label = i % 2  # small or large
            content = {"scale": SCALES[label], "shape": 0.5}
            for d, domain in enumerate(domains):
                names = scenes.STYLES[domain]
                look = np.random.default_rng([i, len(split), d]).random(len(names))
                image = draw(domain, content, dict(zip(names, look, strict=True)), size).image
                folder = root / split / domain / (f"size {label}" if labels else "")
                folder.mkdir(parents=True, exist_ok=True)
                write_png(folder / f"{i:02d}.png", image)
    return root


def quiet(line):
    pass


def trained(method, folder, data=None, **data_settings):
    config = tiny.run(method, steps=1)
    if data is not None:
        settings = config.data.model_copy(update={"root": str(data), **data_settings})
        config = config.model_copy(update={"data": settings})
    train.fit(config, RunFolder(folder), say=quiet)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_images(
        tmp_path_factory.mktemp("images é"), ["outline", "painted", "neon"], labels=True
    )


@pytest.fixture(scope="module")
def munit(tmp_path_factory, data):
    return trained("munit", tmp_path_factory.mktemp("runs") / "munit", data)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """SqueezeNet and LPIPS's heads with random weights under their published names."""
    folder = tmp_path_factory.mktemp("weights")
    tensors = {n: t.contiguous() for n, t in published("squeeze").items()}
    for name, start in (("trunk", "features"), ("heads", "lin")):
        part = {n: t for n, t in tensors.items() if n.startswith(start)}
        save_file(part, folder / f"{name}.safetensors")
    return folder


def by_brightness(method, x):
    return torch.eye(3)[(x.mean((1, 2, 3)) * 100).long() % 3]


@pytest.mark.parametrize("name", [n for n in method_names() if n != "munit"])
def test_every_method_is_measured(name, tmp_path, data, weights, capsys, monkeypatch):
    least = replace(evaluation.PROTOCOLS["quick"], inputs=4, real=6, varied=(1, 2))
    monkeypatch.setitem(evaluation.PROTOCOLS, "quick", least)
    monkeypatch.setattr(evaluation, "LEAST_IMAGES", 1000)  # no classifier, to save time
    if name in ("pix2pix", "bicyclegan"):
        data = write_images(tmp_path / "pairs", ["outline", "painted"])
    settings = {}
    if name in ("dsm", "smoothgan"):  # three domains are shown by stargan_v2
        settings["domains"] = ("outline", "painted")
    if name == "tunit":  # after one step it puts all images into one domain
        monkeypatch.setattr(find_method(name), "assign", by_brightness)
    run = trained(name, tmp_path / "run", data, **settings)
    smooth = name == "smoothgan"
    lpips = ["--lpips", *(str(weights / f"{n}.safetensors") for n in ("trunk", "heads"))]
    assert main(["evaluate", str(run), *lpips * smooth]) == 0, capsys.readouterr().err
    result = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    if smooth:
        style = result["styles"]["painted"]
        between = style["PS between domains (lpips-squeeze)"]
        assert 0 < between <= 1 and between != style["PS (lpips-squeeze)"]
    method, config = tiny.build(name)
    ways = {d["way"] for d in result["directions"]}
    assert ways >= method.styles(0, 1) - {"mean"} and ways <= {"latent", "reference", "output"}
    for d in result["directions"]:
        assert {"model", "real images", "untranslated", "untrained"} == set(d["rows"])
        model = d["rows"]["model"]
        assert model["SWD"] > 0 and "change" in model
        assert ("pixel diversity" in model) == (d["way"] != "output")
        assert ("paired error" in model) == (name in ("pix2pix", "bicyclegan"))
    assert set(result["means"]) == ways
    if name == "tunit":
        assert result["clusters"]["clusters used"] >= 1
        assert any("no true labels" in sentence for sentence in result["left out"])
    expected = {"pix2pix": 1, "bicyclegan": 2, "unit": 2, "cyclegan": 2, "augmented_cyclegan": 3}
    expected |= {"stargan_v2": 12, "dsm": 4, "smoothgan": 4}  # by two ways
    if name != "tunit":
        assert len(result["directions"]) == expected[name]
    assert "Figures" in (run / "index.html").read_text(encoding="utf-8")


def test_all_metrics_of_munit(munit, weights):
    lpips = [weights / "trunk.safetensors", weights / "heads.safetensors"]
    result = unpaired.evaluate(munit, features=lpips[0], lpips=lpips, paired=True, say=quiet)
    assert result == json.loads((munit / "metrics.json").read_text(encoding="utf-8"))
    model = result["means"]["latent"]["model"]
    assert {
        *("KID (squeezenet)", "Frechet (squeezenet)", "coverage (squeezenet)", "SWD", "IS", "exp IS"),
        *("KID (classifier)", "recall (classifier)", "target share (classifier)", "label kept"),
        *("LPIPS diversity (lpips-squeeze)", "pixel diversity", "CIS", "exp CIS", "cycle error"),
        *("paired error", "paired LPIPS (lpips-squeeze)", "change", "content diversity"),
    } <= set(model)  # fmt: skip
    assert not any(name.startswith("FID") for name in model)  # not on these features
    style = result["styles"]["painted"]
    assert {"style gap", "style gap (floor)", "PS (lpips-squeeze)"} == set(style)
    assert 0 <= style["PS (lpips-squeeze)"] <= 1 and style["style gap"] <= 1
    real, same = (result["means"]["latent"][row] for row in ("real images", "untranslated"))
    assert real["target share (classifier)"] > 0.9 > 0.5 > same["target share (classifier)"]
    assert real["label kept"] > 0.9
    assert real["pixel diversity"] > 0 and real["LPIPS diversity (lpips-squeeze)"] > 0
    for name in {*model, *style}:
        assert result["columns"][name]["better"] in ("higher", "lower", "-")
    page = (munit / "index.html").read_text(encoding="utf-8")
    assert "classifier of labels of painted is right for" in page
    # What decides each number
    assert len(result["networks"]["squeezenet"]["sha256"]) == 64
    assert result["networks"]["squeezenet"]["resize"] == "bicubic, antialiased"
    for name in (
        "classifier",
        "classifier of labels of outline",
        "classifier of labels of painted",
    ):
        assert result["networks"][name]["accuracy"] >= 0.9
    assert result["data"]["domains"]["painted"]["test"] == 8
    assert result["split"] == "test" and result["seed"] == 0 and result["model"]["averaged"]
    assert result["directions"][0]["counts"]["inputs"] == 8


def test_numbers_follow_from_the_seed_alone(munit, tmp_path, monkeypatch):
    one = unpaired.evaluate(munit, say=quiet)
    monkeypatch.setenv("UNPAIRED_CACHE", str(tmp_path / "empty"))
    anew = unpaired.evaluate(munit, say=quiet)
    assert anew["means"] == one["means"] and anew["styles"] == one["styles"]
    assert list((tmp_path / "empty").glob("*.safetensors"))
    other = unpaired.evaluate(munit, seed=1, say=quiet)
    assert other["means"]["latent"]["model"] != one["means"]["latent"]["model"]
    assert (
        other["means"]["latent"]["real images"]["KID (classifier)"]
        == one["means"]["latent"]["real images"]["KID (classifier)"]
    )


def test_a_damaged_cache_is_made_anew_and_a_read_only_one_told(munit, tmp_path, monkeypatch):
    monkeypatch.setenv("UNPAIRED_CACHE", str(tmp_path / "cache"))
    make = lambda: {"x": torch.arange(3.0)}  # noqa: E731
    assert features.cached({"a": 1}, make, quiet)["x"].tolist() == [0, 1, 2]
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    said = []
    assert features.cached({"a": 1}, make, said.append)["x"].tolist() == [0, 1, 2]
    assert "Made anew" in said[0]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UNPAIRED_CACHE", str(tmp_path / "file" / "below"))
    assert features.cached({"a": 1}, make, said.append)["x"].tolist() == [0, 1, 2]
    assert "Not kept" in said[-1]


@pytest.mark.parametrize("protocol", ["munit", "starganv2", "tunit"])
def test_protocols(munit, protocol):
    result = unpaired.evaluate(munit, protocol=protocol, say=quiet)
    assert result["protocol"]["name"] == protocol
    names = {d["name"] for d in result["directions"]}
    assert names == {"outline to painted", "painted to outline"}


def test_tunit_is_compared_with_labels_also_where_it_collapsed(tmp_path, data, monkeypatch):
    run = trained("tunit", tmp_path / "run", data, labels="folders", labelled=0.1)
    monkeypatch.setattr(find_method("tunit"), "assign", lambda m, x: torch.eye(3)[len(x) * [0]])
    result = unpaired.evaluate(run, protocol="tunit", say=quiet)
    assert result["clusters"] == {
        "clusters used": 1,
        "NMI": 0,
        "ARI": 0,
        "cluster accuracy": pytest.approx(1 / 3, abs=1e-5),
    }
    assert {d["way"] for d in result["directions"]} == {"reference, by true labels"}
    assert "found domains" in (run / "index.html").read_text()
    monkeypatch.setattr(find_method("tunit"), "assign", by_brightness)
    monkeypatch.setattr(classifier, "STEPS", 100)
    result = unpaired.evaluate(run, protocol="tunit", say=quiet)
    assert result["networks"]["classifier"]["accuracy"] >= 0.9  # of the labels, all of them
    found, true = (
        [d for d in result["directions"] if d["way"] == way]
        for way in ("reference", "reference, by true labels")
    )
    for direction in found:  # not: of the domain that has the number of a label
        assert "target share (classifier)" not in direction["rows"]["model"]
    assert {d["source"] for d in found} <= {None, "domain_1", "domain_2", "domain_3"}
    labels = sorted(path.name for path in (data / "test").iterdir())
    assert [d["target"] for d in true] == labels and {d["source"] for d in true} == {None}
    for direction in true:
        target, counts = direction["target"], direction["counts"]
        held = {label: len(list((data / "test" / label).rglob("*.png"))) for label in labels}
        others = sum(n for label, n in held.items() if label != target)
        assert counts["held out"] == held[target] and counts["inputs"] <= others
        assert direction["rows"]["real images"]["target share (classifier)"] >= 0.8
        assert 0 <= direction["rows"]["model"]["target share (classifier)"] <= 1
    means = result["means"]["reference, by true labels"]["model"]
    assert means["Frechet (classifier)"] == pytest.approx(
        sum(d["rows"]["model"]["Frechet (classifier)"] for d in true) / len(true), rel=1e-4
    )


def test_found_domains_of_test_images_alone(tmp_path, data):
    run = trained("tunit", tmp_path / "run", data)
    alone = tmp_path / "alone"
    shutil.copytree(data / "test", alone / "test")
    result = unpaired.evaluate(run, alone, say=quiet)
    assert result["clusters"]["clusters used"] >= 1 and result["directions"] == []
    assert any("no training" in text for text in result["left out"])


def test_memory_does_not_grow_with_the_number_of_images(monkeypatch):
    monkeypatch.setattr(features, "KEPT", 50)
    g, x = features.Gatherer(400), torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    for part in x.split(30):
        g.add(part.double() + 100)
    v = g.vectors()
    assert v.n == 400 and torch.equal(v.kept, x[::8].double() + 100)  # of all, not the first
    assert torch.allclose(v.mean, x.double().mean(0) + 100)
    assert torch.allclose(v.covariance, x.double().T.cov(), atol=1e-10)
    whole = features.moments(x.double() + 100)
    assert features.moments_of(*v[:3]).root.square().sum() == pytest.approx(
        float(whole.root.square().sum())
    )


# One sentence each -------------------------------------------------------------------------------


def refused(words, capsys, code=2):
    assert main(["evaluate", *map(str, words)]) == code
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("unpaired: ") and "Traceback" not in said
    return said


def test_bad_requests(munit, tmp_path, data, weights, capsys):
    before = (munit / "index.html").read_bytes()
    assert "did you mean munit" in refused([munit, "--protocol", "munti"], capsys)
    assert (
        "no such"
        in refused([munit, "--features", tmp_path / "no file.safetensors"], capsys).lower()
    )
    heads = weights / "heads.safetensors"
    assert "neither SqueezeNet" in refused([munit, "--features", heads], capsys, 65)
    assert "features.0.weight" in refused([munit, "--lpips", heads], capsys)
    trunk = weights / "trunk.safetensors"
    assert "lin0.model.1.weight" in refused([munit, "--lpips", trunk], capsys)
    assert "is not a run" in refused([tmp_path / "no"], capsys)
    assert "does not exist" in refused([munit, "--data", tmp_path / "no"], capsys)
    two = write_images(tmp_path / "two", ["neon", "painted"], counts={"train": 3, "test": 1})
    assert "with a domain outline" in refused([munit, "--data", two], capsys)
    assert (munit / "index.html").read_bytes() == before


def test_a_model_file_needs_data(munit, tmp_path, data, capsys):
    shutil.copy(munit / "model.safetensors", tmp_path / "model.safetensors")
    assert "say --data DIR" in refused([tmp_path / "model.safetensors"], capsys)
    assert main(["evaluate", str(tmp_path / "model.safetensors"), "--data", str(data)]) == 0
    assert (tmp_path / "model.metrics.json").is_file() and not (tmp_path / "index.html").exists()


def test_inception_that_cannot_be_fetched(munit, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("UNPAIRED_CACHE", str(tmp_path))
    monkeypatch.setattr(features, "INCEPTION", "http://127.0.0.1:9/pt_inception.pth")
    said = refused([munit, "--features", "inception"], capsys)
    assert "cannot be fetched" in said and "name the file" in said
    wrong = tmp_path / "served.pth"
    wrong.write_bytes(b"an error page")
    monkeypatch.setattr(features, "INCEPTION", wrong.as_uri())
    monkeypatch.setenv("UNPAIRED_CACHE", str(tmp_path / "cache"))
    assert "is not that file" in refused([munit, "--features", "inception"], capsys, 65)
    assert not (tmp_path / "cache").exists()


def test_too_few_images_are_left_out_by_name(tmp_path, munit):
    few = write_images(tmp_path / "few", ["outline", "painted"], counts={"train": 3, "test": 2})
    result = unpaired.evaluate(munit, data=str(few), say=quiet)
    model = result["means"]["latent"]["model"]
    assert "SWD" in model and not any("classifier" in name for name in model)
    assert any("3 training images" in sentence for sentence in result["left out"])
    none = write_images(tmp_path / "none", ["outline", "painted"], counts={"train": 3})
    with pytest.raises(DataProblem, match="held-out images"):
        unpaired.evaluate(munit, data=str(none), say=quiet)


def test_means_are_of_the_directions_that_have_a_metric():
    def direction(model, floor):
        return {"way": "latent", "rows": {"model": model, "untranslated": floor}}

    rows = [
        direction({"KID": 1.0, "SWD": 10.0}, {"KID": 3.0}),
        direction({"SWD": 20.0}, {}),
        direction({"KID": 2.0, "SWD": 30.0}, {"KID": 5.0}),
        direction({"KID": 9.0, "SWD": 40.0}, {}),  # without the floor's it would be unfair
    ]
    tools = evaluation.Tools(evaluation.PROTOCOLS["quick"], 0, torch.device("cpu"), print)
    found = evaluation.means(rows, tools)
    assert found == {
        "latent": {"model": {"KID": 1.5, "SWD": 25.0}, "untranslated": {"KID": 4.0}},
    }
    assert tools.left_out == ["2 directions from the means of KID: too few images for it there."]


def test_test_images_that_were_trained_on_are_told(tmp_path, data, munit):
    leaky = tmp_path / "leaky"
    shutil.copytree(data / "train", leaky / "train")
    shutil.copytree(data / "train", leaky / "test")
    result = unpaired.evaluate(munit, data=str(leaky), say=quiet)
    assert any("were trained on" in sentence for sentence in result["left out"])


def test_figures_name_the_model_that_was_measured(tmp_path, munit, monkeypatch):
    """Also where the run saves another one meanwhile."""
    path, load, loads = tmp_path / "run", evaluation.Translator.load, []
    shutil.copytree(munit, path)

    def slow(*args):
        found = load(*args)
        loads.append(found)
        if len(loads) == 1:
            tensors, about = load_model(path / "model.safetensors")
            save_model(path / "model.safetensors", tensors, about | {"step": "99"})
        return found

    monkeypatch.setattr(evaluation.Translator, "load", slow)
    translator, digest = evaluation.unchanging(path)
    assert translator.step == 99 and digest == features.sha256(path / "model.safetensors")


def test_a_classifier_that_cannot_tell_is_not_believed(tmp_path, munit):
    alike = write_images(tmp_path / "alike", ["outline"])
    for split in COUNTS:
        shutil.copytree(alike / split / "outline", alike / split / "painted")
    result = unpaired.evaluate(munit, data=str(alike), say=quiet)
    assert "classifier" not in result["networks"]
    assert any("not believed" in sentence for sentence in result["left out"])
    assert not any("classifier" in name for name in result["means"]["latent"]["model"])


def test_more_classes_are_learned_for_longer(monkeypatch):
    monkeypatch.setattr(classifier, "STEPS", 300)
    assert [classifier.steps(n) for n in (2, 3, 7, 10, 50)] == [300, 300, 700, 1000, 1000]


def test_pairs_need_equal_names(munit, tmp_path):
    apart = write_images(tmp_path / "apart", ["outline", "painted"], counts={"train": 3, "test": 2})
    for path in (apart / "test" / "painted").iterdir():
        path.rename(path.with_name(f"other-{path.name}"))
    with pytest.raises(DataProblem, match="leave --paired out"):
        unpaired.evaluate(munit, data=str(apart), paired=True, say=quiet)


def test_pairs_of_scenes_show_the_same():
    run = tiny.run("munit")  # which trains without pairs
    _, dataset = open_images(run, None, ("painted", "outline"), None, paired=True)
    painted, outline = (pictures.domains[0] for pictures in dataset.splits["test"])
    assert (painted.domain, outline.domain) == ("painted", "outline")
    assert np.array_equal(painted[3].mask, outline[3].mask)
    train = [pictures.domains[0] for pictures in dataset.splits["train"]]
    assert not np.array_equal(train[0][3].mask, train[1][3].mask)  # as the run had them


def test_files_called_scene_are_pairs_by_their_whole_names(munit, tmp_path):
    data = write_images(tmp_path / "d", ["outline", "painted"], counts={"train": 3, "test": 2})
    for path in data.glob("test/*/*.png"):
        path.rename(path.with_name(f"night scene {path.name}"))
    result = unpaired.evaluate(munit, data=str(data), paired=True, say=quiet)
    assert "paired error" in result["means"]["latent"]["model"]


def test_labels_that_held_out_images_lack(munit, tmp_path):
    data = write_images(tmp_path / "d", ["outline", "painted"], labels=True)
    for path in list(data.glob("test/*/*/*.png")):
        path.rename(path.parents[1] / path.name)
    result = unpaired.evaluate(munit, data=str(data), say=quiet)
    assert any("no held-out image has a label" in s for s in result["left out"])
    assert "label kept" not in result["means"]["latent"]["model"]


def test_grey_models_of_scenes_are_measured(tmp_path):
    config = tiny.run("munit", "data.channels=1", steps=1)
    train.fit(config, RunFolder(tmp_path), say=quiet)
    result = unpaired.evaluate(tmp_path, say=quiet)
    assert "scenes" not in result and any("need colour" in s for s in result["left out"])
    assert "SWD" in result["means"]["latent"]["model"]


def test_a_list_of_labels_is_of_its_own_images(tmp_path, data):
    images = tmp_path / "images"
    images.mkdir()
    for i, path in enumerate(sorted(data.glob("train/painted/*/*.png"))):
        (images / f"{i}.png").write_bytes(path.read_bytes())
    (tmp_path / "labels.csv").write_text("path,label\n0.png,a\n1.png,b\n")
    run = trained(
        "tunit", tmp_path / "run", images, labels=str(tmp_path / "labels.csv"), domains=None
    )
    for model in (run, run / "model.safetensors"):
        result = unpaired.evaluate(model, data=str(data / "train" / "outline"), say=quiet)
        assert result["clusters"]


def test_distances_are_of_all_inputs():
    """SWD takes no more than 256 outputs, spread over all of them."""
    d = rows.Direction(None, "d", {}, 0, None, None)
    meter = rows.Meter(
        d, rows.Tools(evaluation.PROTOCOLS["quick"], 0, torch.device("cpu"), quiet), 1000
    )
    for i in range(10):
        meter.add(torch.full((100, 3, 8, 8), float(i)))
    levels = meter.small()[:, 0, 0, 0]
    assert len(levels) == 256 and set(torch.bincount(levels.long()).tolist()) == {25, 26}


def test_swd_is_of_equally_many_images_in_every_row(munit, tmp_path, monkeypatch):
    seen = []
    swd = rows.sliced_wasserstein
    monkeypatch.setattr(rows, "sliced_wasserstein", lambda x, *a: seen.append(len(x)) or swd(x, *a))
    data = write_images(tmp_path / "d", ["outline", "painted"], counts={"train": 12, "test": 6})
    for extra in (data / "test" / "painted").glob("0[45].png"):
        extra.unlink()
    result = evaluation.evaluate(munit, data=data, say=quiet)
    assert set(seen) == {4} and all(d["counts"]["SWD"] == 4 for d in result["directions"])


def test_no_input_takes_its_style_from_its_own_partner(monkeypatch):
    """Codes are the numbers that images have as their names."""

    class Held:
        def some(self, most):
            return self

        def batches(self, size, device):
            yield torch.arange(6.0), self

        def names(self):
            return list("012345")

    monkeypatch.setattr(rows, "encoded", lambda method, x, target: x)
    tools = rows.Tools(evaluation.PROTOCOLS["quick"], 0, torch.device("cpu"), quiet)
    d = rows.Direction("a", "b", {}, 1, None, Held())
    free, kept = (rows.Styles(None, d, "reference", tools) for _ in range(2))
    inputs, alike = torch.arange(6.0), 0
    for _ in range(20):
        alike += int((free(6) == inputs).sum())
        codes = kept(6, Held().names())
        assert (codes != inputs).all() and set(codes.tolist()) <= set(range(6))
    assert alike > 5


def test_images_of_other_sizes_are_fitted(munit, tmp_path):
    odd = write_images(tmp_path / "odd", ["outline", "painted"], size=(40, 52))
    result = unpaired.evaluate(munit, data=str(odd), say=quiet)
    assert result["data"]["size"] == [16, 16]


def test_squeezenet_refuses_other_files(weights):
    with pytest.raises(ConfigProblem):
        features.load_features(weights / "none.safetensors", quiet)


@pytest.mark.parametrize(
    "directions, inputs, varied", [(2, 250, 25), (6, 250, 25), (12, 125, 13), (42, 100, 10)]
)
def test_many_directions_share_the_inputs_of_the_quick_protocol(directions, inputs, varied):
    quick = replace(evaluation.PROTOCOLS["quick"], inputs=250, real=1000, varied=(25, 6))
    shared = quick.scaled(quick.share(directions))
    assert (shared.inputs, shared.varied, shared.real) == (inputs, (varied, 6), 1000)
    munit = evaluation.PROTOCOLS["munit"]
    assert munit.scaled(munit.share(directions)) == munit


def spoil(folder, numbers):
    for i in numbers:
        (folder / f"{i:02d}.png").write_bytes(b"no image")


def test_images_that_cannot_be_read_are_left_out_and_told(tmp_path):
    data = write_images(
        tmp_path / "images", ["outline", "painted"], counts={"train": 12, "test": 6}
    )
    run = trained("munit", tmp_path / "run", data, domains=("outline", "painted"), max_bad=0.5)
    spoil(data / "test" / "outline", (1, 2))
    spoil(data / "train" / "painted", (3,))
    result = evaluation.evaluate(run, say=quiet)
    assert [d["test"] for d in result["data"]["domains"].values()] == [4, 6]
    said = " ".join(result["left out"])
    assert "2 of 12 held-out images" in said and "1 training image " in said


def test_a_pair_is_left_out_where_one_side_cannot_be_read(tmp_path):
    data = write_images(tmp_path / "pairs", ["outline", "painted"], counts={"train": 12, "test": 6})
    run = trained("pix2pix", tmp_path / "run", data, max_bad=0.5)
    spoil(data / "test" / "outline", (1,))
    spoil(data / "test" / "painted", (4,))
    result = evaluation.evaluate(run, say=quiet)
    assert [d["test"] for d in result["data"]["domains"].values()] == [4, 4]
    assert "(or their partners)" in " ".join(result["left out"])
