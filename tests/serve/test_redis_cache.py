"""The user-vector cache in Redis, against a real one: also where it is slow, killed, started again or locked."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from stack.base.errors import ConfigError
from stack.serve.cache import CacheKind, cache_key, open_cache, pack
from stack.serve.redis_cache import RedisCache
from tests.clocks import wait_for
from tests.serve.redis_server import Server, redis_not_started

NOW = 1e9
DAY = 86_400.0
KEY = cache_key("g", 1)
PASSWORD = "s3cret-of-redis"


@pytest.fixture
def stopped() -> Iterator[Server]:
    with redis_not_started() as server:
        yield server


@pytest.fixture
def server(stopped: Server) -> Server:
    stopped.start()
    return stopped


@pytest.fixture
def opened() -> Iterator[Callable[..., RedisCache]]:
    caches: list[RedisCache] = []

    def open_one(url: str, max_age_seconds: float = DAY, timeout_seconds: float = 10.0) -> RedisCache:
        caches.append(RedisCache(url, max_age_seconds, timeout_seconds, clock=lambda: NOW))
        return caches[-1]

    yield open_one
    for cache in caches:
        cache.close()


Opened = Callable[..., RedisCache]


def serves_again(cache: RedisCache) -> None:
    """Waits until what is put can be got."""

    def works() -> bool:
        cache.put(b"probe", value_of(0))
        return cache.get(b"probe", max_age_seconds=DAY) == value_of(0)

    wait_for(works, "the cache does not serve again")


def value_of(user: int, now: float = NOW) -> bytes:
    return pack(np.full(256, user, dtype=np.float32), b"%d" % user, now)


def counts(cache: RedisCache) -> tuple[int, int, int, int, int]:
    return cache.hits, cache.misses, cache.expired, cache.errors, cache.evicted


def test_what_one_server_puts_another_gets(server: Server, opened: Opened) -> None:
    one, other = opened(server.url), opened(server.url)
    assert other.get(KEY, max_age_seconds=DAY) is None
    one.put(KEY, value_of(1))
    one.put(cache_key("g", 2), value_of(2))
    assert other.get(KEY, max_age_seconds=DAY) == value_of(1)
    assert counts(other) == (1, 1, 0, 0, 0)
    assert counts(one) == (0, 0, 0, 0, 0)


def test_an_entry_expires_in_redis_and_is_judged_by_the_reader_before(server: Server, opened: Opened) -> None:
    cache = opened(server.url, 90.0)
    cache.put(KEY, value_of(1, NOW - 50))
    client = server.client()
    assert client.keys() == [b"stack:user:" + KEY]
    assert 0 < client.pttl(b"stack:user:" + KEY) <= 90_000
    client.close()
    assert cache.get(KEY, max_age_seconds=50) == value_of(1, NOW - 50)
    assert cache.get(KEY, max_age_seconds=49) is None
    assert counts(cache) == (1, 1, 1, 0, 0)


def test_a_value_of_others_is_a_miss_and_an_error(server: Server, opened: Opened) -> None:
    cache = opened(server.url)
    client = server.client()
    client.set(b"stack:user:a", b"garbage")
    client.rpush(b"stack:user:b", b"a list")
    client.close()
    assert cache.get(b"a", max_age_seconds=DAY) is None
    assert cache.get(b"b", max_age_seconds=DAY) is None
    assert counts(cache) == (0, 2, 0, 2, 0)
    cache.put(b"a", value_of(1))
    assert cache.get(b"a", max_age_seconds=DAY) == value_of(1)


def test_a_redis_that_starts_later_serves_then(
    stopped: Server, opened: Opened, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = opened(stopped.url, timeout_seconds=0.05)
    cache.put(KEY, value_of(1))
    assert cache.get(KEY, max_age_seconds=DAY) is None
    assert counts(cache) == (0, 1, 0, 2, 0)
    stopped.start()
    serves_again(cache)
    assert capsys.readouterr().out == (
        f"the cache in Redis at {stopped.socket} does not serve (ConnectionError): its users are computed anew\n"
    )


def test_a_redis_that_is_killed_costs_misses_until_it_is_started_again(server: Server, opened: Opened) -> None:
    cache = opened(server.url)
    cache.put(KEY, value_of(1))
    assert cache.get(KEY, max_age_seconds=DAY) == value_of(1)
    server.kill()
    for _ in range(3):
        cache.put(KEY, value_of(1))
        assert cache.get(KEY, max_age_seconds=DAY) is None
    assert counts(cache) == (1, 3, 0, 6, 0)
    server.start()
    serves_again(cache)
    cache.put(KEY, value_of(2))
    assert cache.get(KEY, max_age_seconds=DAY) == value_of(2)


def test_an_answer_that_came_too_late_is_never_taken_for_another(server: Server, opened: Opened) -> None:
    cache = opened(server.url, timeout_seconds=0.05)
    serves_again(cache)
    for user in range(3):
        cache.put(cache_key("g", user), value_of(user))
    before = cache.errors
    server.send_signal(signal.SIGSTOP)
    for user in range(3):
        assert cache.get(cache_key("g", user), max_age_seconds=DAY) is None
    assert cache.errors == before + 3
    server.send_signal(signal.SIGCONT)
    serves_again(cache)
    for user in (2, 0, 1):
        found = cache.get(cache_key("g", user), max_age_seconds=DAY)
        assert found in (value_of(user), None)  # None: the machine is too busy for 50 ms


def test_a_redis_that_does_not_answer_is_asked_by_the_thread_and_by_one_request_only(
    server: Server, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = opened(server.url, timeout_seconds=0.5)
    serves_again(cache)
    before = cache.errors
    asked = []
    send = cache._connection.send_command
    monkeypatch.setattr(cache._connection, "send_command", lambda *command: (asked.append(command[0]), send(*command)))
    server.send_signal(signal.SIGSTOP)
    for _ in range(50):
        assert cache.get(KEY, max_age_seconds=DAY) is None
    wait_for(lambda: asked.count("PING") > 1, "the thread does not ask again")
    assert cache.get(KEY, max_age_seconds=DAY) is None
    assert asked.count("GET") == 1
    assert cache.errors == before + 51
    server.send_signal(signal.SIGCONT)
    serves_again(cache)


def test_a_redis_that_refuses_writes_still_answers_reads(
    server: Server, opened: Opened, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = opened(server.url)
    cache.put(KEY, value_of(1))
    client = server.client()
    client.config_set("maxmemory", "1")
    for _ in range(3):
        cache.put(KEY, value_of(2))
        assert cache.get(KEY, max_age_seconds=DAY) == value_of(1)
    client.close()
    assert counts(cache) == (3, 0, 0, 3, 0)
    assert capsys.readouterr().out.count("does not serve (OutOfMemoryError)") == 1


def test_the_password_opens_redis_and_is_in_no_message(
    stopped: Server, opened: Opened, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped.start("--requirepass", PASSWORD)
    right = opened(f"unix://:{PASSWORD}@{stopped.socket}")
    right.put(KEY, value_of(1))
    assert right.get(KEY, max_age_seconds=DAY) == value_of(1)
    wrong = opened(f"unix://{stopped.socket}?password=wrong-{PASSWORD}", timeout_seconds=0.05)
    none = opened(stopped.url, timeout_seconds=0.05)
    for cache in (wrong, none):
        assert cache.get(KEY, max_age_seconds=DAY) is None
        assert PASSWORD not in repr(cache)
    said = ""

    def told() -> bool:
        nonlocal said
        said += "".join(capsys.readouterr())
        return said.count("does not serve (AuthenticationError)") == 2

    wait_for(told, "the refusals are not said")
    assert PASSWORD not in said


URLS = {
    f"http://:{PASSWORD}@host": "is not one: write redis://",
    f"redis://:{PASSWORD}": "cannot be read: write redis://",
    f"redis://:{PASSWORD}@host:port": "cannot be read: write redis://",
    f"redis://:12/{PASSWORD}@host": "is not one: write redis://",
    f"redis://:{PASSWORD}#x@host": "cannot be read",
    f"redis://user:12#{PASSWORD}@host": "is not one",
    f"redis://host/{PASSWORD}": "is not one",
    f"unix://:12/{PASSWORD}@/socket": "is not one",
    f"unix://host/{PASSWORD}": "is not one",
    f"redis://:{PASSWORD}@host?socket_timeout=60": "has options besides db, username, password and ssl_*",
    f"redis://host?{PASSWORD}": "cannot be read",
    f"redis://host?db={PASSWORD}": "has a value that redis does not take",
    f"rediss://:{PASSWORD}@host?ssl_min_version=x": "has a value that redis does not take",
    "": "is not one: write redis://",
}


@pytest.mark.parametrize("url", URLS)
def test_a_url_that_cannot_be_used_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError, match=URLS[url].replace("*", r"\*")) as caught:
        RedisCache(url, DAY)
    assert PASSWORD not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_times_that_are_not_above_zero_are_refused(seconds: float) -> None:
    with pytest.raises(ConfigError, match=r"the cache 'redis' has max_age_seconds=.*: it must be above 0 and finite"):
        RedisCache("redis://127.0.0.1:1", seconds)
    with pytest.raises(ConfigError, match="the cache 'redis' has timeout_seconds="):
        RedisCache("redis://127.0.0.1:1", DAY, seconds)


def test_without_the_package_redis_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "redis"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"pip install 'stack\[redis\]', or choose the cache 'lmdb'"):
        open_cache(CacheKind.redis, url="redis://127.0.0.1:1")


def test_a_cache_over_tcp_is_opened_by_its_kind_and_nobody_there_is_a_miss(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    cache = open_cache(CacheKind.redis, url=f"redis://:{PASSWORD}@127.0.0.1:{port}/3")
    assert cache.get(KEY, max_age_seconds=DAY) is None
    assert (cache.misses, cache.errors) == (1, 1)
    said = capsys.readouterr().out
    wait_for(lambda: f"127.0.0.1:{port} does not serve (ConnectionError)" in said + capsys.readouterr().out, "not said")
    cache.close()
