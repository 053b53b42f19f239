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
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from wsgiref.simple_server import WSGIServer

import msgspec
from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server

from stack.base.files import write_bytes
from stack.telemetry.exposition import Exposed
from stack.telemetry.mishaps import Mishaps

PART = "exporter"


@dataclass(frozen=True, kw_only=True)
class Target:
    """Who is scraped: `role` train, then `rank` is its place in the job, or serve, then it is the port."""

    folder: Path
    run: str
    role: str
    rank: int

    @property
    def path(self) -> Path:
        return self.folder / f"{self.run}.{self.role}.{self.rank}.json"

    def write(self, host: str, port: int) -> None:
        """Raises `OSError`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        labels = {"run": self.run, "rank": str(self.rank), "role": self.role}
        write_bytes(self.path, msgspec.json.encode([{"targets": [address], "labels": labels}]) + b"\n")

    def remove(self) -> None:
        """Raises `OSError`, but not where it is gone already."""
        self.path.unlink(missing_ok=True)

    def remove_ranks_from(self, world_size: int) -> None:
        """What a larger start of the same run left."""
        name = re.compile(rf"{re.escape(self.run)}\.{self.role}\.(\d+)\.json")
        for path in self.folder.glob("*.json"):
            found = name.fullmatch(path.name)
            if found and int(found[1]) >= world_size:
                path.unlink(missing_ok=True)


@contextmanager
def exported(
    registry: CollectorRegistry, target: Target, *, address: str, port: int, world_size: int, mishaps: Mishaps
) -> Iterator[None]:
    """Shows `registry`, and figures of the process, on a port for as long as the block takes: on a free one where
    `port` is taken, and not at all where there is none either. `world_size`: processes of the job."""
    ProcessCollector(registry=registry)
    server = thread = None
    with mishaps.survived(PART):
        server, thread = _listening(registry, address=address, port=port, mishaps=mishaps)
    if server is not None:
        with mishaps.survived("targets"):
            target.remove_ranks_from(world_size)
            target.write(address, server.server_port)
    try:
        yield
    except SystemExit:  # a way to end that was meant
        _forget(target, mishaps)
        raise
    else:
        _forget(target, mishaps)
    finally:
        if server is not None and thread is not None:
            server.shutdown()
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
        mishaps.tell(PART, f"port {port} of {address} cannot be had ({error}): it is {server.server_port}")
        return server, thread


def _forget(target: Target, mishaps: Mishaps) -> None:
    with mishaps.survived("targets"):
        target.remove()
