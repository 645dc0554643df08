"""Decoded images kept on disk: the same pixels, whatever is killed, full, damaged or not allowed."""

import errno
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from unpaired import train
from unpaired.checkpoint import RunFolder
from unpaired.data import batches, cache
from unpaired.data.batches import Batches, loader
from unpaired.data.cache import BLOCK, FOOTER, ImageCache
from unpaired.data.datasets import cache_training, open_dataset

SIDE = 32  # an image and its footer: a block


def picture(i, size=(SIDE, SIDE)):
    return np.random.default_rng(i).integers(0, 255, (*size, 3), np.uint8)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("UNPAIRED_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


def files(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "ledger")


def taken(folder):
    return sum(-(-p.stat().st_size // BLOCK) * BLOCK for p in files(folder))


def test_keeps_images_for_every_process(folder):
    assert ImageCache("a").get("ab12") is None
    assert ImageCache("a").put("ab12", picture(1))
    for kept in (ImageCache("a"), ImageCache("a")):
        for _ in range(3):  # the first time read and checked, then mapped
            image = kept.get("ab12")
            assert np.array_equal(image, picture(1))
            image[:] = 0  # memory of this process alone
        assert kept.counts() == {"read": 3, "decoded": 0, "failed": 0}
    assert ImageCache("another size").get("ab12") is None and len(files(folder)) == 1


DAMAGES = {
    "empty": lambda data: b"",
    "cut": lambda data: data[:-1],
    "footer gone": lambda data: data[: -FOOTER.size],
    "a pixel": lambda data: data[:100] + bytes([data[100] ^ 1]) + data[101:],
    "zeros": lambda data: bytes(len(data)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_noticed_counted_and_mended(folder, damage):
    assert ImageCache("a").put("ab12", picture(1))
    (file,) = files(folder)
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    kept = ImageCache("a")
    assert kept.get("ab12") is None and kept.counts()["failed"] == 1
    assert kept.put("ab12", picture(1)) and np.array_equal(kept.get("ab12"), picture(1))


@pytest.mark.parametrize("call", ["write", "replace", "unlink", "lseek"])
def test_a_kill_within_leaves_a_whole_file_or_none(folder, call):
    kept = ImageCache("a")
    assert kept.put("ab00", picture(0))
    pid = os.fork()
    if pid == 0:
        module = Path if call == "unlink" else os
        setattr(module, call, lambda *args, **kw: os.kill(os.getpid(), signal.SIGKILL))
        kept.put("ab11", picture(1))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    after = ImageCache("a")
    image = after.get("ab11")
    assert image is None or np.array_equal(image, picture(1))
    assert (image is not None) == (call == "unlink") and after.counts()["failed"] == 0
    assert np.array_equal(after.get("ab00"), picture(0)) and after.put("ab11", picture(1))
    for left in folder.rglob("*.tmp"):
        os.utime(left, (0, 0))
    after.prepare([], 0)
    assert not list(folder.rglob("*.tmp"))
    assert (folder / "ledger").stat().st_size * BLOCK == taken(folder)


def test_kills_at_any_moment(folder):
    images = [picture(i, (128, 128)) for i in range(50)]
    for n in range(10):
        pid = os.fork()
        if pid == 0:
            while True:
                writer = ImageCache("a")
                for i, image in enumerate(images):
                    writer.put(f"{n:02}{i:02}", image)
        time.sleep(0.004 * n)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    kept = ImageCache("a")
    for file in files(folder):
        if file.suffix != ".tmp":
            assert np.array_equal(kept.get(file.name), images[int(file.name[2:])])
    assert kept.counts()["failed"] == 0 and kept.counts()["read"] > 10


def fill(start, bound):
    kept = ImageCache("a", bound)
    for i in range(start, start + 30):
        kept.put(f"{i:04}", picture(i))


def test_bounded_although_several_processes_write(folder):
    bound = 40 * BLOCK
    ImageCache("a", bound).prepare([], 0)
    writers = [multiprocessing.Process(target=fill, args=(30 * n, bound)) for n in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert bound - 4 * BLOCK <= taken(folder) <= bound
    assert (folder / "ledger").stat().st_size <= 44  # what was refused, once a process


def test_makes_room_for_what_a_run_wants(folder):
    bound = 8 * BLOCK
    earlier = ImageCache("a", bound)
    for i in range(8):
        assert earlier.put(f"00{i}", picture(i))
        os.utime(earlier.path(f"00{i}"), (1e9 + i, 1e9 + i))
    assert not earlier.put("008", picture(8)) and not earlier.put("009", picture(9))  # full
    assert len(files(folder)) == 8 and earlier.counts()["failed"] == 0

    kept = ImageCache("a", bound)
    kept.prepare(["000", "100", "101"], SIDE * SIDE * 3)
    assert [p.name for p in files(folder)] == ["000", "003", "004", "005", "006", "007"]
    assert kept.put("100", picture(1)) and kept.put("101", picture(2)) and taken(folder) == bound
    assert time.time() - kept.path("000").stat().st_mtime < 60  # used: not the next to go

    smaller = ImageCache("a", 3 * BLOCK)
    smaller.prepare([f"00{i}" for i in range(8)], SIDE * SIDE * 3)
    assert taken(folder) == 3 * BLOCK and not smaller.put("200", picture(3))


def test_at_most_a_tenth_of_the_free_disk(folder, monkeypatch):
    whole = cache.shutil.disk_usage(Path("/"))
    usage = lambda path: whole._replace(free=30 * BLOCK - taken(folder))  # noqa: E731
    monkeypatch.setattr(cache.shutil, "disk_usage", usage)
    for n in range(2):
        kept = ImageCache("a")
        kept.prepare([], 0)  # what is there counts
        for i in range(5):
            kept.put(f"{n}{i}", picture(i))
        assert len(files(folder)) == 3
    assert ImageCache("b").put("00", picture(0)) is False  # unprepared: by the ledger


def failing(call, code):
    def fail(*args, **kw):
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize(
    "call, code", [("open", errno.EROFS), ("write", errno.ENOSPC), ("replace", errno.EDQUOT)]
)
def test_what_cannot_be_kept_is_counted_and_not_tried_again(folder, monkeypatch, call, code):
    kept = ImageCache("a")
    assert kept.put("ab00", picture(0))
    monkeypatch.setattr(os, call, failing(call, code))
    assert not kept.put("ab11", picture(1)) and not kept.put("ab22", picture(2))
    assert kept.counts() == {"read": 0, "decoded": 3, "failed": 1}
    assert np.array_equal(kept.get("ab00"), picture(0))  # what is there is used
    monkeypatch.undo()
    assert not list(folder.rglob("*.tmp"))


def test_no_folder_at_all(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("UNPAIRED_CACHE", str(tmp_path / "file" / "below"))
    kept = ImageCache("a")
    kept.prepare(["ab00"], 100)
    assert kept.get("ab00") is None and not kept.put("ab00", picture(0))


def test_a_user_without_a_home(monkeypatch):
    for name in ("UNPAIRED_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    kept = ImageCache("a")
    kept.prepare(["ab00"], 100)
    assert kept.get("ab00") is None and not kept.put("ab00", picture(0))


def test_deleted_while_in_use(folder):
    kept = ImageCache("a")
    assert kept.put("ab00", picture(0))
    image = kept.get("ab00")
    cache.shutil.rmtree(folder)
    assert np.array_equal(image, picture(0)) and kept.get("ab00") is None
    assert kept.put("ab00", picture(0)) and np.array_equal(kept.get("ab00"), picture(0))


# In training --------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path):
    for d, domain in enumerate(("cats", "dogs")):
        (tmp_path / "photos" / domain).mkdir(parents=True)
        for i in range(5):
            image = Image.fromarray(picture(10 * d + i, (45, 60))).resize((90 + 7 * i, 70))
            image.save(tmp_path / "photos" / domain / f"{i}.{'png' if i == 2 else 'jpg'}")
    return tmp_path / "photos"


def opened(root, layout="two_domains", **kw):
    """Batches whose images are cached, and the cache."""
    update = {"root": str(root), "domains": None, "zoom": 1.25, **kw}
    data = tiny.run("munit").data.model_copy(update=update)
    dataset = open_dataset(data, layout)
    kept = cache_training(data, dataset, dataset.listing.fingerprint())
    return Batches(dataset.splits["train"], layout, 3, data.hw, steps=12), kept


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(x, b[k]) for k, x in a.items())


@pytest.fixture
def no_decoder(monkeypatch):
    return lambda: monkeypatch.setattr(batches, "examine", lambda path: pytest.fail(f"read {path}"))


def test_batches_are_the_same_with_and_without(photos, no_decoder):
    plain, nothing = opened(photos, cache=0)
    assert nothing is None
    expected = [plain[step] for step in range(12)]
    for n in range(2):  # made in the first epoch, read in the second run
        made, kept = opened(photos)
        for step, (tensors, files) in enumerate(expected):
            assert same(made[step][0], tensors) and made[step][1] == files
        assert kept.counts()["decoded"] == (0 if n else 10) and kept.counts()["failed"] == 0
        no_decoder()
        assert not any(p.kept for p in made.pictures)  # in memory once, by the system
    opened(photos)[0][5]


@pytest.mark.parametrize("layout", ["two_domains", "paired", "domains", "unlabelled"])
def test_every_layout_reads_the_same(photos, layout):
    for file in photos.rglob("*"):
        if file.is_file():
            Image.open(file).resize((64, 40)).save(file)  # pairs have equal proportions
    plain, _ = opened(photos, layout, cache=0)
    for _ in range(2):
        made, _ = opened(photos, layout)
        assert all(same(made[step][0], plain[step][0]) for step in range(6))


def test_workers_share_it(photos, no_decoder):
    plain, _ = opened(photos, cache=0)
    made, kept = opened(photos)
    for (tensors, _), step in zip(loader(made, 0, 2), range(12), strict=True):
        assert same(tensors, plain[step][0])
    assert 10 <= kept.counts()["decoded"] <= 20 and kept.counts()["read"] > 0
    no_decoder()
    assert same(opened(photos)[0][11][0], plain[11][0])


def test_known_by_content_and_by_what_is_made_of_it(photos, no_decoder):
    made, kept = opened(photos)
    first = made[0][0], made[1][0]
    moved = photos.rename(photos.with_name("moved"))
    again, kept = opened(moved)
    assert same(again[0][0], first[0]) and same(again[1][0], first[1])
    assert kept.counts()["decoded"] == 0
    _, other = opened(moved, zoom=1.5)
    assert other.folder != kept.folder

    file = moved / "cats" / "0.jpg"  # another picture under its name, while the run goes on
    pictures = again.pictures[0]
    index = pictures.files.index(file)
    before = pictures.read(index).copy()
    Image.fromarray(picture(99, (70, 90))).save(file)
    new = pictures.read(index)
    assert not np.array_equal(new, before) and kept.counts()["decoded"] == 1
    fresh, _ = opened(moved, cache=0)
    assert np.array_equal(fresh.pictures[0].read(index), new)
    file.unlink()  # what the scan saw is still known
    assert np.array_equal(pictures.read(index), before)


def test_halves_are_kept_apart(tmp_path):
    for i in range(3):
        Image.fromarray(picture(i, (32, 64))).save(tmp_path / f"{i}.png")
    plain, _ = opened(tmp_path, "paired", cache=0)
    for _ in range(2):
        made, _ = opened(tmp_path, "paired")
        batch = made[0][0]
        assert same(batch, plain[0][0]) and not torch.equal(batch["x_1"], batch["x_2"])


def test_a_run_is_the_same_and_tells_what_the_cache_gave(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(train.Trainer, "sample", lambda self: None)
    settings = (f"data.root={photos}", "data.domains=null", "data.batch=2")
    counts = {}
    for name, bound in {"cold": "auto", "warm": "auto", "none": 0, "full": 1e-6}.items():
        run = tiny.run("munit", *settings, f"data.cache={bound}", steps=2)
        train.fit(run, RunFolder(tmp_path / name), say=lambda line: None)
        counts[name] = RunFolder(tmp_path / name).read_log()[-1].get("cache")
    models = [(tmp_path / n / "checkpoints").glob("*2/tensors.safetensors") for n in counts]
    assert len({next(m).read_bytes() for m in models}) == 1
    assert counts["cold"]["decoded"] == 10 and counts["warm"]["decoded"] == 0
    assert counts["none"] is None and counts["full"] == {"read": 0, "decoded": 10, "failed": 0}
