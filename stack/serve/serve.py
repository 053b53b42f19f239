"""`stack serve`: a process for each core that answers HTTP from one package, and one that watches and changes them,
until it is told to stop (SIGINT, SIGTERM)."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import uvicorn
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from stack.base.errors import ConfigError
from stack.base.files import write_text
from stack.base.listen import address_of, bound
from stack.serve.admin import build_admin
from stack.serve.config import ServeConfig
from stack.serve.crew import Crew
from stack.serve.fleet import Fleet
from stack.serve.record import make_record_folder
from stack.serve.tokens import Tokens, generate_token
from stack.telemetry.console import say
from stack.telemetry.exporter import Target, findable
from stack.telemetry.exposition import Exposed
from stack.telemetry.metrics import ServerMetrics
from stack.telemetry.mishaps import uncounted

_BACKLOG = 1024


@dataclass(frozen=True, kw_only=True)
class Watched:
    """Where Prometheus is told of the server; `address`: by which it reaches one that listens on all of them."""

    targets: Path
    address: str


def serve(config: ServeConfig, *, watched: Watched | None = None) -> None:
    """Loads the package, says the address once it can answer, and returns after a stop signal.

    Raises: `PackageError` for a package that cannot be served, `MachineError` where an address is taken.
    """
    if not config.package:
        raise ConfigError("serve.package is empty: name the folder that `stack export` wrote, runs/<run>/package")
    package = Path(config.package).absolute()
    if config.record is not None:
        make_record_folder(config.record)
    with (
        _work_folder() as work,
        bound(config.host, config.port, option="serve.") as listener,
        bound(config.admin_host, config.admin_port, option="serve.admin_") as admin,
    ):
        server = _Server(config, package=package, work=work, listener=listener, admin=admin, watched=watched)
        asyncio.run(server.run())
    say("stopped")


class _Server:
    """The supervisor of the workers."""

    def __init__(
        self,
        config: ServeConfig,
        *,
        package: Path,
        work: Path,
        listener: socket.socket,
        admin: socket.socket,
        watched: Watched | None,
    ) -> None:
        self._config = config
        self._watched = watched
        self._package = package
        self._work = work
        self._listener, self._admin_listener = listener, admin
        self._registry = CollectorRegistry()
        self._metrics = ServerMetrics(self._registry)
        self._stop = asyncio.Event()

    async def run(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._stop.set)
        config = self._config
        tokens = Tokens(self._token_file())
        fleet = Fleet(config, root=self._package.parent, work=self._work, metrics=self._metrics)
        crew = Crew(
            config, listener=self._listener, folder=self._work, num_workers=config.workers or os.cpu_count() or 1,
            prepare=fleet.prepare, died=self._metrics.restarts.inc,
        )  # fmt: skip
        fleet.order = crew.order
        await fleet.first(self._package.name)
        starting = asyncio.create_task(crew.start())
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                self._metrics.workers.set_function(lambda: len(crew.members))
                for listener in (self._listener, self._admin_listener):
                    listener.listen(_BACKLOG)  # whoever reads the addresses may ask at once
                self._announce(fleet)
                with self._findable(fleet):
                    await self._until_stopped(stopping, self._admin(fleet, crew, tokens), crew)
        finally:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            await crew.stop(0.0)

    async def _until_stopped(self, stopping: asyncio.Task[Literal[True]], admin: uvicorn.Server, crew: Crew) -> None:
        """Takes orders until it is told to stop, and while requests under way are answered."""
        administering = asyncio.create_task(admin.serve(sockets=[self._admin_listener]))
        await asyncio.wait({administering, stopping}, return_when=asyncio.FIRST_COMPLETED)
        self._listener.close()
        await crew.stop(self._config.shutdown_seconds)
        admin.should_exit = True
        await administering

    def _admin(self, fleet: Fleet, crew: Crew, tokens: Tokens) -> uvicorn.Server:
        app = build_admin(
            fleet, tokens=tokens, registries=self._registries, num_alive=lambda: len(crew.members),
            body_timeout_seconds=self._config.body_timeout_seconds,
        )  # fmt: skip
        return _WithoutSignals(
            uvicorn.Config(
                app, log_config=None, access_log=False, lifespan="off", server_header=False, timeout_graceful_shutdown=1
            )
        )  # fmt: skip

    def _findable(self, fleet: Fleet) -> AbstractContextManager[None]:
        """Prometheus is told where the admin's address is."""
        if self._watched is None:
            return nullcontext()
        host, port = self._admin_listener.getsockname()[:2]
        if ipaddress.ip_address(host).is_unspecified:
            host = self._watched.address
        run = fleet.versions[fleet.labels.stable].manifest.lineage.run
        target = Target(folder=self._watched.targets, run=run, role="serve", number=port)
        return findable(target, host, port, mishaps=uncounted())

    def _registries(self) -> list[Collector]:
        workers = CollectorRegistry()
        MultiProcessCollector(workers, path=str(self._work / "metrics"))  # type: ignore[no-untyped-call]
        return [Exposed(self._registry), workers]

    def _token_file(self) -> Path:
        if self._config.admin_tokens is not None:
            return Path(self._config.admin_tokens)
        return self._work / "admin.token"

    def _announce(self, fleet: Fleet) -> None:
        version = fleet.versions[fleet.labels.stable]
        say(
            f"serving package {version.manifest.digest[:12]} of run {version.manifest.lineage.run!r} at "
            f"{address_of(self._listener)}"
        )
        say(f"admin at {address_of(self._admin_listener)}, its token in {self._token_file()}")


class _WithoutSignals(uvicorn.Server):
    """A server that leaves signals to whoever runs it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextmanager
def _work_folder() -> Iterator[Path]:
    """For this server's cache, metrics, merged deltas and token; nobody else may look into it."""
    folder = Path(tempfile.mkdtemp(prefix="stack-serve-"))
    try:
        for name in ("metrics", "cache"):
            (folder / name).mkdir(mode=0o700)
        token = folder / "admin.token"
        write_text(token, generate_token() + "\n")
        token.chmod(0o600)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
