"""`unpaired serve`: opens the socket, prints the address, and ends as it should."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import json
import os
import re
import secrets
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvicorn

from unpaired.data.intake import escape
from unpaired.errors import ConfigProblem, Problem
from unpaired.progress import say
from unpaired.serve.app import Studio
from unpaired.serve.connection import Connection
from unpaired.serve.guard import HOST, LOOPBACK, Access
from unpaired.serve.limits import LIMITS, Limits

TOKEN = "UNPAIRED_TOKEN"  # in the environment


def serve(args: argparse.Namespace) -> None:
    """Serves until it is stopped. Raises `Problem` for models that cannot be loaded and bad addresses."""
    for fd in range(
        3
    ):  # closed ones would be those of the first files and sockets, and the workers need them
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    files = name_models(args.runs)
    given = os.environ.get(TOKEN)
    if given is not None and len(given) < 16:
        raise ConfigProblem(f"{TOKEN} is too easy to guess: at least 16 characters.")
    if given is not None and not re.fullmatch("[!-~]([ -~]*[!-~])?", given):
        raise ConfigProblem(
            f"{TOKEN}: letters, digits and signs of ASCII, without a space at its ends; a header holds nothing else."
        )
    for name in args.allowed_host:
        if not (match := HOST.fullmatch(name.lower())) or match[1] != name.lower():
            raise ConfigProblem(
                f"--allowed-host {escape(name)}: a name or an address alone, without a port; xn--... for other letters."
            )
    bound = listen(args.host, args.port)
    host, port = bound.getsockname()[:2]
    address = ipaddress.ip_address(host.partition("%")[0])
    if not (address.is_loopback or given or args.token):
        bound.close()
        raise ConfigProblem(
            f"--host {args.host} lets others in: add --token, which makes one, or set {TOKEN}."
        )
    token = given or (secrets.token_hex(16) if args.token else None)
    access = Access(
        hosts=frozenset([*LOOPBACK, bracketed(address), *(h.lower() for h in args.allowed_host)]),
        literals=address.is_unspecified,
        token=token,
    )
    shown = "localhost" if address.is_unspecified else bracketed(address)
    say(f"Loading {', '.join(map(escape, files))} ...")
    run(
        files,
        access,
        bound,
        f"http://{shown}:{port}/" + (f"#token={token}" if token and not given else ""),
    )


def run(
    files: dict[str, Path],
    access: Access,
    bound: socket.socket,
    address: str,
    limits: Limits = LIMITS,
    **workers: Sequence[str],
) -> None:
    """Serves the models in `files`, which stay those that they are now, whatever becomes of the files.

    workers: `painter` and `decoder`, modules with their arguments to run in place of ours.
    """
    opened = {name: os.open(path, os.O_RDONLY | os.O_CLOEXEC) for name, path in files.items()}
    try:
        asyncio.run(live(opened, files, access, bound, address, limits, workers))
    finally:
        for fd in opened.values():
            os.close(fd)


async def live(
    opened: dict[str, int],
    files: dict[str, Path],
    access: Access,
    bound: socket.socket,
    address: str,
    limits: Limits,
    workers: dict[str, Sequence[str]],
) -> None:
    paths = {name: (f"/dev/fd/{fd}", escape(files[name])) for name, fd in opened.items()}
    studio = Studio(paths, [*opened.values()], limits, **workers)
    config = uvicorn.Config(
        studio.app(access),
        http=type("Limited", (Connection,), {"limits": limits}),
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=int(limits.drain_seconds),
    )
    server = Server(config)

    async def greet() -> None:
        await studio.settled.wait()
        if studio.problem:
            server.should_exit = True
        else:
            say(f"Studio: {address}   (Ctrl-C ends it)")

    greeting = asyncio.create_task(greet())
    await server.serve(sockets=[bound])
    greeting.cancel()
    if studio.problem and not studio.models:
        problem = Problem(studio.problem[0])
        problem.exit_code = studio.problem[1]
        raise problem


class Server(uvicorn.Server):
    """The second signal of any kind ends it at once."""

    def handle_exit(self, sig: int, frame: Any) -> None:
        if self.should_exit:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        super().handle_exit(sig, frame)


def without_model(run: Path) -> str | None:
    """Why a run holds no model; None where it is no run."""
    with suppress(OSError, ValueError, AttributeError):
        status = json.loads((run / "status.json").read_bytes())
        return escape(str(status.get("reason") or "it has not saved yet"))
    return None


def name_models(runs: Sequence[Path]) -> dict[str, Path]:
    """The model files, by names that fit an address: of the run's folder, or of the file."""
    files: dict[str, Path] = {}
    for run in runs:
        file = run / "model.safetensors" if run.is_dir() else run
        if not file.is_file():
            if reason := without_model(run):
                raise ConfigProblem(f"The run in {escape(run)} holds no model so far: {reason}")
            raise ConfigProblem(
                f"{escape(run)} is not a run: there is no {escape(file)}; name a folder made by `unpaired train`."
            )
        own = re.sub("[^A-Za-z0-9._-]+", "-", run.resolve().name.removesuffix(".safetensors"))
        own = re.sub("^[^A-Za-z0-9]+|-+$", "", own)[:60] or "model"
        name, n = own, 2
        while name in files:
            name, n = f"{own}-{n}", n + 1
        files[name] = file
    return files


def listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind)
    except (OSError, UnicodeError):
        raise ConfigProblem(f"--host {escape(host)}: there is no such address here.") from None
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
        bound.listen(512)
    except OSError as error:
        bound.close()
        raise ConfigProblem(
            f"{escape(host)}, port {port}: {error.strerror}: name another by --port (0 finds one) or --host."
        ) from None
    return bound


def bracketed(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    return f"[{address}]" if address.version == 6 else str(address)
