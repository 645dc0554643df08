"""Pairs: two folders with equal names, side-by-side images, scenes; cut alike, mismatches named, one way only."""

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from unpaired import train
from unpaired.checkpoint import RunFolder
from unpaired.cli import main
from unpaired.data.batches import Batches
from unpaired.data.datasets import open_dataset
from unpaired.data.intake import write_png
from unpaired.data.scenes import Scenes


def ramp(size, seed):
    """An image whose pixels tell their place: red across, green down, blue by `seed`."""
    w, h = size
    across, down = np.meshgrid(np.linspace(0, 255, w), np.linspace(0, 255, h))
    return Image.fromarray(np.stack([across, down, 0 * down + seed], -1).astype(np.uint8))


def pairs(root, sizes=((60, 40), (60, 40)), n=6):
    for domain, size in zip(("edges", "schöne shoes"), sizes, strict=True):
        (root / domain).mkdir(parents=True)
        for i in range(n):
            ramp(size, 20 * i).save(root / domain / f"{i}.png")
    return root


def batches(root, domains=None, count=40, report=lambda path, reason: None, **kw):
    data = tiny.run("pix2pix").data
    update = {"root": root if root == "scenes" else str(root), "domains": domains, "count": count}
    data = data.model_copy(update=update)
    pictures = open_dataset(data, "paired", report=report).splits["train"]
    return Batches(pictures, "paired", 4, (32, 32), steps=50, **kw)


@pytest.mark.parametrize("sizes", [((60, 40), (60, 40)), ((60, 40), (120, 80))])
def test_both_images_of_a_pair_are_cut_at_the_same_place(sizes, tmp_path):
    drawn = batches(pairs(tmp_path / "ä b", sizes))
    mirrored = set()
    for step in range(8):
        batch, names = drawn[step]
        x_1, x_2 = batch["x_1"].int(), batch["x_2"].int()
        assert (x_1 - x_2).abs().max() <= 12  # resized from other sizes
        assert [n.rsplit("/", 1)[1] for n in names[:4]] == [n.rsplit("/", 1)[1] for n in names[4:]]
        mirrored |= set((x_1[:, 0, -1, 0] < x_1[:, 0, 0, 0]).tolist())
    assert mirrored == {True, False}
    assert len({int(batch["x_1"][j, 16, 16, 0]) for j in range(4)}) > 1  # at other places each


def test_a_pair_of_other_proportions_is_told_and_left_out(tmp_path):
    root, told = pairs(tmp_path), []
    ramp((40, 60), 60).save(root / "schöne shoes" / "3.png")
    ramp((61, 40), 80).save(root / "schöne shoes" / "4.png")  # a pixel more is no other picture
    drawn = batches(root, report=lambda path, reason: told.append((path.name, reason)))
    seen = {name for step in range(6) for name in drawn[step][1]}
    assert not any(name.endswith("3.png") for name in seen)
    assert any(name.endswith("4.png") for name in seen)
    assert [name for name, _ in told] == ["3.png"] and "schöne shoes" in told[0][1]


def test_side_by_side_images_turn_with_the_domains(tmp_path):
    for i in range(3):
        both = Image.new("RGB", (64, 32), (200, 30, 30))
        both.paste((30, 30, 200), (32, 0, 64, 32))
        both.save(tmp_path / f"{i}.png")
    there, back = batches(tmp_path)[0][0], batches(tmp_path, ("B", "A"))[0][0]
    assert (there["x_1"][..., 0] == 200).all() and (there["x_2"][..., 2] == 200).all()
    assert torch.equal(back["x_1"], there["x_2"]) and torch.equal(back["x_2"], there["x_1"])


def test_paired_scenes_are_of_the_same_content():
    batch, names = batches("scenes", ("outline", "painted"), count=8, flip=False)[0]
    for j in range(4):
        index = int(names[j].rsplit(" ", 1)[1])
        assert names[4 + j] == f"painted scene {index}"
        for name, domain in (("x_1", "outline"), ("x_2", "painted")):
            scene = Scenes(domain, 32, "train", 0, 8, paired=True)[index]
            assert np.array_equal(batch[name][j].numpy(), scene.image)


@pytest.mark.parametrize("layout", ["folders", "side by side"])
def test_trains_from_files_and_refuses_the_other_way(layout, tmp_path, capsys):
    root = tmp_path / "data"
    if layout == "folders":
        pairs(root, ((32, 32), (32, 32)))
        domains = ("edges", "schöne shoes")
    else:
        root.mkdir()
        for i in range(4):
            ramp((64, 32), 20 * i).save(root / f"{i}.png")
        domains = ("A", "B")
    small = [f"method.{k}={v}" for k, v in tiny.METHODS["pix2pix"][1].items()]
    words = ["train", "--method", "pix2pix", "--preset", "small", "--data", str(root)]
    run, image = tmp_path / "run", Scenes("outline", 32)[0].image
    assert main([*words, "--out", str(run), "train.steps=2", "data.batch=2", *small]) == 0
    assert [p.name.split("-output")[0] for p in (run / "samples").glob("*-00000002.png")] == [
        f"{domains[0]}-to-{domains[1].replace(' ', '_')}"
    ]
    Image.fromarray(image).save(tmp_path / "x.png")
    translate = ["translate", str(run), str(tmp_path / "x.png"), "--to"]
    assert main([*translate, domains[1]]) == 0
    assert main([*translate, "all", "--out", str(tmp_path / "all")]) == 0  # the one way there is
    assert not list((tmp_path / "all").glob(f"*-{domains[0]}*"))
    for source, said in (("nowhere", "no domain 'nowhere'"), (domains[1], "to no domain")):
        capsys.readouterr()
        assert main([*translate, "all", "--source", source]) == 2
        assert said in capsys.readouterr().err
    assert main([*translate, domains[0]]) == 2
    printed = capsys.readouterr().err
    assert f"from {domains[0]} to {domains[1]} only" in printed and printed.count("\n") == 1


def test_images_without_a_partner_are_named_before_training_and_by_the_check(tmp_path, capsys):
    root = pairs(tmp_path / "data")
    (root / "edges" / "2.png").rename(root / "edges" / "zwei.png")
    for words in (
        ["train", "--method", "bicyclegan", "--data", str(root), "--out", str(tmp_path / "run")],
        ["data", "check", str(root), "--paired"],
    ):
        assert main(words) == 65
        printed = capsys.readouterr().err
        assert "edges/zwei.png" in printed and "schöne shoes/2.png" in printed
    assert not list((tmp_path / "run").glob("checkpoints/*"))
    (root / "edges" / "zwei.png").rename(root / "edges" / "2.png")
    assert main(["data", "check", str(root), "--paired"]) == 0


def test_validation_pairs_are_whole(tmp_path):
    """An image that cannot be read has a stand-in, which is nobody's partner."""
    for split, n in (("train", 8), ("val", 5)):
        for domain, shade in (("a", 0), ("b", 1)):
            for i in range(n):
                image = np.full((32, 32, 3), 20 * i + shade, dtype=np.uint8)
                (tmp_path / split / domain).mkdir(parents=True, exist_ok=True)
                write_png(tmp_path / split / domain / f"{i}.png", image)
    (tmp_path / "val" / "a" / "1.png").write_bytes(b"no image")
    (tmp_path / "val" / "b" / "3.png").write_bytes(b"no image")
    config = tiny.run("pix2pix")
    data = config.data.model_copy(update={"root": str(tmp_path), "domains": ("a", "b")})
    run = config.model_copy(update={"data": data})
    trainer = train.Trainer(run, RunFolder(tmp_path / "run"), lambda line: None)
    trainer.folder.create()
    trainer.begin(False, None, False)
    a, b = (x.mean((1, 2, 3)) for x in trainer.validation())
    assert len(a) == 3 and ((b - a) * 127.5).tolist() == pytest.approx([1, 1, 1], abs=0.01)
