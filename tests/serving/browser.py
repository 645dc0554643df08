"""A page in Chromium without a window, driven through its debugging pipe."""

import json
import os
import select
import shutil
import subprocess
import time

COMMAND = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
SECONDS = 60  # for an answer


class Browser:
    """script: runs in the page before its own."""

    def __init__(self, url, profile, script):
        options = "--headless --no-sandbox --disable-gpu --remote-debugging-pipe".split()
        self.process = subprocess.Popen(
            [
                "sh",
                "-c",
                'exec "$0" "$@" 3<&0 4>&1 >&2',
                COMMAND,
                *options,
                f"--user-data-dir={profile}",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.calls, self.session, self.unread = 0, {}, b""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = {"sessionId": attached["sessionId"]}
        self.call("Page.enable")
        self.call("Page.addScriptToEvaluateOnNewDocument", source=script)
        self.call("Page.navigate", url=url)

    def call(self, method, **params):
        self.calls += 1
        ask = {"id": self.calls, "method": method, "params": params, **self.session}
        self.process.stdin.write(json.dumps(ask).encode() + b"\0")
        self.process.stdin.flush()
        while True:
            answer = self.read()
            if answer.get("id") == self.calls:
                return answer["result"]

    def read(self):
        while b"\0" not in self.unread:
            ready, _, _ = select.select([self.process.stdout], [], [], SECONDS)
            assert ready, "the browser does not answer"
            data = os.read(self.process.stdout.fileno(), 65536)
            assert data, "the browser has gone"
            self.unread += data
        message, _, self.unread = self.unread.partition(b"\0")
        return json.loads(message)

    def run(self, expression):
        """The value of an expression in the page."""
        found = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, expression, seconds=20):
        """Waits until an expression in the page is true."""
        deadline = time.monotonic() + seconds
        while not self.run(f"Boolean({expression})"):
            assert time.monotonic() < deadline, (
                f"{expression}: {self.run('document.body.innerText')}"
            )
            time.sleep(0.05)

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
