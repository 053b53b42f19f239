"""Debian's Prometheus, Alertmanager and node_exporter, started on loopback and ended by who started them."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import msgspec

from stack.base.errors import UserError
from stack.base.files import write_bytes

PROGRAMS = ("prometheus", "promtool", "prometheus-alertmanager", "amtool", "prometheus-node-exporter")
_HOST = "127.0.0.1"
_READY_SECONDS = 30.0
_STOP_SECONDS = 10.0


def missing_programs() -> tuple[str, ...]:
    return tuple(name for name in PROGRAMS if shutil.which(name) is None)


def require_programs() -> None:
    """Raises: `UserError` with the way to get those that are missing."""
    if missing := missing_programs():
        raise UserError(f"there is no {', '.join(missing)} on PATH: `make monitoring` installs Debian's packages")


def free_port() -> int:
    """That nobody listens on now."""
    with socket.socket() as taken:
        taken.bind((_HOST, 0))
        port: int = taken.getsockname()[1]
        return port


@contextmanager
def prometheus(config: Path, *, retention: str = "1d", port: int | None = None) -> Iterator[str]:
    """Its host and port; samples and log are beside `config`."""
    options = (
        f"--config.file={config}", f"--storage.tsdb.path={config.parent / 'samples'}",
        f"--storage.tsdb.retention.time={retention}",
    )  # fmt: skip
    with _running("prometheus", options, log=config.parent, ready="/-/ready", port=port) as address:
        yield address


@contextmanager
def alertmanager(config: Path) -> Iterator[str]:
    """Its host and port; it is alone (no cluster)."""
    options = (
        f"--config.file={config}", f"--storage.path={config.parent / 'alertmanager'}", "--cluster.listen-address=",
    )  # fmt: skip
    with _running("prometheus-alertmanager", options, log=config.parent, ready="/-/ready") as address:
        yield address


@contextmanager
def node_exporter(textfiles: Path, *, log: Path) -> Iterator[str]:
    """Its host and port; it tells what files in `textfiles` say, and what little is known of the machine."""
    options = (f"--collector.textfile.directory={textfiles}",)
    with _running("prometheus-node-exporter", options, log=log, ready="/") as address:
        yield address


@contextmanager
def _running(name: str, options: Sequence[str], *, log: Path, ready: str, port: int | None = None) -> Iterator[str]:
    """Raises: `UserError` with the last line it said, where it does not start."""
    require_programs()
    address = f"{_HOST}:{free_port() if port is None else port}"
    told = log / f"{name}.log"
    with told.open("w") as file:
        process = subprocess.Popen([name, f"--web.listen-address={address}", *options], stdout=file, stderr=file)
    try:
        _wait_until_ready(process, f"http://{address}{ready}", name=name, told=told)
        yield address
    finally:
        stop(process)


def write_target(path: Path, address: str, **labels: str) -> None:
    """A file that tells Prometheus of one process, as `stack` writes them of its own."""
    write_bytes(path, msgspec.json.encode([{"targets": [address], "labels": labels}]) + b"\n")


def stop(process: subprocess.Popen[bytes], *, seconds: float = _STOP_SECONDS) -> None:
    """Asks it to end; kills it where it does not in so many seconds."""
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, *, name: str, told: Path) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urlopen(url, timeout=1):
                return
        except (URLError, HTTPException, OSError):
            time.sleep(0.05)
    last = told.read_text(errors="replace").strip().rpartition("\n")[2]
    raise UserError(f"{name} did not start: {last or 'it said nothing'} (all it said: {told})")
