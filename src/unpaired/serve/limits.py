"""How much of everything a server takes; docs/serve.md lists these."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes or pixels, times in seconds."""

    body: int = 20_000_000  # of a request: the image and the reference together
    field: int = 65_536  # of a form's text, such as a style
    head: int = (
        16_384  # of a request's headers together; its path and query take an eighth of that at most
    )
    headers: int = 100
    connections: int = 256  # beyond these the one that idles longest is closed

    admitted: int = 16  # requests with an image that are read, wait or run at once ...
    share: int = 8  # ... and of those one client's
    decoded: int = 1 << 27  # pixels that wait decoded
    work: int = 1 << 20  # pixels of an image as the model sees it
    output: int = 1 << 23  # pixels of all results of a request
    styles: int = 16  # results of a request

    head_seconds: float = 10  # for a request's headers to arrive
    body_seconds: float = 30  # for its body
    send_seconds: float = 30  # without the reader taking anything of an answer
    send_rate: float = 100_000  # bytes a second at which it takes it
    decode_seconds: float = 5
    queue_seconds: float = 60
    paint_seconds: float = 120
    drain_seconds: float = 30  # to finish what was accepted, at the end

    failures: int = 20  # wrong tokens of an address in a minute


LIMITS = Limits()
STYLE_BOUND = 1e4  # of a style's numbers
SEEDS = 2**62
EXAMPLES = 1000  # of a domain
