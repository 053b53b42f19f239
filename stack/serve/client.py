"""Asks a server as another program would: starts `stack serve`, sends requests, stops it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import msgspec

from stack.base.errors import UserError

_TIMEOUT_SECONDS = 120.0
_STOP_SECONDS = 30.0


class RefusedError(UserError):
    """The server refused a request; the text is what it said, `status` the HTTP status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server process: where it answers, where it is administered and with which token."""

    address: str
    admin: str
    token: str
    process: subprocess.Popen[str]

    def order(self, path: str, body: Mapping[str, object] | None = None) -> dict[str, Any]:
        """An admin request."""
        return ask(self.admin, path, body, token=self.token)


@contextmanager
def running_server(package: Path, *, options: Sequence[str] = ()) -> Iterator[Running]:
    """Runs `stack serve` for `package` on free ports of this machine, and stops it at the end. Prometheus is told of it
    only where `options` have telemetry.enabled=true.

    Raises: `UserError` with what the server said, where it does not start.
    """
    command = [
        sys.executable, "-m", "stack", "serve", f"serve.package={package}", "serve.port=0", "serve.admin_port=0",
        "telemetry.enabled=false", *options,
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address, _ = _told(server.stdout, package)
            admin, line = _told(server.stdout, package)
            token = Path(line.split()[-1]).read_text().split()[0]
            yield Running(address=address, admin=admin, token=token, process=server)
        finally:
            server.terminate()
            try:
                server.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()


def ask(
    address: str, path: str, body: Mapping[str, object] | None = None, *, token: str | None = None
) -> dict[str, Any]:
    """GET, or POST of a JSON body; the answer.

    Raises: `RefusedError` with the server's line.
    """
    parts = urlsplit(address)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=_TIMEOUT_SECONDS)
    headers = {"content-type": "application/json"}
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    try:
        if body is None:
            connection.request("GET", path, headers=headers)
        else:
            connection.request("POST", path, msgspec.json.encode(body), headers)
        response = connection.getresponse()
        answer = msgspec.json.decode(response.read(), type=dict[str, Any])
    finally:
        connection.close()
    if response.status != 200:
        raise RefusedError(response.status, f"{path} answered {response.status}: {answer['error']}")
    return answer


def _told(stdout: IO[str], package: Path) -> tuple[str, str]:
    """The next address that the server says, and the line."""
    for line in stdout:
        for word in line.split():
            if word.startswith("http://"):
                return word.rstrip(","), line
    raise UserError(f"the server of {package} ended before it could answer: its reason is above")
