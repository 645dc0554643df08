"""Batches are a pure function of (seed, step); bad files are told once and stood in for."""

import multiprocessing
import os
import random
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from unpaired import train
from unpaired.checkpoint import RunFolder
from unpaired.cli import main
from unpaired.data.batches import (
    Batches,
    FilePictures,
    loader,
    luminance,
    mirrored,
    spread,
    to_device,
)
from unpaired.data.datasets import open_dataset
from unpaired.data.folders import scan
from unpaired.errors import DataProblem, Problem
from unpaired.metrics.images import open_images


def folder(path, names, size=(40, 30), seed=0):
    rng = np.random.default_rng(seed)
    path.mkdir(parents=True)
    for name in names:
        pixels = rng.integers(0, 255, (size[1] // 5, size[0] // 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize(size).save(path / name)
    return path


@pytest.fixture
def two(tmp_path):
    names = [f"ein Bild {i} é.png" for i in range(6)]
    return folder(tmp_path / "data ä" / "cats", names), folder(
        tmp_path / "data ä" / "dogs", names, seed=1
    )


def batches(root, layout="two_domains", **kw):
    settings = dict(batch=4, size=(16, 16), steps=10) | kw
    data = tiny.run("munit").data.model_copy(update={"root": str(root), "domains": None})
    return Batches(open_dataset(data, layout).splits["train"], layout, **settings)


def test_a_pure_function_of_seed_and_step(two):
    a, b, other = batches(two[0].parent), batches(two[0].parent), batches(two[0].parent, seed=1)
    later, _ = a[7]
    for step in (3, 7):
        assert all(torch.equal(x, b[step][0][k]) for k, x in a[step][0].items())
    assert torch.equal(later["x_1"], b[7][0]["x_1"])  # whatever was read in between
    assert not torch.equal(later["x_1"], other[7][0]["x_1"])


def test_an_epoch_shows_each_image_once(two):
    names = [n for step in range(3) for n in batches(two[0].parent)[step][1][:4]]  # 12 of 6 images
    assert sorted(names[:6]) == sorted(set(names)) == sorted(names[6:])
    assert names[:6] != names[6:]


def test_crops_and_mirrors_are_keyed_by_sample(two):
    one, four = batches(two[0].parent, batch=1), batches(two[0].parent, batch=4)
    whole, names = four[0]
    for j in range(4):
        alone, (name, *_) = one[j]
        assert name == names[j] and torch.equal(alone["x_1"][0], whole["x_1"][j])


def test_pairs_share_their_crop_and_mirror(tmp_path):
    names = [f"{i}.png" for i in range(8)]
    folder(tmp_path / "a", names, (40, 24))
    folder(tmp_path / "b", names, (40, 24))
    (tmp_path / "b" / "3.png").write_bytes(b"broken")
    pairs = batches(tmp_path, "paired")
    for step in range(6):
        batch, files = pairs[step]
        assert torch.equal(batch["x_1"], batch["x_2"])  # the folders hold the same pixels
        assert not any(f.endswith("3.png") for f in files)


def test_side_by_side_images_are_cut_in_two(tmp_path):
    for i in range(3):
        image = Image.new("RGB", (64, 32), (200, 30, 30))
        image.paste((30, 30, 200), (32, 0, 64, 32))
        image.save(tmp_path / f"{i}.png")
    batch, _ = batches(tmp_path, "paired")[0]
    assert (batch["x_1"][..., 0] == 200).all() and (batch["x_2"][..., 2] == 200).all()


def test_domains_are_balanced(tmp_path):
    for i, name in enumerate("abc"):
        folder(tmp_path / name, [f"{j}.png" for j in range(3 + 4 * i)], seed=i)
    data = batches(tmp_path, "domains", batch=6)
    for step in range(4):
        batch, _ = data[step]
        assert (
            torch.bincount(batch["y_src"]).tolist()
            == torch.bincount(batch["y_ref"]).tolist()
            == [2, 2, 2]
        )
        assert batch["x_ref2"].shape == (6, 16, 16, 3)


@pytest.mark.parametrize("images", [1, 2, 5])
def test_the_second_reference_is_another_image_or_another_cut(tmp_path, images):
    for i, name in enumerate("ab"):
        folder(tmp_path / name, [f"{j}.png" for j in range(images)], seed=i)
    data = batches(tmp_path, "domains", batch=4, steps=30)
    alike, files = 0, set()
    for step in range(30):
        batch, names = data[step]
        ref, ref2 = names[4:8], names[8:]
        assert [Path(n).parent for n in ref] == [Path(n).parent for n in ref2]
        assert images == 1 or not any(a == b for a, b in zip(ref, ref2, strict=True))
        files |= set(ref2)
        same = (batch["x_ref"] == batch["x_ref2"]).flatten(1).all(1)
        alike += int(same.sum())
    assert alike <= (25 if images == 1 else 0) and len(files) == 2 * images  # of 120; few cuts fit


@pytest.mark.parametrize("images", [1, 2, 3, 5, 8, 300])
@pytest.mark.parametrize("pairs", [1, 2, 3, 4, 8])
def test_no_file_is_two_references_of_a_batch(images, pairs):
    """Of a domain that has enough: an image would else be its own negative in DSM's smoothness."""
    data = Batches([range(images)], "domains", pairs, (16, 16), steps=30)
    seen = set()
    for step in range(30):
        drawn = data.references(step, 0, pairs)
        files = [s.index for pair in drawn for s in pair]
        assert drawn == data.references(step, 0, pairs)
        assert len(set(files)) == min(2 * pairs, images)
        assert images == 1 or all(a.index != b.index for a, b in drawn)
        seen |= set(files)
    assert len(seen) > min(images, 30) / 2


def test_images_arrive_in_range_and_channels_last(two):
    x = to_device(batches(two[0].parent)[0][0], "cpu")["x_1"]
    assert x.shape == (4, 3, 16, 16) and x.is_contiguous(memory_format=torch.channels_last)
    assert -1 <= x.min() < -0.5 and 0.5 < x.max() <= 1
    black, white = (
        torch.zeros(1, 1, 1, 3, dtype=torch.uint8),
        torch.full((1, 1, 1, 3), 255, dtype=torch.uint8),
    )
    assert (
        to_device({"x": black}, "cpu")["x"].max() == -1
        and to_device({"x": white}, "cpu")["x"].min() == 1
    )


def test_mirrored_left_to_right():
    image = np.random.default_rng(0).integers(0, 255, (4, 6, 3), np.uint8)
    image.flags.writeable = False
    for view in (image, image[1:3, 2:]):  # a crop is no memory of its own
        assert np.array_equal(mirrored(view), view[:, ::-1])


def test_grey_is_luminance():
    image = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    assert luminance(image)[..., 0].tolist() == [[76, 150, 29]]


def test_T13_bad_files_are_told_once_and_stood_in_for(two, tmp_path):
    cats = two[0]
    bad = sorted(cats.iterdir())[2]
    bad.write_bytes(b"<html>404</html>")
    told = []
    pictures = FilePictures(
        sorted(cats.iterdir()), (16, 16), lambda path, reason: told.append((path, reason))
    )
    first, second = pictures.read(2), pictures.read(2)
    assert np.array_equal(first, second) and np.array_equal(first, pictures.read(3))
    assert [path for path, _ in told] == [bad] and "HTML" in told[0][1]

    config = tiny.run(
        "munit", f"data.root={cats.parent}", "data.domains=null", "data.max_bad=0.5", steps=3
    )
    for name in ("a", "b"):
        train.fit(config, RunFolder(tmp_path / name), say=lambda line: None)
    assert (tmp_path / "a" / "bad_files.jsonl").read_text().count("\n") == 1
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (
        tmp_path / "b" / "model.safetensors"
    ).read_bytes()

    strict = tiny.run("munit", f"data.root={cats.parent}", "data.domains=null", steps=3)
    with pytest.raises(DataProblem, match="unpaired data check") as problem:
        train.fit(strict, RunFolder(tmp_path / "c"), say=lambda line: None)
    assert problem.value.exit_code == 65 and not RunFolder(tmp_path / "c").steps()


def test_d42_a_file_that_changes_after_the_scan_is_used_and_told_once(two, caplog):
    listing = scan(two[0])
    paths = listing.paths("train", "images")
    pictures = FilePictures(paths, (16, 16), pytest.fail, listing.entries)
    pictures.room = 0  # nothing is kept: each image is read each time
    before = pictures.read(1)
    Image.new("RGB", (40, 30), "red").save(paths[1])
    for _ in range(2):
        assert (pictures.read(1) == (255, 0, 0)).all() and (before != (255, 0, 0)).any()
        pictures.read(0)
    (record,) = caplog.records
    assert paths[1].name in record.message and "new content is used" in record.message


def test_T14_a_thousand_edits_while_running(tmp_path):
    """Unlinked, cut, emptied, replaced by a folder or a pipe, and back."""
    listing = scan(folder(tmp_path / "a", [f"{i}.png" for i in range(20)], (16, 16)), validation=0)
    paths, told = listing.paths("train", "images"), []
    good = paths[0].read_bytes()
    rng, used = random.Random(0), 0
    for _ in range(1000):
        i = rng.randrange(20)
        if paths[i].is_dir():
            paths[i].rmdir()
        paths[i].unlink(missing_ok=True)
        match rng.randrange(6):
            case 0:
                paths[i].mkdir()
            case 1:
                paths[i].write_bytes(good[: rng.randrange(len(good))])
            case 2:
                os.mkfifo(paths[i])
            case 3 | 4:
                paths[i].write_bytes(good)
        report = lambda path, reason: told.append(path)  # noqa: E731
        pictures = FilePictures(paths, (16, 16), report, listing.entries)
        if pictures.usable(i):
            used += 1
            assert not told
        else:
            assert told == [paths[i]] and not (paths[i].is_file() and paths[i].read_bytes() == good)
        told.clear()
        try:
            assert pictures.read(i).shape == (16, 16, 3)  # its own or another one
        except DataProblem:
            assert len(pictures.bad) == 20
        told.clear()
    assert 200 < used < 500


def test_links_out_of_the_folder_are_followed_where_it_is_asked(two, tmp_path):
    for name, target in zip(("x", "y"), two, strict=True):
        (tmp_path / "links").mkdir(exist_ok=True)
        (tmp_path / "links" / name).symlink_to(target)
    data = tiny.run("munit", f"data.root={tmp_path / 'links'}", "data.domains=null").data
    with pytest.raises(DataProblem, match="follow_links"):
        open_dataset(data, "two_domains")
    followed = open_dataset(data.model_copy(update={"follow_links": True}), "two_domains")
    assert followed.domains == ("x", "y") and [len(p) for p in followed.splits["train"]] == [6, 6]


def test_T14_an_image_that_disappears_is_a_bad_image(two):
    data = batches(two[0].parent)
    for path in sorted(two[0].iterdir())[:3]:
        path.unlink()
    assert data[0][0]["x_1"].shape == (4, 16, 16, 3)
    none = FilePictures([two[0] / "gone.png"], (16, 16), lambda path, reason: None)
    with pytest.raises(DataProblem, match="cats"):
        none.read(0)


def test_T16_other_images_on_resume_are_refused(two, tmp_path, capsys):
    root, run = two[0].parent, tmp_path / "run"
    words = [
        "train",
        "--method",
        "munit",
        "--preset",
        "small",
        "--data",
        str(root),
        "--out",
        str(run),
        "data.size=16",
    ]
    words += [
        "data.batch=2",
        "method.dim=4",
        "method.d_dim=4",
        "method.d_layers=2",
        "train.steps=2",
    ]
    assert main(words) == 0
    extra = root / "cats" / "new.png"
    Image.new("RGB", (30, 30), "red").save(extra)
    resume = ["train", "--resume", str(run), "train.steps=3"]
    capsys.readouterr()
    assert main(resume) == 2
    printed = capsys.readouterr().err
    assert "1 added" in printed and "--allow-dataset-change" in printed
    assert main([*resume, "--allow-dataset-change"]) == 0
    extra.unlink()
    moved = tmp_path / "moved"
    root.rename(moved)
    assert (
        main(
            [
                "train",
                "--resume",
                str(run),
                "train.steps=4",
                f"data.root={moved}",
                "--allow-dataset-change",
            ]
        )
        == 0
    )
    assert main(["train", "--resume", str(run), "train.steps=5", f"data.root={moved}"]) == 0


def test_T17_a_run_keeps_what_it_is_made_of(two, tmp_path, capsys):
    run = tmp_path / "run"
    words = [
        "train",
        "--method",
        "munit",
        "--preset",
        "small",
        "--data",
        "scenes",
        "--out",
        str(run),
        "data.size=16",
    ]
    words += [
        "data.count=20",
        "data.batch=2",
        "method.dim=4",
        "method.d_dim=4",
        "method.d_layers=2",
        "train.steps=1",
    ]
    assert main(words) == 0
    capsys.readouterr()
    assert main(["train", "--resume", str(run), "method.dim=8", "data.batch=3"]) == 2
    printed = capsys.readouterr().err
    assert (
        "method.dim: 4 -> 8" in printed and "data.batch: 2 -> 3" in printed and "--init" in printed
    )
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("lambda_x: 10.0", "lambda_x: 3.0"))
    assert main(["train", "--resume", str(run), "train.steps=2"]) == 2
    printed = capsys.readouterr().err
    assert "method.lambda_x: 10.0 -> 3.0" in printed and "config.yaml" in printed
    (run / "config.yaml").write_text(config)
    assert main(["train", "--resume", str(run), "data.root=photos", "train.steps=2"]) == 2
    assert "scenes" in capsys.readouterr().err
    assert main(["train", "--resume", str(run), "train.log_every=7", "train.steps=2"]) == 0
    assert main(words) == 2  # the folder holds a run
    assert "--fresh" in capsys.readouterr().err
    assert main([*words, "--fresh"]) == 0


def test_what_was_held_out_stays_so(tmp_path):
    """Images that were trained on do not become validation when others are removed."""
    names = [f"{i}.png" for i in range(40)]
    for seed, name in enumerate(("outline", "painted")):
        folder(tmp_path / "data" / name, names, seed=seed)
    run = tiny.run(steps=1)
    run = run.model_copy(
        update={"data": run.data.model_copy(update={"root": str(tmp_path / "data")})}
    )
    saved = RunFolder(tmp_path / "run")
    train.fit(run, saved, say=str)

    def held(of):
        parts = open_images(run, saved, ("outline", "painted"), None)[1].splits[of]
        return {p.name(i) for p in parts for i in range(len(p))}

    before, trained = held("val"), held("train")
    assert len(before) == 8 and len(trained) == 72
    for path in sorted(before)[:3]:
        os.unlink(path)
    for path in sorted(trained)[:30]:
        os.unlink(path)
    assert held("val") == before - set(sorted(before)[:3])


def test_readers_are_forked_whatever_the_default(two):
    """By other ways of starting them, all that they report to would have to be pickled."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        with closing(loader(batches(two[0].parent), 0, 1)) as source:
            tensors, _ = next(source)
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert tensors["x_1"].shape[0] == 4


def test_spread_covers_all_kinds_of_sorted_images():
    assert spread(5, 50) == [5, 15, 25, 35, 45]
    assert spread(3, 3) == [0, 1, 2] and sorted(spread(4, 2)) == [0, 0, 1, 1]


def test_domains_without_training_images_are_refused_before_the_first_step(tmp_path):
    for name in ("testA/2", "testB/3"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20)).save(tmp_path / "data" / f"{name}.png")
    run = tiny.run("munit", f"data.root={tmp_path / 'data'}", "data.domains=null")
    with pytest.raises(DataProblem, match="no images to train on of the domain A"):
        train.fit(run, RunFolder(tmp_path / "run"), say=lambda line: None)
    assert RunFolder(tmp_path / "run").steps() == []


def test_a_finished_run_that_cannot_go_on_stays_finished(tmp_path):
    data = tmp_path / "data"
    for name in "ab":
        folder(data / name, [f"{i}.png" for i in range(3)])
    run = tiny.run("munit", f"data.root={data}", "data.domains=null", steps=1)
    train.fit(run, RunFolder(tmp_path / "run"), say=str)
    data.rename(tmp_path / "moved")
    with pytest.raises(Problem, match="does not exist"):
        train.fit(run, RunFolder(tmp_path / "run"), resume=True, say=str)
    assert RunFolder(tmp_path / "run").read_status()["status"] == "done"
