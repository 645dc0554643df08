"""HTTP/1.1 on a socket: uvicorn's protocol with what it lacks, deadlines, a cap on connections and stricter lines."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import h11
from h11._receivebuffer import ReceiveBuffer
from uvicorn.protocols.http.h11_impl import H11Protocol

from unpaired.serve.limits import LIMITS, Limits

LOOSE = re.compile(
    rb"(?<!\r)\n|\n[ \t]"
)  # a line that ends without \r, or that goes on in the next


class StrictLines(ReceiveBuffer):
    """Refuses what two programs could read as different requests."""

    def maybe_extract_lines(self) -> list[bytearray] | None:
        before = bytes(self._data)
        lines: list[bytearray] | None = super().maybe_extract_lines()
        if lines is not None and LOOSE.search(before, 0, len(before) - len(self._data)):
            raise h11.LocalProtocolError("a bare line feed or a folded header")
        return lines


class Connection(H11Protocol):
    """A client has `head_seconds` to send its headers, and `send_seconds` between taking parts of an answer."""

    limits: Limits = LIMITS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn._receive_buffer = StrictLines()
        self.since = 0.0
        self.heading: asyncio.TimerHandle | None = None
        self.stalled: asyncio.TimerHandle | None = None

    @property
    def busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if len(self.connections) >= self.limits.connections:
            idle = [c for c in self.connections if isinstance(c, Connection) and not c.busy]
            if not idle:
                transport.abort()
                return
            oldest = min(idle, key=lambda c: c.since)
            self.connections.discard(oldest)  # at once: many may come before it is told
            oldest.transport.abort()
        self.since = self.loop.time()
        super().connection_made(transport)
        self.watch()

    def data_received(self, data: bytes) -> None:
        if self.transport is None or self.transport.is_closing():
            return
        super().data_received(data)
        if self.busy and self.stalled and not self.flow.write_paused:
            self.stalled.cancel()  # of the last answer: this one has its own time
            self.stalled = None
        self.watch()

    def watch(self) -> None:
        """Between requests the time for the next one's headers runs, from their first byte or the connection on."""
        if self.busy and self.heading:
            self.heading.cancel()
            self.heading = None
        elif not self.busy and not self.heading:
            self.heading = self.loop.call_later(self.limits.head_seconds, self.too_slow)

    def too_slow(self) -> None:
        self.heading = None
        if not self.busy:
            self.transport.close()
            self.stall()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.since = self.loop.time()
        self.stall()

    def stall(self) -> None:
        """What was written last must be taken as well, also of a connection that is being closed."""
        if not self.stalled and self.transport.get_write_buffer_size():
            self.stalled = self.loop.call_later(self.limits.send_seconds, self.not_taken)

    def not_taken(self) -> None:
        self.stalled = None
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.stall()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.stalled:
            self.stalled.cancel()
            self.stalled = None

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self.heading, self.stalled):
            if timer:
                timer.cancel()
        if self.transport is not None:
            super().connection_lost(exc)
