"""Kills, power cuts and races around the run folder, in one process without threads that forks.

`python crash_points.py kill|power|unsafe|race|log|readers FOLDER COUNT` prints one JSON object.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from unpaired import checkpoint
from unpaired.checkpoint import RunFolder
from unpaired.errors import Locked, StorageProblem

OPERATIONS = "open write fsync mkdir rename replace unlink rmdir ftruncate".split()


def save(run: RunFolder, step: int, value: int, keep: int = 2) -> None:
    """A checkpoint of a few hundred bytes, told from others by `value`."""
    tensors = {"w": torch.arange(20.0) + value, "n": torch.tensor(value), "b": torch.tensor([True])}
    run.save(step, tensors, {"value": value, "rng": [value, 0.5]}, keep=keep)


def value(run: RunFolder) -> int | None:
    """Which checkpoint `newest` gives, after making sure that all of it belongs together."""
    found = run.newest()
    if found is None:
        return None
    step, tensors, state = found
    value = state["value"]
    assert torch.equal(tensors["w"], torch.arange(20.0) + value), "weights of another checkpoint"
    assert tensors["n"].item() == value and tensors["b"].all() and state["rng"] == [value, 0.5]
    assert tensors.keys() == {"w", "n", "b"} and step == value // 10 * 10
    return value


def fork(work: Callable[[], None]) -> int:
    """Run `work` in a child; give its pid."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except Locked:
            code = Locked.exit_code
        finally:
            os._exit(code)
    return pid


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# T-02: what is saved, from which state of the folder


def first(run: RunFolder) -> None:
    run.create()
    save(run, 10, 10)


def later(run: RunFolder) -> None:
    save(run, 30, 30)


def again(run: RunFolder) -> None:
    save(run, 20, 21)  # the same step with another content


def only(run: RunFolder) -> None:
    save(run, 30, 30, keep=1)


Scenario = Callable[[RunFolder], None]
SCENARIOS: dict[Scenario, tuple[int | None, int]] = {
    first: (None, 10),
    later: (20, 30),
    again: (20, 21),
    only: (20, 30),
}


def prepare(scenario: Scenario, path: Path) -> RunFolder:
    path.mkdir()
    run = RunFolder(path / "run")
    if scenario is not first:
        run.create()
        save(run, 10, 10)
        save(run, 20, 20)
    return run


def die(at: int, when: str) -> None:
    """Replace the operations of `os` by ones that kill this process around number `at`."""
    count = 0

    def lethal(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == at and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            if count == at and when == "within" and name == "write":
                call(args[0], bytes(args[1])[: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return call(*args, **kwargs)
            finally:
                if count == at and when == "after":
                    os.kill(os.getpid(), signal.SIGKILL)

        return operation

    for name in OPERATIONS:
        setattr(os, name, lethal(name, getattr(os, name)))


def survive(template: Path, path: Path, scenario: Scenario, at: int, when: str) -> int | None:
    """Kill a save around operation `at` and resume: what was found. OSError if none was killed."""
    shutil.copytree(template, path)
    run = RunFolder(path / "run")

    def work() -> None:
        die(at, when)
        scenario(run)

    try:
        code = wait(fork(work))
        if code != -signal.SIGKILL:
            assert code == 0, code
            raise ProcessLookupError
        run.create()
        with run.lock():
            found = value(run)
            assert not list(path.rglob(".tmp*")) and not list(path.rglob("*.corrupt"))
            save(run, 40, 40)
            assert value(run) == 40
        return found
    finally:
        shutil.rmtree(path)


def kill(folder: Path, count: int) -> dict[str, Any]:
    """SIGKILL before and within, and if `count` is 2 also after each operation of a save."""
    results: dict[str, int] = {}
    for scenario, (old, new) in SCENARIOS.items():
        name, template = (
            scenario.__name__,
            prepare(scenario, folder / scenario.__name__).path.parent,
        )
        for when in ("before", "within", "after")[: 1 + count]:
            found = []
            for at in range(1, results.get(f"{name}, before", 1000) + 1):
                try:
                    found.append(survive(template, folder / "case", scenario, at, when))
                except ProcessLookupError:
                    if when == "before":
                        break
            results[f"{name}, {when}"] = len(found)
            # once the new one is found, it stays found
            assert found == [old] * found.count(old) + [new] * found.count(new), (name, when, found)
            assert old in found and (new in found or when == "within"), (name, when, found)
    return results


# T-03: a disk that forgets what was not fsynced


class Inode:
    """A file (bytes) or folder (names to inodes), as it is now and as it is on the disk."""

    def __init__(self, now: bytes | dict[str, Inode]) -> None:
        self.now = now
        self.disk: bytes | dict[str, Inode] = copy.copy(now) if now else type(now)()

    @classmethod
    def read(cls, path: Path) -> Inode:
        if path.is_dir():
            return cls({child.name: cls.read(child) for child in path.iterdir()})
        return cls(path.read_bytes())

    def write_out(self, path: Path, choose: Callable[[Inode], Any]) -> None:
        content = choose(self)
        if isinstance(content, dict):
            path.mkdir()
            for name, child in content.items():
                child.write_out(path / name, choose)
        else:
            path.write_bytes(content)


class Disk:
    """Follows the operations of `os` under `root`, and calls `check` after each."""

    def __init__(self, root: Path, check: Callable[[Disk], None]) -> None:
        self.root, self.check, self.tree = root, check, Inode.read(root)
        self.paths: dict[int, Path] = {}
        self.real = {name: getattr(os, name) for name in OPERATIONS}
        self.operations = 0

    def __enter__(self) -> Disk:
        for name in OPERATIONS:
            setattr(os, name, self.followed(name))
        return self

    def __exit__(self, *exception: object) -> None:
        for name, call in self.real.items():
            setattr(os, name, call)

    def followed(self, name: str) -> Callable[..., Any]:
        def operation(*args: Any, **kwargs: Any) -> Any:
            result = self.real[name](*args, **kwargs)
            getattr(self, name)(result, *args, **kwargs)
            self.operations += 1
            for call, value in self.real.items():  # the check is not followed
                setattr(os, call, value)
            self.check(self)
            self.__enter__()
            return result

        return operation

    def path(self, path: Any, dir_fd: int | None) -> Path:
        return Path(self.paths[dir_fd] / path if dir_fd is not None else path)

    def inode(self, path: Path) -> Inode:
        inode = self.tree
        for part in path.relative_to(self.root).parts:
            inode = inode.now[part]  # type: ignore[index]
        return inode

    def open(self, fd: int, path: Any, flags: int, mode: int = 0, *, dir_fd: Any = None) -> None:
        path = self.paths[fd] = self.path(path, dir_fd)
        if flags & os.O_CREAT:
            self.inode(path.parent).now.setdefault(path.name, Inode(b""))  # type: ignore[union-attr]
        self.inode(path)

    def write(self, count: int, fd: int, data: Any) -> None:
        self.inode(self.paths[fd]).now += bytes(data)[:count]  # type: ignore[operator]

    def ftruncate(self, result: None, fd: int, size: int) -> None:
        inode = self.inode(self.paths[fd])
        inode.now = inode.now[:size]  # type: ignore[index]

    def fsync(self, result: None, fd: int) -> None:
        inode = self.inode(self.paths[fd])
        inode.disk = copy.copy(inode.now)

    def mkdir(self, result: None, path: Any, mode: int = 0, *, dir_fd: Any = None) -> None:
        path = self.path(path, dir_fd)
        self.inode(path.parent).now[path.name] = Inode({})  # type: ignore[index]

    def rename(self, result: None, source: Any, target: Any) -> None:
        source, target = Path(source), Path(target)
        moved = self.inode(source.parent).now.pop(source.name)  # type: ignore[union-attr,arg-type,call-arg]
        self.inode(target.parent).now[target.name] = moved  # type: ignore[index]

    replace = rename

    def unlink(self, result: None, path: Any, *, dir_fd: Any = None) -> None:
        path = self.path(path, dir_fd)
        del self.inode(path.parent).now[path.name]  # type: ignore[union-attr,arg-type]

    rmdir = unlink


def cuts(rng: random.Random, count: int) -> list[Callable[[Inode], Any]]:
    """What may have reached the disk when the power goes: names and data apart."""

    def on_disk(inode: Inode) -> Any:
        return inode.disk

    def names_first(inode: Inode) -> Any:
        return inode.now if isinstance(inode.now, dict) else inode.disk

    def data_first(inode: Inode) -> Any:
        return inode.disk if isinstance(inode.now, dict) else inode.now

    def anything(inode: Inode) -> Any:
        if isinstance(inode.now, dict) or rng.random() < 0.5:
            return rng.choice([inode.now, inode.disk])
        return inode.now[: rng.randint(len(inode.disk), max(len(inode.now), len(inode.disk)))]

    return [on_disk, names_first, data_first, *[anything] * count]


def restart(disk: Disk, path: Path, choose: Callable[[Inode], Any]) -> int | None:
    """What is found after a power cut. A checkpoint under its final name is always whole."""
    disk.tree.write_out(path, choose)
    found = value(RunFolder(path / "run"))
    assert all((folder / "manifest.json").exists() for folder in path.rglob("step-*"))
    shutil.rmtree(path)
    return found


def power(folder: Path, count: int) -> dict[str, Any]:
    """Power cuts after each operation, in 3 + `count` ways."""
    results: dict[str, Any] = {}
    for scenario, (old, new) in SCENARIOS.items():
        run = prepare(scenario, folder / scenario.__name__)
        found: list[int | None] = []
        ways = cuts(random.Random(scenario.__name__), count)

        def cut(disk: Disk, found: list[int | None] = found, ways: Any = ways) -> None:
            found += [restart(disk, folder / "case", choose) for choose in ways]

        with Disk(run.path.parent, cut) as disk:
            scenario(run)
        assert set(found) == {old, new}, found
        cut(disk)
        assert found[-len(ways) :] == [new] * len(ways), "what `save` has returned was lost"
        results[scenario.__name__] = disk.operations
        results["cuts"] = results.get("cuts", 0) + len(found)
    return results


def unsafe(folder: Path, count: int) -> dict[str, Any]:
    """The same with one promise broken at a time: `power` must notice."""
    noticed = {}
    fsync, real = checkpoint._sync, os.fsync
    breaks: dict[str, Callable[[], None]] = {
        "no fsync of folders": lambda: setattr(checkpoint, "_sync", lambda folder: None),
        "no fsync of files": lambda: setattr(
            os, "fsync", lambda fd: real(fd) if os.path.isdir(f"/proc/self/fd/{fd}") else None
        ),
    }
    for name, break_ in breaks.items():
        break_()
        (folder / name).mkdir()
        try:
            if name == "no fsync of files":  # `Disk` takes os.fsync as it finds it: it must see it
                Disk.fsync = _only_folders  # type: ignore[method-assign]
            power(folder / name, count)
            noticed[name] = False
        except (AssertionError, StorageProblem):
            noticed[name] = True
        finally:
            checkpoint._sync, os.fsync = fsync, real
            Disk.fsync = _fsync  # type: ignore[method-assign]
    return noticed


_fsync = Disk.fsync


def _only_folders(self: Disk, result: None, fd: int) -> None:
    if isinstance(self.inode(self.paths[fd]).now, dict):
        _fsync(self, result, fd)


# T-29, T-33, and reading beside a run that saves


def compete(run: RunFolder, go: int, start: int, tell: int) -> None:
    os.close(start)
    os.read(go, 1)  # all at once: when the pipe is closed
    before = time.monotonic()
    try:
        run.create()
        with run.lock():
            born, alive = os.pipe()

            def live() -> None:
                os.write(alive, b".")
                time.sleep(60)

            worker = fork(live)
            os.read(born, 1)  # until then it may hold a copy of the lock's descriptor
            os.write(tell, f"won {os.getpid()} {worker}\n".encode())
            time.sleep(60)
    except Locked as problem:
        os.write(tell, f"lost {time.monotonic() - before} {str(problem)!r}\n".encode())
        raise


def race(folder: Path, count: int) -> dict[str, Any]:
    """Ten processes start in one folder; the winner is killed and leaves a worker behind."""
    winners, refusals, slowest, times = [], [], 0.0, []
    for number in range(count):
        run = RunFolder(folder / f"race-{number}")
        go, start = os.pipe()
        report, tell = os.pipe()

        pids = [fork(lambda r=run, p=(go, start, tell): compete(r, *p)) for _ in range(10)]  # type: ignore[misc]
        os.close(go), os.close(start), os.close(tell)
        lines: list[str] = []
        with open(report) as lines_of:
            while len(lines) < 10:
                lines.append(lines_of.readline())
            won = [line.split() for line in lines if line.startswith("won")]
            winners.append(len(won))
            for line in lines:
                if line.startswith("lost"):
                    slowest = max(slowest, float(line.split()[1]))
                    refusals.append(f"process {won[0][1]} on " in line and " since 20" in line)
            os.kill(int(won[0][1]), signal.SIGKILL)
        codes = sorted(wait(pid) for pid in pids)
        assert codes == [-signal.SIGKILL] + [75] * 9, codes
        before = time.monotonic()
        with run.lock():  # although the worker of the killed winner lives on
            times.append(time.monotonic() - before)
            os.kill(int(won[0][2]), 0)
        os.kill(int(won[0][2]), signal.SIGKILL)
    return {"winners": winners, "named": refusals, "slowest": slowest, "freed": max(times)}


def log(folder: Path, count: int) -> dict[str, Any]:
    """SIGKILL while logging, `count` times, each time resuming from an earlier step."""
    run, rng, torn = RunFolder(folder / "run"), random.Random(33), 0
    run.create()
    step = 0
    for _ in range(count):

        def work(step: int = step) -> None:
            while True:
                step += 1
                run.append_log(
                    {"step": step, "figures": {"G": step / 3}, "pad": "x" * (step % 997)}
                )

        pid = fork(work)
        time.sleep(rng.uniform(0.005, 0.03))
        os.kill(pid, signal.SIGKILL)
        wait(pid)
        with open(run.log, "rb+") as file:  # a kill seldom tears one write: tear it for good
            file.truncate(max(0, file.seek(0, 2) - rng.randint(0, 60)))
        torn += not run.log.read_bytes().endswith(b"\n")
        steps = [record["step"] for record in run.read_log()]
        assert steps == list(range(1, len(steps) + 1)), "damaged"
        step = max(0, len(steps) - rng.randint(0, 5))
        run.truncate_log(step)
        assert [record["step"] for record in run.read_log()] == list(range(1, step + 1))
    return {"lines": step, "torn": torn}


def readers(folder: Path, count: int) -> dict[str, Any]:
    """`newest` in a loop while another process saves `count` times and keeps one checkpoint."""
    run = RunFolder(folder / "run")
    run.create()
    save(run, 10, 10)

    def train() -> None:
        with run.lock():
            for number in range(2, count + 2):
                save(run, 10 * number, 10 * number, keep=1)

    pid, seen = fork(train), [10]
    while not os.waitpid(pid, os.WNOHANG)[0]:
        seen.append(value(run) or 0)
        assert seen[-1] >= seen[-2], "went back"
    assert value(run) == 10 * (count + 1)
    return {"seen": len(set(seen)), "reads": len(seen)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.ERROR)
    where = Path(sys.argv[2])
    with suppress(FileExistsError):
        where.mkdir()
    print(json.dumps(globals()[sys.argv[1]](where, int(sys.argv[3]))))
