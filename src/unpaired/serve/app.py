"""The routes.

    GET  /                               the studio, a page that needs nothing from elsewhere
    GET  /livez /readyz /metrics         for whoever watches over the server
    GET  /v1/models                      what there is, and what it can do
    GET  /v1/models/NAME/styles?to=D     how random styles of a domain are spread
    GET  /v1/models/NAME/example?domain=D&index=I    a built-in scene, where the model learned from such
    POST /v1/models/NAME/translate       an image, a form -> images

Nothing is kept of a request, and no address is fetched for one.
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
import re
import time
from asyncio import FIRST_COMPLETED
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from python_multipart.multipart import parse_options_header
from starlette.applications import Starlette
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from unpaired.errors import DataProblem
from unpaired.serve.answers import SENTENCES, STATUS, ClientGone, Refusal
from unpaired.serve.guard import Access, Guard
from unpaired.serve.limits import EXAMPLES, LIMITS, SEEDS, STYLE_BOUND, Limits
from unpaired.serve.messages import Header
from unpaired.serve.workers import Lost, TooLong, Worker

STATIC = Path(__file__).with_name("static")
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
FILES = ("image", "reference")
PNG = "image/png"


class Fields(BaseModel):
    """The texts of a form beside its images."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    to: str = Field(max_length=300)
    source: str | None = Field(None, max_length=300)
    styles: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=0, lt=SEEDS)
    style: list[list[float]] | None = None
    size: int | None = Field(None, ge=1, le=100_000)

    @field_validator("style", mode="before")
    @classmethod
    def numbers(cls, text: str) -> list[list[float]]:
        return parse_style(text)


def parse_style(text: str) -> list[list[float]]:
    """One style, a list of numbers, or a list of such lists; in JSON. Raises `ValueError`."""

    def no(word: str) -> None:
        raise ValueError(f"{word} is no number of a style")

    try:
        found = json.loads(text, parse_constant=no)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if isinstance(found, list) and not any(isinstance(f, list) for f in found):
        found = [found]
    if not isinstance(found, list) or not found or not all(isinstance(f, list) for f in found):
        raise ValueError("it must be a list of numbers, or a list of such lists")
    for style in found:
        if not style or len(style) != len(found[0]):
            raise ValueError("every style must have as many numbers")
        if not all(type(v) in (int, float) and abs(v) <= STYLE_BOUND for v in style):
            raise ValueError(f"every number must lie between -{STYLE_BOUND:g} and {STYLE_BOUND:g}")
    return [[float(v) for v in style] for style in found]


class Studio:
    """The state of a server: its workers, and who has been admitted.

    files: of the models, by name: a path that the worker can open, and how to call it. fds: open files that these
    paths mean.
    """

    def __init__(
        self,
        files: Mapping[str, tuple[str, str]],
        fds: Sequence[int] = (),
        limits: Limits = LIMITS,
        painter: Sequence[str] = ("unpaired.serve.paint",),
        decoder: Sequence[str] = ("unpaired.serve.decode",),
    ) -> None:
        self.limits = limits
        self.models: dict[str, Header] = {}
        self.problem: tuple[str, int] | None = None  # why the models cannot be loaded
        self.settled = asyncio.Event()  # they are loaded, or cannot be
        command = (*painter, json.dumps(dict(files)))
        self.painter = Worker(
            command, limits.paint_seconds, fds, hello=self.loaded, hopeless=self.hopeless
        )
        self.decoder = Worker(decoder, limits.decode_seconds, threads=1)
        self.clients: Counter[str] = Counter()
        self.decoded = 0  # pixels
        self.pace = 1.0  # seconds that translating takes, about
        self.refusals: Counter[str] = Counter()

    async def loaded(self, hello: Header) -> None:
        if "problem" in hello:
            self.problem = hello["problem"], hello["exit_code"]
            self.settled.set()
            raise ConnectionError(hello["problem"])
        self.models = {about["name"]: about for about in hello["models"]}
        self.settled.set()

    def hopeless(self) -> None:
        self.problem = (
            "The models cannot be loaded: the lines above say why.",
            DataProblem.exit_code,
        )
        self.settled.set()

    @asynccontextmanager
    async def alive(self, app: Starlette) -> AsyncIterator[None]:
        self.painter.start()
        self.decoder.start()
        try:
            yield
        finally:
            await self.painter.stop()
            await self.decoder.stop()

    @property
    def ready(self) -> bool:
        return self.painter.ready and self.decoder.ready

    @property
    def later(self) -> dict[str, str]:
        """When to come again: as long as what is there will take, within half a minute."""
        seconds = math.ceil(self.pace * (1 + self.clients.total()))
        return {"retry-after": str(min(30, max(1, seconds)))}

    @contextmanager
    def admitted(self, client: str) -> Iterator[None]:
        if (
            self.clients.total() >= self.limits.admitted
            or self.clients[client] >= self.limits.share
        ):
            raise Refusal("busy", "Too many images are waiting: try again.", self.later)
        self.clients[client] += 1
        try:
            yield
        finally:
            self.clients[client] -= 1
            self.clients += Counter()  # forgets those who have none

    async def ask(
        self, worker: Worker, header: Header, blobs: Sequence[bytes]
    ) -> tuple[Header, list[bytes]]:
        """A worker's answer; its refusals are raised."""
        try:
            answer, found = await worker.call(header, blobs, self.limits.queue_seconds)
        except Lost:
            raise Refusal(
                "worker_died", "The work on this was lost: try again.", self.later
            ) from None
        except TooLong:
            raise Refusal("took_too_long", "This takes longer than it may here.") from None
        except TimeoutError:
            raise Refusal("waited_too_long", "Its turn did not come in time: try again.") from None
        if code := answer.get("refused"):
            later = self.later if STATUS[code] == 503 else None
            raise Refusal(code, answer["message"] or SENTENCES[code], later)
        return answer, found

    async def pixels(self, field: str, data: bytes) -> tuple[list[int], bytes]:
        """(shape, bytes) of an image."""
        try:
            answer, (raw,) = await self.ask(self.decoder, {"field": field}, [data])
        except Refusal as refusal:
            if refusal.code in ("took_too_long", "worker_died"):  # of this image, as far as we know
                message = f"The {field} cannot be decoded: save it anew by another program."
                raise Refusal("undecodable_image", message) from None
            raise
        return answer["shape"], raw

    @contextmanager
    def held(self, pixels: int) -> Iterator[None]:
        if self.decoded + pixels > self.limits.decoded:
            raise Refusal("busy", "Too many large images are waiting: try again.", self.later)
        self.decoded += pixels
        try:
            yield
        finally:
            self.decoded -= pixels

    # The routes ----------------------------------------------------------------------------------

    async def live(self, request: Request) -> Response:
        return JSONResponse({"live": True})

    async def is_ready(self, request: Request) -> Response:
        return JSONResponse({"ready": self.ready}, 200 if self.ready else 503)

    async def list_models(self, request: Request) -> Response:
        self.check_loaded()
        no_query(request)
        return JSONResponse({"models": list(self.models.values())})

    async def styles(self, request: Request) -> Response:
        model = self.model(request)
        if [name for name, _ in request.query_params.multi_items()] != ["to"]:
            raise Refusal("bad_request", "Say one domain, as in ?to=DOMAIN, and nothing else.")
        to = domain(model, request.query_params["to"])
        with self.admitted(client(request)):
            work = self.ask(self.painter, {"verb": "styles", "model": model["name"], "to": to}, [])
            answer, _ = await unless_gone(request, work)
        return JSONResponse(answer)

    async def example(self, request: Request) -> Response:
        model, query = self.model(request), dict(request.query_params.multi_items())
        index = query.pop("index", "")
        if query.keys() != {"domain"} or not re.fullmatch("[0-9]{1,9}", index):
            raise Refusal("bad_request", "Say which, as in ?domain=DOMAIN&index=7.")
        ask = {"verb": "example", "model": model["name"], "index": int(index) % EXAMPLES}
        with self.admitted(client(request)):
            work = self.ask(self.painter, ask | query, [])
            _, (png,) = await unless_gone(request, work)
        return Response(png, media_type=PNG)

    async def translate(self, request: Request) -> ASGIApp:
        model = self.model(request)
        kind, options = parse_options_header(request.headers.get("content-type"))
        if kind.lower() != b"multipart/form-data":
            raise Refusal(
                "unsupported_format",
                "Send a form, multipart/form-data, with the file `image` and the field `to`.",
            )
        boundary = options.get(b"boundary", b"")
        if not 1 <= len(boundary) <= 70:
            raise Refusal("bad_form", "The form needs a boundary of 1 to 70 characters.")
        no_query(request)
        with ExitStack() as place:
            place.enter_context(self.admitted(client(request)))
            form = await read_form(request, boundary, self.limits)
            try:
                ask, files = checked(form, model, self.limits, wants_png(request))
            finally:
                await form.close()
            answer, images = await unless_gone(request, self.work(ask, files))
            response = result(answer, images, model["name"], wants_png(request))
            return sent_within(place.pop_all(), response, self.limits)

    async def work(self, ask: Header, files: Mapping[str, bytes]) -> tuple[Header, list[bytes]]:
        shapes, raws = [], []
        with ExitStack() as memory:
            for field, data in files.items():
                shape, raw = await self.pixels(field, data)
                memory.enter_context(self.held(len(raw) // 3))
                shapes.append(shape)
                raws.append(raw)
            begun = time.monotonic()
            found = await self.ask(self.painter, ask | {"shapes": shapes}, raws)
            took = time.monotonic() - begun
        self.pace += 0.2 * (took / max(1, self.clients.total()) - self.pace)
        return found

    def model(self, request: Request) -> Header:
        self.check_loaded()
        name = request.path_params["name"]
        if name not in self.models:
            raise Refusal("not_found", "There is no such model: /v1/models lists those that are.")
        return self.models[name]

    def check_loaded(self) -> None:
        if not self.ready:
            raise Refusal("loading", "The models are being loaded.", {"retry-after": "2"})

    def app(self, access: Access) -> Guard:
        """The whole of it as an ASGI application."""
        pages = {f"/static/{p.name}": page(p) for p in sorted(STATIC.iterdir())}
        pages["/"] = page(STATIC / "studio.html")

        async def static(request: Request) -> Response:
            return pages[request.url.path]

        routes = [
            *(Route(path, static) for path in pages),
            Route("/livez", self.live),
            Route("/readyz", self.is_ready),
            Route("/metrics", self.metrics),
            Route("/v1/models", self.list_models),
            Route("/v1/models/{name}/styles", self.styles),
            Route("/v1/models/{name}/example", self.example),
            Route("/v1/models/{name}/translate", self.translate, methods=["POST"]),
        ]
        app = Starlette(
            routes=routes,
            lifespan=self.alive,
            exception_handlers={Refusal: self.refused, HTTPException: self.refused},
        )
        app.router.redirect_slashes = False
        self.guard = Guard(app, access, frozenset(pages) | {"/livez", "/readyz"}, self.limits)
        return self.guard

    async def refused(self, request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):  # of the router
            wrong = error.status_code == 405
            error = (
                Refusal("wrong_method", "This address takes another method.", error.headers)
                if wrong
                else Refusal("not_found", "There is nothing here.")
            )
        assert isinstance(error, Refusal)
        self.refusals[error.code] += 1
        return error.response(request.state.request_id)

    async def metrics(self, request: Request) -> Response:
        """In the text format of Prometheus."""
        lines = [
            "# TYPE unpaired_responses_total counter",
            *(
                f'unpaired_responses_total{{status="{status}"}} {n}'
                for status, n in sorted(self.guard.statuses.items())
            ),
            "# TYPE unpaired_refusals_total counter",
            *(
                f'unpaired_refusals_total{{code="{c}"}} {n}'
                for c, n in sorted(self.refusals.items())
            ),
            "# TYPE unpaired_admitted gauge",
            f"unpaired_admitted {self.clients.total()}",
            "# TYPE unpaired_worker_starts_total counter",
            *(
                f'unpaired_worker_starts_total{{worker="{name}"}} {worker.starts}'
                for name, worker in (("painter", self.painter), ("decoder", self.decoder))
            ),
            "# TYPE unpaired_ready gauge",
            f"unpaired_ready {int(self.ready)}",
        ]
        return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")


def page(path: Path) -> Response:
    return Response(path.read_bytes(), media_type=KINDS[path.suffix])


def sent_within(place: ExitStack, response: Response, limits: Limits) -> ASGIApp:
    """`response`, with a place that is left when it was taken: until then it is in memory, but not for ever."""
    seconds = limits.send_seconds + len(response.body) / limits.send_rate

    async def send_it(scope: Scope, receive: Receive, send: Send) -> None:
        with place:
            try:
                async with asyncio.timeout(seconds):
                    await response(scope, receive, send)
            except TimeoutError:
                raise ClientGone from None

    return send_it


def client(request: Request) -> str:
    return request.client.host if request.client else "-"


def no_query(request: Request) -> None:
    if request.url.query:
        raise Refusal("bad_request", "This address takes no query: send fields of the form.")


def wants_png(request: Request) -> bool:
    return request.headers.get("accept", "").partition(";")[0].strip().lower() == PNG


async def unless_gone(request: Request, work: Any) -> Any:
    """What `work` gives, unless its client goes; then it is given up."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, going = asyncio.create_task(work), asyncio.create_task(gone())
    try:
        await asyncio.wait({working, going}, return_when=FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        working.cancel()
        going.cancel()


async def read_form(request: Request, boundary: bytes, limits: Limits) -> FormData:
    """A form whose files stay in memory; the guard has seen how long it is. Raises `Refusal` for what is none, for one
    with much beside it, and for one that comes slowly."""
    mark = b"--" + boundary
    first = last = b""

    async def parts() -> AsyncGenerator[bytes, None]:
        nonlocal first, last
        more = True
        while more:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            data, more = message.get("body", b""), message.get("more_body", False)
            if len(first) < len(mark):
                first += data[: len(mark)]
                if not mark.startswith(first[: len(mark)]):
                    raise MultiPartException("it does not begin with its boundary")
            last = (last + data)[-len(mark) - 8 :]
            yield data

    parser = MultiPartParser(
        request.headers, parts(), max_files=4, max_fields=16, max_part_size=limits.field
    )
    parser.spool_max_size = limits.body + 1
    try:
        async with asyncio.timeout(limits.body_seconds):
            form = await parser.parse()
    except TimeoutError:
        close = {"connection": "close"}
        raise Refusal("too_slow", "The body did not come in time.", close) from None
    except (MultiPartException, ValueError) as error:
        reason = getattr(error, "message", "") or "it cannot be parsed"
        text = f"The form is damaged or too large ({reason.rstrip('.')})."
        raise Refusal("bad_form", text) from None
    if not first:
        raise Refusal("bad_request", "The body is empty: send the file `image` and the field `to`.")
    if not last.rstrip(b"\r\n").endswith(mark + b"--"):
        raise Refusal("bad_form", "The form does not end with its boundary.")
    return form


def checked(
    form: FormData, model: Header, limits: Limits, one: bool
) -> tuple[Header, dict[str, bytes]]:
    """What the worker is asked, and the bytes of the images. Raises `Refusal` with one sentence."""
    names = Counter(name for name, _ in form.multi_items())
    if twice := [name for name, n in names.items() if n > 1]:
        raise Refusal("duplicate_field", f"The form has {twice[0][:100]!r} twice: send it once.")
    files, texts = {}, {}
    for name, value in form.multi_items():
        if (name in FILES) != isinstance(value, UploadFile):
            kind = "a file" if name in FILES else "a text"
            raise Refusal("bad_request", f"The field {name[:100]!r} must be {kind}.")
        if isinstance(value, UploadFile):
            files[name] = value.file.read()
            value.file.close()  # which held it a second time
        else:
            texts[name] = value
    if "image" not in files:
        raise Refusal("bad_request", "The file `image` is missing.")
    try:
        fields = Fields.model_validate(texts)
    except ValidationError as error:
        raise Refusal(*told(error)) from None
    random = fields.styles is not None or fields.seed is not None
    if ("reference" in files) + (fields.style is not None) + random > 1:
        raise Refusal(
            "bad_request",
            "A style comes from `reference`, from `style`, or from `seed` and `styles`: send one.",
        )
    n = len(fields.style or ()) or fields.styles or (1 if one else 8)
    if n > limits.styles:
        raise Refusal("bad_request", f"At most {limits.styles} styles at once.")
    if one and n > 1:
        raise Refusal("bad_request", "One PNG has one result: ask for one, or accept JSON.")
    if fields.size is not None and fields.size < model["least"]:
        raise Refusal("bad_request", f"size: {model['least']} is the least for this model.")
    domain(model, fields.to)
    if fields.source is not None:
        domain(model, fields.source)
    ask = {
        "verb": "translate",
        "model": model["name"],
        "to": fields.to,
        "source": fields.source,
        "styles": n,
        "seed": fields.seed or 0,
        "style": fields.style,
        "size": fields.size,
    }
    return ask, {name: files[name] for name in FILES if name in files}


def told(error: ValidationError) -> tuple[str, str]:
    """(code, sentence) of the first thing that is wrong with the fields."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    name = str(first["loc"][0])[:100]
    if first["type"] == "extra_forbidden":
        known = ", ".join([*FILES, *Fields.model_fields])
        return "bad_request", f"There is no field {name!r}: the fields are {known}."
    if first["type"] == "missing":
        return "bad_request", f"The field {name!r} is missing."
    reason = first["msg"].removeprefix("Value error, ")
    return ("bad_style" if name == "style" else "bad_request"), f"{name}: {reason[:200]}."


def domain(model: Header, name: str) -> str:
    if name not in model["domains"]:
        known = ", ".join(model["domains"][:20])
        raise Refusal(
            "bad_request", f"There is no domain {name[:100]!r} in this model: it has {known}."
        )
    return name


def result(answer: Header, images: Sequence[bytes], model: str, one: bool) -> Response:
    if one:
        return Response(images[0], media_type=PNG)
    styles = answer.pop("styles")
    listed = [
        {"png": base64.b64encode(png).decode(), "style": style}
        for png, style in zip(images, styles, strict=True)
    ]
    return JSONResponse({"model": model, **answer, "images": listed})
