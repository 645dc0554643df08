"""`unpaired serve` under ten times the load that it can bear: what gets done, how soon, how fast the rest is refused.

    python benchmarks/serve.py                   # 60 seconds of overload, by a MUNIT at 64 px: two minutes

Requests come at their times, whether earlier ones are answered or not, from four addresses of this machine. The load is
made on the same cores that serve. Capacity is what one client that waits for each answer gets done.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from running import table
from translate import model

from unpaired.data.scenes import Scenes


class Answer(NamedTuple):
    status: int
    seconds: float
    ended: float


async def ask(port: int, request: bytes, client: int = 1) -> Answer:
    """One request on a connection of its own; status 0 where none comes back."""
    begun = time.monotonic()
    try:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, local_addr=(f"127.0.0.{client}", 0)
        )
        writer.write(request)
        reply = await reader.read()
        writer.close()
        status = int(reply.split(b" ", 2)[1]) if reply else 0
    except OSError:
        status = 0
    now = time.monotonic()
    return Answer(status, now - begun, now)


def requests(port: int, side: int) -> tuple[bytes, bytes]:
    """A request with an image, and one for health."""
    file = io.BytesIO()
    Image.fromarray(Scenes("outline", (side, side), "test", 0, 1)[0].image).save(file, "PNG")
    part = "--b\r\nContent-Disposition: form-data; name="
    body = f'{part}"to"\r\n\r\nb\r\n{part}"image"; filename="x.png"\r\n\r\n'.encode()
    body += file.getvalue() + b"\r\n--b--\r\n"
    head = f"Host: 127.0.0.1:{port}\r\nConnection: close\r\n"
    post = (
        f"POST /v1/models/model/translate HTTP/1.1\r\n{head}Content-Type: multipart/form-data; boundary=b\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return post.encode() + body, f"GET /livez HTTP/1.1\r\n{head}\r\n".encode()


async def every(period: float, seconds: float, make: Callable[[int], asyncio.Task]) -> list[Answer]:
    """What comes of a request each `period`, at its time."""
    begun, tasks = time.monotonic(), []
    for i in range(int(seconds / period)):
        await asyncio.sleep(begun + i * period - time.monotonic())
        tasks.append(make(i))
    return list(await asyncio.gather(*tasks))


async def measure(port: int, pid: int, side: int, times: float, seconds: float) -> str:
    post, health = requests(port, side)
    alone = [await ask(port, post) for _ in range(40)][10:]
    assert {a.status for a in alone} == {200}, "the server does not answer"
    service = statistics.median(a.seconds for a in alone)
    memory = rss(pid)
    begun = time.monotonic()
    run = asyncio.create_task
    answers, healths = await asyncio.gather(
        every(service / times, seconds, lambda i: run(ask(port, post, 1 + i % 4))),
        every(0.1, seconds, lambda i: run(ask(port, health, 9))),
    )
    grown = rss(pid) / memory - 1
    after = time.monotonic()
    while (await ask(port, post)).seconds > 2 * service:
        pass
    recovered = time.monotonic() - after
    done = [a for a in answers if a.status == 200]
    goodput = sum(a.ended < begun + seconds for a in done) / seconds * service
    others = {a.status for a in answers} - {200, 503}
    rows = [
        ("one request alone", f"{service * 1e3:.0f} ms", ""),
        ("offered", f"{len(answers)} requests in {seconds:g} s", ""),
        ("answered, of capacity", f"{goodput:.0%}", "at least 90%"),
        ("answered: half within, 99% within", f"{latency(done)}", f"{18 * service * 1e3:.0f} ms"),
        ("refused (503): 99% within", latency([a for a in answers if a.status == 503]), "50 ms"),
        ("`/livez`: 99% within", latency(healths), "100 ms"),
        ("other answers", str(sorted(others) or "none"), "none"),
        ("as quick as before after", f"{recovered:.1f} s", "2 s"),
        ("memory of the server", f"{grown:+.1%}", ""),
    ]
    return table(["", "measured", "bar"], rows)


def latency(answers: Sequence[Answer]) -> str:
    times = sorted(a.seconds for a in answers)
    if not times:
        return "none"
    return f"{times[len(times) // 2] * 1e3:.0f}, {times[len(times) * 99 // 100] * 1e3:.0f} ms"


def rss(pid: int) -> int:
    """Bytes that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=64, help="of the images (default 64)")
    parser.add_argument("--dim", type=int, default=32, help="of the networks (default 32)")
    parser.add_argument("--times", type=float, default=10, help="capacity (default 10)")
    parser.add_argument("--seconds", type=float, default=60)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        model(file, args.size, args.dim)
        command = [sys.executable, "-m", "unpaired", "serve", str(file), "--port", "0"]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as server:
            try:
                assert server.stdout
                said = next(line for line in server.stdout if "Studio" in line)
                port = int(re.findall(r":(\d+)/", said)[0])
                print(asyncio.run(measure(port, server.pid, args.size, args.times, args.seconds)))
            finally:
                server.terminate()


if __name__ == "__main__":
    main()
