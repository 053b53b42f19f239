"""Headless Chromium by its DevTools protocol over two pipes: no driver, no port, no library.

Messages are JSON that ends in a zero byte; descriptors 3 and 4 of the browser are what it reads and writes.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stack.base.errors import UserError

_TIMEOUT_SECONDS = 30.0
_BLOCK_BYTES = 1 << 16
_MOVE = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)
_FREE = 10
"""Descriptors from here on are neither 3 nor 4."""
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip


def missing_browser() -> bool:
    return _program() is None


class PageError(Exception):
    """What the page or the browser refused."""


class Page:
    """One tab. `errors` are uncaught exceptions and what the console was told of them; `requests` all that it asked."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading, self._writing = reading, writing
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.errors: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """A command's result; events that come in between are noted."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        while True:
            told = self._next()
            if told.get("id") == self._number:
                if "error" in told:
                    raise PageError(f"{method}: {told['error']['message']}")
                return told["result"]
            self._note(told)

    def _next(self) -> Any:
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._reading], [], [], max(0.0, deadline - time.monotonic()))
            block = os.read(self._reading, _BLOCK_BYTES) if ready else b""
            if not block:
                raise PageError(f"the browser said nothing for {_TIMEOUT_SECONDS:g} s, or has ended")
            self._buffer += block
        one, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(one)

    def _note(self, told: Any) -> None:
        method, parameters = told.get("method"), told.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            entry = parameters["entry"]
            self.errors.append(f"{entry['text']} ({entry.get('url', '')})")

    def size(self, width: int, height: int, *, dark: bool = False, phone: bool = False) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def go(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def value(self, expression: str) -> Any:
        """Of JavaScript, promises awaited."""
        told = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in told:
            details = told["exceptionDetails"]
            raise PageError(details.get("exception", {}).get("description") or details["text"])
        return told["result"].get("value")

    def wait(self, expression: str) -> Any:
        """Until it is truthy.

        Raises: `PageError` where it does not become so.
        """
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while not (found := self.value(expression)):
            if time.monotonic() > deadline:
                raise PageError(f"{expression} was not true within {_TIMEOUT_SECONDS:g} s; the page: {self.errors}")
            time.sleep(0.03)
        return found

    def key(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def mouse(self, kind: str, x: float, y: float) -> None:
        """`kind`: mouseMoved, mousePressed, mouseReleased."""
        button = "none" if kind == "mouseMoved" else "left"
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, clickCount=1)

    def png(self, *, whole: bool = False) -> bytes:
        """What is seen, or the whole length of the page."""
        picture = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(picture["data"])


@contextmanager
def browser() -> Iterator[Page]:
    """Raises: `UserError` where there is no Chromium."""
    program = _program()
    if program is None:
        raise UserError("there is no chromium on PATH: `make monitoring` installs Debian's package")
    (reads, writing), (reading, writes) = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory() as profile:
        command = [program, *_FLAGS, f"--user-data-dir={profile}"]
        process = _started(command, reads=reads, writes=writes, log=Path(profile) / "log")
        try:
            yield Page(reading, writing)
        finally:
            process.terminate()
            process.wait()
            os.close(reading)
            os.close(writing)


def _program() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def _started(command: list[str], *, reads: int, writes: int, log: Path) -> subprocess.Popen[bytes]:
    """The pipes are moved to 3 and 4, where the browser looks for them, and closed here."""
    high = [
        fcntl.fcntl(one, fcntl.F_DUPFD, _FREE) for one in (reads, writes)
    ]  # moving one does not overwrite the other
    moved = [sys.executable, "-S", "-c", _MOVE, *map(str, high), *command]
    try:
        with log.open("wb") as file:
            return subprocess.Popen(moved, pass_fds=high, stdout=file, stderr=file)
    finally:
        for one in (reads, writes, *high):
            os.close(one)
