"""Two servers with one Redis: they share the vectors of equal packages and rows, and of no others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stack.serve.client import RefusedError, Running, ask, running_server
from tests.export.toy import VECTORS, write_toy_delta, write_toy_package
from tests.serve.in_process import CANDIDATES, USER
from tests.serve.redis_server import Server, redis_not_started

EMBED, SCORE = "/v1/users:embed", "/v1/items:score"
OTHER = VECTORS | {"shop": [[0, 0], [30, 40]]}


@pytest.fixture(scope="module")
def store() -> Iterator[Server]:
    with redis_not_started() as server:
        server.start()
        yield server


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("packages")
    write_toy_package(root / "a")
    write_toy_package(root / "b", vectors=OTHER)
    write_toy_delta(root / "a2", root / "a", {900: [7, 8]}, from_version=1)
    return root


@pytest.fixture(scope="module")
def pair(store: Server, root: Path) -> Iterator[tuple[Running, Running]]:
    options = ["serve.workers=1", "serve.cache=redis", f"serve.redis_url={store.url}"]
    with running_server(root / "a", options=options) as one, running_server(root / "a", options=options) as other:
        yield one, other


def scored(server: Running, name: str) -> dict[str, Any]:
    """Candidates for a user of whom only the name is given."""
    return ask(server.address, SCORE, {"user": name, "query": USER["query"]} | CANDIDATES)


def test_a_vector_that_one_server_kept_is_used_by_another(pair: tuple[Running, Running]) -> None:
    one, other = pair
    whole = ask(one.address, SCORE, USER | CANDIDATES)
    ask(one.address, EMBED, USER | {"user": "anna"})
    found = scored(other, "anna")
    assert (found["kept"], found["scores"]) == (True, whole["scores"])
    assert found["package"] == whole["package"]


def test_another_package_and_newer_rows_find_no_vector_of_these(
    pair: tuple[Running, Running], store: Server, root: Path
) -> None:
    one, other = pair
    client = store.client()
    client.flushall()
    ask(one.address, EMBED, USER | {"user": "berta"})
    other.order("/admin/load", {"package": "b"})
    with pytest.raises(RefusedError, match="404: no vector of this user"):
        scored(other, "berta")
    ask(other.address, EMBED, USER | {"user": "berta"})
    assert scored(other, "berta")["scores"] != scored(one, "berta")["scores"]
    assert len(client.keys()) == 2
    other.order("/admin/rollback", {})
    assert scored(other, "berta")["scores"] == scored(one, "berta")["scores"]
    other.order("/admin/deltas", {"delta": "a2"})
    with pytest.raises(RefusedError, match="404: no vector of this user"):
        scored(other, "berta")
    one.order("/admin/deltas", {"delta": "a2"})
    ask(one.address, EMBED, USER | {"user": "berta"})
    assert scored(other, "berta")["kept"] is True, "servers with the same rows share again"
    assert len(client.keys()) == 3
    client.close()
