"""Packages swapped under load, workers killed under load, packages that must be refused: what requests notice of it.

Two packages of the same run (hard links of one) are loaded in turn while requests go on; latencies while a swap is
under way are held beside those between swaps. Then a worker of two is killed with kill -9, and damaged packages are
loaded.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import psutil

from stack.export.sealed import MANIFEST
from stack.serve.client import RefusedError, Running, running_server
from tools.bench.bodies import recorded_bodies, sized, user_of
from tools.bench.harness import Figure
from tools.bench.load import Load, Target, load
from tools.bench.serving import GROUP, on_two_cores, worker_pids

NUM_SWAPS, NUM_FIRST_SWAPS = 100, 5
CONCURRENCY = 4
SHARE_OF_CEILING = 0.5
"""Of what the server can answer, requests begin at this rate, whether the ones before are answered or not."""
KILL_CONCURRENCY = 8
_REST_SECONDS = 0.5
_CEILING_SECONDS = 3.0
_RETURN_SECONDS = 60.0
"""In which another worker must be there for one that was killed."""


@dataclass(frozen=True, kw_only=True)
class Swaps:
    """Times of swaps (begun, ended), and memory of the worker after some of them."""

    spans: list[tuple[float, float]]
    resident_bytes: dict[int, int]


def measure(package: Path, *, num_swaps: int = NUM_SWAPS) -> list[Figure]:
    """Raises `AssertionError` where a swap fails, a worker that is killed is not replaced or takes more with it than it
    had, or a package is served that must be refused."""
    with copies(package, ("a", "b")) as root:
        with on_two_cores(root / "a") as (server, pid):
            target = _embeds(server, package)
            figures = _swaps(server, pid, target, num_swaps)
        with running_server(root / "a", options=["serve.workers=2"]) as server:
            figures += _kill(server, replace(target, address=server.address))
        figures += refusals(root)
    return figures


@contextmanager
def copies(package: Path, names: Sequence[str]) -> Iterator[Path]:
    """A folder beside the package with copies of it."""
    with tempfile.TemporaryDirectory(dir=package.parent, prefix=".bench-") as name:
        root = Path(name)
        root.chmod(0o755)
        for one in names:
            shutil.copytree(package, root / one, copy_function=os.link)
        yield root


def _embeds(server: Running, package: Path) -> Target:
    bodies = [msgspec.json.encode(user_of(sized(body))) for body in recorded_bodies(package, GROUP)[:8]]
    return Target(address=server.address, path="/v1/users:embed", bodies=bodies)


def _swaps(server: Running, pid: int, target: Target, num_swaps: int) -> list[Figure]:
    ceiling = load(target, concurrency=CONCURRENCY, seconds=_CEILING_SECONDS).per_second
    rate = SHARE_OF_CEILING * ceiling
    done = threading.Event()
    swaps = Swaps(spans=[], resident_bytes={})

    def swap() -> None:
        try:
            for number in range(1, num_swaps + 1):
                begun = time.monotonic()
                server.order("/admin/load", {"package": "ab"[number % 2]})
                swaps.spans.append((begun, time.monotonic()))
                time.sleep(_REST_SECONDS)
                if number in (NUM_FIRST_SWAPS, num_swaps):
                    swaps.resident_bytes[number] = psutil.Process(pid).memory_info().rss
        finally:
            done.set()

    thread = threading.Thread(target=swap)
    thread.start()
    found = load(target, concurrency=CONCURRENCY, seconds=3600, stop=done.is_set, per_second=rate)
    thread.join()
    assert len(swaps.spans) == num_swaps, "a swap failed: see the server's words above"
    during, between = _apart(found, swaps.spans)
    first, last = (swaps.resident_bytes[number] for number in (min(NUM_FIRST_SWAPS, num_swaps), num_swaps))
    return [
        Figure(name="swaps: requests not answered with 200", unit="", values=(float(found.failures.total()),)),
        Figure(name="swaps: requests answered", unit="", values=(float(found.num_requests),)),
        Figure(name="swaps: requests a second asked for", unit="", values=(rate,)),
        Figure(name="swaps: seconds each", unit="s", values=tuple(end - begun for begun, end in swaps.spans)),
        Figure(name="p50 between swaps", unit="ms", values=(_percentile(between, 0.5),)),
        Figure(name="p50 during swaps", unit="ms", values=(_percentile(during, 0.5),)),
        Figure(name="p99 between swaps", unit="ms", values=(_percentile(between, 0.99),)),
        Figure(name="p99 during swaps", unit="ms", values=(_percentile(during, 0.99),)),
        Figure(
            name="p99 during swaps over between", unit="x",
            values=(_percentile(during, 0.99) / _percentile(between, 0.99),),
        ),
        Figure(name=f"memory of a worker after {NUM_FIRST_SWAPS} swaps", unit="MiB", values=(first / 2**20,)),
        Figure(name=f"memory of a worker after {num_swaps} swaps", unit="MiB", values=(last / 2**20,)),
        Figure(name="memory after all over after the first", unit="x", values=(last / first,)),
    ]  # fmt: skip


def _apart(found: Load, spans: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Seconds of requests that were under way while a swap was, and of the others."""
    during: list[float] = []
    between: list[float] = []
    for begun, seconds in zip(found.begun, found.seconds, strict=True):
        meets = any(begun < end and begun + seconds > start for start, end in spans)
        (during if meets else between).append(seconds)
    return during, between


def _percentile(seconds: Sequence[float], share: float) -> float:
    found = Load(begun=[0.0] * len(seconds), seconds=list(seconds), duration=1.0)
    return found.percentile(share)


def _kill(server: Running, target: Target) -> list[Figure]:
    """A worker of two is killed under load."""
    done = threading.Event()
    back: list[float] = []

    def kill() -> None:
        try:
            time.sleep(1.0)
            victim = worker_pids(server)[0]
            os.kill(victim, signal.SIGKILL)
            killed = time.monotonic()
            while time.monotonic() < killed + _RETURN_SECONDS and not back:
                if _both_answer(server, victim):
                    back.append(time.monotonic() - killed)
                time.sleep(0.02)
            time.sleep(1.0)
        finally:
            done.set()

    thread = threading.Thread(target=kill)
    thread.start()
    found = load(target, concurrency=KILL_CONCURRENCY, seconds=2 * _RETURN_SECONDS, stop=done.is_set)
    thread.join()
    assert back, f"no worker took the place of the one that was killed within {_RETURN_SECONDS:g} seconds"
    statuses = [kind for kind in found.failures if kind.isdecimal()]
    assert not statuses, f"after kill -9 of a worker requests were answered with {', '.join(statuses)}"
    cut = found.failures.total()
    assert cut <= KILL_CONCURRENCY, f"kill -9 of a worker cut {cut} connections: it had at most {KILL_CONCURRENCY}"
    gaps = [after - before for before, after in zip(found.begun, found.begun[1:], strict=False)]
    return [
        Figure(name="kill -9 of one of two workers: connections cut", unit="", values=(float(cut),)),
        Figure(name="kill -9: requests answered meanwhile", unit="", values=(float(found.num_requests),)),
        Figure(name="kill -9: longest time without an answered request begun", unit="s", values=(max(gaps),)),
        Figure(name="kill -9: until another worker is warm", unit="s", values=tuple(back)),
    ]


def _both_answer(server: Running, victim: int) -> bool:
    pids = worker_pids(server)
    return len(pids) == 2 and victim not in pids and bool(server.order("/healthz")["workers"] == 2)


def refusals(root: Path) -> list[Figure]:
    """Packages that must not be served; how many were refused, the old one answering on."""
    for name, change in _DAMAGES.items():
        shutil.copytree(root / "a", root / name)  # no links: they will be changed
        change(root / name)
    names = [*_DAMAGES, "../a", "/etc", "a/../a", "nowhere", "x" * 65, ".hidden"]
    refused = []
    with running_server(root / "a", options=["serve.workers=1"]) as server:
        for name in names:
            try:
                server.order("/admin/load", {"package": name})
            except RefusedError:
                refused.append(name)
        told = server.order("/admin/versions")
    assert told["stable"] == 1, told
    assert refused == names, sorted(set(names) - set(refused))
    return [
        Figure(name="damaged, foreign and escaping packages: tried", unit="", values=(float(len(names)),)),
        Figure(name="damaged, foreign and escaping packages: refused", unit="", values=(float(len(refused)),)),
    ]


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def _graph(folder: Path) -> Path:
    return next(iter(sorted((folder / "graphs").iterdir())))


_DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped-graph": lambda folder: _flip(_graph(folder)),
    "flipped-rows": lambda folder: _flip(next(iter(sorted(folder.glob("rows/*/rows.npy"))))),
    "flipped-manifest": lambda folder: _flip(folder / MANIFEST),
    "cut-graph": lambda folder: _graph(folder).write_bytes(_graph(folder).read_bytes()[:-100]),
    "no-manifest": lambda folder: (folder / MANIFEST).unlink(),
    "half-manifest": lambda folder: (folder / MANIFEST).write_bytes((folder / MANIFEST).read_bytes()[:500]),
    "missing-graph": lambda folder: _graph(folder).unlink(),
    "added-file": lambda folder: (folder / "graphs" / "more.onnx").write_bytes(b"1"),
    "linked-file": lambda folder: (folder / "graphs" / "link.onnx").symlink_to("/etc/passwd"),
    "group-writable": lambda folder: folder.chmod(0o775),
    "writable-file": lambda folder: _graph(folder).chmod(0o666),
}
