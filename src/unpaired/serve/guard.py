"""What every request passes before its body is read, and what every answer carries.

A server on this machine can be reached by every web page that its owner visits, and under any name that somebody makes
point here. So the Host must be one of ours, and the Origin must be the Host.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
import sys
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unpaired.data.intake import escape
from unpaired.serve.answers import ClientGone, Refusal
from unpaired.serve.limits import LIMITS, Limits

HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::\d{1,5})?")
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
ADDRESSES = 10_000  # whose failures are remembered
GONE = 499  # in the log, for a client that did not wait
SLICE = 1 << 16  # bytes of an answer that are handed over at once
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


@dataclass
class Access:
    """Who may ask: under which names of this server, and with which token.

    hosts: names and addresses, lower case, IPv6 in brackets. literals: any address besides; no name can be made to
    point at us through one. token: None where there is none.
    """

    hosts: frozenset[str] = frozenset(LOOPBACK)
    literals: bool = False
    token: str | None = None
    failures: int = LIMITS.failures
    tries: dict[str, deque[float]] = field(default_factory=dict)

    def knows(self, host: str) -> bool:
        """Whether a Host header, with or without a port, is one of ours."""
        match = HOST.fullmatch(host.lower())
        if not match:
            return False
        return match[1] in self.hosts or (self.literals and literal(match[1]))

    def check_token(self, client: str, given: str | None) -> None:
        """Raises a refusal for a wrong one, and for any of an address that has tried too many."""
        if self.token is None:
            return
        tries = self.tries.get(client, deque())
        now = time.monotonic()
        while tries and tries[0] < now - 60:
            tries.popleft()
        if len(tries) >= self.failures:
            raise Refusal(
                "too_many_failures",
                "Too many wrong tokens: wait a minute.",
                {"retry-after": "60"},
            )
        scheme, _, token = (given or "").partition(" ")
        if scheme.lower() == "bearer" and same(token, self.token):
            return
        if given is not None:  # asking without one is how the page finds out
            tries.append(now)
            if len(self.tries) >= ADDRESSES:
                self.tries.pop(next(iter(self.tries)))
            self.tries[client] = tries
        raise Refusal(
            "token_needed",
            "This server needs its token: send it as `Authorization: Bearer TOKEN`.",
            {"www-authenticate": "Bearer"},
        )


def same(a: str, b: str) -> bool:
    """Whether two secrets are equal, in a time that tells neither where they differ nor how long they are."""
    digests = (hashlib.sha256(s.encode("utf-8", "surrogateescape")).digest() for s in (a, b))
    return hmac.compare_digest(*digests)


def literal(host: str) -> bool:
    """Whether this is an address in its usual form: not 0, not 2130706433."""
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return host == (f"[{address}]" if address.version == 6 else str(address))


class Guard:
    """ASGI middleware around the app. `open_paths` need no token."""

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        open_paths: frozenset[str] = frozenset(),
        limits: Limits = LIMITS,
        log: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
    ) -> None:
        self.app, self.access, self.open_paths, self.limits = app, access, open_paths, limits
        self.log = log
        self.statuses: Counter[int] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, request_id = time.monotonic(), secrets.token_hex(8)
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = {**HEADERS, "x-request-id": request_id}
                headers = [(k.encode(), v.encode()) for k, v in own.items()]
                message = {**message, "headers": [*message["headers"], *headers]}
            elif len(body := message.get("body", b"")) > SLICE:  # a slow reader fills no memory
                for at in range(0, len(body), SLICE):
                    more = at + SLICE < len(body) or message.get("more_body", False)
                    await send({**message, "body": body[at : at + SLICE], "more_body": more})
                return
            await send(message)

        try:
            scope.setdefault("state", {})["request_id"] = request_id
            self.check(scope)
            await self.app(scope, receive, answer)
        except Refusal as refusal:  # before the body was read: what follows is no new request
            refusal.headers["connection"] = "close"
            await refusal.response(request_id)(scope, receive, answer)
        except ClientGone:
            status = GONE
        except Exception:
            self.log(f"{request_id} {traceback.format_exc()}")
            if not status:
                await Refusal("internal").response(request_id)(scope, receive, answer)
        finally:
            self.statuses[status] += 1
            if scope["path"] not in ("/livez", "/readyz"):
                client, path = (scope["client"] or ("-",))[0], escape(scope["path"])
                took = time.monotonic() - begun
                self.log(f"{request_id} {client} {scope['method']} {path} {status} {took:.3f} s")

    def check(self, scope: Scope) -> None:
        """Raises a `Refusal`."""
        headers = scope["headers"]
        self.check_framing(scope)
        hosts = [value for name, value in headers if name == b"host"]
        if len(hosts) != 1:
            raise Refusal("bad_http", "One Host header is needed.")
        host = hosts[0].decode("latin-1")
        if not self.access.knows(host):
            raise Refusal(
                "wrong_host",
                "This server does not answer under that name: start it with --allowed-host NAME.",
            )
        origins = [value.decode("latin-1") for name, value in headers if name == b"origin"]
        site = next((value for name, value in headers if name == b"sec-fetch-site"), b"")
        reads = scope["method"] in ("GET", "HEAD")
        if any(
            o.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()) for o in origins
        ) or (site == b"cross-site" and not reads):
            raise Refusal("foreign_origin", "Another site may not use this server.")
        if scope["method"] not in ("GET", "HEAD", "POST"):
            raise Refusal("wrong_method", "Use GET or POST.", {"allow": "GET, HEAD, POST"})
        if scope["path"] not in self.open_paths:
            given = next((v.decode("latin-1") for n, v in headers if n == b"authorization"), None)
            self.access.check_token((scope["client"] or ("-",))[0], given)

    def check_framing(self, scope: Scope) -> None:
        headers, limits = scope["headers"], self.limits
        if len(headers) > limits.headers or sum(len(n) + len(v) for n, v in headers) > limits.head:
            raise Refusal("head_too_long", "The headers are too many or too long.")
        if (
            len(scope["raw_path"]) > limits.head // 8
            or len(scope["query_string"]) > limits.head // 8
        ):
            raise Refusal("path_too_long", "The address is too long.")
        if not scope["path"].startswith("/"):
            raise Refusal("bad_http", "The path must begin with a slash.")
        lengths = [value for name, value in headers if name == b"content-length"]
        coded = any(name == b"transfer-encoding" for name, _ in headers)
        if coded and lengths:
            raise Refusal("bad_http", "Content-Length and Transfer-Encoding exclude each other.")
        if any(n == b"content-encoding" and v.lower() != b"identity" for n, v in headers):
            raise Refusal("unsupported_format", "Send the body as it is, without Content-Encoding.")
        if coded:
            raise Refusal("length_needed", "Send the body whole, with its Content-Length.")
        if lengths and int(lengths[0]) > limits.body:  # its digits were checked by the parser
            raise Refusal(
                "too_many_bytes",
                f"The request is larger than {limits.body:,} bytes: send smaller images.",
            )
