"""Any number of domains: one, an empty one, one of a single image, a hundred of ten; translating to all of them."""

import numpy as np
import pytest
import tiny
from PIL import Image

from unpaired import Translator, translator
from unpaired.checkpoint import RunFolder
from unpaired.cli import main
from unpaired.config import load
from unpaired.data.batches import Batches, spread
from unpaired.data.check import check
from unpaired.data.datasets import open_dataset
from unpaired.data.scenes import Scenes
from unpaired.train import fit

MANY = ("stargan_v2", "smoothgan", "dsm")


def folders(root, counts):
    """A folder for each domain, of coarse noise: no two images look alike."""
    rng = np.random.default_rng(0)
    for domain, count in counts.items():
        (root / domain).mkdir(parents=True)
        for i in range(count):
            blocks = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(blocks.repeat(4, 0).repeat(4, 1)).save(root / domain / f"{i}.png")
    return root


def command(name, root, out, *words):
    small = [f"method.{k}={v}" for k, v in tiny.METHODS[name][1].items()]
    words = [*small, "train.steps=2", "data.batch=4", *words]
    return [
        "train",
        "--method",
        name,
        "--preset",
        "small",
        "--data",
        str(root),
        "--out",
        str(out),
        *words,
    ]


def one_line(capsys):
    printed = capsys.readouterr().err.strip()
    assert "\n" not in printed and "Traceback" not in printed
    return printed


@pytest.mark.parametrize("name", MANY)
def test_one_domain_is_refused(name, tmp_path, capsys):
    root = folders(tmp_path / "data", {"cats": 3})
    assert main(command(name, root, tmp_path / "run")) == 2
    assert f"{name} needs two or more domains" in one_line(capsys)


def test_a_domain_of_one_image_trains_and_is_told(tmp_path, capsys):
    root = folders(tmp_path / "data", {"cats": 5, "dogs": 5, "the only one": 1})
    assert main(command("dsm", root, tmp_path / "run")) == 0
    assert "the only one has only 1 training image" in capsys.readouterr().out
    t = Translator.load(tmp_path / "run")
    assert t.domains == ("cats", "dogs", "the only one") and t.step == 2
    sheets = {p.name.rsplit("-", 1)[0] for p in (tmp_path / "run" / "samples").iterdir()}
    assert sheets == {
        f"to-{d}-{way}" for d in ("cats", "dogs", "the_only_one") for way in ("latent", "reference")
    }


def test_an_empty_domain_is_told_or_refused(tmp_path, capsys):
    root = folders(tmp_path / "data", {"cats": 3, "dogs": 3, "wölfe": 0})
    assert "wölfe is empty of images, so it is no domain." in check(root).warnings
    assert main(command("stargan_v2", root, tmp_path / "run", "train.steps=1")) == 0
    assert "wölfe is empty of images" in capsys.readouterr().out
    assert Translator.load(tmp_path / "run").domains == ("cats", "dogs")
    asked = command("stargan_v2", root, tmp_path / "b", "data.domains=[cats, dogs, wölfe]")
    assert main(asked) == 2 and "wölfe" in one_line(capsys)
    named = command("stargan_v2", root / "cats", tmp_path / "c")
    named.insert(named.index("--out"), str(root / "wölfe"))
    assert main(named) == 65 and "wölfe has no images" in one_line(capsys)
    split = tmp_path / "split"
    folders(split / "train", {"cats": 3, "dogs": 0})
    assert "dogs is empty of images, so it is no domain." in check(split).warnings


def test_a_hundred_domains_of_ten_images(tmp_path, monkeypatch):
    monkeypatch.setattr(translator, "SHEET_DOMAINS", 2)  # as many are drawn
    root = folders(tmp_path / "data", {f"d{k:02d}": 10 for k in range(100)})
    report = check(root)
    assert len(report.counts["train"]) == 100
    assert sum("training images" in w for w in report.warnings) == 1
    assert "100 domains have fewer than 100 training images" in " ".join(report.warnings)
    assert main(command("stargan_v2", root, tmp_path / "run", "data.batch=8", "train.steps=1")) == 0
    sheets = list((tmp_path / "run" / "samples").glob("*-00000001.png"))
    assert len(sheets) == 2 * 2
    t = Translator.load(tmp_path / "run")
    image = root / "d00" / "0.png"
    a, b = (np.asarray(t.translate(image, to=d, styles=1, source="d00")[0]) for d in ("d07", "d99"))
    assert not np.array_equal(a, b)
    pictures = open_dataset(load(tmp_path / "run" / "config.yaml").data, "domains").splits["train"]
    drawn = Batches(pictures, "domains", 4, (32, 32), steps=10)
    labels = [drawn[i][0]["y_ref"].tolist() for i in range(10)]
    assert max(map(max, labels)) > 80 and all(len(set(y)) == 4 for y in labels)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("ein Lauf")
    fit(tiny.run("dsm", steps=1), RunFolder(path), say=lambda line: None)
    return path


def test_to_all_domains(run, tmp_path):
    photo = tmp_path / "ein Bild.png"
    Image.fromarray(Scenes("outline", 32)[0].image).save(photo)
    words = [
        "translate",
        str(run),
        str(photo),
        "--to",
        "all",
        "--source",
        "outline",
        "--styles",
        "2",
    ]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    pictures = [f"ein Bild-{to}-{i:02d}.png" for to in ("neon", "painted") for i in range(2)]
    assert names == sorted([*pictures, "sheet-neon.png", "sheet-painted.png"])
    t = Translator.load(run)
    for to in ("neon", "painted"):
        expected = t.translate(photo, to=to, styles=2, source="outline")
        got = [Image.open(tmp_path / "out" / f"ein Bild-{to}-{i:02d}.png") for i in range(2)]
        assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))


def test_the_sample_matrix_has_sources_in_rows_and_references_in_columns(run, monkeypatch):
    t, drawn = Translator.load(run), []
    sheet = translator.sheet

    def kept(rows, columns, title):
        drawn.append((title, rows))
        return sheet(rows, columns, title)

    monkeypatch.setattr(translator, "sheet", kept)
    dataset = open_dataset(t.run.data, "domains")
    translator.sample_sheets(t.method, dataset, t.run, rows=3, styles=4)
    title, (top, *lines) = next(d for d in drawn if "to neon" in d[0] and "top row" in d[0])
    neon = dataset.splits["val"][t.domains.index("neon")]
    references = [neon.read(i) for i in spread(4, len(neon))]
    assert top[0] is None and len(lines) == 3 and all(len(line) == 5 for line in lines)
    for j, line in enumerate(lines):
        domain = ("outline", "painted")[j % 2]
        images = dataset.splits["val"][t.domains.index(domain)]
        source = images.read(spread(3, len(images))[j])
        small = [np.asarray(image.resize((32, 32), Image.Resampling.NEAREST)) for image in line]
        assert np.array_equal(small[0], source)
        for i, reference in enumerate(references):
            assert np.array_equal(
                np.asarray(top[1 + i].resize((32, 32), Image.Resampling.NEAREST)), reference
            )
            (expected,) = t.translate(source, "neon", style_from=reference, source=domain)
            assert np.abs(small[1 + i].astype(int) - np.asarray(expected)).max() <= 1
