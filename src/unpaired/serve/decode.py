"""The worker that turns the bytes of strangers into pixels, with little memory, and no models to lose.

A decoder that crashes or hangs on a file takes this process with it; the server starts another.
"""

from __future__ import annotations

import resource
from contextlib import suppress

from unpaired.data.intake import SERVE, BadImage, examine
from unpaired.serve.messages import Header, Message, channel, say, work

MEMORY = 2 << 30  # bytes of addresses


def handle(ask: Header, blobs: list[bytes]) -> Message:
    """One image -> its pixels (H, W, 3) uint8, or why not."""
    try:
        pixels, _ = examine(blobs[0], SERVE)
    except BadImage as bad:
        return {"refused": bad.code, "message": f"The {ask['field']}: {bad.reason}."}, []
    return {"shape": pixels.shape}, [pixels.tobytes()]


def main() -> None:
    source, out = channel()
    with suppress(ValueError, OSError):  # where the system has a lower limit already
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    say(out, {"ready": True})
    work(source, out, handle)


if __name__ == "__main__":
    main()
