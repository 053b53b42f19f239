"""Who is reading a version or writing a folder of files, so that pruning lets them be.

A lease is a small file with a time after which nobody need believe it: a reader that was killed must not keep old files
for ever. Its holder renews it while it lives. The clock decides only how long files are kept, never which version is
newer.
"""

from __future__ import annotations

import math
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import msgspec

from stack.base.errors import CheckpointError
from stack.checkpoint.store import Store

FOLDER = "leases"
_END = re.compile(r"-(\d+)\.json$")


class LeaseFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of a reader, the `version`; of a writer, its folder below `data/`. `expires` in seconds since 1970."""

    version: int | None
    data: str | None
    expires: float


@dataclass(kw_only=True)
class Lease:
    """One holder's lease."""

    seconds: float
    version: int | None = None
    data: str | None = None
    holder: str = field(default_factory=lambda: uuid.uuid4().hex)
    num_written: int = 0
    written: list[str] = field(default_factory=list)
    until: float = 0.0

    def check(self) -> None:
        """Raises `CheckpointError` where it has run out: what it protected may be gone."""
        if time.monotonic() > self.until:
            raise CheckpointError(
                f"a lease of {self.seconds:g} s ran out (this process was asleep, or the store very slow): try again, "
                "or set checkpoint.lease_seconds higher"
            )

    def release(self, store: Store) -> None:
        """Says that its holder is done."""
        for name in self.written:
            store.delete(name)
        self.written.clear()


def write_lease(store: Store, lease: Lease, *, clock: Callable[[], float] = time.time) -> None:
    """Begins a lease, or renews it: files are never changed, so a new one is written before the old one goes. Its end
    is in the name too: of one that was not written to its end, nothing else is known."""
    old = list(lease.written)
    held = LeaseFile(version=lease.version, data=lease.data, expires=clock() + lease.seconds)
    name = f"{FOLDER}/{lease.holder}-{lease.num_written}-{math.ceil(held.expires)}.json"
    lease.num_written += 1
    with store.create(name) as file:
        file.write(msgspec.json.encode(held))
    lease.written.append(name)
    lease.until = time.monotonic() + lease.seconds
    for one in old:
        store.delete(one)
        lease.written.remove(one)


@contextmanager
def holding(store: Store, lease: Lease) -> Iterator[Lease]:
    """Holds a lease for a block of code, however long: a thread renews it. A renewal that fails is tried again before
    the lease ends."""
    write_lease(store, lease)
    done = threading.Event()

    def renew() -> None:
        while not done.wait(lease.seconds / 3):
            if time.monotonic() > lease.until:
                return  # after a sleep: what it protected may be gone
            with suppress(OSError):
                write_lease(store, lease)

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        done.set()
        thread.join()
        lease.release(store)


@contextmanager
def reading(store: Store, version: int, *, seconds: float) -> Iterator[Lease]:
    """Holds a version for a block of code."""
    with holding(store, Lease(version=version, seconds=seconds)) as lease:
        yield lease


def held(store: Store, *, clock: Callable[[], float] = time.time) -> list[LeaseFile]:
    """The leases that have not expired."""
    found = (_read(store, name) for name in store.list(FOLDER))
    return [lease for lease in found if lease is not None and lease.expires > clock()]


def drop_expired(store: Store, *, clock: Callable[[], float] = time.time) -> None:
    """Deletes leases that nobody believes any more."""
    for name in store.list(FOLDER):
        lease, end = _read(store, name), _END.search(name)
        if lease is not None:
            ends = lease.expires
        elif end is not None:
            ends = float(end[1])
        else:  # nobody's
            continue
        if ends <= clock():
            store.delete(name)


def _read(store: Store, name: str) -> LeaseFile | None:
    try:
        return msgspec.json.decode(store.read(name), type=LeaseFile)
    except (FileNotFoundError, msgspec.DecodeError):  # released meanwhile, or not written to its end: a dead writer's
        return None
