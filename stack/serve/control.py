"""What a supervisor and its workers say to each other, over a socket that only they have: one JSON line a message.

supervisor -> worker   Begin, then Load, Rows, Use, Drop, Stop; each with an id
worker -> supervisor   Done with the id, and why not where it failed
"""

from __future__ import annotations

import asyncio

import msgspec
from msgspec import Struct

MAX_LINE_BYTES = 1 << 20


class Message(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """`id` names the answer."""

    id: int


class Load(Message, frozen=True, kw_only=True):
    """Opens a package, with deltas on it, the oldest first, as the version `number`; warms and tries it. Each comes
    with the digest that its manifest had when it was checked."""

    number: int
    folder: str
    digest: str
    deltas: list[tuple[str, str]] = []


class Rows(Message, frozen=True, kw_only=True):
    """Lays one more delta over a version that is loaded."""

    number: int
    folder: str
    digest: str


class Use(Message, frozen=True, kw_only=True):
    """From now on these versions answer."""

    stable: int
    canary: int | None = None
    share: float = 0.0


class Drop(Message, frozen=True, kw_only=True):
    """Forgets a version that no label stands for."""

    number: int


class Serve(Message, frozen=True, kw_only=True):
    """Everything is loaded: accept requests."""


class Stop(Message, frozen=True, kw_only=True):
    """Answers what is under way, accepts no more, and ends."""


class Done(Message, frozen=True, kw_only=True):
    """`error` says why not."""

    error: str | None = None


Order = Load | Rows | Use | Drop | Serve | Stop
_ORDERS = msgspec.json.Decoder(Order)
_ANSWERS = msgspec.json.Decoder(Done)


def write(writer: asyncio.StreamWriter, message: Message) -> None:
    writer.write(msgspec.json.encode(message) + b"\n")


async def next_order(reader: asyncio.StreamReader) -> Order | None:
    """None where the supervisor is gone."""
    line = await reader.readline()
    return _ORDERS.decode(line) if line.endswith(b"\n") else None


async def next_answer(reader: asyncio.StreamReader) -> Done | None:
    """None where the worker is gone."""
    line = await reader.readline()
    return _ANSWERS.decode(line) if line.endswith(b"\n") else None
