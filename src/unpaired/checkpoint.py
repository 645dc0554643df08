"""The run folder: exact resume after any kind of stop, and one self-describing file to share.

    runs/x/
      config.yaml  status.json  log.jsonl  best.json  .lock
      checkpoints/step-00001000/   tensors.safetensors  state.json  manifest.json
      model.safetensors            the file to share
      samples/

A checkpoint is written beside its final name and renamed into place after every byte has reached
the disk; its manifest holds the step, and the size and sha256 of each file. So a kill or a power
cut at any moment leaves the old state or the new one, and a damaged file is noticed and stepped
over. Nothing is pickled: tensors are safetensors, everything else is JSON.

Only the holder of the lock writes. Readers need no lock and change nothing.

The safetensors writer is ours, and short: the library orders metadata at random, so that equal
models would give different files, and reports a full disk as a RuntimeError; here every byte goes
through `os.write`. Reading is left to the library, after our own checks of the header.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import safetensors.torch
import torch
from torch import Tensor

from unpaired.errors import (
    ConfigProblem,
    DataProblem,
    Diverged,
    Locked,
    NotWritable,
    StorageProblem,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

FORMAT = 1  # of the checkpoint; older ones stay readable, newer ones are refused
STATUSES = ("running", "done", "preempted", "diverged", "failed")
HEADER_BYTES = 1_000_000  # of a model file: bounds what is parsed before it is trusted
MODEL_TENSORS = 10_000
MODEL_BYTES = 8 << 30

DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.complex64: "C64",
}

_BINARY = getattr(os, "O_BINARY", 0)
_FILES = ("tensors.safetensors", "state.json")  # of a checkpoint, besides its manifest
_RUN = (  # what training and looking at it write; not the lock, nor translations
    "checkpoints samples tensorboard config.yaml status.json log.jsonl best.json dataset.json bad_files.jsonl "
    "model.safetensors model-best.safetensors index.html metrics.json model.metrics.json model-best.metrics.json "
    "domains.json domains.html export"
).split()
_TEMPORARY = re.compile(r"\.tmp-(\d+-)?\d+-[0-9a-f]{8}")  # ours, half-written
_OURS = re.compile(r"step-\d{8,}(\.(\d+\.)?old)?")  # the names that we give, and may rotate away


class _Bad(Exception):
    """Why a checkpoint cannot be used. `damaged` is False where reading may work another day."""

    def __init__(self, file: Path, reason: str, damaged: bool = True) -> None:
        super().__init__(f"{file.parent.name}/{file.name}: {reason}")
        self.damaged = damaged


class RunFolder:
    """One training run on disk. Making this object touches nothing."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.status = self.path / "status.json"
        self.log = self.path / "log.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model.safetensors"
        self.samples = self.path / "samples"
        self._locked = False
        self._log_warned = -math.inf

    def create(self) -> None:
        """Make the folders and prove that each can be written, or raise `NotWritable` at once."""
        made: list[Path] = []
        try:
            for folder in (self.path, self.checkpoints, self.samples):
                for missing in reversed([p for p in (folder, *folder.parents) if not p.exists()]):
                    os.makedirs(missing, exist_ok=True)  # another process may be as fast
                    made.append(missing)
                    _sync(missing.parent)
                probe = folder / _temporary()
                try:
                    _write(probe, [b"probe"])
                finally:
                    with suppress(OSError):
                        os.unlink(probe)
        except (OSError, ValueError) as error:
            reason = _reason(error, folder)  # told before room is made
            for folder in reversed(made):
                with suppress(OSError):
                    os.rmdir(folder)
            raise NotWritable(
                f"cannot write in {self.path}: {reason}; choose another run folder"
            ) from error

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold this run for one process; raise `Locked` with the pid, host and start of another.

        The lock is a `flock`, so the kernel frees it when the holder dies, however it dies.
        """
        import fcntl  # not on Windows, where translating works all the same

        path = self.path / ".lock"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise NotWritable(f"cannot write {path}: {_reason(error, path)}") from error
        _held.add(fd)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Locked(f"{self.path} is in use by {_holder(path)}; wait for it, or choose "
                             "another run folder") from None  # fmt: skip
            except OSError as error:  # some parallel file systems are mounted without locks
                if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
                    raise StorageProblem(f"cannot lock {path}: {error.strerror}") from error
                log.warning("%s: this file system has no locks; start one run only", path)
            holder = {"pid": os.getpid(), "host": socket.gethostname(), "boot": _boot(),
                      "started": _now()}  # fmt: skip
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps(holder).encode() + b"\n", 0)
            self._locked = True
            self._sweep()
            yield
        finally:
            self._locked = False
            if fd in _held:  # else a fork has closed it
                _held.discard(fd)
                os.close(fd)

    def save(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        state: Mapping[str, Any],
        keep: int = 2,
    ) -> Path:
        """Write the checkpoint of `step`, then rotate; return its folder.

        tensors: strided, of any shape, device and memory format; they come back contiguous on the
        CPU, with equal values. state: what JSON can hold, under string keys; tuples come back as
        lists. The newest `keep` checkpoints and the best one stay.

        Raises `StorageProblem` with the path and the bytes needed and free when the disk is full
        or fails; then nothing of this attempt remains and all earlier checkpoints do.
        """
        if keep < 1:
            raise ValueError("keep must be at least 1")
        final = self.checkpoints / f"step-{step:08d}"
        text = _json(_string_keys(state))
        header = _header(tensors, {})
        needed = _size(header) + len(text) + 4096
        temporary = self.checkpoints / f".tmp-{step}-{os.getpid()}-{secrets.token_hex(4)}"
        try:
            _check_space(self.checkpoints, needed)
            os.mkdir(temporary)
            contents = zip(_FILES, (_chunks(header, tensors), [text]), strict=True)
            files = {name: _write(temporary / name, chunks) for name, chunks in contents}
            manifest = {"format": FORMAT, "step": step, "torch": torch.__version__, "files": files}
            _write(temporary / "manifest.json", [_sealed(manifest)])
            _sync(temporary)
            if os.path.lexists(final):  # the same step again: the old one stays valid meanwhile
                os.rename(final, _unused(final.with_name(final.name + ".old")))
            os.rename(temporary, final)
            _sync(self.checkpoints)
        except OSError as error:
            raise _storage_problem(final, error, needed) from error
        finally:
            if os.path.lexists(temporary):
                shutil.rmtree(temporary, ignore_errors=True)
        self._rotate(step, keep)
        return final

    def newest(self) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """Step, tensors and state of the newest valid checkpoint; None if there never was one.

        What is newest is told by the step inside the validated manifest. Damaged checkpoints are
        stepped over with a warning, and set aside as `*.corrupt` by the holder of the lock.
        Raises `StorageProblem` listing what was tried if there are checkpoints and none is valid,
        and `ConfigProblem` if one was written by a newer version.
        """
        for _ in range(10):  # a run that rotates while we read may take one from under our hands
            bad: dict[Path, _Bad] = {}
            for _, folder in self._candidates(bad):
                try:
                    result = _load(folder)
                except _Bad as problem:
                    bad[folder] = problem
                else:
                    self._report(bad)
                    return result
            if all(os.path.lexists(folder) for folder in bad):
                break
        tried = [f"{folder.name}: set aside earlier" for folder in self._folders(corrupt=True)]
        tried += [str(problem) for problem in bad.values()]
        self._report(bad)
        if tried:
            raise StorageProblem(
                f"no checkpoint in {self.checkpoints} can be read ({'; '.join(tried)}); "
                "restore one from a copy, or start again with --fresh"
            )
        return None

    def held(self) -> bool:
        """Whether a run is here. A config alone is none: its start was ended before anything was made."""
        made = os.path.lexists(self.model) or os.path.lexists(self.log)
        return made or bool(self._folders() or self._folders(corrupt=True))

    def steps(self) -> list[int]:
        """The steps that have a checkpoint with a valid manifest, in rising order."""
        return sorted({step for step, _ in self._candidates({})})

    def best(self) -> int | None:
        """The step marked as best, or None. Raises `StorageProblem` if the mark is damaged."""
        path = self.path / "best.json"
        return read_json(path, lambda mark: int(mark["step"])) if os.path.lexists(path) else None

    def mark_best(self, step: int) -> None:
        """From now on keep the checkpoint of `step`, whatever is rotated away."""
        if step not in self.steps():
            raise ValueError(f"step {step} has no checkpoint")
        write_atomic(self.path / "best.json", _json({"step": step}))

    def start_fresh(self) -> None:
        """Set the run aside, as a run of its own in a numbered folder within this one, to begin at step 0."""
        if not (self.held() or os.path.lexists(self.config)):
            return
        aside = _unused(self.path / "earlier")
        try:
            os.mkdir(aside)
            for path in map(self.path.joinpath, _RUN):
                if os.path.lexists(path):
                    os.rename(path, aside / path.name)
            os.mkdir(self.checkpoints)
            os.mkdir(self.samples)
            _sync(aside)
            _sync(self.path)
        except OSError as error:
            raise _storage_problem(self.path, error) from error

    def write_status(
        self, status: str, step: int, reason: str = "", exit_code: int | None = None
    ) -> None:
        """Replace status.json at once; `status` is one of `STATUSES`."""
        if status not in STATUSES:
            raise ValueError(f"status must be one of {STATUSES}, not {status!r}")
        record = {"status": status, "step": step, "reason": reason, "exit_code": exit_code,
                  "time": _now()}  # fmt: skip
        write_atomic(self.status, _json(record))

    def read_status(self) -> dict[str, Any] | None:
        """The last status, or None where there is none that can be read."""
        try:
            return dict(json.loads(_read(self.status)))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            log.warning("cannot read %s: %s", self.status, error)
            return None

    def append_log(self, record: Mapping[str, Any]) -> None:
        """Add one line to log.jsonl. Numbers that are not finite become null.

        Training does not depend on it: a disk that is full costs lines, and one warning a minute.
        """
        line = json.dumps(_finite(record), allow_nan=False).encode() + b"\n"
        try:
            fd = os.open(self.log, os.O_RDWR | os.O_CREAT | os.O_APPEND | _BINARY, 0o666)
            try:
                end = os.lseek(fd, 0, os.SEEK_END)
                if end and os.pread(fd, 1, end - 1) != b"\n":  # torn by a kill: leave it alone
                    line = b"\n" + line
                try:
                    if os.write(fd, line) < len(line):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                except OSError:
                    os.ftruncate(fd, end)
                    raise
            finally:
                os.close(fd)
        except OSError as error:
            if time.monotonic() - self._log_warned >= 60:
                self._log_warned = time.monotonic()
                log.warning("cannot write %s: %s; lines are lost", self.log, error.strerror)

    def read_log(self) -> list[dict[str, Any]]:
        """The records of log.jsonl in order; lines torn by a kill, or damaged, are left out."""
        return [record for record, _ in self._log_lines()]

    def truncate_log(self, step: int) -> None:
        """Drop everything from the first record after `step` on, as when resuming from `step`."""
        kept = []
        for record, line in self._log_lines():
            if record.get("step", 0) > step:
                break
            kept.append(line + b"\n")
        if os.path.lexists(self.log):
            write_atomic(self.log, b"".join(kept))

    def _log_lines(self) -> Iterator[tuple[dict[str, Any], bytes]]:
        try:
            lines = _read(self.log).split(b"\n")
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageProblem(f"cannot read {self.log}: {_reason(error, self.path)}") from error
        for line in lines:
            with suppress(ValueError):  # UnicodeDecodeError and JSONDecodeError too
                record = json.loads(line)
                if _is_record(record):
                    yield record, line

    def _folders(self, corrupt: bool = False) -> list[Path]:
        """What claims to be a checkpoint, or what was set aside as a corrupt one."""
        try:
            names = sorted(os.listdir(self.checkpoints))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StorageProblem(
                f"cannot read {self.checkpoints}: {_reason(error, self.path)}; mend it or name another run"
            ) from error
        return [
            self.checkpoints / name
            for name in names
            if name.startswith("step-") and name.endswith(".corrupt") == corrupt
        ]

    def _candidates(self, bad: dict[Path, _Bad]) -> list[tuple[int, Path]]:
        """Checkpoints with a valid manifest, newest first; the others are added to `bad`."""
        found = []
        for folder in self._folders():
            try:
                step = _manifest(folder)["step"]
            except _Bad as problem:
                bad[folder] = problem
            else:  # of two with the same step, the one under its right name is the later
                found.append((step, folder.name == f"step-{step:08d}", folder))
        return [(step, folder) for step, _, folder in sorted(found, reverse=True)]

    def _report(self, bad: Mapping[Path, _Bad]) -> None:
        """Warn of bad checkpoints, and set the damaged ones aside if the run is ours."""
        for folder, problem in bad.items():
            if not os.path.lexists(folder):
                continue  # rotated away while we read
            log.warning("stepping over the checkpoint %s (%s)", folder, problem)
            if self._locked and problem.damaged:
                try:
                    os.rename(folder, _unused(folder.with_name(folder.name + ".corrupt")))
                    _sync(self.checkpoints)
                except OSError as error:
                    log.warning("cannot rename %s: %s", folder, error.strerror)

    def _rotate(self, current: int, keep: int) -> None:
        """Remove older checkpoints. A failure costs disk space, never a checkpoint."""
        try:
            best = self.best()
        except StorageProblem as problem:
            log.warning("%s; removing no checkpoint meanwhile", problem)
            return
        found = [(step, folder) for step, folder in self._candidates({})
                 if _OURS.fullmatch(folder.name)]  # fmt: skip
        newest = sorted({step for step, _ in found if step != current}, reverse=True)
        kept = {current, best, *newest[: keep - 1]}
        seen: set[int] = set()
        for step, folder in found:
            if step in kept and step not in seen:
                seen.add(step)
                continue
            try:  # renamed first: half a checkpoint never looks like a damaged one
                dropped = folder.with_name(_temporary())
                os.rename(folder, dropped)
                _sync(self.checkpoints)
                shutil.rmtree(dropped)
            except OSError as error:
                log.warning("cannot remove the old checkpoint %s: %s", folder, error.strerror)

    def _sweep(self) -> None:
        """Remove what an earlier process left half-written. Only for the holder of the lock."""
        for folder in (self.path, self.checkpoints, self.samples):
            for left in folder.glob(".tmp*"):
                if not _TEMPORARY.fullmatch(left.name):
                    continue  # the user's own
                if left.is_dir() and not left.is_symlink():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    with suppress(OSError):
                        os.unlink(left)


def read_json(path: Path, parsed: Callable[[Any], T]) -> T:
    """What `parsed` makes of a small file that a run keeps. Raises `StorageProblem` for one that is damaged."""
    try:
        return parsed(json.loads(_read(path)))
    except OSError as error:
        raise StorageProblem(f"cannot read {path}: {_reason(error, path)}; delete it") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise StorageProblem(
            f"{path} is damaged ({type(error).__name__}: {error}); restore it from a copy, or delete it"
        ) from error


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace a file by `data`: after a crash at any moment it is the old one or the new one.

    Raises `StorageProblem` if the disk is full or fails; then the old file is as it was.
    """
    _write_atomic(Path(path), [data], len(data))


def save_model(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write one self-describing safetensors file: weights, and text about them as `metadata`.

    Equal arguments give equal bytes. A sha256 of the whole is added to the metadata. Raises
    `Diverged` for weights that are not finite, `StorageProblem` as `write_atomic` does.
    """
    path = Path(path)
    if wrong := _not_finite(tensors):
        raise Diverged(f"weights are NaN or infinite ({wrong}), so {path} was not written")
    metadata = dict(metadata)
    metadata["sha256"] = _fingerprint(_header(tensors, metadata), tensors)
    header = _header(tensors, metadata)
    if len(_json(header)) > HEADER_BYTES or len(tensors) > MODEL_TENSORS:
        raise DataProblem(
            f"{path} would have a header over {HEADER_BYTES:,} bytes or over "
            f"{MODEL_TENSORS:,} tensors; shorten the metadata"
        )
    _write_atomic(path, _chunks(header, tensors), _size(header))


def load_model(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights (on the CPU) and metadata of a file that may come from anyone. Runs no code of it.

    Raises `DataProblem` for a file that is missing, not a regular one, over the caps, malformed,
    damaged or not finite.
    """
    path = Path(path)
    try:
        with _open(path) as file:
            header = _read_header(path, file)
            file.seek(0)
            data = file.read()
    except OSError as error:
        raise DataProblem(f"cannot read the model {path}: {_reason(error, path)}") from error
    metadata = header.get("__metadata__", {})
    try:
        tensors = safetensors.torch.load(data)
    except Exception as error:  # of a hostile file, anything
        reason = str(error).partition("\n")[0][:200]
        raise DataProblem(f"{path} is not a valid safetensors file ({reason})") from error
    if odd := {t.dtype for t in tensors.values()} - DTYPES.keys():
        raise DataProblem(
            f"{path} has numbers of a kind that no model of ours has ({min(map(str, odd))})"
        )
    if metadata.pop("sha256", None) != _fingerprint(header, tensors):
        raise DataProblem(
            f"{path} is damaged or was not written by unpaired (its sha256 differs); "
            "copy or download it again"
        )
    if wrong := _not_finite(tensors):
        raise DataProblem(f"{path} has weights that are NaN or infinite ({wrong}); train it anew")
    return tensors, metadata


def _read_header(path: Path, file: BinaryIO) -> dict[str, Any]:
    """The parsed header, its size and count bounded before anything is believed."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 10 or length > size - 8:
        raise DataProblem(f"{path} is not a safetensors file, or not all of it")
    if size > MODEL_BYTES or length > HEADER_BYTES:
        raise DataProblem(
            f"{path} is too large for a model (file {size:,} bytes of {MODEL_BYTES:,}, "
            f"header {length:,} of {HEADER_BYTES:,})"
        )
    text = file.read(length)
    try:
        many = text.count(b'"data_offsets"') > MODEL_TENSORS  # before the slower parsing
        header = {} if many else json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise DataProblem(f"{path} has a header that cannot be read ({error})") from error
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__", {}), dict):
        raise DataProblem(f"{path} has a header of the wrong kind")
    if many or len(header.keys() - {"__metadata__"}) > MODEL_TENSORS:
        raise DataProblem(f"{path} has more than {MODEL_TENSORS:,} tensors")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name appears twice")
    return found


def _not_finite(tensors: Mapping[str, Tensor]) -> str:
    floats = {n: t for n, t in tensors.items() if t.is_floating_point() or t.is_complex()}
    wrong = [name for name, t in floats.items() if not torch.isfinite(t).all()]
    return ", ".join(repr(name[:80]) for name in wrong[:5])


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Any]:
    """The safetensors header: tensors in falling order of item size, so that all are aligned."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)):
        tensor = tensors[name]
        if tensor.dtype not in DTYPES or tensor.layout != torch.strided:
            raise TypeError(f"{name!r}: cannot store {tensor.dtype}, {tensor.layout}")
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    return header


def _chunks(
    header: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file, one tensor at a time: no second copy of the state."""
    text = _json(header)
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    yield from _data(header, tensors)


def _data(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    names = (name for name in header if name != "__metadata__")
    for name in sorted(names, key=lambda name: header[name]["data_offsets"]):
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        yield memoryview(flat.view(torch.uint8).numpy().data)


def _fingerprint(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for chunk in _data(header, tensors):
        digest.update(chunk)
    return digest.hexdigest()


def _size(header: Mapping[str, Any]) -> int:
    """Bytes of the file, rounded up by at most 8."""
    ends = [h["data_offsets"][1] for name, h in header.items() if name != "__metadata__"]
    return 16 + len(_json(header)) + max(ends, default=0)


def _manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, which vouches for itself by a seal."""
    path = folder / "manifest.json"
    data = _checked_read(path)
    try:
        manifest = json.loads(data)
        seal = manifest.pop("sha256")
        sealed = data == _sealed(manifest)  # to the byte: so no flipped bit is harmless
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        seal, sealed = None, False
    if not sealed or seal is None or not isinstance(manifest.get("step"), int):
        raise _Bad(path, "damaged")
    return manifest


def _sealed(manifest: Mapping[str, Any]) -> bytes:
    digest = hashlib.sha256(_json(manifest)).hexdigest()
    return json.dumps({**manifest, "sha256": digest}, indent=2).encode() + b"\n"


def _load(folder: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]]:
    manifest = _manifest(folder)
    if manifest["format"] > FORMAT:
        raise ConfigProblem(
            f"{folder} was written by a newer version (checkpoint format {manifest['format']}); "
            "upgrade unpaired to resume from it"
        )
    data = {}
    for name in _FILES:
        expected, data[name] = manifest["files"][name], _checked_read(folder / name)
        if len(data[name]) != expected["size"]:
            raise _Bad(folder / name, f"{len(data[name])} bytes, should be {expected['size']}")
        if hashlib.sha256(data[name]).hexdigest() != expected["sha256"]:
            raise _Bad(folder / name, "damaged (its sha256 differs)")
    tensors = safetensors.torch.load(data["tensors.safetensors"])
    return manifest["step"], tensors, json.loads(data["state.json"])


def _checked_read(path: Path) -> bytes:
    """Read one file of a checkpoint. No permission or a failing disk does not condemn it."""
    try:
        return _read(path)
    except OSError as error:
        damaged = error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, None)
        reason = "missing" if isinstance(error, FileNotFoundError) else _reason(error, path)
        raise _Bad(path, reason, damaged) from error


def _open(path: Path) -> BinaryIO:
    """Open a regular file for reading; anything else is an OSError, also what would block."""
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _BINARY)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError("not a regular file")
    return open(fd, "rb")


def _read(path: Path) -> bytes:
    with _open(path) as file:
        return file.read()


def _write(path: Path, chunks: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """Make a new file, on the disk when this returns; give its size and sha256."""
    digest, size = hashlib.sha256(), 0
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o666)
    try:
        for chunk in chunks:
            digest.update(chunk)
            size += len(chunk)
            view = memoryview(chunk)
            while view:
                view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)
    return {"size": size, "sha256": digest.hexdigest()}


def _write_atomic(path: Path, chunks: Iterable[bytes | memoryview], needed: int) -> None:
    temporary = path.parent / _temporary()
    try:
        _write(temporary, chunks)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise _storage_problem(path, error, needed) from error
    finally:
        if os.path.lexists(temporary):
            with suppress(OSError):
                os.unlink(temporary)


def _sync(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    if os.name == "nt":
        return  # folders cannot be opened there
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _check_space(folder: Path, needed: int) -> None:
    if shutil.disk_usage(folder).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _storage_problem(path: Path, error: OSError, needed: int = 0) -> StorageProblem:
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG):
        return StorageProblem(f"cannot write {path}: {_reason(error, path.parent)}; name another")
    try:
        free = f"{shutil.disk_usage(path.parent).free:,}"
    except OSError:
        free = "an unknown number"
    return StorageProblem(
        f"cannot write {path}: {_reason(error, path.parent)} ({needed:,} bytes needed, {free} "
        "free); make room or mend the disk"
    )


def _reason(error: Exception, folder: Path) -> str:
    """An OSError in words."""
    code = getattr(error, "errno", None)
    if code in (errno.ENOSPC, errno.EDQUOT):
        with suppress(OSError, AttributeError):
            free = os.statvfs(folder if folder.exists() else folder.parent)
            if free.f_files and not free.f_favail:
                return "the disk has no inodes left"
        return "the disk is full"
    words = {
        errno.EROFS: "the file system is read-only",
        errno.EACCES: "no permission",
        errno.EPERM: "no permission",
        errno.ENOENT: "no such file or folder",
        errno.ENOTDIR: "a file is where a folder should be",
        errno.EEXIST: "a file is where a folder should be",
        errno.EISDIR: "a folder is where a file should be",
        errno.ENAMETOOLONG: "the name is too long",
        errno.EFBIG: "the limit on file sizes is reached",
    }
    return words.get(code or 0) or getattr(error, "strerror", None) or str(error)


def _holder(lock: Path) -> str:
    for _ in range(10):  # the winner of a race may not have written its name yet
        with suppress(OSError, ValueError, KeyError, TypeError):
            holder = json.loads(_read(lock))
            return f"process {holder['pid']} on {holder['host']} since {holder['started']}"
        time.sleep(0.02)
    return "another process"


def _boot() -> str:
    """Tells a pid of today from the same pid before a reboot."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _temporary() -> str:
    return f".tmp-{os.getpid()}-{secrets.token_hex(4)}"


def _unused(path: Path) -> Path:
    """`path`, or the first of `path` with a number before its last suffix that is free."""
    number, free = 1, path
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.stem}.{number}{path.suffix}")
    return free


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _string_keys(value: Any) -> Any:
    """The same, or TypeError where JSON would silently turn a key into a string."""
    if isinstance(value, Mapping):
        wrong = [key for key in value if not isinstance(key, str)]
        if wrong:
            raise TypeError(f"keys of the state must be strings, not {wrong[0]!r}")
        return {key: _string_keys(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_string_keys(item) for item in value]
    return value


def _is_record(value: Any) -> bool:
    """Whether a line of the log is one that training wrote: what is read of it is there, and of its kind."""
    if not isinstance(value, dict) or not isinstance(value.get("step"), int):
        return False
    with_it = {"losses": "images_per_second", "alarm": "text"}
    kinds = {"images_per_second": int | float, "alarm": str, "text": str, "rollback": str}
    tables = [value[key] for key in ("losses", "figures", "lr") if key in value]
    return (
        all(other in value for key, other in with_it.items() if key in value)
        and all(isinstance(value[key], kind) for key, kind in kinds.items() if key in value)
        and all(isinstance(table, dict) for table in tables)
        and all(n is None or isinstance(n, int | float) for t in tables for n in t.values())
    )


def _finite(value: Any) -> Any:
    """A log record as JSON: NaN and infinity, which browsers cannot read, become None."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    return float(value) if math.isfinite(value) else None


_held: set[int] = set()  # descriptors of locks


def _release_in_child() -> None:
    """A forked worker must not hold the lock on when the trainer is killed."""
    for fd in _held:
        with suppress(OSError):
            os.close(fd)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_in_child)
