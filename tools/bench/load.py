"""A load of HTTP requests over connections that stay open, from one process; how long each took, how each ended."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np
import uvloop

_ANSWER_SECONDS = 60.0
"""After which a request that is not answered has failed, as `TimeoutError`."""
_END = b"\r\n\r\n"
_LENGTH = b"\r\ncontent-length:"


@dataclass(kw_only=True)
class Load:
    """What came of it: seconds of each answered request, in order of their beginnings (`begun`, monotonic), and how
    many ended otherwise than with 200, by status or kind of failure."""

    begun: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    duration: float = 0.0

    @property
    def num_requests(self) -> int:
        return len(self.seconds)

    @property
    def per_second(self) -> float:
        return self.num_requests / self.duration

    def percentile(self, share: float, *, first: float = 0.0, last: float = float("inf")) -> float:
        """Milliseconds, of the requests that began in [first, last); NaN where there was none."""
        begun, seconds = np.array(self.begun), np.array(self.seconds)
        chosen = seconds[(begun >= first) & (begun < last)]
        return float(1e3 * np.percentile(chosen, 100 * share)) if len(chosen) else float("nan")


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where requests go, and their bytes, asked in turn."""

    address: str
    path: str
    bodies: Sequence[bytes]
    headers: str = ""

    def requests(self) -> list[bytes]:
        parts = urlsplit(self.address)
        return [
            (
                f"POST {self.path} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n"
                f"{self.headers}content-length: {len(body)}\r\n\r\n"
            ).encode()
            + body
            for body in self.bodies
        ]


def load(
    target: Target, *, concurrency: int, seconds: float, stop: Callable[[], bool] = lambda: False,
    per_second: float | None = None,
) -> Load:  # fmt: skip
    """Asks for `seconds`, or until `stop` says so; `per_second`: begins requests at this rate over all connections,
    whether the ones before are answered or not in time (None: each connection as fast as it is answered). One that is
    late because another takes long counts from when it was due, and all that are due in `seconds` are asked, however
    long that takes: so a server that stands still for a while shows in every request that would have met it."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_load(target, concurrency, seconds, stop, per_second))


async def _load(
    target: Target, concurrency: int, seconds: float, stop: Callable[[], bool], per_second: float | None
) -> Load:
    found = Load()
    start = time.monotonic()
    deadline = start + seconds
    pace = None if per_second is None else concurrency / per_second
    await asyncio.gather(
        *(_connection(target, found, number, start, deadline, stop, pace, concurrency) for number in range(concurrency))
    )
    found.duration = time.monotonic() - start
    order = np.argsort(found.begun)
    found.begun, found.seconds = ([one[index] for index in order] for one in (found.begun, found.seconds))
    return found


async def _connection(
    target: Target, found: Load, number: int, start: float, deadline: float, stop: Callable[[], bool],
    pace: float | None, concurrency: int,
) -> None:  # fmt: skip
    parts = urlsplit(target.address)
    requests = target.requests()
    streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    turn = number
    due = start + (0.0 if pace is None else pace * number / concurrency)
    while (begun := time.monotonic() if pace is None else due) < deadline and not stop():
        if pace is not None:
            if (early := due - time.monotonic()) > 0:
                await asyncio.sleep(early)
            due += pace
        try:
            if streams is None:
                streams = await asyncio.open_connection(parts.hostname, parts.port)
            reader, writer = streams
            writer.write(requests[turn % len(requests)])
            async with asyncio.timeout(_ANSWER_SECONDS):
                status, closes = await _answer(reader)
        except (OSError, EOFError) as error:
            found.failures[type(error).__name__] += 1
            if streams is not None:
                streams[1].close()
            streams = None
            continue
        turn += 1
        if status == 200:
            found.begun.append(begun)
            found.seconds.append(time.monotonic() - begun)
        else:
            found.failures[str(status)] += 1
        if closes:
            writer.close()
            streams = None
    if streams is not None:
        streams[1].close()


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """Status of the next answer, and whether the connection ends with it."""
    head = (await reader.readuntil(_END)).lower()
    at = head.find(_LENGTH)
    start = at + len(_LENGTH)
    length = int(head[start : head.index(b"\r\n", start)]) if at >= 0 else 0
    await reader.readexactly(length)
    return int(head[9:12]), b"connection: close" in head
