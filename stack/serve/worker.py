"""One process that answers requests: python -m stack.serve.worker <listener> <control>, started by the supervisor.

It holds the versions it is told to hold and serves those it is told to serve. What is loaded is loaded in a thread of
its own beside the requests, warmed and tried with the requests that the package recorded, and only then exchanged
in one assignment. Needs no torch, unless the package's graphs do.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
import uvicorn
import uvloop
from prometheus_client import CollectorRegistry

from stack.base.errors import PackageError, UserError
from stack.base.memory import give_back_memory
from stack.base.threads import step_back
from stack.export.answers import Recorded
from stack.export.delta import DeltaManifest
from stack.export.package import GraphFormat, read_manifest
from stack.export.sealed import Sealed, read_sealed
from stack.serve.app import Bounds, Front, build_app
from stack.serve.cache import CacheKind, open_cache
from stack.serve.config import ServeConfig
from stack.serve.control import MAX_LINE_BYTES, Done, Drop, Load, Order, Rows, Serve, Stop, Use, next_order, write
from stack.serve.oip import oip_routes
from stack.serve.predictor import SMOKE_TOLERANCE, Predictor
from stack.serve.record import Recorder
from stack.serve.request import Limits, RequestError
from stack.serve.service import Kept, Labels, Served, Service
from stack.serve.tokens import Tokens
from stack.telemetry.metrics import WorkerMetrics

NUM_WARM_ROUNDS = 3
"""Of the recorded requests, for new graphs. Newer rows of graphs that are warm are tried once."""
_RESTS_TO_WORK = 4.0
"""After each warming request a worker that answers others rests so many times as long as that took: those of others
find the processor free for four fifths of the time."""
_NICENESS = 5
"""Of the thread that loads: a third of the weight. Not less: it has the interpreter at times, and were it to wait long
for the core while other processes have it, requests would wait with it."""
_SWITCH_SECONDS = 0.0001
"""How long a loading thread may hold the interpreter while a request waits."""
T = TypeVar("T")
M = TypeVar("M", bound=Sealed)


class Worker:
    """Does what the supervisor orders, one after the other, beside the requests."""

    def __init__(self, config: ServeConfig, *, listener: socket.socket, cache_folder: Path | None) -> None:
        self._listener = listener
        self._format: GraphFormat | None = config.graph_format
        limits = Limits(num_events=0, num_candidates=config.max_candidates, num_ids=config.max_ids)
        cache = open_cache(
            config.cache, folder=cache_folder, max_bytes=config.cache_mib << 20, url=config.redis_url,
            max_age_seconds=config.cache_max_age_seconds,
        )  # fmt: skip
        self._service = Service(
            kept=Kept(cache=cache, max_age_seconds=config.cache_max_age_seconds), limits=limits
        )  # fmt: skip
        metrics = WorkerMetrics(CollectorRegistry())
        bounds = Bounds(
            max_body_bytes=config.max_body_bytes, body_timeout_seconds=config.body_timeout_seconds,
            max_in_flight=config.max_in_flight,
        )  # fmt: skip
        tokens = Tokens(None if config.read_tokens is None else Path(config.read_tokens))
        recorder = None
        if config.record is not None:
            recorder = Recorder(
                Path(config.record), share=config.record_share, max_bytes=config.record_mib << 20,
                count=lambda result: metrics.recorded.labels(result).inc(),
            )  # fmt: skip
        self._front = Front(self._service, bounds=bounds, tokens=tokens, metrics=metrics, recorder=recorder)
        self._server = uvicorn.Server(
            uvicorn.Config(
                build_app(self._front, more=oip_routes(self._front)),
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                timeout_graceful_shutdown=max(1, round(config.shutdown_seconds)),
            )
        )
        self._serving: asyncio.Task[None] | None = None
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load", initializer=step_back, initargs=(_NICENESS,))

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until it is told to stop, or the supervisor is gone."""
        try:
            while (order := await next_order(reader)) is not None:
                error = None
                try:
                    await self._obey(order)
                except UserError as refused:
                    error = str(refused)
                except Exception as fault:  # whatever it is: what is loaded must not end the process that answers
                    traceback.print_exc()
                    error = f"{type(fault).__name__}: {str(fault)[:300]}: see the server's log"
                write(writer, Done(id=order.id, error=error))
                await writer.drain()
                if isinstance(order, Stop):
                    break
        finally:
            self._front.stopping = self._server.should_exit = True
            if self._serving is not None:
                await self._serving
            self._service.kept.cache.close()

    async def _obey(self, order: Order) -> None:
        service = self._service
        match order:
            case Load():
                served = await self._beside(lambda: self._load(order))
                service.versions = {**service.versions, order.number: served}
            case Rows():
                served = await self._beside(lambda: self._with_rows(order))
                service.versions = {**service.versions, order.number: served}
            case Use():
                service.labels = Labels(stable=order.stable, canary=order.canary, share=order.share)
            case Drop():
                service.versions = {number: one for number, one in service.versions.items() if number != order.number}
                await self._beside(give_back_memory)
            case Serve():
                gc.collect()
                gc.freeze()  # what was imported stays: looking through it would stop requests for tens of milliseconds
                self._serving = asyncio.create_task(self._server.serve(sockets=[self._listener]))
            case Stop():
                self._front.stopping = self._server.should_exit = True

    async def _beside(self, work: Callable[[], T]) -> T:
        """In the one thread that loads."""
        return await asyncio.get_running_loop().run_in_executor(self._loader, work)

    def _load(self, order: Load) -> Served:
        """Raises: `PackageError` where the package cannot be opened, or answers other than what it recorded."""
        folder = Path(order.folder)
        manifest = _same(read_manifest(folder), order.digest, folder)
        deltas = [
            (Path(place), _same(read_sealed(Path(place), DeltaManifest), digest, Path(place)))
            for place, digest in order.deltas
        ]
        predictor = Predictor(folder, manifest, graph_format=self._format, deltas=deltas)
        served = self._service.make(order.number, predictor)
        self._try(served, exact=not deltas, num_rounds=NUM_WARM_ROUNDS)
        return served

    def _with_rows(self, order: Rows) -> Served:
        folder = Path(order.folder)
        before = self._service.versions[order.number]
        delta = _same(read_sealed(folder, DeltaManifest), order.digest, folder)
        predictor = before.predictor.with_delta(folder, delta)
        served = Served(number=before.number, predictor=predictor, decoder=before.decoder)
        self._try(served, exact=False, num_rounds=1)
        return served

    def _try(self, served: Served, *, exact: bool, num_rounds: int) -> None:
        """Warms a version and proves it. `exact`: its rows are those with which the answers were recorded."""
        recorded = served.predictor.recorded()
        if not recorded:
            raise PackageError(
                f"package {served.predictor.folder} recorded no request to be tried with: export it again"
            )
        rests = 0.0 if self._serving is None else _RESTS_TO_WORK
        for one in recorded * num_rounds:
            prove(self._service, served, one, exact=exact, rests=rests)


def _same(manifest: M, digest: str, folder: Path) -> M:
    """Raises: `PackageError` where another package is there than the one that was checked."""
    if manifest.digest != digest:
        raise PackageError(f"{folder} was replaced after it was checked: load it by name, and it is checked anew")
    return manifest


def prove(service: Service, served: Served, recorded: Recorded, *, exact: bool, rests: float) -> None:
    """Asks a version a recorded request, with rests in between so many times as long as its halves take.

    Raises: `PackageError` where the answer is another, or not finite.
    """
    user = {name: value for name, value in recorded.body.items() if name not in ("group", "candidates")}
    try:
        with _resting(rests):
            vector = service.embed(served, msgspec.json.encode(user)).vector
        scores: Mapping[str, Sequence[object]] = {}
        if "candidates" in recorded.body:
            with _resting(rests):
                scores = service.score(served, msgspec.json.encode(recorded.body)).scores
    except RequestError as error:
        raise PackageError(f"package {served.package[:12]} refuses a request that it recorded: {error}") from error
    answers = {"vector": (vector, recorded.vector)} | {
        name: (scores.get(name, []), value) for name, value in recorded.scores.items()
    }
    for name, (ours, theirs) in answers.items():
        found = np.asarray(ours, dtype=np.float64)
        if not np.isfinite(found).all():
            raise PackageError(f"package {served.package[:12]} answers a recorded request with {name} not finite")
        wanted = np.asarray(theirs, dtype=np.float64)
        if exact and (found.shape != wanted.shape or np.abs(found - wanted).max(initial=0) > SMOKE_TOLERANCE):
            raise PackageError(
                f"package {served.package[:12]} answers a recorded request with another {name}: its rows, lists or "
                "graphs do not belong together; export it again"
            )


@contextmanager
def _resting(times: float) -> Iterator[None]:
    """Sleeps after what is done, so many times as long as it took."""
    start = time.perf_counter()
    yield
    time.sleep(times * (time.perf_counter() - start))


class Begin(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is started with, on its standard input."""

    config: dict[str, object]
    cache_folder: str | None = None


def config_of(values: dict[str, object]) -> ServeConfig:
    """The options, out of what `msgspec.to_builtins` made of them."""
    return msgspec.convert(values, ServeConfig)


async def _main(listener: socket.socket, control: socket.socket, begin: Begin) -> None:
    config = config_of(begin.config)
    assert config.cache is not CacheKind.lmdb or begin.cache_folder is not None
    reader, writer = await asyncio.open_connection(sock=control, limit=MAX_LINE_BYTES)
    try:
        worker = Worker(
            config, listener=listener, cache_folder=None if begin.cache_folder is None else Path(begin.cache_folder)
        )
    except UserError as refused:  # said in answer to the first order, since that is waited for
        if (order := await next_order(reader)) is not None:
            write(writer, Done(id=order.id, error=str(refused)))
            await writer.drain()
        return
    await worker.run(reader, writer)


def main(words: Sequence[str]) -> None:
    sys.setswitchinterval(_SWITCH_SECONDS)
    listener, control = (socket.socket(fileno=int(word)) for word in words)
    begin = msgspec.json.decode(sys.stdin.buffer.readline(), type=Begin)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main(listener, control, begin))


if __name__ == "__main__":
    main(sys.argv[1:])
