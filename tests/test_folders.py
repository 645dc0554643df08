"""Layouts of data sets, what is passed over, pairs, validation and fingerprints."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from odd_images import encode, picture

from unpaired.data import folders
from unpaired.data.folders import Fingerprint, Listing, compare, halves, scan
from unpaired.data.intake import read_image
from unpaired.errors import ConfigProblem, DataProblem, Problem


def fill(root: Path, *names: str) -> Path:
    """Small PNGs under `root`, each with its own content."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        colour = np.frombuffer(hashlib.md5(os.fsencode(name)).digest()[:3], np.uint8)
        path.write_bytes(encode(np.tile(colour, (16, 16, 1)), "PNG"))
    return root


def ids(listing: Listing) -> dict[str, dict[str, list[str]]]:
    return {
        split: {domain: [listing.id(path) for path in paths] for domain, paths in of.items()}
        for split, of in listing.files.items()
    }


# Layouts.


def test_lettered_folders(tmp_path: Path) -> None:
    fill(tmp_path, "trainA/1.png", "trainB/2.png", "trainB/deep/3.png", "testA/4.png", "valB/5.png")
    listing = scan(tmp_path)
    assert listing.domains == ("A", "B") and listing.layout == "trainA trainB"
    assert ids(listing) == {
        "train": {"A": ["trainA/1.png"], "B": ["trainB/2.png", "trainB/deep/3.png"]},
        "val": {"A": [], "B": ["valB/5.png"]},
        "test": {"A": ["testA/4.png"], "B": []},
    }
    assert listing.paths("test", "A") == (tmp_path / "testA/4.png",)
    assert listing.paths("test", "Z") == listing.paths("no", "A") == ()


def test_images_beside_lettered_folders_are_noted(tmp_path: Path) -> None:
    fill(tmp_path, "trainA/1.png", "trainB/2.png", "montage.png", "samples/3.png")
    listing = scan(tmp_path)
    assert listing.notes == ("2 images beside trainA, trainB are not used.",)
    assert sum(len(paths) for of in listing.files.values() for paths in of.values()) == 2


@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
def test_splits_with_domains(tmp_path: Path, val: str) -> None:
    fill(tmp_path, "train/cat/1.png", "train/dog/2.png", f"{val}/dog/3.png", "test/cat/4.png")
    listing = scan(tmp_path)
    assert listing.domains == ("cat", "dog") and listing.layout == "train/<domain>"
    assert ids(listing) == {
        "train": {"cat": ["train/cat/1.png"], "dog": ["train/dog/2.png"]},
        "val": {"cat": [], "dog": [f"{val}/dog/3.png"]},
        "test": {"cat": ["test/cat/4.png"], "dog": []},
    }


def test_domains_with_splits(tmp_path: Path) -> None:
    fill(tmp_path, "cat/train/1.png", "dog/train/2.png", "dog/test/3.png")
    listing = scan(tmp_path)
    assert listing.domains == ("cat", "dog") and listing.layout == "<domain>/train"
    assert ids(listing)["test"] == {"cat": [], "dog": ["dog/test/3.png"]}


def test_domain_folders_with_odd_names(tmp_path: Path) -> None:
    fill(tmp_path, "Katzen für alle/1.png", "犬/2 b.png", "犬/nested/2 b.png")
    listing = scan(tmp_path)
    assert listing.domains == ("Katzen für alle", "犬") and listing.layout == "<domain>"
    assert ids(listing)["train"]["犬"] == ["犬/2 b.png", "犬/nested/2 b.png"]


def test_one_folder_without_labels(tmp_path: Path) -> None:
    fill(tmp_path, "b.png", "a.png")
    listing = scan(tmp_path)
    assert listing.domains == ("images",)
    assert ids(listing) == {"train": {"images": ["a.png", "b.png"]}}


def test_subfolders_on_request_are_one_domain(tmp_path: Path) -> None:
    fill(tmp_path, "a.png", "x/b.png", "x/y/c.png")
    with pytest.raises(DataProblem, match=r"1 images \(such as a\.png\) beside folders .*\(x\)"):
        scan(tmp_path)
    listing = scan(tmp_path, subfolders=True)
    assert ids(listing) == {"train": {"images": ["a.png", "x/b.png", "x/y/c.png"]}}


def test_the_chosen_domains_alone_count(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.png", "b/1.png", "c/1.png", "c/2.png", "a/raw.nef", "c/raw.nef")
    with pytest.raises(DataProblem, match=r"3 domains .*data\.domains="):
        scan(tmp_path, paired=True)
    listing = scan(tmp_path, paired=True, domains=["b", "a"])
    assert listing.domains == ("a", "b") and listing.paired and not listing.notes
    assert ids(listing) == {"train": {"a": ["a/1.png"], "b": ["b/1.png"]}}
    assert len(listing.skipped) == 2
    assert listing.unusable(["a", "b"]) == [tmp_path / "a" / "raw.nef"]
    assert listing.unusable(["b"]) == []
    assert scan(tmp_path, domains=["a", "nosuch"]).domains == ("a", "b", "c")  # told elsewhere
    fill(tmp_path / "two", "trainA/1.png", "trainB/1.png", "originals/1.nef", "trainB/2.nef")
    lettered = scan(tmp_path / "two")
    assert lettered.unusable("AB") == [tmp_path / "two" / "trainB" / "2.nef"]


def test_splits_without_labels(tmp_path: Path) -> None:
    fill(tmp_path, "train/a.png", "test/b.png")
    listing = scan(tmp_path)
    assert ids(listing) == {
        "train": {"images": ["train/a.png"]},
        "test": {"images": ["test/b.png"]},
    }
    fill(tmp_path, "train/deep/c.png")
    with pytest.raises(DataProblem, match="both directly in test, train and in folders"):
        scan(tmp_path)
    assert len(scan(tmp_path, subfolders=True).paths("train", "images")) == 2


def test_two_folders_named_one_by_one(tmp_path: Path) -> None:
    fill(tmp_path, "x/photos/1.png", "y/art/2.png", "y/art/train/3.png", "z/art/4.png")
    listing = scan(tmp_path / "x/photos", tmp_path / "z/art")
    assert listing.domains == ("photos", "art")  # in the order given
    assert ids(listing) == {"train": {"photos": ["photos/1.png"], "art": ["art/4.png"]}}
    same = scan(tmp_path / "z/art", tmp_path / "y/art/train")
    assert same.domains == ("art", "train")
    fill(tmp_path, "w/art/5.png")
    assert scan(tmp_path / "z/art", tmp_path / "w/art").domains == ("A", "B")
    with pytest.raises(DataProblem, match="arrange both alike"):
        scan(tmp_path / "x/photos", tmp_path / "y/art")


def test_lists(tmp_path: Path) -> None:
    fill(tmp_path, "1.png", "sub/2.png", "sub/3, b.png")
    plain = tmp_path / "plain.txt"
    plain.write_text("# mine\n1.png\n\nsub/2.png\n", encoding="utf-8")
    assert ids(scan(plain)) == {"train": {"images": ["1.png", "sub/2.png"]}}
    table = tmp_path / "table.csv"
    text = 'path,domain,split\n1.png,cat\nsub/2.png,dog,valid\n"sub/3, b.png",dog,\n'
    table.write_bytes(b"\xef\xbb\xbf" + text.encode())
    listing = scan(table)
    wide = tmp_path / "windows.csv"
    wide.write_text(text, encoding="utf-16")
    assert ids(scan(wide)) == ids(listing)
    assert listing.layout == "list" and listing.domains == ("cat", "dog")
    assert ids(listing) == {
        "train": {"cat": ["1.png"], "dog": ["sub/3, b.png"]},
        "val": {"cat": [], "dog": ["sub/2.png"]},
    }
    tabs = tmp_path / "table.tsv"
    tabs.write_text("1.png\tcat\nsub/3, b.png\tdog\nmissing.png\tdog\n", encoding="utf-8")
    tabs = tabs.rename(tmp_path / "table.TSV")
    listing = scan(tabs)
    assert ids(listing)["train"] == {"cat": ["1.png"], "dog": ["sub/3, b.png"]}
    assert listing.skipped == (
        (tmp_path / "missing.png", f"line 3 of {tabs} names it, but it does not exist"),
    )


@pytest.mark.parametrize(
    "text, message",
    [
        ("1.png,cat,tran\n", "tran in line 1 of .* is no split: write train, val or test"),
        ("1.png,cat,train,x\n", r"Line 1 of .* is not path\[,domain\[,split\]\]"),
        ("1.png,cat\n1.png,dog\n", "1.png in line 2 of .* is listed twice"),
        ("1.png,cat\n./1.png,dog\n", "1.png in line 2 of .* is listed twice"),
        ("1.png,cat\n" + 200_000 * "x", r"Line 2 of .* cannot be read as a list"),
        ("no.png\n", r"lists no image that exists \(1 do not\)"),
        ("", "lists no image that exists"),
    ],
)
def test_lists_with_mistakes(tmp_path: Path, text: str, message: str) -> None:
    fill(tmp_path, "1.png")
    (tmp_path / "list.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataProblem, match=message):
        scan(tmp_path / "list.csv")


# Mistakes.


def _nothing(root: Path) -> None:
    (root / "sub").mkdir(parents=True)


def _notes_only(root: Path) -> None:
    fill(root, "x.png").joinpath("x.png").rename(root / "x.txt")
    (root / "a.heic").write_bytes(b"")


def _parent(root: Path) -> None:
    fill(root, "afhq/train/cat/1.png")


def _unknown_test(root: Path) -> None:
    fill(root, "trainA/1.png", "testB/2.png")


def _half_split(root: Path) -> None:
    fill(root, "cat/train/1.png", "dog/2.png")


@pytest.mark.parametrize(
    "make, message",
    [
        (_nothing, "has no images .there is nothing at all.; understood are trainA trainB"),
        (_notes_only, "1 unusable and 1 other files, the first a.heic: .heic is not supported"),
        (_parent, "its folder afhq has train: name .*afhq"),
        (_unknown_test, "has test images but no training images of B"),
        (_half_split, "cat has folders such as train and test, and dog has images outside"),
    ],
)
def test_folders_with_mistakes(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    make(tmp_path / "data")
    with pytest.raises(DataProblem, match=message) as caught:
        scan(tmp_path / "data")
    assert str(caught.value).count("\n") == 0 and str(caught.value).endswith(".")
    assert caught.value.exit_code == 65


def test_names_that_are_no_folder(tmp_path: Path) -> None:
    (tmp_path / "set.zip").write_bytes(b"PK")
    for roots, message in (
        ([tmp_path / "no\nfolder"], r"no\\nfolder does not exist"),
        ([tmp_path / "set.zip"], "not a folder, nor a list"),
        ([tmp_path, tmp_path / "set.zip"], "set.zip is not a folder"),
        ([], "No folder of images was named"),
    ):
        with pytest.raises(ConfigProblem, match=message) as caught:
            scan(*roots)
        assert caught.value.exit_code == 2


# What is seen, what is passed over, what is reported.


def test_d34_names_and_files_that_are_passed_over(tmp_path: Path) -> None:
    fill(tmp_path, "UPPER.PNG", "none", "double.tar.png", "jpeg.JPEG", "kept.png.bak", "a.webp")
    fill(tmp_path, ".hidden.png", "._x.jpg", ".git/x.png", "__MACOSX/x.png", "@eaDir/x.png")
    for name in ("Thumbs.db", ".DS_Store", "desktop.ini", "notes.txt", "labels.json", "plain"):
        (tmp_path / name).write_text("not an image", encoding="utf-8")
    (tmp_path / "a.png.txt").write_text("a caption", encoding="utf-8")
    listing = scan(tmp_path)
    names = ["UPPER.PNG", "a.webp", "double.tar.png", "jpeg.JPEG", "kept.png.bak", "none"]
    assert ids(listing) == {"train": {"images": names}}
    assert not listing.skipped and not listing.notes


def test_other_kinds_of_images_are_reported(tmp_path: Path) -> None:
    fill(tmp_path, "a.png")
    for name in ("b.HEIC", "c.svg", "d.mp4", "e.psd", "f.jp2"):
        (tmp_path / name).write_bytes(b"x")
    skipped = {path.name: reason for path, reason in scan(tmp_path).skipped}
    assert set(skipped) == {"b.HEIC", "c.svg", "d.mp4", "e.psd", "f.jp2"}
    assert skipped["b.HEIC"] == ".heic is not supported; convert it to JPEG or PNG"


def test_d40_links_and_special_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = fill(tmp_path / "outside", "far.png", "folder/far2.png")
    root = fill(tmp_path / "root", "a.png")
    (root / "inside.png").symlink_to("a.png")
    os.link(root / "a.png", root / "hard.png")
    (root / "out.png").symlink_to(outside / "far.png")
    (root / "out_folder").symlink_to(outside / "folder")
    (root / "nowhere.png").symlink_to("missing.png")
    (root / "circle.png").symlink_to("circle.png")
    (root / "self").symlink_to(".")
    os.mkfifo(root / "pipe.png")
    monkeypatch.chdir(root)
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind("socket.png")
        listing = scan(root)
        followed = scan(root, follow_links=True, subfolders=True)
    assert ids(listing) == {"train": {"images": ["a.png", "hard.png", "inside.png"]}}
    out = "the link leads out of the folder (data.follow_links=true allows it)"
    assert {path.name: reason for path, reason in listing.skipped} == {
        "out.png": out,
        "out_folder": out,
        "nowhere.png": "the link leads nowhere",
        "circle.png": "the link leads nowhere",
        "self": "the link leads in a circle",
        "pipe.png": "it is not a regular file",
        "socket.png": "it is not a regular file",
    }
    more = ids(followed)["train"]["images"]
    assert more == ["a.png", "hard.png", "inside.png", "out.png", "out_folder/far2.png"]
    linked = tmp_path / "linked"
    linked.symlink_to(root)
    assert len(scan(linked).paths("train", "images")) == 3


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "a/1.png", "b/2.png")
    scandir = os.scandir

    def refuse(path: str) -> object:  # root may read everything, so the mode is no test
        if path.endswith("b"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    listing = scan(tmp_path)
    assert listing.skipped == ((tmp_path / "b", "the folder cannot be read (Permission denied)"),)


def test_d41_the_same_image_and_the_same_name_twice(tmp_path: Path) -> None:
    fill(tmp_path, "cat/x/1.png", "cat/y/1.png", "dog/1.png")
    shutil.copy(tmp_path / "cat/x/1.png", tmp_path / "cat/x/2.png")
    assert ids(scan(tmp_path))["train"] == {
        "cat": ["cat/x/1.png", "cat/x/2.png", "cat/y/1.png"],
        "dog": ["dog/1.png"],
    }


def test_order_does_not_depend_on_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, *(f"{d}/{i}.png" for d in "ba" for i in (10, 9, 1)), "a/é.png", "a/e/z.png")
    before = scan(tmp_path)
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: list(scandir(path))[::-1])
    one = scan(tmp_path)
    monkeypatch.setattr(
        os, "scandir", lambda path: random.Random(3).sample(s := list(scandir(path)), len(s))
    )
    two = scan(tmp_path)
    assert before.files == one.files == two.files
    assert before.fingerprint() == one.fingerprint() == two.fingerprint()


def test_a_listing_travels_between_processes(tmp_path: Path) -> None:
    listing = scan(fill(tmp_path, "a/1.png", "b/2.png"))
    assert pickle.loads(pickle.dumps(listing)) == listing


# Pairs.


def test_paired_folders(tmp_path: Path) -> None:
    fill(tmp_path, "A/a-b.png", "A/a.png", "B/a.jpg", "B/a-b.png")
    fill(tmp_path, "A/cafe\u0301.png", "B/caf\u00e9.png")  # NFD and NFC
    listing = scan(tmp_path, paired=True)
    a, b = (listing.paths("train", d) for d in ("A", "B"))
    assert listing.paired and not listing.side_by_side
    assert [p.name for p in a] == ["a.png", "a-b.png", "cafe\u0301.png"]
    assert [p.name for p in b] == ["a.jpg", "a-b.png", "caf\u00e9.png"]


def test_pairs_that_do_not_match_are_named(tmp_path: Path) -> None:
    fill(tmp_path, "A/1.png", "B/1.png", "A/2.png", "B/3.png")
    with pytest.raises(DataProblem, match="2 images .* have no partner .*: A/2.png, B/3.png; add"):
        scan(tmp_path, paired=True)
    fill(tmp_path / "twice", "A/1.png", "A/1.jpg", "B/1.png")
    with pytest.raises(DataProblem, match=r"A/1\.\w+ in .* the name of another image up to"):
        scan(tmp_path / "twice", paired=True)
    fill(tmp_path / "three", "A/1.png", "B/1.png", "C/1.png")
    with pytest.raises(DataProblem, match=r"has 3 domains \(A, B, C\); pairs need two"):
        scan(tmp_path / "three", paired=True)


def test_side_by_side(tmp_path: Path) -> None:
    both = np.concatenate([picture(), 255 - picture()], axis=1)
    (tmp_path / "train").mkdir()
    (tmp_path / "train/1.png").write_bytes(encode(both, "PNG"))
    listing = scan(tmp_path, paired=True)
    assert listing.domains == ("A", "B") and listing.paired and listing.side_by_side
    (path,) = listing.paths("train", "A")
    assert listing.paths("train", "B") == (path,)
    a, b = halves(read_image(path))
    assert np.array_equal(a, picture()) and np.array_equal(b, 255 - picture())
    with pytest.raises(DataProblem, match="even width, not 55"):
        halves(picture()[:, :55])


# Validation.


def _many(root: Path, count: int = 200) -> Path:
    names = [f"{d}/{i}.png" for d in ("trainA", "trainB") for i in range(count)]
    return fill(root, *names, *(f"test{d}/{i}.png" for d in "AB" for i in range(30)))


def test_validation_is_made_from_training_images_only(tmp_path: Path) -> None:
    listing = scan(_many(tmp_path))
    found = ids(listing)
    assert listing.made_validation
    for domain in "AB":
        assert 10 <= len(found["val"][domain]) <= 14 and len(found["test"][domain]) == 30
        assert len(found["val"][domain]) + len(found["train"][domain]) == 200
        assert all(name.startswith("train") for name in found["val"][domain])
        assert not set(found["val"][domain]) & set(found["train"][domain])
    assert "val" not in scan(tmp_path, validation=0).files
    assert len(scan(tmp_path, validation=0.2).paths("val", "A")) >= 40


def test_validation_goes_by_content(tmp_path: Path) -> None:
    listing = scan(_many(tmp_path / "one"))
    held = {p.read_bytes() for d in "AB" for p in listing.paths("val", d)}
    moved = tmp_path / "two"
    for number, path in enumerate(sorted(listing.entries, key=lambda p: p.read_bytes())):
        target = moved / path.parent.name / f"renamed {number}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    again = scan(moved)
    assert {p.read_bytes() for d in "AB" for p in again.paths("val", d)} == held
    for number, content in enumerate(held):  # copies of them in the other domain follow
        (moved / "trainB" / f"copy {number}.png").write_bytes(content)
    leaked = scan(moved)
    train = {p.read_bytes() for d in "AB" for p in leaked.paths("train", d)}
    val = {p.read_bytes() for d in "AB" for p in leaked.paths("val", d)}
    assert not train & val


def test_few_images_make_no_validation_and_enough_make_four(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{i}.png" for i in range(19)))
    assert "val" not in scan(tmp_path).files
    fill(tmp_path, "19.png")
    assert len(scan(tmp_path).paths("val", "images")) == 4
    for i in range(20):  # all the same: nothing may be held out
        shutil.copy(tmp_path / "0.png", tmp_path / f"{i}.png") if i else None
    assert "val" not in scan(tmp_path).files


def test_validation_takes_no_content_with_more_copies_than_it_wants(tmp_path: Path) -> None:
    fill(tmp_path, *(f"good {i}.png" for i in range(30)))
    for text in ("", "404", "page not found", "moved"):  # in place of images, some of a low hash
        for i in range(15):
            (tmp_path / f"{text} {i}.png").write_text(text)
    listing = scan(tmp_path)
    assert [p.name[:4] for p in listing.paths("val", "images")] == ["good"] * 4
    assert sum(not p.name.startswith("good") for p in listing.paths("train", "images")) == 60


def test_validation_keeps_pairs_together(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{d}/{i}.png" for d in "AB" for i in range(60)))
    listing = scan(tmp_path, paired=True)
    for split, count in (("val", 4), ("train", 56)):
        a, b = (listing.paths(split, d) for d in "AB")
        assert len(a) == count and [p.name for p in a] == [p.name for p in b]


# Fingerprints (T-16).


def _add(root: Path) -> None:
    fill(root, "trainA/new.png")


def _remove(root: Path) -> None:
    (root / "trainA/0.png").unlink()


def _rename(root: Path) -> None:
    (root / "trainA/0.png").rename(root / "trainA/other.png")


def _edit(root: Path) -> None:
    path = root / "trainA/0.png"
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(10**18, 10**18))


def _move(root: Path) -> None:
    (root / "trainA/0.png").rename(root / "testA/moved.png")


def _touch(root: Path) -> None:
    os.utime(root / "trainA/0.png", ns=(10**18, 10**18))


@pytest.mark.parametrize(
    "change, added, removed, changed",
    [(_add, 1, 0, 0), (_remove, 0, 1, 0), (_rename, 1, 1, 0), (_edit, 0, 0, 1), (_move, 1, 1, 0),
     (_touch, 0, 0, 0)],
)  # fmt: skip
def test_changes_are_counted(
    tmp_path: Path, change: Callable[[Path], None], added: int, removed: int, changed: int
) -> None:
    old = scan(_many(tmp_path, 5)).fingerprint()
    change(tmp_path)
    new = scan(tmp_path, known=old).fingerprint(old)
    found = compare(old, new)
    assert (len(found.added), len(found.removed), len(found.changed)) == (added, removed, changed)
    assert bool(found) == (added + removed + changed > 0) == (old.digest != new.digest)
    assert str(found) == f"{added} added, {removed} removed, {changed} changed"


def test_a_moved_root_is_the_same_data_set(tmp_path: Path) -> None:
    old = scan(_many(tmp_path / "one", 5)).fingerprint()
    shutil.copytree(tmp_path / "one", tmp_path / "elsewhere/two", copy_function=shutil.copyfile)
    new = scan(tmp_path / "elsewhere/two").fingerprint()
    assert old.digest == new.digest and not compare(old, new)


def test_a_file_that_gets_another_split_or_domain_has_changed(tmp_path: Path) -> None:
    fill(tmp_path, "1.png", "2.png")
    table = tmp_path / "list.csv"
    table.write_text("1.png,cat\n2.png,dog\n", encoding="utf-8")
    old = scan(table).fingerprint()
    table.write_text("1.png,dog\n2.png,dog\n", encoding="utf-8")
    assert compare(old, scan(table).fingerprint()).changed == ("1.png",)
    table.write_text("1.png,cat\n2.png,dog,test\n", encoding="utf-8")
    with pytest.raises(Problem):
        scan(table)  # dogs to test on, none to train on


def test_a_fingerprint_is_kept_as_json(tmp_path: Path) -> None:
    name = os.fsdecode(b"not \xff UTF-8.png")
    old = scan(fill(tmp_path, "a.png", name, "é\n.png")).fingerprint()
    again = Fingerprint.from_json(json.loads(json.dumps(old.to_json())))
    assert again == old and not compare(old, again)


def test_an_unchanged_data_set_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = scan(_many(tmp_path, 30)).fingerprint()
    folders.content_hash.cache_clear()

    def read(*_: object) -> bytes:
        raise AssertionError("a file was read")

    monkeypatch.setattr(folders, "read_file", read)
    assert scan(tmp_path, known=old).fingerprint(old) == old


@pytest.mark.parametrize(
    "seconds",
    [pytest.param(0.1, marks=pytest.mark.slow), 0.6],  # the second also on a slow, busy machine
)
def test_five_thousand_files_are_checked_in_a_tenth_of_a_second(
    seconds: float, tmp_path: Path
) -> None:
    for domain in ("a", "b"):
        (tmp_path / domain).mkdir()
        for number in range(2500):
            (tmp_path / domain / f"{number}.png").write_bytes(b"%d" % number)
    known = scan(tmp_path).fingerprint()

    def check() -> None:
        assert not compare(known, scan(tmp_path, known=known).fingerprint(known))

    assert _fastest(check) <= seconds


def _fastest(work: Callable[[], None]) -> float:
    times = []
    for _ in range(5):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)
