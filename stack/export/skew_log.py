"""What a server records of requests that it answered (`stack.serve.record`), and what `stack.export.skew` replays.

A folder of files, one for each worker process, a line of JSON for each request::

    {"at": 1511200001.5, "route": "/v1/items:score", "package": "30d651b5...", "num_deltas": 0,
     "body": {"user": 17, "now": 1511200000, "events": {...}, ...}, "answer": {"scores": {...}, ...}}

Bodies hold users' ids and what they did. Half a line, as a full disk or a kill leaves it, is counted and passed over.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Raw

from stack.base.errors import DataError

SUFFIX = ".jsonl"


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """As it is written: JSON that was read and made elsewhere stays as it is. `at`: when it was answered, epoch
    seconds; `package`: the digest of the one that answered; `num_deltas`: row deltas that lay over it."""

    at: float
    route: str
    package: str
    num_deltas: int
    body: Raw
    answer: Raw


class Body(msgspec.Struct, frozen=True, kw_only=True):
    """What replaying reads of a request."""

    user: int | str | None = None
    now: int | None = None
    events: dict[str, list[Any] | None] | None = None
    profile: dict[str, Any] = {}
    query: dict[str, Any] = {}
    group: str | None = None
    candidates: dict[str, Any] = {}


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """And of its answer."""

    vector: list[float] | None = None
    scores: dict[str, list[float | list[float] | dict[str, float]]] = {}


class Logged(msgspec.Struct, frozen=True, kw_only=True):
    """A line as it is read."""

    at: float
    route: str
    package: str
    num_deltas: int
    body: Body
    answer: Answer


def encode_line(line: Line) -> bytes:
    """With its end. Line breaks within can only be space between values, since JSON escapes them in texts."""
    return msgspec.json.encode(line).replace(b"\n", b" ").replace(b"\r", b" ") + b"\n"


def files_of(log: Path) -> list[Path]:
    """A file itself, or those of a folder. Raises: `DataError` where there is none."""
    files = sorted(log.glob(f"*{SUFFIX}")) if log.is_dir() else [log] if log.is_file() else []
    if not files:
        raise DataError(
            f"{log} has no recorded requests (*{SUFFIX}): start `stack serve` with serve.record={log}, and ask it"
        )
    return files


def read_log(log: Path) -> Iterator[Logged | None]:
    """Line by line, file after file; None for a line that is none. Raises: `DataError` where there is no file."""
    decoder = msgspec.json.Decoder(Logged)
    for file in files_of(log):
        with file.open("rb") as lines:
            for line in lines:
                if not line.strip():
                    continue
                try:
                    yield decoder.decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError):
                    yield None
