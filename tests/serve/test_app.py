"""A worker's application in this process: before it has a package, when it is full, and what it counts of its cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from starlette.requests import Request

from stack.serve.app import Front
from stack.serve.cache import cache_key, pack
from stack.serve.lmdb_cache import MIN_BYTES, LmdbCache
from tests.clocks import Clock
from tests.serve.in_process import CANDIDATES, USER, client_of, front_of, predictor_of, service_of
from tests.serve.tensors import SCORE, USERS

ROUTES = ("/v1/users:embed", "/v1/items:score", "/v1/users:retrieve")
NAMED = USER | {"user": "anna"}


@pytest.mark.parametrize("path", ROUTES)
def test_a_route_asked_before_a_package_is_loaded_says_so_and_to_come_again(path: str) -> None:
    response = client_of(front_of(service_of(None))).post(path, json=USER | CANDIDATES)
    assert (response.status_code, response.json()) == (503, {"error": "no package is loaded yet"})
    assert response.headers["retry-after"] == "1"


def test_a_server_without_a_package_is_not_healthy_and_describes_nothing() -> None:
    client = client_of(front_of(service_of(None)))
    assert [client.get(path).status_code for path in ("/healthz", "/v1/model", "/openapi.json")] == [503] * 3


@pytest.mark.parametrize("path", [*ROUTES, f"{USERS}/infer", f"{SCORE}/versions/3/infer"])
def test_every_route_with_a_body_is_full_when_the_worker_is(package: Path, path: str) -> None:
    front = front_of(service_of(predictor_of(package)))
    client = client_of(front)
    first, second = (front.admitted(Request({"type": "http", "headers": []})) for _ in range(2))
    with first, second:
        response = client.post(path, content=b"{")
        assert (response.status_code, response.headers["retry-after"]) == (429, "1")
        assert response.headers["connection"] == "close", "its body was not read"
        assert response.json() == {"error": "2 requests are under way here already: try again in a second"}
        assert front.metrics.refused.labels("in_flight")._value.get() == 1
        assert client.get("/healthz").status_code == 200
    assert client.post(path, content=b"{").status_code in (400, 422)


def counted(front: Front) -> dict[str, float]:
    """What the metrics say of the cache."""
    names = ("hits", "misses", "expired", "errors", "evicted")
    return {name: front.metrics.cache.labels(name)._value.get() for name in names}


def test_hits_misses_and_evictions_of_a_small_cache_are_in_the_metrics(package: Path, tmp_path: Path) -> None:
    clock = Clock()
    service = service_of(predictor_of(package))
    service.clock = clock
    service.kept.cache = cache = LmdbCache(tmp_path / "cache", MIN_BYTES, clock)
    front = front_of(service)
    client = client_of(front)
    by_name = {"user": "anna", "query": USER["query"]}
    assert client.post("/v1/users:retrieve", json=by_name).status_code == 404
    client.post("/v1/users:embed", json=NAMED)
    assert client.post("/v1/users:retrieve", json=by_name).json()["kept"] is True
    assert counted(front) == {"hits": 1, "misses": 1, "expired": 0, "errors": 0, "evicted": 0}
    clock.now += 2  # these are kept for a second
    assert client.post("/v1/users:retrieve", json=by_name).status_code == 404
    user, large_R = 0, np.zeros(1_000, dtype=np.float32)
    while not cache.evicted:
        user += 1
        cache.put(cache_key("g", user), pack(large_R, b"", clock.now))
    client.post("/v1/users:embed", json=NAMED)
    assert counted(front) == {"hits": 1, "misses": 2, "expired": 1, "errors": 0, "evicted": cache.evicted}
    cache.close()
