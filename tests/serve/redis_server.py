"""A Redis of a test's own, in a process."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from tests.clocks import wait_for


class Server:
    """A Redis without persistence behind a unix socket."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        program = shutil.which("redis-server")
        assert program is not None
        command = [program, "--port", "0", "--unixsocket", str(self.socket), "--save", "", "--appendonly", "no"]
        self._process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL)
        wait_for(self._answers, "redis-server does not start")

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(str(self.socket))
            except OSError:
                return False
            connection.sendall(b"PING\r\n")
            return connection.recv(100) != b""

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def client(self, **options: str) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self.socket), **options)


@contextmanager
def redis_not_started() -> Iterator[Server]:
    """It is killed at the end. Skips the test where there is no Redis."""
    if shutil.which("redis-server") is None:
        pytest.skip("there is no program redis-server: apt-get install redis-server")
    with tempfile.TemporaryDirectory(prefix="redis-") as folder:  # a socket's path is short
        server = Server(Path(folder))
        try:
            yield server
        finally:
            server.kill()
