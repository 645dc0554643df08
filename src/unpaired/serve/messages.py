"""What the server and its workers say to each other: a header in JSON and raw bytes. No pickle: a worker that reads the
files of strangers may have been taken over by one."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import struct
import sys
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

LENGTH = struct.Struct("<I")
HEADER_BYTES = 1 << 24
TOTAL_BYTES = 1 << 30
SLICE = 1 << 18

Header = dict[str, Any]
Message = tuple[Header, list[bytes]]


def packed(header: Header, blobs: Sequence[bytes] = ()) -> list[bytes]:
    """Length of the header, header, blobs; the header says how long those are."""
    text = json.dumps(header | {"blobs": [len(b) for b in blobs]}, allow_nan=False).encode()
    return [LENGTH.pack(len(text)), text, *blobs]


def parsed(text: bytes) -> tuple[Header, list[int]]:
    header = json.loads(text)
    sizes = header.pop("blobs")
    if sum(sizes) > TOTAL_BYTES or min(sizes, default=0) < 0:
        raise ValueError(f"a message of {sum(sizes):,} bytes")
    return header, sizes


def length(data: bytes) -> int:
    (n,) = LENGTH.unpack(data)
    if n > HEADER_BYTES:
        raise ValueError(f"a header of {n:,} bytes")
    return int(n)


# The server's side


async def send(writer: StreamWriter, header: Header, blobs: Sequence[bytes] = ()) -> None:
    for part in packed(header, blobs):
        view = memoryview(part)
        for at in range(0, len(part), SLICE):  # what is handed over at once is copied
            writer.write(view[at : at + SLICE])
            await writer.drain()


async def receive(reader: StreamReader) -> Message:
    """Raises `IncompleteReadError` when the worker is gone, and `ValueError` for what is no message."""
    n = length(await reader.readexactly(LENGTH.size))
    header, sizes = parsed(await reader.readexactly(n))
    return header, [await reader.readexactly(size) for size in sizes]


# The worker's side

Handler = Callable[[Header, list[bytes]], Message]


def channel() -> tuple[BinaryIO, BinaryIO]:
    """Where messages come from and go to; whatever prints to the standard output prints to the standard error."""
    if sys.platform == "linux":  # a worker that hangs would outlive a server that was killed
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return sys.stdin.buffer, out


def work(source: BinaryIO, out: BinaryIO, handle: Handler) -> None:
    """Answers message after message until the server closes the pipe."""
    while head := source.read(LENGTH.size):
        header, sizes = parsed(source.read(length(head)))
        say(out, *handle(header, [source.read(size) for size in sizes]))


def say(out: BinaryIO, header: Header, blobs: Sequence[bytes] = ()) -> None:
    out.writelines(packed(header, blobs))
    out.flush()
