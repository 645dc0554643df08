"""The check of a data set: what it finds, what it leaves alone, and the page."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from odd_images import encode, picture
from PIL import Image

from unpaired.cli import main
from unpaired.config import Data
from unpaired.data import check as checking
from unpaired.data.check import (
    MAX_BAD,
    Report,
    check,
    check_command,
    outline,
    to_json,
    to_page,
    to_text,
)
from unpaired.data.folders import scan
from unpaired.errors import ConfigProblem, DataProblem, NotWritable


def photo(seed: int, size: int = 64) -> np.ndarray:
    """A smooth random picture (size, size, 3) uint8; every seed looks different."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))


def put(root: Path, name: str, image: np.ndarray, kind: str = "PNG", **options: int) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(image, kind, **options))


def photos(root: Path, count: int = 10) -> Path:
    for number in range(count):
        put(root, f"trainA/{number}.png", photo(number))
        put(root, f"trainB/{number}.png", photo(1000 + number))
        put(root, f"testA/{number}.png", photo(2000 + number))
    return root


def found(report: Report) -> set[tuple[str, tuple[str, ...]]]:
    return {(copies.kind, copies.ids) for copies in report.copies}


def test_a_good_data_set_is_not_suspicious(tmp_path: Path) -> None:
    report = check(photos(tmp_path))
    assert report.counts == {"train": {"A": 10, "B": 10}, "test": {"A": 10, "B": 0}}
    assert report.sizes == {"A": {"64 x 64": 20}, "B": {"64 x 64": 10}}
    assert report.modes == {"A": {"PNG RGB": 20}, "B": {"PNG RGB": 10}}
    assert not (report.copies or report.blank or report.unreadable or report.tiny or report.narrow)
    assert report.warnings == (
        "Domain A has only 10 training images.",
        "Domain B has only 10 training images.",
    )


def test_exact_copies_within_and_across(tmp_path: Path) -> None:
    photos(tmp_path)
    shutil.copy(tmp_path / "trainA/1.png", tmp_path / "trainA/copy.png")
    shutil.copy(tmp_path / "trainA/2.png", tmp_path / "trainB/from A.png")
    shutil.copy(tmp_path / "trainA/3.png", tmp_path / "testA/seen.png")
    report = check(tmp_path)
    assert found(report) == {
        ("exact", ("trainA/3.png", "testA/seen.png")),
        ("exact", ("trainA/2.png", "trainB/from A.png")),
        ("exact", ("trainA/1.png", "trainA/copy.png")),
    }
    (leak,) = report.leaks
    assert leak.ids == ("trainA/3.png", "testA/seen.png") and leak.splits == ("test", "train")
    assert report.warnings[0].startswith("LEAK: trainA/3.png, testA/seen.png are the same in test")
    assert "trainA/2.png, trainB/from A.png are the same in A, B." in report.warnings
    assert "1 image is the same as another of their domain and split." in report.warnings


@pytest.mark.parametrize("change", ["smaller", "larger", "recompressed", "brighter", "format"])
def test_near_copies(tmp_path: Path, change: str) -> None:
    photos(tmp_path)
    original = photo(3)
    height = {"smaller": 40, "larger": 150}.get(change, 64)
    edited = Image.fromarray(original).resize((height, height), Image.Resampling.LANCZOS)
    image = np.array(edited)
    if change == "brighter":
        image = (image.astype(int) + 5).clip(0, 255).astype(np.uint8)
    if change in ("recompressed", "format"):
        put(tmp_path, "testA/x.jpg", image, "JPEG", quality=30 if change == "recompressed" else 95)
    else:
        put(tmp_path, "testA/x.png", image)
    (copies,) = check(tmp_path).copies
    assert copies.kind == "near" and copies.ids[0] == "trainA/3.png"
    assert copies.splits == ("test", "train")


def test_a_near_copy_of_two_exact_ones_names_all_three(tmp_path: Path) -> None:
    photos(tmp_path)
    shutil.copy(tmp_path / "trainA/3.png", tmp_path / "trainA/copy.png")
    put(tmp_path, "testA/x.jpg", photo(3), "JPEG")
    assert ("near", ("trainA/3.png", "trainA/copy.png", "testA/x.jpg")) in found(check(tmp_path))


def test_similar_is_not_the_same(tmp_path: Path) -> None:
    """Icons of one family differ in a detail only: a mark somewhere on the same ground."""
    photos(tmp_path)
    for number in range(6):
        image = photo(5000)
        image[8 * number : 8 * number + 9, 20:32] = (
            (255, 0, 0) if image.mean() < 128 else (0, 0, 90)
        )
        put(tmp_path, f"trainB/icon {number}.png", image)
    assert not check(tmp_path).copies


def test_unreadable_blank_tiny_and_narrow(tmp_path: Path) -> None:
    photos(tmp_path)
    (tmp_path / "trainA/cut.png").write_bytes((tmp_path / "trainA/0.png").read_bytes()[:300])
    (tmp_path / "trainA/empty.png").write_bytes(b"")
    (tmp_path / "trainA/phone.heic").write_bytes(b"x")
    put(tmp_path, "trainB/white.png", np.full((64, 64, 3), 255, np.uint8))
    noisy = 100 + np.random.default_rng(0).integers(0, 4, (64, 64, 3))
    put(tmp_path, "trainB/noise.png", noisy.astype(np.uint8))
    put(tmp_path, "trainB/small.png", photo(7, 20))
    put(tmp_path, "trainB/wide.png", np.array(Image.fromarray(photo(8)).resize((320, 64))))
    report = check(tmp_path)
    assert dict(report.unreadable)["trainA/empty.png"] == "the file is empty"
    assert "damaged" in dict(report.unreadable)["trainA/cut.png"] and len(report.unreadable) == 2
    assert report.blank == ("trainB/noise.png", "trainB/white.png")
    assert report.tiny == ("trainB/small.png",) and report.narrow == ("trainB/wide.png",)
    assert [Path(path).name for path, _ in report.skipped] == ["phone.heic"]
    text = " ".join(report.warnings)
    assert "2 of 36 images cannot be read, as trainA/cut.png: the image is damaged" in text
    assert "2 images are blank: trainB/noise.png, trainB/white.png." in text
    assert "1 image is very narrow or very wide: trainB/wide.png." in text
    assert "1 file cannot be used (3% of all; training refuses above 5%, data.max_bad)" in text
    assert "HEIC" not in text and MAX_BAD == Data().max_bad
    assert len(check(tmp_path, size=65).tiny) == 34  # all that can be read


def test_a_file_that_is_odd_and_used_is_named(tmp_path: Path) -> None:
    photos(tmp_path)
    path = tmp_path / "trainA/3.png"
    path.write_bytes(path.read_bytes()[:-12])
    report = check(tmp_path)
    assert report.odd == (("trainA/3.png", "the PNG lacks its end mark"),) and not report.unreadable
    told = "1 image is used although odd, as trainA/3.png: the PNG lacks its end mark."
    assert told in report.warnings
    to_page(report, tmp_path.with_suffix(".html"))
    assert "Odd, and used" in tmp_path.with_suffix(".html").read_text()


def test_one_folder_as_methods_without_labels_see_it(tmp_path: Path, capsys) -> None:
    put(tmp_path, "one/1.png", photo(1))
    put(tmp_path, "one/sub/2.png", photo(2))
    words = ["data", "check", str(tmp_path / "one"), "--json"]
    assert main(words) == 65
    capsys.readouterr()
    assert main([*words, "--unlabelled", "--size", "65"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["counts"] == {"train": {"images": 2}} and told["tiny"] == ["1.png", "sub/2.png"]


@pytest.mark.parametrize("layout, flag", [("unlabelled", "--unlabelled"), ("paired", "--paired")])
def test_training_says_how_to_check_its_images(layout: str, flag: str) -> None:
    said = check_command(["/my photos/a", "/b"], layout, follow_links=True)
    assert said == f"unpaired data check '/my photos/a' /b {flag} --follow-links"
    assert check_command(["/b"], "two_domains") == "unpaired data check /b"


def test_a_folder_for_each_domain(tmp_path: Path) -> None:
    for number in range(4):
        put(tmp_path, f"cats/{number}.png", photo(number))
        put(tmp_path, f"dogs/{number}.png", photo(number + 3))
    report = check(scan(tmp_path / "cats", tmp_path / "dogs"))
    assert found(report) == {("exact", ("cats/3.png", "dogs/0.png"))}
    assert f"{tmp_path / 'cats'} {tmp_path / 'dogs'} (<domain>)" in to_text(report)
    with pytest.raises(ConfigProblem, match="inside the data set"):
        to_page(report, tmp_path / "dogs" / "page.html")


def test_one_odd_dot_is_not_blank(tmp_path: Path) -> None:
    photos(tmp_path)
    dot = np.full((64, 64, 3), 255, np.uint8)
    dot[20:30, 20:30] = 0
    put(tmp_path, "trainA/dot.png", dot)
    assert not check(tmp_path).blank


def test_uneven_domains_are_told_without_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        put(tmp_path, f"cat/{number}.png", photo(number))
    put(tmp_path, "dog/1.png", photo(99))
    listing = scan(tmp_path)
    monkeypatch.setattr(checking, "read_file", None)
    said = outline(listing)
    assert "The domains are uneven: cat has 4 training images, dog 1." in said
    (tmp_path / "cat/3.png").unlink()
    assert not [text for text in outline(scan(tmp_path)) if "uneven" in text]


def test_side_by_side_images_are_read_once(tmp_path: Path) -> None:
    for number in range(3):
        put(tmp_path, f"{number}.png", np.hstack([photo(number), photo(50 + number)]))
    report = check(scan(tmp_path, paired=True))
    assert report.counts == {"train": {"A": 3, "B": 3}}
    assert not report.copies and sum(report.sizes["images"].values()) == 3


def test_copies_that_validation_would_share(tmp_path: Path) -> None:
    """The made validation never leaks exact copies; near ones are told."""
    for number in range(60):
        put(tmp_path, f"{number}.png", photo(number))
        put(tmp_path, f"{number} again.png", photo(number))
    listing = scan(tmp_path)
    assert listing.made_validation
    report = check(listing)
    assert len(report.copies) == 60 and not report.leaks


def test_nothing_is_changed(tmp_path: Path) -> None:
    photos(tmp_path / "data")
    (tmp_path / "data/trainA/empty.png").write_bytes(b"")

    def state() -> list[tuple[str, int, int, bytes]]:
        return [
            (str(p), p.stat().st_mtime_ns, p.stat().st_mode, p.read_bytes() if p.is_file() else b"")
            for p in sorted((tmp_path / "data").rglob("*"))
        ]

    before = state()
    report = check(tmp_path / "data")
    to_text(report), to_json(report)
    to_page(report, tmp_path / "page.html")
    with pytest.raises(ConfigProblem, match="inside the data set, where nothing is written"):
        to_page(report, tmp_path / "data/page.html")
    assert state() == before
    with pytest.raises(NotWritable, match="cannot be written"):
        to_page(report, tmp_path / "page.html/page.html")
    to_page(report, tmp_path / "new folder/page.html")
    assert (tmp_path / "new folder/page.html").is_file()


def test_json_holds_everything_but_pictures(tmp_path: Path) -> None:
    photos(tmp_path)
    shutil.copy(tmp_path / "trainA/3.png", tmp_path / "testA/seen.png")
    name = os.fsdecode(b"not \xff UTF-8.png")
    (tmp_path / "trainA" / name).write_bytes(b"")
    report = check(tmp_path)
    values = json.loads(to_json(report))
    assert values["counts"]["train"] == {"A": 11, "B": 10}
    assert values["unreadable"] == [[f"trainA/{name}", "the file is empty"]]
    assert values["leaks"] == [copies for copies in values["copies"] if len(copies["splits"]) > 1]
    assert len(values["leaks"]) == 1 and "thumbnails" not in values and report.thumbnails


def test_text_is_safe_to_print(tmp_path: Path) -> None:
    photos(tmp_path)
    (tmp_path / "trainA/evil\x1b[31m\n\u202e.png").write_bytes(b"")
    text = to_text(check(tmp_path))
    assert text.replace("\n", "").isprintable()
    assert "trainA/evil\\x1b[31m\\n\\u202e.png: the file is empty" in text
    assert "train  A 11, B 10" in text and "sizes of A: 64 x 64 (20)" in text


def test_the_page_needs_no_other_file(tmp_path: Path) -> None:
    root = photos(tmp_path / "data")
    evil = "<img src=x onerror=alert(1)>&.png"
    shutil.copy(root / "trainA/3.png", root / "testA" / evil)
    (root / "trainA/<b>.png").write_bytes(b"")
    report = check(root)
    to_page(report, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page and "<b>" not in page and "<script" not in page
    assert "testA/&lt;img src=x onerror=alert(1)&gt;&amp;.png" in page
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == 2 and all(s.startswith("data:image/jpeg;base64,") for s in sources)
    assert "LEAK" in page and 'class="leak"' in page
    for thumb in report.thumbnails.values():
        assert max(Image.open(io.BytesIO(thumb)).size) <= 128


def test_the_page_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "SHOWN", 5)
    for number in range(12):
        put(tmp_path, f"data/{number}.png", np.full((64, 64, 3), number, np.uint8))
    report = check(tmp_path / "data")
    to_page(report, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == 5 and "and 7 more" in page and len(report.blank) == 12


def test_a_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(DataProblem, match="has no images"):
        check(tmp_path)


def test_too_many_that_look_alike_end_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(8):
        image = photo(1)
        image[0, 0] = number
        put(tmp_path, f"{number}.png", image)
    monkeypatch.setattr(checking, "MAX_PAIRS", 10)
    assert "The search for near duplicates ended early" in check(tmp_path).warnings[-1]
    monkeypatch.undo()
    (copies,) = check(tmp_path).copies
    assert len(copies.ids) == 8


def test_the_search_finds_what_comparing_all_pairs_finds() -> None:
    rng = np.random.default_rng(0)
    bits = rng.random((700, 128)) < 0.5
    for number in range(60):  # of 0 to 14 bits away from another
        bits[640 + number] = bits[number * 7]
        bits[640 + number, rng.permutation(128)[: number % 15]] ^= True
    away = (bits[:, None] != bits[None]).sum(-1)
    i, j = np.nonzero(np.triu(away <= checking.NEAR_BITS, 1))
    pairs = [p for p in checking._alike(bits.astype(np.float32) * 2 - 1, block=64)]
    ours = {(a, b) for x, y in pairs for a, b in zip(x.tolist(), y.tolist(), strict=True)}
    assert ours == set(zip(i.tolist(), j.tolist(), strict=True)) and len(ours) >= 40


def test_five_thousand_images_are_compared_in_seconds() -> None:
    rng = np.random.default_rng(0)
    looks = [
        checking._Look(str(n), "train", "A", "", str(n), thumb=photo(n, checking.THUMB),
                       bits=rng.random(128) < 0.5)
        for n in range(5000)
    ]  # fmt: skip
    start = time.process_time()
    assert checking._near(looks) == ([], ())
    assert time.process_time() - start < 5


def test_one_worker_and_many_agree(tmp_path: Path) -> None:
    photos(tmp_path)
    put(tmp_path, "testA/x.jpg", picture(), "JPEG")
    assert check(tmp_path, workers=1) == check(tmp_path, workers=8)
