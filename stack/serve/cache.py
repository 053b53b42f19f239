"""User vectors kept between requests, shared by the worker processes of one server (LMDB) or by a fleet (Redis).

    key     keyed hash of generation, user and query; a new generation (package and row deltas) reaches no old entry
    value   when it was written, the float32 vector, what the tasks answered; a reader decides how old is too old

A cache is never the reason that a request fails: what goes wrong with the store is a miss and is counted. Every `get`
is a hit or a miss; `expired` are the misses that were too old; `errors` are the calls that the store did not serve
(damaged values and skipped puts among them); `evicted` are the entries that this process removed to make room.

Who can write to the store decides what is served: values have a checksum against damage, none against an author.

Shape legend: R the user vector's width.
"""

from __future__ import annotations

import enum
import hashlib
import math
import struct
import zlib
from pathlib import Path
from typing import Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from stack.base.errors import ConfigError

_KEY_BYTES = 16
_HEADER = struct.Struct("<4sIdI")
"""Magic, CRC-32 of what is behind it, epoch seconds, R; then R little-endian float32 and the tasks' bytes."""
_MAGIC = b"USV1"
_CHECKED = 8


class CacheKind(enum.Enum):
    """Where user vectors are kept."""

    none = "none"
    """Nowhere: every request is computed."""
    lmdb = "lmdb"
    """In one file that the workers of a server share, and that ends with the server."""
    redis = "redis"
    """In a Redis that the servers of a fleet share."""


class VectorCache(Protocol):
    """What a server asks of a cache. Nothing here raises for a store that is damaged, full, slow or gone."""

    hits: int
    misses: int
    expired: int
    errors: int
    evicted: int

    def get(self, key: bytes, *, max_age_seconds: float) -> bytes | None:
        """The value of `key`, unless it was written more than `max_age_seconds` from now."""
        ...

    def put(self, key: bytes, value: bytes) -> None:
        """Keeps what `pack` made under a key that `cache_key` made. Another value of the key is replaced."""
        ...

    def close(self) -> None:
        """Lets go of the store; `get` and `put` must not be called afterwards."""
        ...


class Entry(Struct, frozen=True, kw_only=True):
    """A value, taken apart. `written` is in epoch seconds."""

    vector_R: NDArray[np.float32]
    tasks: bytes
    written: float


def cache_key(generation: str, user: str | int, query_digest: bytes = b"") -> bytes:
    """16 bytes, different for every generation, user and query; the user 1 and the user "1" are two.

    BLAKE2b, keyed with the generation. So no user id lies in the store, its backups or its dumps, and entries of one
    user cannot be linked over generations. It is no secret: who has the store and knows the generation (it is in the
    package) can try ids one after the other, and ids are few. Treat the store as personal data all the same.
    """
    key = hashlib.blake2b(generation.encode(), digest_size=hashlib.blake2b.MAX_KEY_SIZE).digest()
    text = b"t" + user.encode() if isinstance(user, str) else b"i%d" % user
    parts = len(text).to_bytes(8, "little") + text + query_digest
    return hashlib.blake2b(parts, digest_size=_KEY_BYTES, key=key).digest()


def pack(vector_R: NDArray[np.float32], tasks: bytes, now: float) -> bytes:
    """The value for a vector and the tasks' answers (in the caller's own encoding), written at `now` (epoch seconds).

    Raises: `ValueError` for a time that is negative or not finite.
    """
    if not 0 <= now < math.inf:
        raise ValueError(f"a value cannot be written at {now}: epoch seconds are finite and not negative")
    body = vector_R.astype("<f4", copy=False).tobytes() + tasks
    checked = _HEADER.pack(_MAGIC, 0, now, len(vector_R))[_CHECKED:] + body
    return _MAGIC + zlib.crc32(checked).to_bytes(4, "little") + checked


def written_at(value: bytes) -> float | None:
    """When a value was written, in epoch seconds; None where it is damaged or was not made by `pack`."""
    if len(value) < _HEADER.size:
        return None
    magic, checksum, written, num_values = _HEADER.unpack_from(value)
    whole = magic == _MAGIC and checksum == zlib.crc32(memoryview(value)[_CHECKED:])
    return float(written) if whole and len(value) >= _HEADER.size + 4 * num_values else None


def unpack(value: bytes) -> Entry:
    """The parts of a value that `get` gave or `pack` made; the vector is the caller's own copy."""
    _, _, written, num_values = _HEADER.unpack_from(value)
    vector_R = np.frombuffer(value, dtype="<f4", count=num_values, offset=_HEADER.size).astype(np.float32)
    return Entry(vector_R=vector_R, tasks=value[_HEADER.size + 4 * num_values :], written=written)


def open_cache(
    kind: CacheKind,
    *,
    folder: Path | None = None,
    max_bytes: int = 256 << 20,
    url: str = "",
    max_age_seconds: float = 86_400.0,
    timeout_seconds: float = 0.05,
) -> VectorCache:
    """The cache of a kind: `folder` and `max_bytes` are LMDB's, `url` and the two times Redis'.

    Call it in each process by itself, after a fork. Raises: what the caches raise; `ConfigError` where `folder` or
    `url` is needed and not given.
    """
    match kind:
        case CacheKind.none:
            return NoCache()
        case CacheKind.lmdb:
            if folder is None:
                raise ConfigError("the cache 'lmdb' needs a folder of its own: name one, or choose the cache 'none'")
            from stack.serve.lmdb_cache import LmdbCache

            return LmdbCache(folder, max_bytes)
        case CacheKind.redis:
            from stack.serve.redis_cache import RedisCache

            return RedisCache(url, max_age_seconds, timeout_seconds)


class Counts:
    """The counters, and the one place where a hit is told from a miss."""

    def __init__(self) -> None:
        self.hits = 0
        self.misses = 0
        self.expired = 0
        self.errors = 0
        self.evicted = 0

    def judge(self, value: bytes | None, max_age_seconds: float, now: float) -> bytes | None:
        """`value` where it is whole and young enough. One from further in the future than that is too old as well:
        clocks differ by a little, and one that was far ahead must not keep its entries for ever."""
        written = None if value is None else written_at(value)
        if written is not None and abs(now - written) <= max_age_seconds:
            self.hits += 1
            return value
        self.misses += 1
        self.expired += written is not None
        self.errors += value is not None and written is None
        return None


class NoCache(Counts):
    """Keeps nothing and counts nothing."""

    def get(self, key: bytes, *, max_age_seconds: float) -> bytes | None:
        return None

    def put(self, key: bytes, value: bytes) -> None:
        pass

    def close(self) -> None:
        pass
