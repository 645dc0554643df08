"""Decoded and resized training images, kept on this machine from the first epoch on: a file each, mapped into memory.

    $UNPAIRED_CACHE/images/<how they are made>/ab/abcd...    pixels and a footer, named by the hash of the image file
    $UNPAIRED_CACHE/images/ledger                            its length counts the blocks that are taken

A file is written beside its name and renamed, so a kill leaves it whole or not there; what a power cut tears is told by
a check sum, which each process looks at once. Room is taken by appending to the ledger, which any number of processes
may do at once; `prepare` counts anew. Whatever fails here, the image is decoded as if there were no cache, and counted.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import secrets
import shutil
import struct
import time
import zlib
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

LARGEST = 4 << 30  # bytes, unless the config says otherwise; at most a tenth of what is free
BLOCK = 4096  # bytes; what a file takes of the disk is a multiple of them
FOOTER = struct.Struct("<8sIII")  # MAGIC, height, width, CRC-32 of the pixels
MAGIC = b"unpaired"
DAY = 86_400.0  # seconds
COUNTS = ("read", "decoded", "failed")


def cache_folder() -> Path:
    """`$UNPAIRED_CACHE`, else `unpaired` in the user's cache folder. It may be deleted at any time."""
    if said := os.environ.get("UNPAIRED_CACHE"):
        return Path(said)
    home = os.path.expanduser("~")  # stays as it is for a user without one: then nothing is kept
    caches = os.path.join(home, ".cache") if home != "~" else os.devnull
    return Path(os.environ.get("XDG_CACHE_HOME") or caches) / "unpaired"


class ImageCache:
    """Images (H, W, 3) uint8 under names; `recipe` says all that decides their pixels beside the name.

    bound: bytes that the images of all recipes may take; by default `LARGEST`, at most a tenth of the free disk.
    Nothing is raised, whatever the disk does.
    """

    def __init__(self, recipe: str, bound: int | None = None) -> None:
        self.root = cache_folder() / "images"
        self.folder = self.root / hashlib.sha256(recipe.encode()).hexdigest()[:16]
        self.bound = bound
        self.full = False  # no room, or no leave to write: not tried again by this process
        self.sound: set[str] = set()  # whose check sum this process has seen or written
        # One row for each of several reading processes, in memory that they share
        self.tally = np.frombuffer(mmap.mmap(-1, 64 * 8 * len(COUNTS)), np.int64).reshape(64, -1)

    def count(self, what: str) -> None:
        self.tally[os.getpid() % 64, COUNTS.index(what)] += 1

    def counts(self) -> dict[str, int]:
        """How many images were found here, decoded, and could not be kept or were damaged."""
        return dict(zip(COUNTS, self.tally.sum(0).tolist(), strict=True))

    def path(self, name: str) -> Path:
        return self.folder / name[:2] / name

    def get(self, name: str) -> np.ndarray | None:
        """The image of that name: memory of this process, which it may write to. None where there is none."""
        try:
            with open(self.path(name), "rb", buffering=0) as file:
                if name in self.sound:
                    data: bytearray | mmap.mmap = mmap.mmap(
                        file.fileno(), 0, access=mmap.ACCESS_COPY
                    )
                else:
                    data = bytearray(file.read())  # a disk that fails raises here, and kills there
            image = unpacked(data, name in self.sound)
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            self.count("failed")
            return None
        self.sound.add(name)
        self.count("read")
        return image

    def put(self, name: str, image: np.ndarray) -> bool:
        """Keeps the image; whether it is now there."""
        self.count("decoded")
        if self.full:
            return False
        image = np.ascontiguousarray(image)
        path = self.path(name)
        temporary = path.with_name(f"{secrets.token_hex(8)}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not self.take(image.nbytes + FOOTER.size):
                self.full = True
                return False
            try:
                with open(temporary, "xb") as file:
                    file.write(image.data)
                    file.write(FOOTER.pack(MAGIC, *image.shape[:2], zlib.crc32(image.data)))
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError:  # full, read-only, gone
            self.full = True
            self.count("failed")
            return False
        self.sound.add(name)
        return True

    def take(self, size: int) -> bool:
        """Whether there is room for a file of `size` bytes, which is then taken."""
        if self.bound is None:
            self.bound = min(LARGEST, shutil.disk_usage(self.root).free // 10)
        ledger = os.open(self.root / "ledger", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            os.write(ledger, bytes(blocks(size)))
            return os.lseek(ledger, 0, os.SEEK_CUR) * BLOCK <= self.bound  # where the write ended
        finally:
            os.close(ledger)

    def prepare(self, wanted: Collection[str], size: int) -> None:
        """Counts what is there, and makes room for the images `wanted`, of about `size` bytes each.

        What was not used for longest goes first; what is wanted goes only where it is too much by itself.
        """
        with suppress(OSError):
            self.root.mkdir(parents=True, exist_ok=True)
            before = self.taken()
            mine = {str(self.path(name)) for name in wanted}
            held = sorted((path in mine, used, n, path) for path, used, n in self.held(mine))
            total = sum(n for _, _, n, _ in held)
            missing = (len(mine) - sum(own for own, *_ in held)) * blocks(size)
            if self.bound is None:
                free = shutil.disk_usage(self.root).free + total * BLOCK
                self.bound = min(LARGEST, free // 10)
            for own, _, n, path in held:
                if (total + (0 if own else missing)) * BLOCK <= self.bound:
                    break
                with suppress(FileNotFoundError):
                    os.unlink(path)
                total -= n
            # What others took meanwhile may have been seen or not: too much is safe
            os.truncate(self.root / "ledger", total + self.taken() - before)

    def held(self, mine: Collection[str]) -> Iterator[tuple[str, float, int]]:
        """Path, time of the last use to a day, and blocks of each file; what a kill left behind is removed."""
        now = time.time()
        for folder, _, names in os.walk(self.root):
            for path in (os.path.join(folder, name) for name in names if name != "ledger"):
                with suppress(FileNotFoundError):  # another process makes room as well
                    info = os.stat(path)
                    old = now - info.st_mtime > DAY
                    if old and path.endswith(".tmp"):
                        os.unlink(path)
                        continue
                    if old and path in mine:
                        os.utime(path)
                    yield path, info.st_mtime, blocks(info.st_size)

    def taken(self) -> int:
        """Blocks, by the ledger, which is made where it is missing."""
        ledger = self.root / "ledger"
        ledger.touch()
        return ledger.stat().st_size


def blocks(size: int) -> int:
    return -(-size // BLOCK)


def unpacked(data: bytearray | mmap.mmap, sound: bool) -> np.ndarray:
    """The image in the bytes of a file. Raises ValueError for anything else."""
    magic, height, width, check = FOOTER.unpack(data[-FOOTER.size :].ljust(FOOTER.size, b"\0"))
    if magic != MAGIC or len(data) != 3 * height * width + FOOTER.size:
        raise ValueError("not an image of the cache")
    image = np.frombuffer(data, np.uint8, 3 * height * width).reshape(height, width, 3)
    if not sound and zlib.crc32(image.data) != check:
        raise ValueError("a damaged image")
    return image
