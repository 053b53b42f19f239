"""User vectors kept in a Redis that the servers of a fleet share (`stack.serve.cache`)."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol
from urllib.parse import parse_qs, urlsplit

from stack.base.errors import ConfigError
from stack.serve.cache import Counts
from stack.telemetry.console import say

_RETRY_SECONDS = 1.0
_SAY_SECONDS = 60.0


class RedisCache(Counts):
    """A Redis that several servers share. It evicts by its own `maxmemory-policy` (allkeys-lru), so `evicted` stays 0.

    A request waits at most about `timeout_seconds`, also where Redis is slow or its host is gone. After a failure the
    connection is dropped, so that an answer that comes late is read by nobody, and for a second nothing is asked. A
    thread connects, and looks the name up, beside the requests; until it has, `get` misses. A kind of failure is said
    once a minute. One connection, of the process that made the cache.
    """

    _PREFIX: Final = b"stack:user:"

    def __init__(
        self,
        url: str,
        max_age_seconds: float,
        timeout_seconds: float = 0.05,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`url` is redis://, rediss:// or unix://, with a password if need be, which no message repeats. Entries expire
        `max_age_seconds` after they were put. A Redis that does not answer now may do so later.

        Raises: `ConfigError` for a URL that cannot be used, times that are not above 0, or without the package redis.
        """
        super().__init__()
        for name, seconds in (("max_age_seconds", max_age_seconds), ("timeout_seconds", timeout_seconds)):
            if not 0 < seconds < math.inf:
                raise ConfigError(f"the cache 'redis' has {name}={seconds}: it must be above 0 and finite")
        self._place = _place(url)
        self._connection = _connection(url, timeout_seconds)
        from redis.exceptions import RedisError, ResponseError

        self._refusal: type[Exception] = ResponseError
        self._failures = (RedisError, OSError, ValueError)
        self._expiry_milliseconds = max(1, round(max_age_seconds * 1000))
        self._timeout_seconds = timeout_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._said = ("", -math.inf)
        self._ready = threading.Event()
        self._broken = threading.Event()
        self._closing = threading.Event()
        self._keeper = threading.Thread(target=self._keep_connected, name="redis cache", daemon=True)
        self._keeper.start()
        self._ready.wait(timeout_seconds)

    def get(self, key: bytes, *, max_age_seconds: float) -> bytes | None:
        answer = self._ask("GET", self._PREFIX + key)
        return self.judge(answer if isinstance(answer, bytes) else None, max_age_seconds, self._clock())

    def put(self, key: bytes, value: bytes) -> None:
        self._ask("SET", self._PREFIX + key, value, "PX", self._expiry_milliseconds)

    def close(self) -> None:
        with self._lock:
            self._ready.clear()
        self._closing.set()
        self._broken.set()
        self._keeper.join(_RETRY_SECONDS)  # a look-up of the name can take longer: it is left behind

    def _ask(self, *command: str | bytes | int) -> object:
        """One command, one answer; None, and an error counted, where there is no connection or it fails."""
        deadline = time.monotonic() + self._timeout_seconds
        if not self._ready.is_set() or not self._lock.acquire(timeout=self._timeout_seconds):
            self.errors += 1
            return None
        try:
            if not self._ready.is_set():
                self.errors += 1
                return None
            self._connection.send_command(*command)
            return self._connection.read_response(timeout=max(deadline - time.monotonic(), 0.001))
        except self._refusal as error:  # an answer all the same: the connection is sound
            self._failed(error)
        except self._failures as error:
            self._failed(error)
            self._ready.clear()
            self._connection.disconnect()
            self._broken.set()  # the thread goes on
        finally:
            self._lock.release()
        return None

    def _keep_connected(self) -> None:
        """The thread: connects, a second after the last failure, whenever there is no connection."""
        while not self._closing.is_set():
            try:
                self._connection.connect()
                self._connection.send_command("PING")
                self._connection.read_response()
            except self._failures as error:
                self._say(error)
            else:
                self._broken.clear()
                if not self._closing.is_set():
                    self._ready.set()
                    self._broken.wait()
            self._connection.disconnect()
            self._closing.wait(_RETRY_SECONDS)

    def _failed(self, error: Exception) -> None:
        self.errors += 1
        self._say(error)

    def _say(self, error: Exception) -> None:
        """The kind of the failure only: texts of others might repeat the URL."""
        kind, now = type(error).__name__, time.monotonic()
        if kind != self._said[0] or now - self._said[1] >= _SAY_SECONDS:
            self._said = (kind, now)
            say(f"the cache in Redis at {self._place} does not serve ({kind}): its users are computed anew")


_URL = "redis://[:password@]host[:port][/database], rediss://... or unix:///path[?db=database]"


def _place(url: str) -> str:
    """Where a URL leads, without its user and password.

    Raises: `ConfigError` for one that is incomplete, or has options that would change what the cache promises. The
    message does not repeat any of it: a part of a password with a special character may have got anywhere.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or 6379
        options = set(parse_qs(parts.query, strict_parsing=bool(parts.query)))
    except ValueError:
        raise ConfigError(f"the URL of the cache 'redis' cannot be read: write {_URL}, with special characters of a "
                          "password as %xx") from None  # fmt: skip
    if parts.scheme == "unix":
        known = bool(parts.path) and "@" not in parts.path and parts.hostname is None and parts.port is None
    else:
        database = parts.path.strip("/")
        known = parts.scheme in ("redis", "rediss") and bool(parts.hostname) and (not database or database.isdecimal())
    if not known or parts.fragment:
        raise ConfigError(
            f"the URL of the cache 'redis' is not one: write {_URL}, with special characters of a password as %xx"
        )
    allowed = {"db", "username", "password"}
    for option in options:
        if option not in allowed and not option.startswith("ssl_"):
            raise ConfigError("the URL of the cache 'redis' has options besides db, username, password and ssl_*: "
                              "take them out")  # fmt: skip
    return parts.path if parts.scheme == "unix" else f"{parts.hostname}:{port}"


class _Connection(Protocol):
    """What is used of a connection of the package redis."""

    def connect(self) -> None: ...

    def disconnect(self) -> None: ...

    def send_command(self, *command: str | bytes | int) -> None: ...

    def read_response(self, *, timeout: float = ...) -> object: ...


def _connection(url: str, timeout_seconds: float) -> _Connection:
    """A connection that has not been made yet, and that never tries twice by itself."""
    try:
        from redis import ConnectionPool
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ImportError as error:
        raise ConfigError(
            "the cache 'redis' needs the package redis: pip install 'stack[redis]', or choose the cache 'lmdb'"
        ) from error
    try:
        pool = ConnectionPool.from_url(
            url,
            socket_timeout=timeout_seconds,
            socket_connect_timeout=timeout_seconds,
            retry=Retry(NoBackoff(), 0),
            driver_info=None,
            protocol=2,
        )
        return pool.make_connection()
    except (TypeError, ValueError):
        raise ConfigError("the URL of the cache 'redis' has a value that redis does not take") from None
