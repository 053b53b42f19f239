"""A port of this process that Prometheus scrapes, and the file that tells Prometheus where it is.

::

    runs/targets/demo.train.0.json    [{"targets": ["127.0.0.1:9101"],
                                        "labels": {"run": "demo", "rank": "0", "role": "train"}}]

A file belongs to one process. It goes when its process ends as it should, and stays where that was killed or failed, so
that Prometheus sees that something is down; the next start of the run replaces it, and removes those of ranks that the
run no longer has.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from wsgiref.simple_server import WSGIServer

import msgspec
from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server

from stack.base.files import write_bytes
from stack.telemetry.exposition import Exposed
from stack.telemetry.mishaps import Mishaps

_PART = "exporter"


@dataclass(frozen=True, kw_only=True)
class Target:
    """Who is scraped, and where that is said. `role` and `number`: train and its rank, or serve and its port."""

    folder: Path
    run: str
    role: str
    number: int

    @property
    def path(self) -> Path:
        return self.folder / f"{self.run}.{self.role}.{self.number}.json"

    def write(self, host: str, port: int) -> None:
        """Raises `OSError`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        labels = {"run": self.run, "role": self.role}
        if self.role == "train":
            labels["rank"] = str(self.number)
        write_bytes(self.path, msgspec.json.encode([{"targets": [address], "labels": labels}]) + b"\n")

    def remove_ranks_from(self, world_size: int) -> None:
        """What a larger start of the same run left. Raises `OSError`."""
        name = re.compile(rf"{re.escape(self.run)}\.{self.role}\.(\d+)\.json")
        for path in self.folder.glob("*.json"):
            found = name.fullmatch(path.name)
            if found and int(found[1]) >= world_size:
                path.unlink(missing_ok=True)


@contextmanager
def findable(target: Target, host: str, port: int, *, mishaps: Mishaps) -> Iterator[None]:
    """Prometheus is told of an address for as long as the block takes, and longer where that fails."""
    with mishaps.survived("targets"):
        target.write(host, port)
    ended = False
    try:
        yield
        ended = True
    except SystemExit:  # an end that was meant
        ended = True
        raise
    finally:
        if ended:
            with mishaps.survived("targets"):
                target.path.unlink(missing_ok=True)


@contextmanager
def exported(
    registry: CollectorRegistry, target: Target, *, address: str, port: int, world_size: int, mishaps: Mishaps
) -> Iterator[None]:
    """Shows `registry`, and figures of the process, on a port for as long as the block takes: on a free one where
    `port` is taken, and not at all where there is none either. `world_size`: processes of the job."""
    ProcessCollector(registry=registry)
    with ExitStack() as stack:
        with mishaps.survived(_PART):
            server, thread = _listening(registry, address=address, port=port, mishaps=mishaps)
            stack.callback(_stop, server, thread, address)
            with mishaps.survived("targets"):
                target.remove_ranks_from(world_size)
            stack.enter_context(findable(target, address, server.server_port, mishaps=mishaps))
        yield


def _stop(server: WSGIServer, thread: threading.Thread, address: str) -> None:
    ending = threading.Thread(target=server.shutdown)
    ending.start()
    with suppress(OSError):  # by itself it looks up twice a second
        socket.create_connection((address, server.server_port), timeout=1).close()
    ending.join()
    server.server_close()
    thread.join()


def _listening(
    registry: CollectorRegistry, *, address: str, port: int, mishaps: Mishaps
) -> tuple[WSGIServer, threading.Thread]:
    """Raises `OSError`."""
    shown = Exposed(registry)
    try:
        return start_http_server(port, address, registry=shown)
    except (OSError, OverflowError) as error:
        server, thread = start_http_server(0, address, registry=shown)
        mishaps.tell(_PART, f"port {port} of {address} cannot be had ({error}): it is {server.server_port}")
        return server, thread
