"""The server under what strangers send. Ids are those of the list of hostile inputs in docs/reliability.md."""

import asyncio
import base64
import http.client
import io
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import odd_images
import pytest
import tiny
from PIL import Image
from serving.browser import COMMAND, Browser

from unpaired import Translator, train
from unpaired.checkpoint import RunFolder
from unpaired.cli import main
from unpaired.data.intake import SERVE, BadImage, examine
from unpaired.data.scenes import Scenes

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
guard = pytest.importorskip("unpaired.serve.guard")
from unpaired.serve.app import parse_style  # noqa: E402
from unpaired.serve.run import name_models  # noqa: E402
from unpaired.serve.workers import Worker  # noqa: E402

HERE = Path(__file__).parent
LIMIT = 20_000_000


class Server:
    """A server in a process of its own, and a client to it."""

    def __init__(self, command, env=(), cwd=None):
        environment = {k: v for k, v in os.environ.items() if k != "UNPAIRED_TOKEN"}
        path = os.pathsep.join(filter(None, [str(HERE / "serving"), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env=environment | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | dict(env),
        )
        self.logged = []
        self.reader = threading.Thread(target=self.logged.extend, args=(self.process.stderr,))
        self.reader.start()
        self.said = ""
        self.port = None

    def wait(self, until="Studio: "):
        for line in self.process.stdout:
            self.said += line
            if until in line:
                self.port = int(re.search(r":(\d+)/", line)[1])
                return self
        raise AssertionError(f"{self.said} {''.join(self.logged)}")

    def end(self, sig=signal.SIGTERM):
        self.process.send_signal(sig)
        return self.ended(40)

    def ended(self, seconds):
        code = self.process.wait(seconds)
        self.reader.join()
        self.process.stdout.close()
        self.process.stderr.close()
        return code

    def request(self, method, path, body=None, headers=(), host=None, address="127.0.0.1"):
        """(status, headers, body)"""
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.port, timeout=60, source_address=(address, 0)
        )
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        hosts = [f"127.0.0.1:{self.port}"] if host is None else host
        for name, value in [*(("Host", h) for h in hosts), *dict(headers).items()]:
            connection.putheader(name, value)
        if body is not None and "Content-Length" not in dict(headers):
            connection.putheader("Content-Length", str(len(body)))
        try:
            connection.endheaders(body)
            answer = connection.getresponse()
            found = answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()
        return found

    def post(self, *parts, path=None, headers=(), model="m", **kw):
        content, body = form(*parts)
        path = f"/v1/models/{model}/translate" if path is None else path
        return self.request("POST", path, body, {"Content-Type": content, **dict(headers)}, **kw)

    def raw(self, *pieces, wait=5, pause=0.0):
        """All that comes back for these bytes, until the server closes or says nothing for `wait` seconds."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=wait) as s:
            got = b""
            try:
                for piece in pieces:
                    s.sendall(piece)
                    time.sleep(pause)
                while data := s.recv(1 << 16):
                    got += data
            except (TimeoutError, ConnectionError):
                pass
            return got

    def rss(self):
        """Bytes that the server itself holds, without its workers."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) * 1024


def form(*parts, boundary="b0undary"):
    """(content type, body) of a form; a part is (name, value) or (name, file name, bytes)."""
    lines = []
    for name, *rest in parts:
        file = f'; filename="{rest[0]}"' if len(rest) == 2 else ""
        value = rest[-1] if isinstance(rest[-1], bytes) else str(rest[-1]).encode()
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
        lines += [head.encode(), value, b"\r\n"]
    return f"multipart/form-data; boundary={boundary}", b"".join(
        [*lines, f"--{boundary}--\r\n".encode()]
    )


def code(answer):
    """(status, code) of a refusal, which says one sentence and nothing of the inside."""
    status, headers, body = answer
    error = json.loads(body)["error"]
    assert set(error) == {"code", "message", "request_id"} and error["message"][-1] in ".?"
    assert headers["x-request-id"] == error["request_id"]
    assert not re.search(
        r'Traceback|File "|site-packages|/tmp/|/dev/fd|starlette|uvicorn', str(error)
    )
    return status, error["code"]


PHOTO = odd_images.encode(odd_images.picture(), "PNG")
IMAGE, TO = ("image", "photo.png", PHOTO), ("to", "painted")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "ein Lauf ü"
    train.fit(
        tiny.run("munit", "train.precision=32-true", steps=2),
        RunFolder(path),
        say=lambda line: None,
    )
    return path


def served(*words, **env):
    return started([sys.executable, "-m", "unpaired", "serve", *words, "--port", "0"], env)


@contextmanager
def started(command, env=(), cwd=None):
    server = Server([*map(str, command)], env, cwd)
    try:
        yield server.wait()
    finally:
        if server.process.poll() is None:
            server.process.terminate()
        server.ended(40)


@pytest.fixture(scope="module")
def server(run):
    with served(run) as server:
        yield server
        assert server.post(IMAGE, TO, model="ein-Lauf")[0] == 200


@pytest.fixture
def ok(server):
    """Whatever a test did, the next request is answered."""
    yield server
    status, _, body = server.post(IMAGE, TO, ("styles", 1), model="ein-Lauf")
    assert status == 200 and len(json.loads(body)["images"]) == 1


def post(server, *parts, **kw):
    return server.post(*parts, model="ein-Lauf", **kw)


# What it is for ------------------------------------------------------------------------------------------------------


def test_an_answer_is_what_translate_gives(ok, run):
    """S-34: bit for bit, for random styles, for a reference, and for the styles of an answer sent back."""
    t = Translator.load(run, device="cpu")
    image, reference = odd_images.picture(), odd_images.picture(30, 70)[::-1].copy()
    status, _, body = post(ok, IMAGE, TO, ("styles", 3), ("seed", 5))
    assert status == 200
    answer = json.loads(body)
    assert (answer["model"], answer["source"], answer["to"]) == ("ein-Lauf", "outline", "painted")
    found = [opened(i["png"]) for i in answer["images"]]
    expected = t.translate(image, "painted", styles=3, seed=5)
    assert same(found, expected) and (answer["width"], answer["height"]) == expected[0].size

    ways = json.dumps([i["style"] for i in answer["images"]])
    again = json.loads(post(ok, IMAGE, TO, ("style", ways))[2])
    assert same([opened(i["png"]) for i in again["images"]], expected)

    file = ("reference", "r.png", odd_images.encode(reference, "PNG"))
    (one,) = json.loads(post(ok, IMAGE, TO, file, ("source", "painted"))[2])["images"]
    assert same(
        [opened(one["png"])], t.translate(image, "painted", style_from=reference, source="painted")
    )

    larger = json.loads(post(ok, IMAGE, TO, ("size", 48), ("styles", 1))[2])
    assert same(
        [opened(larger["images"][0]["png"])], t.translate(image, "painted", styles=1, size=48)
    )


def opened(text):
    return Image.open(io.BytesIO(base64.b64decode(text, validate=True)))


def same(found, expected):
    return [np.asarray(f).tolist() for f in found] == [np.asarray(e).tolist() for e in expected]


def test_one_png(ok, run):
    status, headers, body = post(ok, IMAGE, TO, headers={"Accept": "image/png"})
    assert (status, headers["content-type"]) == (200, "image/png")
    expected = Translator.load(run, device="cpu").translate(
        odd_images.picture(), "painted", styles=1
    )
    assert same([Image.open(io.BytesIO(body))], expected)
    two = post(ok, IMAGE, TO, ("styles", 2), headers={"Accept": "image/png"})
    assert code(two) == (422, "bad_request")


def test_models_and_spread_of_styles(ok):
    (model,) = json.loads(ok.request("GET", "/v1/models")[2])["models"]
    assert (model["method"], model["step"], model["domains"]) == (
        "munit",
        2,
        ["outline", "painted"],
    )
    both = ["outline", "painted"]
    assert model["directions"] == [{"sources": both, "to": both, "styles": ["latent", "reference"]}]
    spread = json.loads(ok.request("GET", "/v1/models/ein-Lauf/styles?to=painted")[2])
    assert spread["components"] == len(spread["mean"]) == len(spread["std"]) == 8
    assert all(
        abs(m) < 0.2 and 0.8 < s < 1.2 for m, s in zip(spread["mean"], spread["std"], strict=True)
    )
    for query in ("", "?to=", "?to=nowhere", "?to=painted&to=painted", "?to=painted&x=1"):
        assert code(ok.request("GET", f"/v1/models/ein-Lauf/styles{query}"))[0] == 422


@pytest.mark.parametrize("method", [m for m in tiny.METHODS if m != "munit"])
def test_every_method(method, tmp_path):
    from test_export import saved

    from unpaired.serve.paint import Painter, about

    saved(tmp_path, method)
    t = Translator.load(tmp_path, device="cpu")
    info, painter = about("x", t), Painter({"x": t})
    way = info["directions"][0]
    way = {"source": way["sources"][-1], "to": way["to"][0], "styles": way["styles"]}
    image = odd_images.picture()
    ask = {"verb": "translate", "model": "x", "to": way["to"], "source": way["source"]}
    ask |= {"styles": 2, "seed": 3, "style": None, "size": None, "shapes": [image.shape]}
    answer, images = painter.handle(ask, [image.tobytes()])
    expected = t.translate(image, way["to"], styles=2, seed=3, source=way["source"])
    assert same([Image.open(io.BytesIO(i)) for i in images], expected)
    if answer["styles"] != [None]:
        answer, images = painter.handle(ask | {"style": answer["styles"]}, [image.tobytes()])
        assert same([Image.open(io.BytesIO(i)) for i in images], expected)
        short = painter.handle(ask | {"style": [[1.0]]}, [image.tobytes()])[0]
        assert short["refused"] == "bad_style" and "numbers, not 1" in short["message"]
    refused = painter.handle({"verb": "styles", "model": "x", "to": way["to"]}, [])[0].get(
        "refused"
    )
    assert refused == (None if "latent" in way["styles"] else "no_random_styles")


def test_a_style_for_a_domain_without_a_mean_style(tmp_path):
    """Such as that of an image, sent back to see the way between two."""
    from test_export import saved

    from unpaired.serve.paint import Painter

    saved(tmp_path, "tunit")
    t = Translator.load(tmp_path, device="cpu")
    image = odd_images.picture()
    ask = {"verb": "translate", "model": "x", "to": t.domains[2], "source": None, "size": None}
    ask |= {"styles": 8, "seed": 0, "shapes": [image.shape]}
    refused = Painter({"x": t}).handle(ask | {"style": None}, [image.tobytes()])[0]
    assert "has no mean style" in refused["message"]
    answer, images = Painter({"x": t}).handle(ask | {"style": [[0.5] * 4]}, [image.tobytes()])
    assert answer["styles"] == [[0.5] * 4] and len(images) == 1


def test_hundreds_of_domains_take_little_to_describe(tmp_path):
    from test_export import saved

    from unpaired.serve.paint import about

    saved(tmp_path, "tunit", "method.clusters=300")
    info = about("x", Translator.load(tmp_path, device="cpu"))
    assert info["directions"][0]["sources"] == info["domains"]
    assert len(json.dumps(info)) < 50_000


def test_examples(ok):
    """A held-out scene, for a model that learned from scenes: always the same one."""
    (model,) = json.loads(ok.request("GET", "/v1/models")[2])["models"]
    assert model["examples"] == ["outline", "painted"]
    path = "/v1/models/ein-Lauf/example?domain=painted&index="
    status, headers, body = ok.request("GET", f"{path}1007")
    assert (status, headers["content-type"]) == (200, "image/png")
    expected = Scenes("painted", (16, 16), "test", count=1000)[7].image
    assert same([Image.open(io.BytesIO(body))], [expected])
    for wrong in ("", "-1", "x", "1" * 10, "1&x=2", "1&index=2&domain=y"):
        assert code(ok.request("GET", path + wrong)) == (422, "bad_request")
    assert code(ok.request("GET", path.replace("painted", "cats") + "1")) == (422, "bad_request")


def test_the_page_needs_nothing_from_elsewhere(ok):
    """S-61."""
    status, headers, body = ok.request("GET", "/")
    assert status == 200 and headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert (
        headers["x-content-type-options"] == "nosniff"
        and headers["referrer-policy"] == "no-referrer"
    )
    page = body.decode()
    parts = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert {"/static/studio.css", "/static/studio.js"} <= set(parts)
    for part in parts:
        if part.startswith("/static/"):
            assert ok.request("GET", part)[0] == 200
        assert part.startswith(("/", "#", "data:"))
    assert not re.search(r"<script(?![^>]*src=)|<style|\son\w+=|\sstyle=", page)
    script = ok.request("GET", "/static/studio.js")[2].decode()
    assert "http://" not in script and "https://" not in script and "innerHTML" not in script


# The page, in a browser ----------------------------------------------------------------------------------------------

PAGE = """
window.asked = [];
window.faulty = () => null;  // a promise in place of the server's answer
const ask = window.fetch;
window.fetch = (path, options) => (asked.push(path), faulty(path, options) ?? ask(path, options));
window.later = (...asked) => new Promise((go) => (window.release = go)).then(() => ask(...asked));
window.refused = (code) => {
  const body = JSON.stringify({ error: { code, message: `Refused: ${code}.`, request_id: "1" } });
  return Promise.resolve(new Response(body, { status: 503, headers: { "Retry-After": "1" } }));
};
window.urls = new Set();
const [create, revoke] = [URL.createObjectURL, URL.revokeObjectURL];
URL.createObjectURL = (file) => (urls.add(create(file)), [...urls].at(-1));
URL.revokeObjectURL = (url) => (urls.delete(url), revoke(url));
window.choose = async (id, ...names) => {
  const list = new DataTransfer();
  for (const name of names) {
    const canvas = new OffscreenCanvas(32, 32);
    canvas.getContext("2d").fillRect(4, 4, 9, 9);
    const type = name.endsWith("png") ? "image/png" : "text/plain";
    list.items.add(new File([await canvas.convertToBlob()], name, { type }));
  }
  document.getElementById(id).files = list.files;
  document.getElementById(id).dispatchEvent(new Event("change"));
};
window.$ = (id) => document.getElementById(id);
window.says = () => $("status")?.textContent;
window.done = (n) => $("results").children.length === n && !$("results").inert && !$("blend").inert;
window.press = (...ids) => ids.forEach((id) => $(id).click());
"""


@pytest.fixture(scope="module")
def browser(server, tmp_path_factory):
    if not COMMAND:
        pytest.skip("needs Chromium")
    browser = Browser("about:blank", tmp_path_factory.mktemp("profile"), PAGE)
    yield browser
    browser.close()


@pytest.fixture
def page(server, browser):
    browser.call("Page.navigate", url=f"http://127.0.0.1:{server.port}/")
    browser.until("window.says && says() === 'Choose an image to translate.'")
    return browser


def test_page_gives_back_what_it_shows(page):
    page.run("choose('file', 'a.png')")
    page.until("done(8)")
    assert page.run("says()").startswith("8 results in")
    assert page.run("urls.size") == 9
    for name in "bc":
        page.run(f"choose('file', '{name}.png')")
        page.until(f"done(8) && $('large').alt.startsWith('{name}.png')")
    assert page.run("urls.size") == 9


def test_page_an_example_that_comes_late(page):
    """What was taken last is shown, and a picture that was not awaited is none of its own."""
    page.run(
        "faulty = (path, options) => path.includes('example') ? later(path, options) : null, 0"
    )
    page.run("press('example')")
    page.until("window.release && says() === 'Fetching an example …'")
    page.run("choose('file', 'mine.png')")
    page.until("done(8)")
    page.run("release()")
    time.sleep(0.5)
    assert page.run("$('input-name').textContent") == "mine.png"
    assert page.run("asked.filter((path) => path.endsWith('translate')).length") == 1


def test_page_tries_again_what_failed(page):
    """And by itself only where it was not the request's doing."""
    page.run("faulty = (path) => path.includes('example') ? refused('worker_died') : null, 0")
    page.run("press('example')")
    page.until("says() === 'Refused: worker_died.' && !$('retry').hidden")
    page.run("faulty = (path) => asked.length < 4 ? refused('busy') : null, 0")
    page.run("press('retry')")
    page.until("says().includes('Trying again in 1 s')")
    page.until("done(8)")
    assert page.run("$('retry').hidden")


def test_page_takes_all_style_images_or_none(page):
    page.run("choose('file', 'a.png')")
    page.until("done(8)")
    page.run("document.querySelector('[value=reference]').click()")
    page.until("says() === 'Add an image whose style to take.'")
    for files, text in (
        (["b.png", "notes.txt"], "notes.txt is not"),
        (["b.png"] * 17, "At most 16"),
    ):
        page.run(f"choose('reference-file', ...{files})")
        page.until(f"says().startsWith('{text}')")
        time.sleep(0.5)
        assert page.run("says()").startswith(text) and page.run("$('retry').hidden")
        assert page.run("$('references').children.length") == 0
    page.run("choose('reference-file', 'b.png', 'c.png')")
    page.until("done(2)")


def test_page_sliders_stay_while_results_come(page):
    page.run("choose('file', 'a.png')")
    page.until("done(8)")
    page.run("document.querySelector('[value=reference]').click()")
    page.until("done(0)")
    page.run(
        "n = 0, faulty = (path, options) => path.endsWith('translate') && ++n == 2 ? later(path, options) : null, 0"
    )
    page.run("choose('reference-file', 'b.png', 'c.png')")
    page.until("window.release && $('results').children.length === 1 && !$('panel').inert")
    page.run(
        "slider = $('slider-list').querySelector('input'), slider.value = 2, slider.oninput(), 0"
    )
    page.until("$('panel-title').textContent === 'b.png, edited'")
    page.run("$('results').querySelector('button').focus(), release()")
    page.until("done(2)")
    assert page.run("$('panel-title').textContent") == "b.png, edited"
    assert page.run("$('slider-list').querySelector('input').value") == "2"
    assert page.run("$('results').firstElementChild.contains(document.activeElement)")


def test_page_blends(page):
    """A blend of earlier settings is shown as such; one that is not wanted any more says nothing."""
    page.run("choose('file', 'a.png')")
    page.until("done(8)")
    page.run("press('mark-A'), $('results').children[1].firstElementChild.click(), press('mark-B')")
    page.until("$('blend').children.length === 7 && !$('blend').inert")
    page.run("faulty = (path, { body }) => body?.has('style') ? later(path, {}) : null, 0")
    page.run("choose('file', 'b.png')")
    page.until("says() === 'Blending …' && !$('results').inert && !$('panel').inert")
    assert page.run("$('blend').inert")
    page.run("press('clear-marks')")
    assert page.run("says()") == "" and page.run("$('blend').children.length") == 0
    assert not page.run("$('blend').inert")
    assert page.run("urls.size") == 9


def test_page_says_what_a_field_takes(page):
    page.run("choose('file', 'a.png')")
    page.until("done(8)")
    for field, value in (("size", "x"), ("size", "1"), ("seed", "-1"), ("count", "17")):
        page.run(
            f"before = $('{field}').value, $('{field}').value = '{value}', $('{field}').oninput(), 0"
        )
        page.until("says().includes('is a whole number from')")
        page.run(f"$('{field}').value = before, $('{field}').oninput(), 0")
        page.until("says().startsWith('8 results')")


# Names under which it is asked ---------------------------------------------------------------------------------------

NOT_OURS = (
    "evil.example 127.0.0.1.evil.example localhost.evil 2130706433 0 127.1 0x7f.0.0.1 [::] 192.168.0.1 user@localhost "
    "localhost:80:80 [::ffff:127.0.0.1] 127.0.0.1. localhost/ [::1"
).split()


@pytest.mark.parametrize("host", NOT_OURS)
def test_other_hosts(ok, host):
    """S-53: DNS rebinding."""
    for path in ("/", "/v1/models", "/livez"):
        assert code(ok.request("GET", path, host=[host])) == (403, "wrong_host")
        assert code(ok.request("GET", path, host=[f"{host}:{ok.port}"])) == (403, "wrong_host")


def test_two_hosts_or_none(ok):
    for hosts in ([], [f"127.0.0.1:{ok.port}"] * 2):
        assert ok.request("GET", "/", host=hosts)[0] == 400


def test_own_hosts(ok):
    """S-54."""
    for host in ("localhost", "127.0.0.1", "[::1]", "LOCALHOST", "LocalHost:1"):
        assert ok.request("GET", "/v1/models", host=[host])[0] == 200


@pytest.mark.parametrize(
    "origin", ["http://evil", "null", "https://localhost:1", "file://", "http://127.0.0.1", ""]
)
def test_foreign_origins(ok, origin):
    """S-55, S-57, S-62."""
    assert code(post(ok, IMAGE, TO, headers={"Origin": origin})) == (403, "foreign_origin")
    assert code(ok.request("GET", "/v1/models", headers={"Origin": origin}))[0] == 403
    asks = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    status, headers, _ = ok.request("OPTIONS", "/v1/models/ein-Lauf/translate", headers=asks)
    assert status == 403 and not any(h.startswith("access-control") for h in headers)
    upgrade = {"Origin": origin, "Connection": "Upgrade", "Upgrade": "websocket"}
    assert ok.request("GET", "/v1/models", headers=upgrade)[0] == 403


def test_own_origin_and_fetch_metadata(ok):
    """S-56."""
    assert post(ok, IMAGE, TO, headers={"Origin": f"http://127.0.0.1:{ok.port}"})[0] == 200
    site = {"Sec-Fetch-Site": "cross-site"}
    assert code(post(ok, IMAGE, TO, headers=site)) == (403, "foreign_origin")
    assert ok.request("GET", "/", headers=site)[0] == 200


# Framing -------------------------------------------------------------------------------------------------------------


def head(server, *lines, path="/v1/models/ein-Lauf/translate", method="POST"):
    first = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{server.port}", *lines, "", ""]
    return "\r\n".join(first).encode()


FORM = "Content-Type: multipart/form-data; boundary=b0undary"


def status_of(reply):
    return int(reply.split()[1]) if reply else 0


def test_too_long_by_its_own_word(ok):
    """S-01, S-20: refused before the body, and without asking for it."""
    begun = time.monotonic()
    for extra in ((), ("Expect: 100-continue",)):
        reply = ok.raw(head(ok, FORM, f"Content-Length: {LIMIT + 1}", *extra))
        assert status_of(reply) == 413 and b"connection: close" in reply.lower()
        assert b"too_many_bytes" in reply and b" 100 " not in reply
    assert time.monotonic() - begun < 2


def test_chunked(ok):
    """S-02, S-03: not taken at all, so that nobody has to count."""
    before = ok.rss()
    reply = ok.raw(head(ok, FORM, "Transfer-Encoding: chunked"), b"1\r\nx\r\n" * 10_000)
    assert status_of(reply) == 411
    assert ok.rss() < before + 8_000_000


def test_content_encoding(ok):
    """S-04."""
    for coding in ("gzip", "br", "deflate", "zstd"):
        answer = post(ok, IMAGE, TO, headers={"Content-Encoding": coding})
        assert code(answer) == (415, "unsupported_format")


@pytest.mark.parametrize(
    "lines",
    [
        ("Content-Length: -1",),
        ("Content-Length: 1", "Content-Length: 2"),
        ("Content-Length: one",),
        ("Content-Length: 5", "Transfer-Encoding: chunked"),
        ("Content-Length : 5",),
        ("X: a\r\n b", "Content-Length: 0"),
        ("X: a\nY: b", "Content-Length: 0"),
        ("X: a\0b",),
    ],
)
def test_ambiguous_framing(ok, lines):
    """S-10, S-11: 400, and the connection is closed, so that what follows is no second request."""
    smuggled = head(ok, path="/v1/models", method="GET")
    reply = ok.raw(head(ok, FORM, *lines), b"5\r\nhello\r\n0\r\n\r\n" + smuggled)
    assert status_of(reply) == 400 and reply.count(b"HTTP/1.1") == 1


def test_long_heads(ok):
    """S-16."""
    get = dict(method="GET", path="/v1/models")
    assert status_of(ok.raw(head(ok, "X: " + "a" * 70_000, **get))) in (400, 431)
    assert status_of(ok.raw(head(ok, *(f"X-{i}: 1" for i in range(1000)), **get))) in (400, 431)
    for path in ("/" + "a" * 70_000, "/v1/models?" + "a" * 1_000_000, "/" + "a" * 5000):
        assert status_of(ok.raw(head(ok, method="GET", path=path))) in (400, 414)


def test_not_http(ok):
    """S-17."""
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 500
    for data in (
        hello,
        os.urandom(400) + b"\r\n\r\n",
        b"GET /\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ):
        assert status_of(ok.raw(data, wait=1)) in (0, 400)
    absolute = head(ok, method="GET", path="http://other/")
    assert status_of(ok.raw(absolute)) in (400, 403)


def test_other_methods(ok):
    """S-18."""
    for method in ("TRACE", "CONNECT", "PUT", "DELETE", "PATCH", "BREW", "OPTIONS"):
        assert ok.request(method, "/v1/models")[0] in (400, 405, 501)
    assert code(ok.request("GET", "/v1/models/ein-Lauf/translate")) == (405, "wrong_method")
    assert code(ok.request("POST", "/v1/models", b"")) == (405, "wrong_method")


def test_pipelined(ok):
    """S-19: in order, or closed."""
    one = head(ok, method="GET", path="/livez")
    reply = ok.raw(one * 1000, wait=3)
    assert 1 <= reply.count(b'{"live":true}') <= 1000 and b"HTTP/1.1 5" not in reply


@pytest.mark.parametrize(
    "path",
    "../../etc/passwd %2e%2e%2fetc%2fpasswd ..%5c..%5c %252e%252e /etc/passwd C:%5C %5C%5Chost%5Cx %00 ein-Lauf%00 "
    "%c0%ae%c0%ae CON ein-Lauf. ein-Lauf/../x ein-lauf- EIN-LAUF-".split(),
)
def test_names_and_paths(ok, path):
    """S-46, S-47, S-51: names are looked up, not opened."""
    for prefix in ("/v1/models/", "/static/", "/"):
        assert ok.request("GET", prefix + path)[0] == 404
    assert post(ok, IMAGE, TO, path=f"/v1/models/{path}/translate")[0] == 404
    for action in ("load", "unload", "upload"):
        assert ok.request("POST", f"/v1/models/{path}/{action}", b"")[0] == 404


# Forms ---------------------------------------------------------------------------------------------------------------


def test_forms_with_something_missing(ok):
    """S-06, S-09, S-44, S-50."""
    assert post(ok, TO)[0] == 422 and post(ok, IMAGE)[0] == 422
    assert code(post(ok, ("image", "x.png", b""), TO)) == (422, "undecodable_image")
    assert (
        ok.request("POST", "/v1/models/ein-Lauf/translate", b"", {"Content-Type": FORM[14:]})[0]
        == 422
    )
    assert code(post(ok, IMAGE, IMAGE, TO)) == (422, "duplicate_field")
    assert code(post(ok, IMAGE, TO, TO)) == (422, "duplicate_field")
    for extra in ("__class__", "__proto__", "url", "stlye", "image_url"):
        status, name = code(answer := post(ok, IMAGE, TO, (extra, "http://169.254.169.254/")))
        assert (status, name) == (422, "bad_request") and b"the fields are image" in answer[2]
    assert code(post(ok, ("image", "http://169.254.169.254/"), TO)) == (422, "bad_request")
    assert code(post(ok, IMAGE, ("to", "x.png", b"painted"))) == (422, "bad_request")
    assert code(post(ok, IMAGE, ("to", "paintde"))) == (422, "bad_request")
    assert code(post(ok, IMAGE, TO, path="/v1/models/ein-Lauf/translate?styles=2")) == (
        422,
        "bad_request",
    )


def test_damaged_forms(ok):
    """S-07, S-08, each within a second."""
    content, body = form(IMAGE, TO)
    path = "/v1/models/ein-Lauf/translate"
    long = "b" * 300
    cases = {
        "truncated": (content, body[:-20]),
        "wrong boundary": ("multipart/form-data; boundary=other", body),
        "no boundary": ("multipart/form-data", body),
        "long boundary": form(IMAGE, TO, boundary=long),
        "1001 parts": form(*((f"x{i}", "1") for i in range(1001))),
        "2 MB text": form(IMAGE, ("to", "x" * 2_000_000)),
        "10,000 headers": (
            content,
            body.replace(b"\r\n\r\n", b"\r\n" + b"X: y\r\n" * 10_000 + b"\r\n", 1),
        ),
        "1 MB header": (
            content,
            body.replace(b"\r\n\r\n", b"\r\nX: " + b"y" * 1_000_000 + b"\r\n\r\n", 1),
        ),
        "10 MB preamble": (content, b"x" * 10_000_000 + body),
        "10 MB epilogue": (content, body + b"x" * 10_000_000),
    }
    for name, (kind, data) in cases.items():
        begun = time.monotonic()
        status = ok.request("POST", path, data, {"Content-Type": kind})[0]
        assert status in (400, 413), name
        assert time.monotonic() - begun < 1, name


def test_forms_that_say_more_of_themselves(ok):
    content, body = form(IMAGE, TO, boundary="b 1")
    kind = 'Multipart/Form-Data; charset=utf-8; boundary="b 1"'
    path = "/v1/models/ein-Lauf/translate"
    assert ok.request("POST", path, body, {"Content-Type": kind})[0] == 200


def test_not_a_form(ok):
    """S-43."""
    for kind in ("application/json", "text/plain", "application/x-www-form-urlencoded", ""):
        answer = ok.request("POST", "/v1/models/ein-Lauf/translate", b"{}", {"Content-Type": kind})
        assert code(answer) == (415, "unsupported_format")


@pytest.mark.parametrize(
    "field, value",
    [("seed", v) for v in ("-1", 2**64, 2**62, "1.5", "0x1", "9" * 5000, "", "nan")]
    + [("styles", v) for v in ("0", "-1", 10**9, "17", "1e3", "")]
    + [("size", v) for v in ("0", "-1", 10**9, 7, "4.5", "1" + "0" * 400)]
    + [("source", "nowhere"), ("source", ""), ("to", "../x"), ("to", "x" * 400)],
)
def test_parameters(ok, field, value):
    """S-40, S-41."""
    parts = {"to": "painted", field: value}
    assert code(post(ok, IMAGE, *parts.items()))[0] in (413, 422)


@pytest.mark.parametrize(
    "style",
    '[NaN] Infinity [-Infinity] [1e999] [1e38] [1,2] [[1]] [] [[]] [[[1]]] [true] [null] null 5 {} [1,{}] {"a":1} [1 '
    '["1","2"] [1]x \xef\xbb\xbf[1]'.split()
    + [
        "[" * 30_000,
        "[1," * 10_000,
        "9" * 5000,
        f"[{'9' * 5000}]",
        "[0,0,0,0,0,0,0,0,0]",
        "[[0],[0,0]]",
    ],
)
def test_styles_that_are_none(ok, style):
    """S-38, S-39, S-42."""
    begun = time.monotonic()
    assert code(post(ok, IMAGE, TO, ("style", style))) == (422, "bad_style")
    assert time.monotonic() - begun < 0.5


def test_styles_that_are_some(ok):
    assert post(ok, IMAGE, TO, ("style", "[-0.0, 1e-320, 1, 2.5, -3, 9999, 0, 0]"))[0] == 200
    assert code(post(ok, IMAGE, TO, ("style", json.dumps([[0] * 8] * 17)))) == (422, "bad_request")
    assert code(post(ok, IMAGE, TO, ("style", "[0]"), ("seed", 1))) == (422, "bad_request")
    assert post(ok, IMAGE, TO, ("style", "0," * 1_000_000))[0] in (400, 413, 422)
    assert parse_style("[1, 2]") == [[1.0, 2.0]] and parse_style("[[1], [2]]") == [[1.0], [2.0]]


# Images --------------------------------------------------------------------------------------------------------------

CASES = list(odd_images.cases())


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.id} {c.label}")
def test_odd_images(server, run, case):
    """S-22 to S-34: refused with a status that says why, or the pixels that the command line uses."""
    data = case.make()
    answer = post(server, ("image", "x.png", data), TO, ("styles", 1))
    try:
        pixels, _ = examine(data, SERVE)
    except BadImage as bad:
        status, name = code(answer)
        assert name == bad.code and status in (413, 415, 422)
        return
    assert answer[0] == 200
    (image,) = json.loads(answer[2])["images"]
    assert same([opened(image["png"])], translator(run).translate(pixels, "painted", styles=1))


_translators = {}


def translator(run):
    return _translators.setdefault(run, Translator.load(run, device="cpu"))


def test_large_images_are_refused_by_their_headers(ok):
    """S-22, S-23."""
    before = ok.rss()
    for side, expected in ((9000, 413), (50_000, 413), (0, 422)):
        data = odd_images.png(side, side, b"\0" * 1000)
        begun = time.monotonic()
        assert post(ok, ("image", "x.png", data), TO)[0] == expected
        assert time.monotonic() - begun < 0.3
    assert ok.rss() < before + 20_000_000


def test_what_is_no_image(ok):
    """S-05, S-25, S-28, S-29, S-31."""
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.1:1/x"/></svg>'
    others = {
        b"PK\x03\x04" + b"\0" * 100: 415,
        b"<!doctype html><script>": 415,
        b"\x7fELF" + b"\0" * 100: 415,
        b"\x80\x04\x95cos\nsystem\n": 415,
        svg: 415,
        b"%!PS-Adobe-3.0 EPSF": 415,
        b"%PDF-1.7": 415,
        b"8BPS" + b"\0" * 50: 415,
        b"SIMPLE  =                    T" + b" " * 50: 415,
        b"\0\0\0\x18ftypheic" + b"\0" * 50: 415,
        PHOTO[: len(PHOTO) // 2]: 422,
    }
    for data, expected in others.items():
        assert code(post(ok, ("image", "photo.png", data), TO))[0] == expected, data[:20]


def test_small_and_long_images(ok):
    """S-35, and pixels that the model would have to work through."""
    for height, width in ((1, 1), (1, 10_000), (15, 15)):
        data = odd_images.encode(np.zeros((height, width, 3), np.uint8), "PNG")
        assert code(post(ok, ("image", "x.png", data), TO)) == (422, "bad_dimensions")
    assert code(post(ok, IMAGE, TO, ("size", 2000))) == (413, "too_many_pixels")
    assert code(post(ok, IMAGE, TO, ("size", 800), ("styles", 16))) == (413, "too_many_pixels")


def test_nothing_of_a_file_but_its_pixels_comes_back(ok):
    """S-32, S-33, S-49."""
    jpeg = odd_images.encode(odd_images.picture(), "JPEG", comment=b"<script>secret</script>")
    jpeg += b"<script>secret</script>"
    assert post(ok, ("image", "x" * 5000, jpeg), TO)[0] == 400  # no system has such a name
    for name in ("x.jpg", "../../x", "a\u202egnp.exe", "x" * 1000, "😀", "a%0d%0ab", "a\\b", ""):
        status, _, body = post(ok, ("image", name, jpeg), TO, ("styles", 1))
        assert status == 200
        png = base64.b64decode(json.loads(body)["images"][0]["png"])
        assert b"secret" not in png and png.endswith(b"IEND\xaeB`\x82")
        assert {png[i + 4 : i + 8] for i in chunks(png)} == {b"IHDR", b"IDAT", b"IEND"}


def chunks(png):
    at = 8
    while at < len(png):
        yield at
        at += 12 + int.from_bytes(png[at : at + 4], "big")


def test_many_requests_leave_nothing(ok):
    """Memory, descriptors and temporary files stay where they are."""
    bad = ("image", "x.png", PHOTO[:200])

    def some():
        for i in range(100):
            assert post(ok, bad if i % 2 else IMAGE, TO, ("styles", 1))[0] == (
                422 if i % 2 else 200
            )

    def state():
        return len(os.listdir(f"/proc/{ok.process.pid}/fd"))

    some()
    time.sleep(0.2)
    files, memory, temporary = state(), ok.rss(), set(os.listdir("/tmp"))
    some()
    time.sleep(0.2)
    assert abs(state() - files) <= 1
    assert ok.rss() < memory * 1.05
    assert not [f for f in set(os.listdir("/tmp")) - temporary if f.startswith("tmp")]


N_IMAGES = [200, pytest.param(20_000, marks=pytest.mark.slow)]


@pytest.mark.parametrize("n", N_IMAGES)
def test_mutated_images(server, n):
    """S-77."""
    seeds = [c.make() for c in CASES if c.id in ("D-12", "D-16", "D-22", "D-25", "D-38")]
    seeds = [s for s in seeds if len(s) < 20_000]
    rng = random.Random(0)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    statuses = Counter()
    for _ in range(n):
        content, body = form(("image", "x", mutated(rng.choice(seeds), rng)), TO, ("styles", 1))
        connection.request("POST", "/v1/models/ein-Lauf/translate", body, {"Content-Type": content})
        answer = connection.getresponse()
        statuses[answer.status] += 1
        answer.read()
    connection.close()
    assert statuses.keys() <= {200, 413, 415, 422} and statuses[200] and statuses[422]
    assert server.request("GET", "/readyz")[0] == 200


def mutated(data, rng):
    """A few bytes changed, cut out, doubled, or put in from what parsers mind."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        what = rng.randrange(5)
        if what == 0 and data:
            data[at % len(data)] = rng.randrange(256)
        elif what == 1:
            del data[at : at + rng.randint(1, 30)]
        elif what == 2:
            data[at:at] = data[at : at + rng.randint(1, 30)]
        elif what == 3:
            data[at:at] = rng.choice(BYTES)
        else:
            del data[at + rng.randrange(len(data) + 1) :]
    return bytes(data)


BYTES = [
    b"\0",
    b"\r\n",
    b"\n",
    b"\r",
    b" ",
    b"\xff",
    b"--b0undary",
    b"--b0undary--",
    b'"',
    b";",
    b":",
    b"%00",
    b"../",
]
BYTES += [
    b"Content-Length: 99\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Host: evil\r\n",
    b"\xed\xa0\x80",
    b"9" * 30,
]


@pytest.mark.parametrize("n", [200, pytest.param(20_000, marks=pytest.mark.slow)])
def test_mutated_requests(server, n):
    """S-77: every answer is a status that we know, and none is of our doing."""
    rng = random.Random(1)
    content, body = form(IMAGE, TO, ("styles", 1))
    post_head = head(server, f"Content-Type: {content}", f"Content-Length: {len(body)}")
    paths = "/ /v1/models /v1/models/ein-Lauf/styles?to=painted /metrics /livez /readyz /static/studio.js".split()
    seeds = [(head(server, method="GET", path=path), b"") for path in paths] + [
        (post_head, body)
    ] * 7
    statuses = Counter()
    for _ in range(n):
        first, rest = rng.choice(seeds)
        either = rng.random() < 0.5 and rest
        data = first + mutated(rest, rng) if either else mutated(first, rng) + rest
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as s:
            reply = b""
            s.sendall(data)
            s.settimeout(0.05)
            with suppress(ConnectionError):
                with suppress(TimeoutError):  # it waits for more: there is none
                    while part := s.recv(1 << 16):
                        reply += part
                s.settimeout(20)
                with suppress(OSError):  # closed by the server already
                    s.shutdown(socket.SHUT_WR)
                while part := s.recv(1 << 16):
                    reply += part
        for status in re.findall(rb"HTTP/1\.1 (\d{3})", reply):
            statuses[int(status)] += 1
    assert not [s for s in statuses if s >= 500]
    assert statuses[400] and statuses[403] and statuses[200]
    assert server.request("GET", "/readyz")[0] == 200


# Faults of its own ---------------------------------------------------------------------------------------------------


@contextmanager
def faulty(run, env=(), **limits):
    words = [f"{k}={v}" for k, v in limits.items()]
    file = run / "model.safetensors"
    server = Server(
        [sys.executable, str(HERE / "serving" / "faulty_server.py"), str(file), *words], env
    )
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.ended(10)


SHORT = dict(head_seconds=1, body_seconds=1, send_seconds=1, decode_seconds=1, paint_seconds=2)


@pytest.fixture(scope="module")
def broken(run, tmp_path_factory):
    calls = tmp_path_factory.mktemp("calls") / "calls"
    calls.touch()
    with faulty(
        run, {"CALLS": str(calls)}, **SHORT, queue_seconds=4, admitted=6, share=4
    ) as server:
        server.calls = calls
        yield server.wait()


def seeded(server, seed, **kw):
    return server.post(IMAGE, TO, ("seed", seed), ("styles", 1), **kw)


def works(server, within):
    """Seconds until a request is answered again."""
    begun = time.monotonic()
    while (status := seeded(server, 0)[0]) != 200:
        assert status == 503 and time.monotonic() - begun < within
        time.sleep(0.1)
    return time.monotonic() - begun


def test_a_decoder_that_crashes_or_hangs(broken):
    """S-37, S-27."""
    for end in (b"segfault", b"hang", b"rubbish"):
        assert code(broken.post(("image", "x.png", PHOTO + end), TO)) == (422, "undecodable_image")
        works(broken, 3)


def test_a_model_that_crashes_or_hangs(broken):
    """S-68, S-69: others that wait are answered by the next worker."""
    answers = {}
    threads = [
        threading.Thread(target=lambda n=n, seed=seed: answers.update({n: seeded(broken, seed)}))
        for n, seed in enumerate((4, 2, 0))  # the first takes half a second
    ]
    for t in threads:
        t.start()
        time.sleep(0.1)
    assert broken.request("GET", "/livez")[0] == 200
    for t in threads:
        t.join()
    assert code(answers[1]) == (503, "worker_died")
    assert answers[0][0] == answers[2][0] == 200
    works(broken, 15)
    assert code(seeded(broken, 1)) == (504, "took_too_long")
    works(broken, 15)


def test_a_gpu_in_disorder(broken):
    """S-69: nothing would work in that process any more."""
    assert code(seeded(broken, 8)) == (503, "worker_died")
    works(broken, 15)


def test_clients_that_go_as_their_turn_comes(monkeypatch):
    """At every moment around it: the worker goes on with the next."""
    monkeypatch.setenv("PYTHONPATH", str(HERE / "serving"))

    async def rounds():
        worker = Worker(("echo_worker",), 5)
        worker.start()
        assert (await worker.call({"n": 0}))[0] == {"n": 0}
        for n in range(300):
            first, second = (asyncio.create_task(worker.call({"n": n})) for _ in range(2))
            while not first.done():
                await asyncio.sleep(0)
            for _ in range(n % 7):
                await asyncio.sleep(0)
            second.cancel()
            await asyncio.gather(first, second, return_exceptions=True)
            assert first.result()[0] == {"n": n}
        answer = await asyncio.wait_for(worker.call({"n": -1}, [b"x"]), 5)
        await worker.stop()
        return answer, worker.starts

    assert asyncio.run(rounds()) == (({"n": -1}, [b"x"]), 1)


def test_a_connection_that_is_used_again(run):
    """The time of an answer that was taken does not run on into the next."""
    with faulty(run, {"CALLS": os.devnull}, send_seconds=2) as server:
        server.wait()
        content, body = form(IMAGE, TO, ("styles", 8), ("size", 600))
        lines = f"Content-Type: {content}", f"Content-Length: {len(body)}"
        request = head(server, *lines, path="/v1/models/m/translate") + body
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            s.connect(("127.0.0.1", server.port))
            s.settimeout(20)
            for pause in (0, 1.5, 1.5):
                s.sendall(request)
                got = s.recv(4096)
                time.sleep(pause)
                begin, _, rest = got.partition(b"\r\n\r\n")
                left = int(re.search(rb"content-length: (\d+)", begin)[1]) - len(rest)
                while left and (part := s.recv(min(left, 1 << 20))):
                    left -= len(part)
                assert not left


@pytest.mark.parametrize(
    "fault, status, text",
    [("can't allocate memory", 71, "out of memory"), ("a defect", 65, "the lines above")],
)
def test_models_that_cannot_be_loaded_end_it(run, fault, status, text):
    with faulty(run, {"FAULT": fault}) as server:
        assert server.process.wait(30) == status
        server.reader.join()
        assert text in server.logged[-1]


def test_no_worker_outlives_a_server_that_is_killed(run):
    with faulty(run, {"CALLS": os.devnull}) as server:
        server.wait()
        threading.Thread(target=lambda: suppressed(seeded, server, 1)).start()
        time.sleep(0.5)
        workers = children(server.process.pid)
        assert len(workers) == 2
        server.process.kill()
        deadline = time.monotonic() + 5
        while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(alive(pid) for pid in workers)


def suppressed(function, *args):
    with suppress(OSError, http.client.HTTPException):
        function(*args)


def children(pid):
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_faults_of_a_model(broken):
    """S-45, S-70, and a defect, which tells nothing to the client and all to the log."""
    assert code(seeded(broken, 3)) == (503, "out_of_memory")
    assert code(seeded(broken, 5)) == (500, "model_nonfinite")
    assert code(seeded(broken, 6)) == (500, "internal")
    assert any("/secret/path" in line for line in broken.logged)
    assert seeded(broken, 0)[0] == 200  # also where the model prints
    text = broken.request("GET", "/metrics")[2].decode()
    assert 'unpaired_refusals_total{code="model_nonfinite"} 1' in text


def test_overload(broken):
    """S-63, S-65: what is too much is refused at once, with a time to come again; the polite are served."""
    statuses, waits, lock = [], [], threading.Lock()

    def flood():
        status, headers, _ = seeded(broken, 4)
        with lock:
            statuses.append(status)
            if status == 503:
                waits.append(int(headers["retry-after"]))

    threads = [threading.Thread(target=flood) for _ in range(12)]
    for t in threads:
        t.start()
    time.sleep(0.2)
    begun = time.monotonic()
    assert broken.request("GET", "/livez")[0] == 200 and time.monotonic() - begun < 0.5
    assert seeded(broken, 0, address="127.0.0.2")[0] == 200  # another client
    for t in threads:
        t.join()
    assert sorted(set(statuses)) == [200, 503] and statuses.count(200) == 4
    assert all(1 <= w <= 30 for w in waits)


def test_clients_that_go(broken):
    """S-66: what waits for nobody is not run, and leaves its place."""
    before = broken.calls.stat().st_size
    content, body = form(IMAGE, TO, ("seed", 4), ("styles", 1))
    request = head(
        broken,
        f"Content-Type: {content}",
        f"Content-Length: {len(body)}",
        path="/v1/models/m/translate",
    )
    gone = []
    for _ in range(4):
        s = socket.create_connection(("127.0.0.1", broken.port))
        s.sendall(request + body)
        gone.append(s)
        time.sleep(0.05)
    for s in gone:
        s.close()
    works(broken, 5)
    time.sleep(0.5)
    assert broken.calls.stat().st_size - before <= 2  # the one that ran, and one that was taken up
    text = broken.request("GET", "/metrics")[2].decode()
    assert "unpaired_admitted 0" in text and 'status="499"' in text


def test_waited_too_long(run):
    """S-67."""
    with faulty(run, {"CALLS": os.devnull}, queue_seconds=0.2) as server:
        server.wait()
        first = threading.Thread(target=seeded, args=(server, 4))
        first.start()
        time.sleep(0.1)
        assert code(seeded(server, 0)) == (504, "waited_too_long")
        first.join()


def test_slow_clients(broken):
    """S-12, S-13, S-14: closed in time."""
    path = dict(path="/v1/models/m/translate")
    begun = time.monotonic()
    reply = broken.raw(head(broken, FORM, "Content-Length: 1000", **path), b"--b0undary", wait=10)
    assert status_of(reply) == 408 and time.monotonic() - begun < 4
    begun = time.monotonic()
    broken.raw(*[bytes([c]) for c in head(broken, **path)[:30]], pause=0.1, wait=10)
    assert time.monotonic() - begun < 6


def test_a_client_that_does_not_read(run):
    """S-14."""
    with faulty(run, {"CALLS": os.devnull}, send_seconds=1) as server:
        server.wait()
        content, body = form(IMAGE, TO, ("styles", 16), ("size", 600))
        lines = f"Content-Type: {content}", f"Content-Length: {len(body)}"
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            s.connect(("127.0.0.1", server.port))
            s.settimeout(20)
            s.sendall(head(server, *lines, path="/v1/models/m/translate") + body)
            s.recv(1, socket.MSG_PEEK)  # it has come
            assert "unpaired_admitted 1" in server.request("GET", "/metrics")[2].decode()
            time.sleep(2.5)
            got = s.recv(4096)
            size = int(re.search(rb"content-length: (\d+)", got)[1])
            with suppress(ConnectionError):
                while data := s.recv(1 << 16):
                    got += data
            assert len(got) < size
        assert "unpaired_admitted 0" in server.request("GET", "/metrics")[2].decode()


def test_large_uploads_at_once(ok):
    """S-64: those beyond the bound are refused before they are read."""
    content, body = form(("image", "x", b"no image" * (19_000_000 // 8)), TO)
    lines = f"Content-Type: {content}", f"Content-Length: {len(body)}"
    data, before, peak, replies = head(ok, *lines) + body, ok.rss(), 0, []

    def upload(client):
        with socket.socket() as s:
            s.bind((f"127.0.0.{client}", 0))
            s.settimeout(60)
            with suppress(ConnectionError):
                s.connect(("127.0.0.1", ok.port))
                s.sendall(data)
            with suppress(ConnectionError):
                replies.append(status_of(s.recv(1 << 16)))

    threads = [threading.Thread(target=upload, args=(1 + i % 4,)) for i in range(100)]
    for t in threads:
        t.start()
    while any(t.is_alive() for t in threads):
        peak = max(peak, ok.rss())
        time.sleep(0.01)
    assert replies.count(415) >= 16 and set(replies) <= {415, 503, 0}
    assert peak < before + 16 * LIMIT * 1.5


def test_slow_headers_of_many(run):
    """S-13: 500 of them, and another client is as quick as before."""
    with faulty(run, head_seconds=2) as server:
        server.wait()

        def latency():
            times = []
            for _ in range(100):
                begun = time.monotonic()
                assert server.request("GET", "/v1/models")[0] == 200
                times.append(time.monotonic() - begun)
            return sorted(times)[98]

        alone, slow = latency(), []
        for _ in range(500):
            s = socket.create_connection(("127.0.0.1", server.port))
            s.sendall(b"GET / HTTP/1.1\r\nHost: ")
            slow.append(s)
        assert latency() < max(2 * alone, 0.05)
        time.sleep(2.5)
        assert len(os.listdir(f"/proc/{server.process.pid}/fd")) < 40
        for s in slow:
            s.close()


def test_idle_connections(run):
    """S-15: the oldest make room."""
    with faulty(run, connections=50) as server:
        server.wait()
        idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(200)]
        assert server.request("GET", "/livez")[0] == 200
        assert len(os.listdir(f"/proc/{server.process.pid}/fd")) < 90
        for s in idle:
            s.close()


def test_while_it_loads_and_when_it_ends(run):
    """S-71, S-72, S-74: alive but not ready; then what was accepted is finished, of the model that was there."""
    with faulty(run, {"LOADING": "1.5", "CALLS": os.devnull}) as server:
        # the port is told when the models are there: look for it in /proc
        server.port = listening(server.process.pid)
        assert server.request("GET", "/livez")[0] == 200
        assert server.request("GET", "/readyz")[0] == 503
        status, headers, _ = seeded(server, 0)
        assert status == 503 and int(headers["retry-after"]) >= 1
        server.wait()
        assert server.request("GET", "/readyz")[0] == 200
        answers = []
        threads = [
            threading.Thread(target=lambda: answers.append(seeded(server, 4)[0])) for _ in range(3)
        ]
        for t in threads:
            t.start()
        time.sleep(0.3)
        assert server.end() in (143, -15)
        for t in threads:
            t.join()
        assert answers == [200] * 3


def listening(pid):
    for _ in range(100):
        inodes = set()
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            try:
                inodes.add(os.readlink(fd))
            except OSError:
                continue
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in inodes:
                port = int(words[1].split(":")[1], 16)
                with socket.socket() as s:
                    if s.connect_ex(("127.0.0.1", port)) == 0:
                        return port
        time.sleep(0.1)
    raise AssertionError("nothing listens")


def test_a_model_replaced_while_it_is_served(run, tmp_path):
    """S-74: also when the worker is started anew, the model is the one that was there at the start."""
    file = tmp_path / "model.safetensors"
    file.write_bytes((run / "model.safetensors").read_bytes())
    with faulty(tmp_path, {"CALLS": os.devnull}) as server:
        server.wait()
        before = seeded(server, 7)[2]
        (tmp_path / "new").write_bytes(b"no model")
        os.replace(tmp_path / "new", file)
        assert seeded(server, 2)[0] == 503
        works(server, 15)
        assert seeded(server, 7)[2] == before


# Starting it ---------------------------------------------------------------------------------------------------------


def test_token(run):
    """S-58, S-59, S-60."""
    with served(run, "--host", "0.0.0.0", "--token", "--allowed-host", "Studio.Example") as server:
        token = re.search("#token=([0-9a-f]{32})", server.said)[1]
        assert server.request("GET", "/")[0] == 200  # the page itself says nothing
        assert server.request("GET", "/livez", host=["studio.example"])[0] == 200
        assert (
            server.request("GET", "/livez", host=["192.168.7.7:1"])[0] == 200
        )  # an address is no name
        assert server.request("GET", "/livez", host=["evil.example"])[0] == 403
        good = {"Authorization": f"Bearer {token}"}
        assert server.request("GET", "/v1/models", headers=good)[0] == 200
        for path in ("/v1/models", "/metrics", f"/v1/models?token={token}"):
            status, headers, _ = answer = server.request("GET", path)
            assert code(answer) == (401, "token_needed") and headers["www-authenticate"] == "Bearer"
        wrong = [token.upper(), token[:-1], token + "0", "x" * 10_000, "", f"Bearer {token}"]
        for given in wrong:
            answer = server.request(
                "GET", "/v1/models", headers={"Authorization": f"Bearer {given}"}
            )
            assert code(answer) == (401, "token_needed")
        assert (
            server.request("GET", "/v1/models", headers={"Authorization": f"Basic {token}"})[0]
            == 401
        )
        assert (
            server.request("GET", "/v1/models", headers={**good, "X-Forwarded-For": "1.2.3.4"})[0]
            == 200
        )
        statuses = [
            server.request("GET", "/v1/models", headers={"Authorization": "Bearer x"})[0]
            for _ in range(20)
        ]
        assert statuses.count(401) == 13 and statuses[-1] == 429
        assert server.request("GET", "/v1/models", headers=good)[0] == 429  # of this address
        assert server.request("GET", "/v1/models", headers=good, address="127.0.0.2")[0] == 200
        server.end()
        assert token not in "".join(server.logged)


def test_a_token_of_ones_own(run):
    with served(run, UNPAIRED_TOKEN="correct horse battery") as server:
        assert "correct" not in server.said
        assert server.request("GET", "/v1/models")[0] == 401
        given = {"Authorization": "Bearer correct horse battery"}
        assert server.request("GET", "/v1/models", headers=given)[0] == 200
        page = server.request("GET", "/")[2].decode()
        pattern = re.search('id="token".* pattern="([^"]+)"', page)[1]
        assert re.fullmatch(pattern, "correct horse battery") and not re.fullmatch(pattern, "x ")


@pytest.mark.parametrize(
    "token", ["short", "a token with a tab\t.", "a space at its end ", "sixteen letters ü"]
)
def test_tokens_that_no_header_has(run, token, monkeypatch, capsys):
    monkeypatch.setenv("UNPAIRED_TOKEN", token)
    assert main(["serve", str(run), "--port", "0"]) == 2
    assert "UNPAIRED_TOKEN" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, text",
    [
        (["--host", "0.0.0.0"], "--token"),
        (["--host", "no.such.host.invalid"], "--host"),
        (["--port", "70000"], "port"),
        (["--host", "203.0.113.1"], "--port"),
    ],
)
def test_refuses_to_start(run, words, text, capsys):
    """S-58, S-76."""
    begun = time.monotonic()
    try:
        assert main(["serve", str(run), *words]) == 2
    except SystemExit as left:
        assert left.code == 2
    assert text in capsys.readouterr().err
    assert time.monotonic() - begun < 3


def test_port_in_use(run, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", str(run), "--port", str(port)]) == 2
    assert f"port {port}" in capsys.readouterr().err


def test_no_model(tmp_path, capsys):
    """S-52: nothing but our own format is opened, and the sentence names the file."""
    assert main(["serve", str(tmp_path)]) == 2
    assert "is not a run" in capsys.readouterr().err
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04\x95cos\nsystem\n")
    assert main(["serve", str(tmp_path), "--port", "0"]) == 65
    error = capsys.readouterr().err
    assert str(tmp_path / "model.safetensors") in error and "Traceback" not in error


def test_what_lies_in_the_folder_is_not_imported(run, tmp_path):
    """By the command that is installed; `python -m` itself looks there first."""
    (tmp_path / "simplejpeg.py").write_text("open('imported', 'w')")
    command = Path(sys.executable).with_name("unpaired")
    with started([command, "serve", run, "--port", "0"], cwd=tmp_path) as server:
        assert post(server, IMAGE, TO)[0] == 200
    assert not (tmp_path / "imported").exists()


def test_without_streams(run):
    """As some service managers start things."""
    command = [sys.executable, "-m", "unpaired", "serve", run, "--port", "0"]
    with started(["sh", "-c", 'exec "$0" "$@" 2>&- <&-', *command]) as server:
        assert post(server, IMAGE, TO)[0] == 200


@pytest.mark.parametrize("name", ["studio.example:8443", "bücher.example", "http://studio", ""])
def test_names_that_no_request_has(run, name, capsys):
    assert main(["serve", str(run), "--allowed-host", name]) == 2
    assert "--allowed-host" in capsys.readouterr().err


def test_names_of_models(tmp_path):
    for folder in ("a b", "a_b", "ä b", "..x", "日本"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.safetensors").touch()
    runs = sorted(tmp_path.iterdir())
    names = name_models([*runs, runs[0]])
    assert set(names) == {"x", "a-b", "a_b", "b", "model", "x-2"}
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", n) for n in names)


def test_without_the_extra(run, monkeypatch, capsys):
    for name in [
        m for m in sys.modules if m.startswith(("uvicorn", "starlette", "unpaired.serve"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", str(run)]) == 2
    assert "extra `serve`" in capsys.readouterr().err


def test_comparing_secrets_takes_the_same_time():
    """S-59: where two differ does not show. Medians of runs in turn."""
    secret = "a" * 32
    guesses = {"first": "b" + "a" * 31, "last": "a" * 31 + "b", "equal": secret}
    times = {name: [] for name in guesses}
    for _ in range(3000):
        for name, guess in guesses.items():
            begun = time.perf_counter_ns()
            guard.same(guess, secret)
            times[name].append(time.perf_counter_ns() - begun)
    medians = [np.median(t) for t in times.values()]
    assert max(medians) < 1.2 * min(medians)
