"""A load tells of every request that was due: also of those that a server which stood still kept waiting."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from tests.clocks import Clock
from tools.bench import load as module
from tools.bench.load import Load, Target, load

QUICK, STALL = 1 / 64, 3.0


class Writer:
    def write(self, data: bytes) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the server takes for each request, to be filled in; time is what those and pauses add up to."""
    took: list[float] = []
    clock, left = Clock(), iter(took)

    async def sleep(seconds: float) -> None:
        clock.now += seconds

    async def connect(*_: object) -> tuple[None, Writer]:
        return None, Writer()

    async def answer(_: object) -> tuple[int, bool]:
        clock.now += next(left)
        return 200, False

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock))
    monkeypatch.setattr(
        module, "asyncio",
        SimpleNamespace(
            sleep=sleep, open_connection=connect, timeout=asyncio.timeout, gather=asyncio.gather, Runner=asyncio.Runner
        ),
    )  # fmt: skip
    monkeypatch.setattr(module, "_answer", answer)
    return took


TARGET = Target(address="http://server:80", path="/", bodies=[b"{}"])


def paced(took: Sequence[float], per_second: float) -> list[float]:
    """Seconds from when a request was due to its answer, of one connection: the slow and obvious reference."""
    found, free = [], 0.0
    for number, seconds in enumerate(took):
        due = number / per_second
        free = max(free, due) + seconds
        found.append(free - due)
    return found


@pytest.mark.parametrize("stalled", [0, 20, 70])
def test_a_server_that_stands_still_shows_in_all_requests_that_were_due_meanwhile(
    served: list[float], stalled: int
) -> None:
    served += [STALL if number == stalled else QUICK for number in range(80)]
    found = load(TARGET, concurrency=1, seconds=10.0, per_second=8.0)
    assert found.num_requests == 80, "all that were due, also where the time was up before they could be asked"
    assert found.seconds == paced(served, 8.0)
    assert found.begun == [100 + number / 8 for number in range(80)]


def test_the_percentiles_are_those_of_who_asks_not_of_who_waits_for_an_answer(served: list[float]) -> None:
    served += [STALL if number == 20 else QUICK for number in range(80)]
    found = load(TARGET, concurrency=1, seconds=10.0, per_second=8.0)
    late = sum(seconds > 2 * QUICK for seconds in found.seconds)
    assert late == 24 + 4, "three seconds at eight a second, and those asked before it has caught up"
    assert found.percentile(0.5) == 1e3 * QUICK
    assert found.percentile(0.9) > 2_000
    assert found.percentile(1.0) == 1e3 * STALL
    assert found.percentile(1.0, first=100.0, last=102.0) == 1e3 * QUICK
    assert np.isnan(found.percentile(0.5, first=200.0))


def test_as_fast_as_it_is_answered_a_stall_is_one_request(served: list[float]) -> None:
    served += [STALL if number == 20 else QUICK for number in range(1_000)]
    found = load(TARGET, concurrency=1, seconds=10.0)
    assert sum(seconds > 2 * QUICK for seconds in found.seconds) == 1
    assert found.num_requests == 1 + (10 - STALL) / QUICK
    assert (found.duration, found.per_second) == (10.0, 44.9)


def test_a_load_ends_when_it_is_told_to(served: list[float]) -> None:
    served += [QUICK] * 100
    assert load(TARGET, concurrency=1, seconds=10.0, stop=lambda: len(served) > 0).num_requests == 0


def answered(status: int, more: str = "") -> bytes:
    return f"HTTP/1.1 {status} X\r\n{more}Content-Length: 2\r\n\r\n{{}}".encode()


@contextmanager
def real_server(answers: Sequence[bytes]) -> Iterator[str]:
    """Gives these answers to the requests of any connections, in turn and then the last of them for ever; an empty one
    is the end of the connection."""
    left = list(answers)
    loop = asyncio.new_event_loop()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                await reader.readexactly(length)
                answer = left.pop(0) if len(left) > 1 else left[0]
                writer.write(answer)
                if not answer or b"connection: close" in answer:
                    break
        except (EOFError, ConnectionError):
            pass  # whoever asked is gone
        writer.close()

    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def asked_of(answers: Sequence[bytes], num_asked: int) -> Load:
    """Of one connection that asks until it has had so many answers, good and bad."""
    with real_server(answers) as address:
        left = iter(range(num_asked))
        target = Target(address=address, path="/", bodies=[b"{}", b'{"a": 1}'])
        return load(target, concurrency=1, seconds=60.0, stop=lambda: next(left, None) is None)


def test_every_answer_is_counted_by_how_it_ended() -> None:
    good, closed = answered(200), answered(200, "connection: close\r\n")
    found = asked_of([good, answered(429), closed, good, b"", answered(503, "connection: close\r\n"), good], 9)
    assert found.num_requests == 6
    assert found.failures == {"429": 1, "503": 1, "IncompleteReadError": 1}
    assert found.begun == sorted(found.begun)
    assert all(seconds > 0 for seconds in found.seconds)
