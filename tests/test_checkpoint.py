"""The run folder under kills, power cuts, full disks, flipped bits, races and hostile files."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from unpaired import checkpoint
from unpaired.checkpoint import RunFolder, load_model, save_model, write_atomic
from unpaired.errors import (
    ConfigProblem,
    DataProblem,
    Diverged,
    Locked,
    NotWritable,
    StorageProblem,
)

MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None  # where fsync costs nothing
FILES = ("tensors.safetensors", "state.json", "manifest.json")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts and changes its user: needs root")


@pytest.fixture
def quick() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        yield Path(folder)


@pytest.fixture
def run(quick: Path) -> RunFolder:
    run = RunFolder(quick / "run")
    run.create()
    return run


def state_of(step: int, n: int = 50) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    g = torch.Generator().manual_seed(step)
    w = torch.randn(n, generator=g)
    tensors = {"G.w": w, "rng": g.get_state()[:64], "n": torch.tensor(step)}
    return tensors, {"step": step, "best": step / 7, "names": ["a", "é"]}


def save(run: RunFolder, step: int, seed: int | None = None, n: int = 50, **kwargs: Any) -> None:
    run.save(step, *state_of(step if seed is None else seed, n), **kwargs)


def load(run: RunFolder, step: int) -> Any:
    return checkpoint._load(run.checkpoints / f"step-{step:08d}")


def equal(found: Any, step: int, seed: int | None = None, n: int = 50) -> bool:
    tensors, state = state_of(step if seed is None else seed, n)
    if found is None or found[0] != step or found[2] != state or found[1].keys() != tensors.keys():
        return False
    pairs = [(found[1][name], tensor) for name, tensor in tensors.items()]
    return all(torch.equal(a, b) and a.dtype == b.dtype for a, b in pairs)


def stuck(*args: object, **kwargs: object) -> None:
    raise OSError(errno.EIO, "stuck")


def two_checkpoints(run: RunFolder) -> None:
    save(run, 10)
    save(run, 20)


def tree(folder: Path) -> dict[str, bytes | None]:
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in sorted(folder.rglob("*"))
    }


def crash(mode: str, folder: Path, count: int) -> Any:
    script = Path(__file__).with_name("crash_points.py")
    done = subprocess.run(
        [sys.executable, script, mode, folder / mode, str(count)],
        capture_output=True,
        text=True,
        timeout=1200,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"may not mount: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    with mounted(folder, "--bind", str(folder)):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        yield


# Values come back ---------------------------------------------------------------------------------


def test_every_kind_of_tensor_comes_back_exactly(run: RunFolder) -> None:
    w = torch.randn(6, 8)
    image = torch.randn(2, 3, 5, 7).to(memory_format=torch.channels_last)
    tensors = {
        "shared": w,
        "shared part": w[1:3],
        "shared again": w,
        "parameter": torch.nn.Parameter(w),
        "transposed": w.T,
        "expanded": w[:1].expand(4, 8),
        "channels last": image,
        "strided": image[:, :, ::2],
        "scalar": torch.tensor(0.1, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "step": torch.tensor(2**62),
        "mask": torch.tensor([True, False]),
        "bytes": torch.get_rng_state(),
        "half": torch.randn(3).half(),
        "bfloat": torch.randn(3).bfloat16(),
        "complex": torch.randn(3, dtype=torch.complex64),
        "odd values": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
        **{str(dtype): torch.ones(3, dtype=dtype) for dtype in checkpoint.DTYPES},
    }
    run.save(1, tensors, {})
    found = run.newest()
    assert found is not None and found[1].keys() == tensors.keys()
    for name, tensor in tensors.items():
        back = found[1][name]
        assert back.dtype == tensor.dtype and back.shape == tensor.shape, name
        raw = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (back, tensor)]
        assert torch.equal(*raw), name
    found[1]["shared"].add_(1)  # loaded tensors are writable, and apart from each other
    assert torch.equal(found[1]["shared again"], w)
    ours = safetensors.torch.load_file(run.checkpoints / "step-00000001" / FILES[0])
    assert torch.equal(ours["bfloat"], tensors["bfloat"])  # the library reads the same


def test_state_comes_back_exactly(run: RunFolder) -> None:
    state = {"a": 0.1 + 0.2, "n": 2**70, "inf": float("inf"), "none": None, "é\n": ["", True, {}]}
    run.save(1, {}, {**state, "tuple": (1, (2.5, None))})
    assert run.newest() == (1, {}, {**state, "tuple": [1, [2.5, None]]})


@pytest.mark.parametrize(
    ("tensors", "state"),
    [
        ({}, {"optimizer": {0: "would come back as '0'"}}),
        ({}, {"array": object()}),
        ({"sparse": torch.eye(2).to_sparse()}, {}),
        ({"quaternion": torch.zeros(2, dtype=torch.complex128)}, {}),
    ],
)
def test_what_cannot_be_stored_is_refused_before_writing(
    run: RunFolder, tensors: dict[str, torch.Tensor], state: dict[str, Any]
) -> None:
    before = tree(run.path)
    with pytest.raises(TypeError):
        run.save(1, tensors, state)
    assert tree(run.path) == before


@pytest.mark.slow
def test_saving_100_megabytes_takes_six_tenths_of_a_second(run: RunFolder) -> None:
    tensors, seconds = {"w": torch.zeros(25_000_000)}, []
    for step in range(3):
        begun = time.process_time()
        run.save(step, tensors, {})
        seconds.append(time.process_time() - begun)
    assert min(seconds) < 0.6


def test_nothing_saved_is_none_and_touches_nothing(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "none")
    assert run.newest() is None and run.steps() == [] and run.best() is None
    assert run.read_status() is None and run.read_log() == []
    assert not run.path.exists()


def test_same_step_again_replaces_the_content(run: RunFolder) -> None:
    two_checkpoints(run)
    save(run, 20, seed=21)
    assert equal(run.newest(), 20, seed=21) and run.steps() == [10, 20]
    assert sorted(os.listdir(run.checkpoints)) == ["step-00000010", "step-00000020"]


def test_a_lower_step_is_never_rotated_away_by_its_own_save(run: RunFolder) -> None:
    two_checkpoints(run)
    save(run, 5, keep=1)
    assert run.steps() == [5]


def test_start_fresh_sets_everything_aside_and_deletes_nothing(run: RunFolder) -> None:
    for number in (1, 2):
        two_checkpoints(run)
        run.mark_best(10)
        run.append_log({"step": 20})
        for name in (
            "samples/sheet.png",
            "metrics.json",
            "model-best.metrics.json",
            "my notes.txt",
        ):
            (run.path / name).write_text("of the old run")
        run.start_fresh()
        assert run.newest() is None and run.best() is None and run.read_log() == []
        old = RunFolder(run.path / ("earlier" if number == 1 else f"earlier.{number}"))
        assert equal(old.newest(), 20) and old.best() == 10 and old.read_log() == [{"step": 20}]
        assert (old.samples / "sheet.png").exists() and not any(run.samples.iterdir())
        for name in ("metrics.json", "model-best.metrics.json"):
            assert (old.path / name).exists() and not (run.path / name).exists()
        assert (run.path / "my notes.txt").exists()
    run.start_fresh()  # nothing is there to be set aside
    assert len(list(run.path.glob("earlier*"))) == 2


def test_a_checkpoint_of_a_newer_format_is_refused_and_kept(run: RunFolder) -> None:
    save(run, 10)
    path = run.checkpoints / "step-00000010" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["sha256"]
    path.write_bytes(checkpoint._sealed({**manifest, "format": checkpoint.FORMAT + 1}))
    with run.lock(), pytest.raises(ConfigProblem, match="newer version"):
        run.newest()
    assert run.steps() == [10]


# Kills and power cuts -----------------------------------------------------------------------------


def test_T02_sigkill_at_every_operation_of_a_save(quick: Path) -> None:
    points = crash("kill", quick, 1)
    for scenario in ("first", "later", "again", "only"):
        assert points[f"{scenario}, before"] >= 20 and points[f"{scenario}, within"] >= 5


@pytest.mark.slow
def test_T02_sigkill_after_every_operation_too(quick: Path) -> None:
    points = crash("kill", quick, 2)
    for scenario in ("first", "later", "again", "only"):
        assert points[f"{scenario}, before"] == points[f"{scenario}, after"] >= 20


def test_T03_power_cut_after_every_operation_of_a_save(quick: Path) -> None:
    results = crash("power", quick, 2)
    assert results["cuts"] >= 5 * 4 * 20


def test_T03_the_simulated_disk_notices_a_missing_fsync(quick: Path) -> None:
    assert crash("unsafe", quick, 2) == {"no fsync of folders": True, "no fsync of files": True}


@pytest.mark.slow
def test_T03_power_cuts_in_many_random_ways(quick: Path) -> None:
    assert crash("power", quick, 100)["cuts"] >= 100 * 4 * 20


# Full disks ---------------------------------------------------------------------------------------


def check_full(run: RunFolder, n: int) -> None:
    """A save that fails for want of room leaves nothing behind and loses nothing."""
    names = tree(run.path)
    with pytest.raises(StorageProblem) as failed:
        save(run, 30, n=n)
    text = str(failed.value)
    assert "step-00000030" in text and ("disk is full" in text or "limit on file sizes" in text)
    numbers = re.search(r"\(([\d,]+) bytes needed, ([\d,]+) free\)", text)
    assert numbers and n * 4 <= int(numbers[1].replace(",", "")) <= n * 4 + 10_000
    assert tree(run.path) == names
    assert equal(run.newest(), 20, n=n) and equal(load(run, 10), 10, n=n)


@as_root
@pytest.mark.parametrize("checked", [True, False])
def test_T07_disk_full_in_20_placements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checked: bool
) -> None:
    if not checked:  # the room is taken by another process after the check
        monkeypatch.setattr(checkpoint, "_check_space", lambda folder, needed: None)
    n = 30_000
    with mounted(tmp_path, "-t", "tmpfs", "-o", "size=2m", "tmpfs"):
        run = RunFolder(tmp_path / "run")
        run.create()
        save(run, 10, n=n)
        save(run, 20, n=n)
        filler = tmp_path / "filler"
        for placement in range(20):
            free = shutil.disk_usage(tmp_path).free
            filler.write_bytes(bytes(free - placement * n * 4 // 20))
            check_full(run, n)
            filler.unlink()
        save(run, 30, n=n)  # when room returns the next save works
        assert equal(run.newest(), 30, n=n) and run.steps() == [20, 30]


def test_T07_limit_on_file_sizes_in_20_placements(run: RunFolder) -> None:
    n = 30_000
    save(run, 10, n=n)
    save(run, 20, n=n)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        for placement in range(20):
            resource.setrlimit(resource.RLIMIT_FSIZE, (placement * n * 4 // 20, before[1]))
            check_full(run, n)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    save(run, 30, n=n)
    assert equal(run.newest(), 30, n=n)


def test_T07_too_little_room_is_known_before_writing(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_checkpoints(run)
    usage = shutil.disk_usage(run.path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=4321))
    monkeypatch.setattr(os, "mkdir", lambda *a: pytest.fail("wrote"))
    with pytest.raises(StorageProblem, match="4,321 free"):
        save(run, 30)
    with pytest.raises(StorageProblem, match="disk is full"):
        save(run, 30)


def test_T07_an_interrupted_save_leaves_nothing(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_checkpoints(run)
    before = tree(run.path)
    for error in (KeyboardInterrupt, MemoryError):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda fd, error=error: (_ for _ in ()).throw(error()))
            with pytest.raises(error):
                save(run, 30)
            with pytest.raises(error):
                write_atomic(run.config, b"x")
        assert tree(run.path) == before


@as_root
def test_T28_read_only_midway_loses_nothing(run: RunFolder) -> None:
    two_checkpoints(run)
    run.write_status("running", 20)
    with read_only(run.path):
        with pytest.raises(StorageProblem, match="read-only"):
            save(run, 30)
        with pytest.raises(StorageProblem, match="read-only"):
            run.write_status("running", 30)
        assert equal(run.newest(), 20)
    save(run, 30)
    assert equal(run.newest(), 30)


def test_T08_a_full_disk_costs_log_lines_and_one_warning_a_minute(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run.append_log({"step": 1})
    real, now = os.write, [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:5]))  # the last free bytes
    for _ in range(50):
        run.append_log({"step": 2})
        now[0] += 2
    assert [r.levelname for r in caplog.records] == ["WARNING"] * 2
    assert "log.jsonl" in caplog.text
    monkeypatch.setattr(os, "write", real)
    run.append_log({"step": 3})
    assert run.log.read_bytes() == b'{"step": 1}\n{"step": 3}\n'


# Damage -------------------------------------------------------------------------------------------


def falls_back(run: RunFolder, caplog: pytest.LogCaptureFixture, file: str) -> None:
    """The damage to the checkpoint of step 20 is noticed, told, set aside and stepped over."""
    caplog.clear()
    with run.lock():
        assert equal(run.newest(), 10)
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert f"step-00000020/{file}" in caplog.text
    assert sorted(os.listdir(run.checkpoints)) == ["step-00000010", "step-00000020.corrupt"]
    save(run, 20)
    assert equal(run.newest(), 20)


def spread(rng: random.Random, count: int) -> list[str]:
    return [FILES[i % 3] if i < count // 2 else rng.choice(FILES) for i in range(count)]


def test_T09_truncated_at_100_lengths(quick: Path, caplog: pytest.LogCaptureFixture) -> None:
    rng = random.Random(9)
    for i, name in enumerate(spread(rng, 100)):
        run = RunFolder(quick / str(i))
        run.create()
        two_checkpoints(run)
        path = run.checkpoints / "step-00000020" / name
        with open(path, "rb+") as file:
            file.truncate(0 if i < 3 else rng.randrange(path.stat().st_size))
        falls_back(run, caplog, name)


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def test_T10_200_flipped_bits(quick: Path, caplog: pytest.LogCaptureFixture) -> None:
    rng = random.Random(10)
    for i, name in enumerate(spread(rng, 200)):
        run = RunFolder(quick / str(i))
        run.create()
        two_checkpoints(run)
        path = run.checkpoints / "step-00000020" / name
        flip(path, rng.randrange(path.stat().st_size * 8))
        falls_back(run, caplog, name)
        shutil.rmtree(run.path)


@pytest.mark.slow
def test_T10_every_single_bit(run: RunFolder) -> None:
    two_checkpoints(run)
    for name in FILES:
        path = run.checkpoints / "step-00000020" / name
        for bit in range(path.stat().st_size * 8):
            flip(path, bit)
            assert run.newest()[0] == 10, (name, bit)  # type: ignore[index]
            flip(path, bit)
    assert equal(run.newest(), 20)


def swap(folder: Path) -> None:
    (folder / "state.json").rename(folder / "x")
    (folder / "tensors.safetensors").rename(folder / "state.json")
    (folder / "x").rename(folder / "tensors.safetensors")


def a_folder(folder: Path) -> None:
    (folder / "state.json").unlink()
    (folder / "state.json").mkdir()


def a_link(target: str) -> Callable[[Path], None]:
    def link(folder: Path) -> None:
        (folder / "tensors.safetensors").unlink()
        (folder / "tensors.safetensors").symlink_to(target)

    return link


def a_pipe(folder: Path) -> None:
    (folder / "tensors.safetensors").unlink()
    os.mkfifo(folder / "tensors.safetensors")


def parts_of_another(folder: Path) -> None:
    other = folder.parent / "step-00000010" / "tensors.safetensors"
    (folder / "tensors.safetensors").write_bytes(other.read_bytes())


def a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_bytes(b"")


def a_dangling_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to("nowhere")


def an_empty_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"sha256": null}')


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "manifest.json"),
    "no tensors": (lambda folder: (folder / "tensors.safetensors").unlink(), "tensors"),
    "swapped": (swap, "tensors"),
    "folder": (a_folder, "state.json"),
    "dangling link": (a_link("nowhere"), "tensors"),
    "looping link": (a_link("tensors.safetensors"), "tensors"),
    "pipe": (a_pipe, "tensors"),
    "another's": (parts_of_another, "tensors"),
    "a file": (a_file, "manifest.json"),
    "a dangling folder": (a_dangling_folder, "manifest.json"),
    "an empty manifest": (an_empty_manifest, "manifest.json"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_T11_missing_parts(run: RunFolder, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    two_checkpoints(run)
    damage, file = DAMAGE[kind]
    damage(run.checkpoints / "step-00000020")
    falls_back(run, caplog, file)


@as_root
def test_T11_an_unreadable_checkpoint_is_stepped_over_but_not_condemned(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        os.chmod(name, 0o755)
        run = RunFolder(Path(name) / "run")
        run.create()
        two_checkpoints(run)
        for folder in (run.path, run.checkpoints):
            os.chmod(folder, 0o777)
        (run.checkpoints / "step-00000020" / "tensors.safetensors").chmod(0)
        os.seteuid(65534)
        try:
            with run.lock():
                assert equal(run.newest(), 10)
        finally:
            os.seteuid(0)
        assert "tensors.safetensors: no permission" in caplog.text
        assert equal(run.newest(), 20)


def test_T11_all_corrupt_is_refused_now_and_later(run: RunFolder) -> None:
    two_checkpoints(run)
    (run.checkpoints / "step-00000010" / "manifest.json").unlink()
    (run.checkpoints / "step-00000020" / "state.json").write_text("{}")
    with run.lock(), pytest.raises(StorageProblem) as refused:
        run.newest()
    for tried in ("step-00000010/manifest.json: missing", "step-00000020/state.json", "--fresh"):
        assert tried in str(refused.value)
    assert "\n" not in str(refused.value) and refused.value.exit_code == 74
    with run.lock(), pytest.raises(StorageProblem) as refused:  # they have other names by now
        run.newest()
    assert "step-00000010.corrupt" in str(refused.value)
    assert "step-00000020.corrupt" in str(refused.value)
    save(run, 30)
    assert equal(run.newest(), 30)


def test_T11_damaged_twice_keeps_both(run: RunFolder) -> None:
    save(run, 10)
    for number in (1, 2, 3):
        save(run, 20)
        (run.checkpoints / "step-00000020" / "state.json").unlink()
        with run.lock():
            assert equal(run.newest(), 10)
        assert len(list(run.checkpoints.glob("*.corrupt"))) == number


def test_T12_neither_names_nor_times_tell_the_newest(run: RunFolder) -> None:
    for step in (10, 20, 30):
        save(run, step, keep=3)
    folders = sorted(run.checkpoints.iterdir())
    for age, folder in enumerate(folders):
        for path in (*folder.iterdir(), folder):
            os.utime(path, (2**31 - age * 10**8, 2**31 - age * 10**8))
    folders[0].rename(run.checkpoints / "step-99999999")  # points to the future, but is step 10
    (run.path / "latest").write_text("step-99999999")
    (run.checkpoints / "latest").symlink_to("nowhere")
    with run.lock():
        assert equal(run.newest(), 30)
        assert run.steps() == [10, 20, 30]
        save(run, 40, keep=2)
        assert equal(run.newest(), 40)
    assert run.steps() == [30, 40]


# A folder that cannot be written ------------------------------------------------------------------


def refused(path: Path, reason: str) -> None:
    before = tree(path.parent) if os.path.isdir(path.parent) else None
    start = time.monotonic()
    with pytest.raises(NotWritable, match=reason) as problem:
        RunFolder(path).create()
    assert time.monotonic() - start < 10 and problem.value.exit_code == 73
    assert str(path) in str(problem.value) and "\n" not in str(problem.value)
    assert before is None or tree(path.parent) == before


def test_T27_path_or_a_parent_is_a_file(quick: Path) -> None:
    (quick / "file").write_text("")
    refused(quick / "file", "a file is where a folder should be")
    refused(quick / "file" / "run", "a file is where a folder should be")
    (quick / "run").mkdir()
    (quick / "run" / "samples").write_text("")
    refused(quick / "run", "a file is where a folder should be")


def test_T27_name_too_long(quick: Path) -> None:
    refused(quick / ("x" * 300), "name is too long")
    refused(quick / "new" / ("x" * 300), "name is too long")
    refused(Path("/tmp" + "/x" * 3000), "name is too long")


def test_T27_missing_parents_are_made(quick: Path) -> None:
    run = RunFolder(quick / "a" / "b" / "c d é")
    run.create()
    run.create()
    save(run, 1)
    assert equal(run.newest(), 1)
    assert not list(quick.rglob(".tmp*"))


@as_root
def test_T27_read_only_file_system(tmp_path: Path) -> None:
    RunFolder(tmp_path / "made before").create()
    with read_only(tmp_path):
        refused(tmp_path / "new", "read-only")
        refused(tmp_path / "made before", "read-only")


@as_root
def test_T27_no_permission() -> None:
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        RunFolder(Path(name) / "made before").create()
        os.seteuid(65534)
        try:
            refused(Path(name) / "new", "no permission")
            refused(Path(name) / "made before", "no permission")
            with pytest.raises(NotWritable, match="no permission"), RunFolder(name).lock():
                pass
        finally:
            os.seteuid(0)


@as_root
def test_T27_no_inodes_or_no_room(tmp_path: Path) -> None:
    with mounted(tmp_path, "-t", "tmpfs", "-o", "nr_inodes=4", "tmpfs"):
        refused(tmp_path / "run", "no inodes left")
    with mounted(tmp_path, "-t", "tmpfs", "-o", "size=64k", "tmpfs"):
        (tmp_path / "filler").write_bytes(bytes(65536))
        refused(tmp_path / "run", "disk is full")


# Two runs, and readers beside a run ---------------------------------------------------------------


def test_T29_ten_racing_processes_one_winner(quick: Path) -> None:
    check_race(crash("race", quick, 3), 3)


@pytest.mark.slow
def test_T29_a_hundred_races(quick: Path) -> None:
    check_race(crash("race", quick, 100), 100)


def check_race(result: dict[str, Any], count: int) -> None:
    assert result["winners"] == [1] * count
    assert len(result["named"]) == 9 * count and all(result["named"])
    assert result["slowest"] < 10 and result["freed"] < 5


def test_T29_the_lock_names_its_holder_and_frees_itself(run: RunFolder) -> None:
    two_checkpoints(run)
    other = RunFolder(run.path)
    with run.lock():
        with pytest.raises(Locked) as problem, other.lock():
            pass
        assert f"process {os.getpid()} on {os.uname().nodename} since 20" in str(problem.value)
        assert equal(other.newest(), 20)
        holder = json.loads((run.path / ".lock").read_text())
        assert set(holder) == {"pid", "host", "boot", "started"}
    with other.lock():
        pass


def test_T29_the_lock_clears_what_a_killed_process_left(run: RunFolder) -> None:
    two_checkpoints(run)
    (run.path / ".tmp-mine").mkdir()
    (run.path / ".tmp-mine" / "thesis.txt").write_text("not ours")
    before = tree(run.path)
    for folder in (run.path, run.checkpoints, run.samples):
        (folder / ".tmp-5-1-0123abcd").mkdir()
        (folder / ".tmp-5-1-0123abcd" / "tensors.safetensors").write_text("half")
        (folder / ".tmp-6-4567cdef").write_text("half")
    run.newest()
    assert tree(run.path) != before  # a reader clears nothing
    with run.lock():
        assert {k: v for k, v in tree(run.path).items() if k != ".lock"} == before


def test_T29_reading_while_another_process_saves(quick: Path) -> None:
    result = crash("readers", quick, 100)
    assert result["seen"] >= 10


@as_root
def test_reading_from_a_read_only_disk_warns_and_changes_nothing(
    run: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    two_checkpoints(run)
    run.write_status("done", 20)
    run.append_log({"step": 20})
    save_model(run.model, {"w": torch.ones(2)}, {"a": "b"})
    flip(run.checkpoints / "step-00000020" / "state.json", 5)
    before = tree(run.path)
    with read_only(run.path):
        assert equal(run.newest(), 10) and "step-00000020/state.json" in caplog.text
        assert run.read_status()["status"] == "done"  # type: ignore[index]
        assert run.read_log() == [{"step": 20}] and load_model(run.model)[1] == {"a": "b"}
    assert tree(run.path) == before
    assert equal(run.newest(), 10)  # nor, without the lock, on a disk that could be written
    assert tree(run.path) == before


# Log and status -----------------------------------------------------------------------------------


def test_T33_sigkill_while_logging(quick: Path) -> None:
    result = crash("log", quick, 10)
    assert result["torn"] >= 3 and result["lines"] > 10


def test_T33_a_line_torn_anywhere_is_left_out_and_not_glued_to_the_next(run: RunFolder) -> None:
    run.append_log({"step": 1})
    run.append_log({"step": 2, "text": "é\n"})
    whole = run.log.read_bytes()
    first = whole.index(b"\n") + 1
    for length in range(first, len(whole)):
        run.log.write_bytes(whole[:length])
        complete = length == len(whole) - 1  # but for the end of line
        assert [r["step"] for r in run.read_log()] == [1, 2][: 1 + complete]
        run.append_log({"step": 3})
        assert [r["step"] for r in run.read_log()] == [1, 2][: 1 + complete] + [3]
        run.truncate_log(1)
        assert run.log.read_bytes() == whole[:first]


def test_T33_resuming_drops_what_came_after(run: RunFolder) -> None:
    for step in (1, 2, 3, 4):
        run.append_log({"step": step})
        run.append_log({"step": step, "note": f"at {step}"})
    run.truncate_log(2)
    assert run.read_log()[-1] == {"step": 2, "note": "at 2"} and len(run.read_log()) == 4
    run.append_log({"step": 3})
    assert [r["step"] for r in run.read_log()] == [1, 1, 2, 2, 3]
    run.truncate_log(0)
    assert run.read_log() == []


def test_log_records_are_json_that_browsers_read(run: RunFolder) -> None:
    run.append_log(
        {"step": 1, "G": float("nan"), "D": [torch.tensor(0.5), float("inf")], 3: True, "s": "x"}
    )
    assert run.read_log() == [{"step": 1, "G": None, "D": [0.5, None], "3": True, "s": "x"}]
    assert b"NaN" not in run.log.read_bytes()


def test_a_damaged_line_of_the_log_is_left_out_as_a_torn_one_is(run: RunFolder) -> None:
    whole = {"step": 5, "losses": {"G": 1.0}, "lr": {"G": 1e-4}, "images_per_second": 9.5}
    run.append_log(whole)
    lines = [
        {"qtep": 5, **{k: v for k, v in whole.items() if k != "step"}},
        whole | {"step": "5"},
        whole | {"losses": 1},
        whole | {"losses": {"G": "1"}},
        {k: v for k, v in whole.items() if k != "images_per_second"},
        {"step": 5, "figures": [1]},
        {"step": 5, "alarm": "blobs"},
        {"step": 5, "rollback": 1},
    ]
    for line in lines:
        run.append_log(line)
    assert run.read_log() == [whole]
    run.truncate_log(5)
    assert run.log.read_bytes().count(b"\n") == 1


def test_status_is_replaced_whole(run: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    run.write_status("running", 3)
    run.write_status("preempted", 5, "SIGTERM", 143)
    status = run.read_status()
    assert status is not None and status.pop("time")
    assert status == {"status": "preempted", "step": 5, "reason": "SIGTERM", "exit_code": 143}
    with pytest.raises(ValueError, match="status"):
        run.write_status("sleeping", 5)
    run.status.write_text('{"status": "runn')
    assert run.read_status() is None and "status.json" in caplog.text


def test_write_atomic_replaces_or_leaves(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = quick / ("n" * 250)  # as long as names may be
    write_atomic(path, b"old")
    write_atomic(path, b"new")
    umask = os.umask(0o022)
    os.umask(umask)
    assert path.read_bytes() == b"new" and path.stat().st_mode & 0o777 == 0o666 & ~umask

    for call in ("open", "write", "fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, stuck)
            with pytest.raises(StorageProblem, match="stuck"):
                write_atomic(path, b"newer")
        assert tree(quick) == {path.name: b"new"}


# Rotation -----------------------------------------------------------------------------------------


def rotate_at_random(run: RunFolder, rng: random.Random, patch: pytest.MonkeyPatch) -> None:
    """One random life of a run folder beside a model of what it must hold."""
    keep, content, best = rng.randint(1, 5), {}, None
    step = seed = 0
    for _ in range(rng.randint(3, 12)):
        action = rng.choice(["save", "save", "save", "again", "best", "corrupt", "stuck"])
        if action == "best" and content:
            best = rng.choice(sorted(content))
            run.mark_best(best)
        elif action == "corrupt" and len(content) > 1:
            victim = rng.choice(sorted(content))
            shutil.rmtree(run.checkpoints / f"step-{victim:08d}")
            (run.checkpoints / f"step-{victim:08d}").mkdir()
            del content[victim]
            best = None if best == victim else best
        elif action in ("save", "again", "stuck"):
            step += rng.randint(1, 9) if action != "again" or step not in content else 0
            seed += 1
            with patch.context() as broken:
                if action == "stuck":
                    broken.setattr(os, rng.choice(["unlink", "rmdir"]), stuck)
                save(run, step, seed=seed, keep=keep)
            content[step] = seed
            newest = sorted(content)[-keep:]
            kept = {*newest} | ({best} if best is not None else set())
            content = {s: seed for s, seed in content.items() if s in kept}
        with run.lock():
            found = run.newest() if content else None
        if content:
            assert equal(found, max(content), seed=content[max(content)])
            assert run.steps() == sorted(content), action
        assert best is None or (run.best() == best and best in run.steps())
    for saved, seed in content.items():
        assert equal(load(run, saved), saved, seed=seed)


def rotation(quick: Path, count: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        logging.disable(logging.WARNING)
        try:
            for number in range(count):
                run = RunFolder(quick / str(number))
                run.create()
                rotate_at_random(run, random.Random(number), patch)
                shutil.rmtree(run.path)
        finally:
            logging.disable(logging.NOTSET)


def test_T34_rotation_over_random_sequences(quick: Path) -> None:
    rotation(quick, 60)


@pytest.mark.slow
def test_T34_rotation_over_1000_random_sequences(quick: Path) -> None:
    rotation(quick, 1000)


@pytest.mark.parametrize("keep", [1, 2, 3, 4, 5])
def test_T34_keep_and_best(run: RunFolder, keep: int) -> None:
    for step in range(10, 100, 10):
        save(run, step, keep=keep)
        if step == 20:
            run.mark_best(20)
    assert run.steps() == sorted({20, *range(100 - 10 * keep, 100, 10)})
    run.mark_best(90)  # best and newest are the same
    save(run, 100, keep=keep)
    assert run.steps() == sorted({90, *range(110 - 10 * keep, 110, 10)})
    with pytest.raises(ValueError, match="no checkpoint"):
        run.mark_best(20)
    with pytest.raises(ValueError, match="keep"):
        save(run, 110, keep=0)


def test_T34_a_failed_removal_costs_space_only(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    two_checkpoints(run)
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", stuck)
        save(run, 30)
    assert "stuck" in caplog.text and run.steps() == [20, 30]
    with run.lock():
        assert len(os.listdir(run.checkpoints)) == 2  # removed at the next start


def test_T34_a_damaged_mark_stops_all_removal(
    run: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    two_checkpoints(run)
    run.mark_best(10)
    (run.path / "best.json").write_text("{")
    save(run, 30)
    save(run, 40)
    assert run.steps() == [10, 20, 30, 40] and "best.json" in caplog.text
    with pytest.raises(StorageProblem, match="best.json"):
        run.best()
    run.mark_best(10)
    save(run, 50)
    assert run.steps() == [10, 40, 50]


# Model files --------------------------------------------------------------------------------------

WEIGHTS = {"G.w": torch.linspace(0, 1, 30).reshape(5, 6), "G.n": torch.tensor(3)}
ABOUT = {"config": "method: {name: munit}", "domains": '["cat", "dög"]', "card": "x" * 1000}


def raw(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    return size.to_bytes(8, "little") + text + data


def entry(begin: int, end: int, shape: Any, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def no_model(path: Path, reason: str) -> None:
    with pytest.raises(DataProblem, match=reason) as problem:
        load_model(path)
    text = str(problem.value)
    assert "\n" not in text and str(path) in text and len(text) < 1000
    assert problem.value.exit_code == 65


def test_model_file_describes_itself_and_is_reproducible(quick: Path) -> None:
    path, again = quick / "model.safetensors", quick / "again"
    save_model(path, WEIGHTS, ABOUT)
    save_model(again, dict(reversed(WEIGHTS.items())), ABOUT)
    assert path.read_bytes() == again.read_bytes()
    tensors, about = load_model(path)
    assert about == ABOUT and tensors.keys() == WEIGHTS.keys()
    assert all(torch.equal(tensors[k], WEIGHTS[k]) for k in WEIGHTS)
    with safetensors.safe_open(path, "pt") as file:  # and any other program can read it
        assert file.metadata()["config"] == ABOUT["config"]
        assert torch.equal(file.get_tensor("G.w"), WEIGHTS["G.w"])
    save_model(path, {"G.w": torch.zeros(2)}, {})
    assert load_model(path)[1] == {} and not list(quick.glob(".tmp*"))


HOSTILE: dict[str, tuple[bytes, str]] = {
    "M-04 length of 2^63": (raw({}, length=2**63), "not all of it"),
    "M-04 length of 2^64-1": (raw({}, length=2**64 - 1), "not all of it"),
    "M-04 trailing byte": (raw({"a": entry(0, 4, [1])}, bytes(5)), "not a valid safetensors"),
    "M-04 data too short": (raw({"a": entry(0, 8, [2])}, bytes(7)), "not a valid safetensors"),
    "M-04 overlap": (
        raw({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, bytes(12)),
        "not a valid safetensors",
    ),
    "M-04 hole": (
        raw({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, bytes(12)),
        "not a valid safetensors",
    ),
    "M-04 shape overflows": (raw({"a": entry(0, 4, [2**62, 4])}, bytes(4)), "not a valid"),
    "M-04 empty shape overflows": (raw({"a": entry(0, 0, [2**63, 0, 2**63])}), "not a valid"),
    "M-04 negative": (raw({"a": entry(-4, 0, [1])}, bytes(4)), "not a valid"),
    "M-04 unknown dtype": (raw({"a": entry(0, 4, [1], "OBJ")}, bytes(4)), "not a valid"),
    "M-04 not UTF-8": (raw(b'{"\xff": 1}'), "cannot be read"),
    "M-04 a list": (raw([]), "wrong kind"),
    "M-04 metadata is a list": (raw({"__metadata__": ["a"]}), "wrong kind"),
    "M-04 metadata is a number": (raw({"__metadata__": {"a": 1}}), "not a valid"),
    "M-05 nested": (raw(b"[" * 900_000), "cannot be read"),
    "M-05 nested metadata": (raw(b'{"__metadata__":' * 60_000), "cannot be read"),
    "M-05 long number": (raw(b'{"a":' + b"9" * 900_000 + b"}"), "cannot be read"),
    "M-06 a name twice": (
        raw(b'{"a":' + json.dumps(entry(0, 4, [1])).encode() + b',"a":'
            + json.dumps(entry(0, 4, [1])).encode() + b"}", bytes(4)),
        "twice",
    ),
    "M-06 metadata twice": (raw(b'{"__metadata__":{"a":"1","a":"2"}}'), "twice"),
    "M-09 empty file": (b"", "not a safetensors file"),
    "M-01 pickle": (b"\x80\x04cos\nsystem\n(S'touch canary'\ntR.", "not a safetensors file"),
    "M-03 zip": (b"PK\x03\x04" + bytes(100), "not a safetensors file"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_M04_to_M06_hostile_headers(quick: Path, kind: str) -> None:
    content, reason = HOSTILE[kind]
    path = quick / "model.safetensors"
    path.write_bytes(content)
    start = time.process_time()
    no_model(path, reason)
    assert time.process_time() - start < 1


def test_M04_truncated_at_every_length(quick: Path) -> None:
    path = quick / "model.safetensors"
    save_model(path, WEIGHTS, {"config": "x"})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DataProblem):
            load_model(path)


def test_M05_many_tensors_and_huge_headers_are_refused_before_parsing(quick: Path) -> None:
    path = quick / "model.safetensors"

    def empty(count: int, key: bytes = b"data_offsets") -> bytes:
        tensor = b'"%d":{"dtype":"U8","shape":[0],"' + key + b'":[0,0]}'
        return raw(b"{" + b",".join(tensor % i for i in range(count)) + b"}")

    for content, reason, seconds in (
        (empty(900_000), "too large", 0.1),
        (empty(10_001), "more than 10,000 tensors", 0.1),
        (empty(10_001, rb"data_off\u0073ets"), "more than 10,000 tensors", 1),
    ):
        path.write_bytes(content)
        start = time.process_time()
        no_model(path, reason)
        assert time.process_time() - start < seconds
    path.write_bytes(b"")
    os.truncate(path, checkpoint.MODEL_BYTES + 1)  # sparse: takes no room
    no_model(path, "too large")
    with pytest.raises(DataProblem, match="shorten the metadata"):
        save_model(path, WEIGHTS, {"card": "x" * 1_000_000})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_M07_weights_that_are_not_finite(
    quick: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, value: float
) -> None:
    path = quick / "model.safetensors"
    wrong = {**WEIGHTS, "F.bad": torch.tensor([1.0, value]).to(dtype)}
    with pytest.raises(Diverged, match="F.bad"):
        save_model(path, wrong, ABOUT)
    assert not path.exists()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_not_finite", lambda tensors: "")
        save_model(path, wrong, ABOUT)
    no_model(path, r"NaN or infinite \('F.bad'\)")


def test_M09_what_is_not_a_regular_file(quick: Path) -> None:
    os.mkfifo(quick / "fifo")
    (quick / "link").symlink_to("fifo")
    (quick / "loop").symlink_to("loop")
    start = time.monotonic()
    for name in ("fifo", "link", "/dev/zero", "/dev/null"):
        no_model(quick / name, "not a regular file")
    no_model(quick, "not a regular file|a folder is where")
    no_model(quick / "loop", "cannot read")
    no_model(quick / "missing", "no such file")
    assert time.monotonic() - start < 10


def test_M10_every_flipped_bit_is_noticed(quick: Path) -> None:
    path = quick / "model.safetensors"
    save_model(path, WEIGHTS, {"config": "lr: 1e-4"})
    bits = path.stat().st_size * 8
    for bit in range(bits):
        flip(path, bit)
        with pytest.raises(DataProblem):
            load_model(path)
        flip(path, bit)
    assert bits > 2000 and load_model(path)[1] == {"config": "lr: 1e-4"}


def test_M10_a_changed_config_or_weight_breaks_the_seal(quick: Path) -> None:
    path = quick / "model.safetensors"
    save_model(path, WEIGHTS, ABOUT)
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    safetensors.torch.save_file(WEIGHTS, path, metadata)  # another writer, the same content
    assert load_model(path)[1] == ABOUT
    safetensors.torch.save_file(WEIGHTS, path, {**metadata, "config": "method: {name: dsm}"})
    no_model(path, "sha256 differs")
    safetensors.torch.save_file({**WEIGHTS, "G.n": torch.tensor(4)}, path, metadata)
    no_model(path, "sha256 differs")


def test_M01_no_pickle_is_reachable() -> None:
    text = Path(checkpoint.__file__).read_text()
    text = text.replace("safetensors.torch.load", "")
    assert not re.search(r"torch\.(load|save)|import pickle", text)


def test_numbers_of_a_strange_kind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    weights = {"w": torch.zeros(4).to(torch.float8_e4m3fn)}
    safetensors.torch.save_file(weights, path, metadata={"format": "x"})
    with pytest.raises(DataProblem, match="float8_e4m3fn"):
        load_model(path)
