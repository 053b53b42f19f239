"""What a server of a package answers on one core: requests a second, how long they take, what they cost.

The server has one worker, on the first core; whoever asks is on the second. Beside every case a bare server of the same
libraries, on the worker's core, which reads a hundred ids and writes 64 numbers, so that one sees what the framework
takes. Processor time is that of the worker process, by the kernel.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil
from rich.table import Table

from stack.export.package import read_manifest
from stack.serve.client import Running, ask, running_server
from tools.bench.bodies import Body, binary_scoring, recorded_bodies, sized, user_of
from tools.bench.harness import Figure
from tools.bench.load import Load, Target, load

CONCURRENCIES = (1, 4, 16)
CANDIDATES = (1, 100, 1_000)
GROUP = "impression"
AT_ONCE = " at once: "
"""In the names of figures of a load."""
_WARM_SECONDS = 0.5
_KEPT = "serve.cache_max_age_seconds=86400"
"""No vector is too old before the last round."""
_BARE = """
import sys, msgspec, uvicorn
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route
class Asked(msgspec.Struct): ids: list[int]
decoder, answer = msgspec.json.Decoder(Asked), {"vector": [0.123456789] * 64}
async def endpoint(request):
    decoder.decode(await request.body())
    return Response(msgspec.json.encode(answer), media_type="application/json")
app = Starlette(routes=[Route("/", endpoint, methods=["POST"])])
uvicorn.Server(uvicorn.Config(app, port=int(sys.argv[1]), log_config=None, access_log=False, lifespan="off")).run()
"""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Requests of one kind; `pid`: the process that answers them."""

    name: str
    target: Target
    pid: int


def measure(package: Path, *, num_rounds: int, seconds: float, options: Sequence[str] = ()) -> list[Figure]:
    """Raises `AssertionError` where any request is not answered with 200."""
    bodies = recorded_bodies(package, GROUP)[:8]
    with on_two_cores(package, options=options) as (server, pid), _bare(os.sched_getaffinity(pid)) as bare:
        cases = [bare, *_cases(server, pid, package, bodies)]
        found: dict[str, list[float]] = {}
        for _ in range(num_rounds):
            for concurrency in CONCURRENCIES:
                for case in cases:
                    for name, value in _figures(case, concurrency, seconds).items():
                        found.setdefault(name, []).append(value)
    return [Figure(name=name, unit=_unit(name), values=tuple(values)) for name, values in found.items()]


@contextmanager
def on_two_cores(package: Path, *, options: Sequence[str] = ()) -> Iterator[tuple[Running, int]]:
    """A server whose one worker has the first core, while this process has the second; the worker's id."""
    with running_server(package, options=["serve.workers=1", _KEPT, *options]) as server:
        pid = worker_pids(server)[0]
        own = os.sched_getaffinity(0)
        first, *rest = sorted(own)
        pin(pid, {first})
        pin(server.process.pid, set(rest[:1] or {first}))
        os.sched_setaffinity(0, set(rest[:1] or {first}))
        try:
            yield server, pid
        finally:
            os.sched_setaffinity(0, own)


def worker_pids(server: Running) -> list[int]:
    """Of the processes that answer."""
    return [child.pid for child in psutil.Process(server.process.pid).children() if _is_worker(child)]


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "stack.serve.worker" in " ".join(process.cmdline())
    except psutil.Error:  # it has ended
        return False


def pin(pid: int, cores: set[int]) -> None:
    """All threads of a process."""
    for thread in psutil.Process(pid).threads():
        os.sched_setaffinity(thread.id, cores)


def processor_seconds(pid: int) -> float:
    """User's and system's of all threads."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def as_table(figures: Sequence[Figure]) -> Table:
    """A line for each case and concurrency: medians, and the processor time's spread."""
    table = Table(title="One worker on one core; medians of rounds", title_justify="left")
    for heading in (
        "request",
        "at once",
        "processor ms",
        "lowest to highest",
        "a second",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
    ):
        table.add_column(heading, justify="left" if heading == "request" else "right")
    found: dict[str, dict[str, Figure]] = {}
    for figure in figures:
        case, _, quantity = figure.name.partition(AT_ONCE)
        found.setdefault(case, {})[quantity] = figure
    for case, of in found.items():
        name, _, concurrency = case.rpartition(", ")
        spent = of["processor time"]
        table.add_row(
            name, concurrency, f"{spent.median:.2f}", f"{spent.low:.2f} to {spent.high:.2f}",
            f"{of['a second'].median:,.0f}", *(f"{of[share].median:.1f}" for share in ("p50", "p99", "p99.9")),
        )  # fmt: skip
    return table


def _cases(server: Running, pid: int, package: Path, bodies: Sequence[Body]) -> list[Case]:
    def case(name: str, path: str, asked: Sequence[Mapping[str, object]]) -> Case:
        encoded = [msgspec.json.encode(body) for body in asked]
        return Case(name=name, target=Target(address=server.address, path=path, bodies=encoded), pid=pid)

    embed, score, retrieve = "/v1/users:embed", "/v1/items:score", "/v1/users:retrieve"
    users = [user_of(sized(body)) for body in bodies]
    for number, user in enumerate(users):
        ask(server.address, embed, {**user, "user": number})
    kept = [{"user": number, "query": user["query"]} for number, user in enumerate(users)]
    of_kept = {
        number: [
            {**who, "group": GROUP, "candidates": sized(body, num_candidates=number)["candidates"]}
            for who, body in zip(kept, bodies, strict=True)
        ]
        for number in (100, 1_000)
    }
    found = [case("embed, 100 events", embed, users)]
    for number in CANDIDATES:
        scored = [sized(body, num_candidates=number) for body in bodies]
        found.append(case(f"score, 100 events, {number:,} candidates", score, scored))
        found.append(case(f"score, 100 events, {number:,} candidates, ctr alone", score, [_ctr(one) for one in scored]))
    for number, asked in of_kept.items():
        found.append(case(f"score, kept vector, {number:,} candidates, ctr alone", score, [_ctr(one) for one in asked]))
    ids = [{**_ctr(one), "candidates": _without_dense(one["candidates"])} for one in of_kept[1_000]]
    found.append(case("score, kept vector, 1,000 candidates, ctr alone, ids alone", score, ids))
    found.append(_binary_case(server, pid, package, bodies, users))
    if ask(server.address, "/v1/model")["retrieval"] is not None:
        found.append(case("retrieve, kept vector, 10 items", retrieve, kept))
    return found


def _binary_case(server: Running, pid: int, package: Path, bodies: Sequence[Body], users: Sequence[Body]) -> Case:
    """A vector that the caller has, and candidates with ranking features, as tensors: one request, as a header tells
    the size of its JSON part."""
    vector = ask(server.address, "/v1/users:embed", users[0])["vector"]
    body, size = binary_scoring(sized(bodies[0], num_candidates=1_000), vector, read_manifest(package), "ctr")
    target = Target(
        address=server.address, path=f"/v2/models/score_{GROUP}/infer", bodies=[body],
        headers=f"Inference-Header-Content-Length: {size}\r\n",
    )  # fmt: skip
    return Case(name="score by tensors, a vector, 1,000 candidates, ctr alone", target=target, pid=pid)


def _ctr(body: Body) -> Body:
    return {**body, "tasks": ["ctr"]}


def _without_dense(candidates: Mapping[str, object]) -> Body:
    """Without the ranking features."""
    return {name: column for name, column in candidates.items() if name != "dense"}


def _figures(case: Case, concurrency: int, seconds: float) -> dict[str, float]:
    load(case.target, concurrency=concurrency, seconds=_WARM_SECONDS)
    before = processor_seconds(case.pid)
    found: Load = load(case.target, concurrency=concurrency, seconds=seconds)
    spent = processor_seconds(case.pid) - before
    assert not found.failures, f"{case.name}: {dict(found.failures)}"
    name = f"{case.name}, {concurrency}{AT_ONCE}"
    return {
        f"{name}processor time": 1e3 * spent / found.num_requests,
        f"{name}a second": found.per_second,
        f"{name}p50": found.percentile(0.5),
        f"{name}p99": found.percentile(0.99),
        f"{name}p99.9": found.percentile(0.999),
    }


def _unit(name: str) -> str:
    return "" if name.endswith("a second") else "ms"


@contextmanager
def _bare(cores: set[int]) -> Iterator[Case]:
    port = _free_port()
    with subprocess.Popen([sys.executable, "-c", _BARE, str(port)]) as process:
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_for(address)
            pin(process.pid, cores)
            body = msgspec.json.encode({"ids": [10**11 + number for number in range(100)]})
            yield Case(name="bare server", target=Target(address=address, path="/", bodies=[body]), pid=process.pid)
        finally:
            process.terminate()


def _free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait_for(address: str) -> None:
    target = Target(address=address, path="/", bodies=[b'{"ids":[1]}'])
    for _ in range(100):
        if load(target, concurrency=1, seconds=0.05).num_requests:
            return
    raise AssertionError(f"{address} does not answer")
