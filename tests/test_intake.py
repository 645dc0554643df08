"""Image intake: the policy of every odd image, mutations, and the equality with Pillow."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import pickle
import re
import resource
import socket
import threading
import time
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import odd_images
import pytest
from odd_images import EITHER, Case, Pixels, encode, picture
from PIL import Image

from unpaired.data import intake
from unpaired.data.intake import (
    SERVE,
    TRAIN,
    BadImage,
    Limits,
    OddImage,
    escape,
    read_image,
    resize,
    write_png,
)
from unpaired.errors import DataProblem, StorageProblem

CASES = [pytest.param(case, id=f"{case.id} {case.label}") for case in odd_images.cases()]


@pytest.mark.parametrize("case", CASES)
def test_policy(case: Case) -> None:
    data = case.make()
    start = time.perf_counter()
    with pytest.warns(OddImage) if case.id == "D-09" else contextlib.nullcontext():
        if isinstance(case.expected, Pixels):
            image = read_image(data)
        else:
            image = _read_or_reason(data, case.expected)
    assert time.perf_counter() - start < 2
    if isinstance(case.expected, Pixels):
        assert image.shape == case.expected.image.shape and image.dtype == np.uint8
        assert np.abs(image.astype(int) - case.expected.image).max() <= case.expected.within
        assert image.flags.c_contiguous and image.flags.writeable


def _read_or_reason(data: bytes, reason: str | None) -> None:
    try:
        image = read_image(data)
    except BadImage as bad:
        assert reason is EITHER or re.search(reason, bad.reason), bad.reason
        assert len(str(bad)) < 400 and "\n" not in str(bad)
    else:
        assert reason is EITHER and image.dtype == np.uint8 and image.shape[2] == 3


def test_every_row_of_the_table_is_tested() -> None:
    here = Path(__file__).parent
    files = ("test_intake.py", "test_folders.py", "test_batches.py")
    text = "".join((here / file).read_text() for file in files)
    named = {f"D-{number}" for number in re.findall(r"def test_d(\d\d)_", text)}
    ids = {case.id for case in odd_images.cases()} | named
    assert ids == {f"D-{n:02}" for n in range(1, 44)}


# Files rather than bytes.


def test_a_name_says_nothing_about_the_kind(tmp_path: Path) -> None:
    for kind in ("PNG", "JPEG", "GIF"):  # D-33 by content
        path = tmp_path / f"{kind}.bmp"
        path.write_bytes(encode(picture(), kind))
        assert read_image(path).shape == picture().shape
        assert np.array_equal(read_image(str(path)), read_image(path.read_bytes()))


def test_d33_wrong_extension(tmp_path: Path) -> None:
    path = tmp_path / "really_a_png.jpg"
    path.write_bytes(encode(picture(), "PNG"))
    assert np.array_equal(read_image(path), picture())


@pytest.mark.parametrize(
    "name",
    [
        "e\u0301te\u0301 NFD.png",
        "\u00e9t\u00e9 NFC.png",
        "\U0001f600 cat.png",
        "a\u202egnp.png",
        "new\nline\x1b[31m.png",
        os.fsdecode(b"not \xff\xfe UTF-8.png"),
        "x" * 251 + ".png",
        "-rf.png",
    ],
)
def test_d39_names(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(encode(picture(), "PNG"))
    assert np.array_equal(read_image(path), picture())
    path.write_bytes(b"")
    with pytest.raises(BadImage) as caught:
        read_image(path)
    text = str(caught.value)
    assert text.isprintable() and text.encode("utf-8") and "the file is empty" in text


def test_escape_keeps_what_can_be_read() -> None:
    assert escape("cats/é 猫.png") == "cats/é 猫.png"
    assert escape("a\nb\u202ec\udcff") == "a\\nb\\u202ec\\udcff"
    assert len(escape("x" * 5000)) == 300


def test_d40_what_is_not_a_regular_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = tmp_path / "good.png"
    good.write_bytes(encode(picture(), "PNG"))
    (tmp_path / "link.png").symlink_to("good.png")
    os.link(good, tmp_path / "hard.png")
    for name in ("link.png", "hard.png"):
        assert np.array_equal(read_image(tmp_path / name), picture())
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "nowhere.png").symlink_to("missing")
    (tmp_path / "loop.png").symlink_to("loop.png")
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind("socket.png")
        for name, reason in {
            "pipe.png": "not a regular file",
            "folder.png": "not a regular file",
            "socket.png": "not a regular file",
            "/dev/zero": "not a regular file",
            "nowhere.png": "cannot be read",
            "loop.png": "cannot be read",
            "missing.png": "cannot be read",
            "nul\0.png": "cannot be read",
        }.items():
            with pytest.raises(BadImage, match=reason):
                read_image(name)


def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(encode(picture(), "PNG"))

    def refuse(*_: object) -> int:  # root may read everything, so the mode of the file is no test
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(BadImage, match=r"secret\.png: .*Permission denied"):
        read_image(path)


def test_memory_that_runs_out_in_decoding_is_a_bad_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(intake, "_rgb", exhausted)
    with pytest.raises(BadImage, match="MemoryError"):
        read_image(encode(picture(), "PNG"))


def test_reading_takes_the_memory_of_the_file_and_lack_of_it_is_no_bad_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode(picture(), "PNG"))
    tracemalloc.start()
    intake.read_file(path)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000  # and not the limit's 200 MB
    tracemalloc.stop()

    def exhausted(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(intake, "_bytes_of", exhausted)
    with pytest.raises(MemoryError):
        read_image(path)


# Limits.


def test_limits_hold_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def decoded(*_: object) -> None:
        raise AssertionError("pixels were decoded")

    files = [encode(picture(), kind) for kind in ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")]
    monkeypatch.setattr(Image.Image, "load", decoded)
    monkeypatch.setattr(intake.simplejpeg, "decode_jpeg", decoded)
    tight = Limits(max_pixels=odd_images.H * odd_images.W - 1)
    for file in files:
        with pytest.raises(BadImage, match="too large"):
            read_image(file, tight)
    monkeypatch.undo()
    path = tmp_path / "a.png"
    path.write_bytes(encode(picture(), "PNG"))
    for source in (path, path.read_bytes()):
        with pytest.raises(BadImage, match="larger than 500 bytes"):
            read_image(source, Limits(max_bytes=500))


def test_serving_is_stricter_than_training() -> None:
    grey = np.zeros((4200, 4200), np.uint8)
    data = encode(grey, "PNG")
    assert read_image(data, TRAIN).shape == (4200, 4200, 3)
    with pytest.raises(BadImage, match="4200 x 4200 pixels is too large: at most 16.8 megapixels"):
        read_image(data, SERVE)


def test_large_headers_take_little_memory() -> None:
    """D-28 to D-30: the peak of the process, so it runs in one of its own."""
    import subprocess
    import sys

    code = """
import resource, odd_images
from unpaired.data.intake import BadImage, read_image
files = [c.make() for c in odd_images.cases() if c.id in ("D-29", "D-30")]
files.append(odd_images.gif((40, 40), (9000, 9000)))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
for file in files:
    try:
        read_image(file)
    except BadImage:
        pass
    else:
        raise SystemExit("used")
print(peak() - before)
"""
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    run = [sys.executable, "-c", code]
    grown = subprocess.run(run, env=env, check=True, capture_output=True, text=True).stdout
    assert int(grown) < 200


# What is promised beside the table.


def test_frames_are_never_counted() -> None:
    """Counting the frames of a hostile GIF or TIFF reads all of it."""
    names = {name for name in Path(intake.__file__).read_text().split() if "n_frames" in name}
    assert not names


def test_the_metadata_of_a_good_image_is_silent() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for case in odd_images.cases():
            if case.id in ("D-22", "D-23", "D-24"):
                read_image(case.make())
    assert not seen


def test_threads_leave_the_warning_filters_as_they_were() -> None:
    before = list(warnings.filters)
    files = [odd_images.mutate(np.random.default_rng(i)) for i in range(200)]

    def read(data: bytes) -> None:
        with contextlib.suppress(BadImage):
            read_image(data)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OddImage)
        inside = list(warnings.filters)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(read, files))
        assert list(warnings.filters) == inside
    assert list(warnings.filters) == before


def test_bad_image_travels_between_processes() -> None:
    bad = BadImage("a.png", "the file is empty")
    again = pickle.loads(pickle.dumps(bad))
    assert (str(again), again.name, again.reason) == (str(bad), "a.png", "the file is empty")
    assert isinstance(bad, DataProblem) and bad.exit_code == 65
    assert str(BadImage("one text, as a data loader makes it")).startswith("one text")


def test_jpeg_equals_pillow() -> None:
    rng = np.random.default_rng(0)
    for quality in (30, 75, 95):
        for subsampling in (0, 1, 2):
            for progressive in (False, True):
                height, width = rng.integers(20, 150, 2)
                noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
                image = noise // 4 + picture(height, width) // 2
                data = encode(
                    image, "JPEG", quality=quality, subsampling=subsampling, progressive=progressive
                )
                pillow = np.array(Image.open(io.BytesIO(data)))
                assert np.array_equal(read_image(data), pillow)
    grey = encode(picture()[..., 0], "JPEG")
    assert np.array_equal(read_image(grey)[..., 1], np.array(Image.open(io.BytesIO(grey))))


@pytest.mark.parametrize("size", [(128, 171), (97, 130), (40, 40), (200, 200), (256, 100), (1, 1)])
def test_resize_equals_pillow_within_one_level(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (256, 341, 3), dtype=np.uint8)
    for image in (noise, picture(256, 341), np.where(noise > 127, 255, 0).astype(np.uint8)):
        assert _off_pillow(image, size) <= 1


def test_enlarging_equals_pillow_within_one_level() -> None:
    assert _off_pillow(picture(100, 130), (200, 260)) <= 1
    assert _off_pillow(picture(64, 64), (150, 160)) <= 1


def _off_pillow(image: np.ndarray, size: tuple[int, int]) -> int:
    ours = resize(image, size)
    theirs = np.array(Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC))
    assert ours.shape == (*size, 3) and ours.dtype == np.uint8
    return int(np.abs(ours.astype(int) - theirs).max())


def test_resize_reads_what_it_may_not_write_and_views() -> None:
    image = picture(64, 80)
    frozen = image.copy()
    frozen.setflags(write=False)
    assert np.array_equal(resize(frozen, (20, 20)), resize(image, (20, 20)))
    mirrored = resize(image[:, ::-1], (20, 20))
    assert np.array_equal(mirrored, resize(image[:, ::-1].copy(), (20, 20)))
    assert resize(image, (64, 80)) is image


def test_write_png_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.png"
    write_png(path, picture())
    assert np.array_equal(read_image(path), picture())

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(StorageProblem, match=r"out\.png could not be written \(No space left"):
        write_png(path, picture() // 2)
    assert [p.name for p in tmp_path.iterdir()] == ["out.png"]
    assert np.array_equal(read_image(path), picture())


def test_import_is_light() -> None:
    import subprocess
    import sys

    code = "import sys, unpaired.data.intake; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# D-43: mutations.


def _fuzz(count: int, seed: int) -> tuple[int, float]:
    """Read `count` mutated files; how many were used, and the longest time that one took (s)."""
    rng, used, longest = np.random.default_rng(seed), 0, 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OddImage)
        for number in range(count):
            data = odd_images.mutate(rng)
            start = time.perf_counter()
            try:
                image = read_image(data)
            except BadImage as bad:
                assert bad.reason and str(bad).isprintable(), (seed, number)
            else:
                assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
                assert min(image.shape[:2]) >= TRAIN.min_side, (seed, number)
                used += 1
            longest = max(longest, time.perf_counter() - start)
    return used, longest


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MB


def test_d43_mutations() -> None:
    used, longest = _fuzz(3_000, seed=0)
    assert 300 < used < 2_700  # or the mutations test nothing
    assert longest < 2


@pytest.mark.slow
def test_d43_many_mutations() -> None:
    _fuzz(2_000, seed=1)
    before = _peak()
    used, longest = _fuzz(100_000, seed=2)
    assert 10_000 < used < 90_000
    assert longest < 2
    assert _peak() - before < 200


def test_one_thread_asks_the_storage_for_each_that_reads(tmp_path):
    """It is made once, ends with the one that it asks for, and is another after a fork."""
    file = tmp_path / "a.png"
    file.write_bytes(encode(picture(), "PNG"))

    def read():
        for _ in range(20):
            assert len(intake.read_file(file)) > 100
            assert threading.active_count() <= before + 11

    read_file = intake.read_file
    read_file(file)
    asker, before = intake._own.asker, threading.active_count()
    read()
    assert intake._own.asker is asker and threading.active_count() == before
    with ThreadPoolExecutor(5) as pool:
        for done in [pool.submit(read) for _ in range(5)]:
            done.result()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before
    child = multiprocessing.get_context("fork").Process(target=read_file, args=(file,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking among threads
        child.start()
    child.join(10)
    assert child.exitcode == 0


def test_imports_where_processes_do_not_fork():
    """Windows translates; there `os` lacks this function."""
    import subprocess
    import sys

    code = "import os, torch; del os.register_at_fork; import unpaired.translator"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
