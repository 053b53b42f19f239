"""A real server process on loopback answers real HTTP."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from stack.base.errors import UserError
from stack.serve.client import RefusedError, Running, ask, running_server
from tests.clocks import wait_for
from tests.serve.conftest import MAX_BODY
from tests.serve.in_process import CANDIDATES, USER

EMBED, SCORE, RETRIEVE = "/v1/users:embed", "/v1/items:score", "/v1/users:retrieve"


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.address, trust_env=False, timeout=20) as client:
        yield client


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_a_ready_server_is_healthy_and_names_its_package(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    model = client.get("/v1/model").json()
    assert model["lineage"]["run"] == "toy"
    assert [task["name"] for task in model["tasks"]] == ["power", "ctr"]
    assert len(model["package"]) == 64
    assert {field["name"]: field["dtype"] for field in model["inputs"]}["candidates.impression.tags"] == "text"


def test_a_worker_has_loaded_neither_torch_nor_what_trains(server: Running) -> None:
    (worker,) = psutil.Process(server.process.pid).children()
    mapped = {Path(one.path).name for one in worker.memory_maps()}
    assert not [name for name in mapped if "torch" in name or "fbgemm" in name]
    assert any("onnxruntime" in name for name in mapped)


def test_embed_answers_the_vector_and_user_tasks_worked_by_hand(client: httpx.Client) -> None:
    response = client.post(EMBED, json=USER)
    assert response.status_code == 200
    answer = response.json()
    assert answer["vector"] == [3 + 1 + 0 + 10 + 2, 4 + 2 + 1 + 20 + 2]
    odds = [math.exp(1.6), math.exp(2.9), 1.0]
    assert answer["tasks"]["power"] == pytest.approx(
        dict(zip(("low", "mid", "high"), (odd / sum(odds) for odd in odds), strict=True)), rel=1e-6
    )
    assert answer["unknown"] == {}


def test_score_of_events_equals_score_of_their_vector(client: httpx.Client) -> None:
    by_events = client.post(SCORE, json=USER | CANDIDATES).json()
    vector = client.post(EMBED, json=USER).json()["vector"]
    by_vector = client.post(SCORE, json={"vector": vector} | CANDIDATES).json()
    first = sigmoid((16 * 1 + 29 * 2) / 100 + 0.15 + 0.5)
    second = sigmoid((16 * 5 + 29 * 6) / 100 + 0.2)
    assert by_events["scores"] == {"ctr": pytest.approx([first, second], rel=1e-6)}
    assert by_vector["scores"] == by_events["scores"]


def test_unknown_and_missing_ids_take_row_zero_and_unknown_ones_are_counted(client: httpx.Client) -> None:
    answer = client.post(
        EMBED, json={"now": 9, "events": {"time": [1, 2, 3], "item": [None, 4, 900]}, "profile": {"age": "nobody"}}
    ).json()
    assert answer["vector"] == [1 + 0.5 + 3, 2 + 0.5 + 3]
    assert answer["unknown"] == {"events.item": 1, "profile.age": 1}


def test_the_best_items_by_inner_product_come_back_in_order(client: httpx.Client) -> None:
    answer = client.post(RETRIEVE, json=USER | {"k": 2}).json()
    assert answer["items"] == [1 << 40, -7]
    assert answer["scores"] == [16 * 5 + 29 * 6, 16 * 3 + 29 * 4]
    assert len(client.post(RETRIEVE, json=USER | {"k": 1_000}).json()["items"]) == 3
    assert client.post(RETRIEVE, json={"vector": [1, 2]}).json()["error"].startswith("retrieval needs `now` and")


def test_a_named_user_is_kept_for_later_requests_with_the_same_query(client: httpx.Client) -> None:
    whole = client.post(SCORE, json=USER | CANDIDATES).json()
    assert whole["kept"] is False
    client.post(EMBED, json=USER | {"user": "anna"})
    kept = client.post(SCORE, json={"user": "anna", "query": {"shop": 5}} | CANDIDATES).json()
    assert (kept["scores"], kept["kept"]) == (whole["scores"], True)
    newer = USER | {"user": "anna", "events": {"time": [1], "item": [900]}}
    again = client.post(SCORE, json=newer | {"max_age_seconds": 60} | CANDIDATES).json()
    assert (again["scores"], again["kept"]) == (whole["scores"], True), "one not too old is taken where that is asked"
    computed = client.post(SCORE, json=newer | CANDIDATES).json()
    assert computed["kept"] is False
    assert computed["scores"] != whole["scores"], "events that are given count"
    client.post(EMBED, json=USER | {"user": "anna"})
    near = client.post(RETRIEVE, json={"user": "anna", "query": {"shop": 5}}).json()
    assert (near["items"][0], near["kept"]) == (1 << 40, True)
    for asked in ({"user": "anna"}, {"user": "anna", "query": {"shop": 6}}, {"user": "berta", "query": {"shop": 5}}):
        response = client.post(SCORE, json=asked | CANDIDATES)
        assert (response.status_code, response.json()["error"][:34]) == (404, "no vector of this user with this q")
    time.sleep(0.05)
    old = client.post(SCORE, json={"user": "anna", "query": {"shop": 5}, "max_age_seconds": 0.01} | CANDIDATES)
    assert old.status_code == 404


def test_tasks_that_are_named_are_scored_alone(client: httpx.Client) -> None:
    assert list(client.post(SCORE, json=USER | CANDIDATES | {"tasks": ["ctr"]}).json()["scores"]) == ["ctr"]
    response = client.post(SCORE, json=USER | CANDIDATES | {"tasks": ["rank"]})
    assert (response.status_code, response.json()["error"]) == (
        422, "unknown task 'rank' of group 'impression': known: ctr",
    )  # fmt: skip


def test_a_version_is_asked_by_label_or_number(client: httpx.Client) -> None:
    for version in ("stable", "1"):
        assert client.post(EMBED, json=USER, headers={"x-stack-version": version}).json()["version"] == 1
    for version in ("canary", "2", "nonsense", "9" * 30):
        response = client.post(EMBED, json=USER, headers={"x-stack-version": version})
        assert response.status_code == 404
        assert response.json()["error"].endswith("is loaded: stable, canary or one of 1")


def test_a_user_without_events_has_a_vector(client: httpx.Client) -> None:
    assert client.post(EMBED, json={"now": 9, "events": {"time": []}}).json()["vector"] == [0.5, 0.5]


BAD = {
    "no json": (EMBED, b"{", 400, "the body is not JSON in UTF-8"),
    "bad utf-8 in a key": (EMBED, b'{"\xff": 1}', 400, "the body is not JSON in UTF-8"),
    "bad utf-8 in an id": (EMBED, b'{"now": 9, "events": {"time": [1], "type": ["\xff"]}}', 400, "not JSON in UTF-8"),
    "deep json": (EMBED, b'{"now": 9, "events": ' + b"[" * 1_200, 400, "the body is not JSON"),
    "a list": (EMBED, b"[]", 422, "Expected `object`, got `array`"),
    "no now": (EMBED, b'{"events": {"time": []}}', 422, "give both `now` and `events`"),
    "nobody": (EMBED, b"{}", 422, "give `now` and `events` of the user"),
    "a name alone": (EMBED, b'{"user": "anna"}', 422, "give `now` and `events` of the user"),
    "an endless age": (EMBED, b'{"user": "anna", "max_age_seconds": 1e10}', 422, "$.max_age_seconds"),
    "no items": (RETRIEVE, b'{"now": 9, "events": {"time": []}, "k": 0}', 422, "$.k"),
    "too many items": (RETRIEVE, b'{"now": 9, "events": {"time": []}, "k": 1001}', 422, "$.k"),
    "unknown field": (EMBED, b'{"now": 9, "events": {"time": []}, "x": 1}', 422, "unknown field `x`"),
    "unknown feature": (
        EMBED, b'{"now": 9, "events": {"time": [], "colour": []}}', 422, "field `colour` - at `$.events`",
    ),
    "a text for an integer id": (
        EMBED, b'{"now": 9, "events": {"time": [1], "item": ["a"]}}', 422, "got `str` - at `$.events.item[0]`",
    ),
    "an integer for a text id": (
        EMBED, b'{"now": 9, "events": {"time": []}, "profile": {"age": 3}}', 422, "$.profile.age",
    ),
    "an id above 64 bits": (EMBED, b'{"now": 9, "events": {"time": [1], "item": [9223372036854775808]}}', 422, "<= "),
    "a huge id": (EMBED, b'{"now": 9, "events": {"time": [1], "item": [1' + b"0" * 60 + b"]}}", 422, "$.events.item"),
    "a bool id": (EMBED, b'{"now": 9, "events": {"time": [1], "item": [true]}}', 422, "got `bool`"),
    "a long text id": (
        EMBED, b'{"now": 9, "events": {"time": [1], "type": ["' + b"a" * 257 + b'"]}}', 422, "length <= 256",
    ),
    "negative time": (EMBED, b'{"now": 9, "events": {"time": [-1]}}', 422, ">= 0"),
    "event at now": (EMBED, b'{"now": 9, "events": {"time": [9]}}', 422, "at or after `now`"),
    "time goes back": (EMBED, b'{"now": 9, "events": {"time": [5, 4]}}', 422, "`events.time` decreases"),
    "too many events": (
        EMBED, b'{"now": 9, "events": {"time": [' + b",".join([b"1"] * 21) + b"]}}", 422, "length <= 20",
    ),
    "columns of unequal length": (
        EMBED, b'{"now": 9, "events": {"time": [1], "item": [1, 2]}}', 422, "differ in length: time 1, item 2",
    ),
    "unknown group": (SCORE, b'{"group": "g", "candidates": {}}', 422, "unknown group 'g': known: impression"),
    "no user": (SCORE, b'{"group": "impression", "candidates": {"item": [1]}}', 422, "give `now` and `events`"),
    "user and vector": (
        SCORE, b'{"vector": [1, 2], "now": 9, "group": "impression", "candidates": {"item": [1]}}', 422, "not several",
    ),
    "a vector with a query": (
        SCORE, b'{"vector": [1, 2], "query": {"shop": 5}, "group": "impression", "candidates": {"item": [1]}}', 422,
        "a `vector` has the profile and the query in it",
    ),
    "a kept vector with a profile": (
        RETRIEVE, b'{"user": "anna", "profile": {"age": "alt"}}', 422, "a vector that was kept has the profile in it",
    ),
    "a name of a field without end": (EMBED, b'{"' + b"x" * 2_900 + b'": 1}', 422, "..."),
    "a vector of another width": (
        SCORE, b'{"vector": [1], "group": "impression", "candidates": {"item": [1]}}', 422, "this package have 2",
    ),
    "nan": (SCORE, b'{"vector": [NaN, 1], "group": "impression", "candidates": {"item": [1]}}', 400, "not JSON"),
    "a number beyond float": (
        SCORE, b'{"vector": [1e400, 1], "group": "impression", "candidates": {"item": [1]}}', 422, "$.vector",
    ),
    "a large dense value": (
        SCORE, b'{"vector": [1, 1], "group": "impression", "candidates": {"item": [1], "dense": {"price": [1e31]}}}',
        422, "$.candidates.dense.price",
    ),
    "an unknown dense feature": (
        SCORE, b'{"vector": [1, 1], "group": "impression", "candidates": {"item": [1], "dense": {"x": [1]}}}',
        422, "unknown field `x` - at `$.candidates.dense`",
    ),
    "no candidates": (
        SCORE, b'{"vector": [1, 1], "group": "impression", "candidates": {}}', 422, "at least one column",
    ),
    "empty candidates": (
        SCORE, b'{"vector": [1, 1], "group": "impression", "candidates": {"item": []}}', 422, "0 cand",
    ),
    "too many candidates": (
        SCORE, b'{"vector": [1, 1], "group": "impression", "candidates": {"item": [1, 1, 1, 1, 1]}}',
        422, "length <= 4",
    ),
    "too many ids in a bag": (
        SCORE, b'{"vector": [1, 1], "group": "impression", "candidates": {"tags": [["a", "a", "a", "a"]]}}',
        422, "length <= 3",
    ),
    "a large body": (EMBED, b" " * (MAX_BODY + 1), 413, "the body has 3001 bytes: at most 3000 are accepted"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_refused_with_one_clear_line(client: httpx.Client, name: str) -> None:
    path, body, status, text = BAD[name]
    response = client.post(path, content=body)
    assert (response.status_code, list(response.json())) == (status, ["error"])
    assert text in response.json()["error"]
    assert "\n" not in response.json()["error"]


def test_a_chunked_body_is_limited_too(client: httpx.Client) -> None:
    response = client.post(EMBED, content=iter([b" " * 2_000, b" " * 2_000]))
    assert (response.status_code, response.json()["error"]) == (
        413,
        "the body is too large: at most 3000 bytes are accepted",
    )


def test_a_slow_body_is_refused(client: httpx.Client) -> None:
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=10) as connection:
        connection.sendall(b"POST /v1/users:embed HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{")
        answer = connection.recv(4_096)
    assert answer.startswith(b"HTTP/1.1 408")


def test_an_encoded_body_is_refused(client: httpx.Client) -> None:
    response = client.post(EMBED, content=b"x", headers={"content-encoding": "gzip"})
    assert (response.status_code, response.json()["error"]) == (
        415, "content-encoding 'gzip' is not accepted: send the body plain",
    )  # fmt: skip


def test_an_unknown_path_or_method_is_refused_in_json(client: httpx.Client) -> None:
    assert client.get("/v3").json() == {"error": "GET /v3: Not Found"}
    response = client.get(EMBED)
    assert (response.status_code, response.json()) == (405, {"error": f"GET {EMBED}: Method Not Allowed"})


def test_requests_beyond_what_a_worker_takes_at_once_are_told_to_come_again(package: Path) -> None:
    with running_server(package, options=["serve.workers=1", "serve.max_in_flight=2"]) as server:
        address = httpx.URL(server.address)
        waiting = [socket.create_connection((address.host, address.port), timeout=10) for _ in range(2)]
        for one in waiting:
            one.sendall(b"POST /v1/users:embed HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{")
        with httpx.Client(base_url=server.address, trust_env=False) as client:
            wait_for(lambda: client.post(EMBED, json=USER).status_code != 200)
            response = client.post(EMBED, json=USER)
            assert (response.status_code, response.headers["retry-after"]) == (429, "1")
            for one in waiting:
                one.close()
            wait_for(lambda: client.post(EMBED, json=USER).status_code == 200)


def test_with_tokens_only_their_bearers_are_answered_and_a_new_one_counts_at_once(
    package: Path, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("a-token-of-sixteen-or-more\n")
    tokens.chmod(0o600)
    with (
        running_server(package, options=["serve.workers=1", f"serve.read_tokens={tokens}"]) as server,
        httpx.Client(base_url=server.address, trust_env=False) as client,
    ):
        assert client.get("/healthz").status_code == 200
        for headers in ({}, {"authorization": "Bearer another-token-of-sixteen"}, {"authorization": "Basic x"}):
            response = client.post(EMBED, json=USER, headers=headers)
            assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
            assert "token" in response.json()["error"]
        first = {"authorization": "Bearer a-token-of-sixteen-or-more"}
        assert client.post(EMBED, json=USER, headers=first).status_code == 200
        tokens.write_text("a-newer-token-of-sixteen\n")
        second = {"authorization": "Bearer a-newer-token-of-sixteen"}
        wait_for(lambda: client.post(EMBED, json=USER, headers=second).status_code == 200)
        assert client.post(EMBED, json=USER, headers=first).status_code == 401
        with pytest.raises(RefusedError, match="401"):
            ask(server.admin, "/admin/versions", token="a-newer-token-of-sixteen")
        admin = {"authorization": f"Bearer {server.token}"}
        assert client.post(EMBED, json=USER, headers=admin).status_code == 401


def test_tokens_of_orders_are_a_file_of_their_own(package: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("an-admin-token-of-sixteen\n")
    tokens.chmod(0o600)
    with running_server(package, options=["serve.workers=1", f"serve.admin_tokens={tokens}"]) as server:
        assert server.token == "an-admin-token-of-sixteen"
        assert server.order("/admin/versions")["stable"] == 1
    tokens.write_text("short\n")
    options = ["serve.workers=1", f"serve.admin_tokens={tokens}"]
    with pytest.raises(UserError, match="ended before it could answer"), running_server(package, options=options):
        pass


def test_nothing_of_a_request_is_said(package: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bodies: tuple[dict[str, Any], ...] = (
        USER | {"user": "kept-secret", "profile": {"age": "kept-secret"}},
        USER | {"events": {"time": [1], "item": [987654321987]}},
        {"now": "kept-secret"},
    )
    with running_server(package, options=["serve.workers=1"]) as server:
        for body in bodies:
            headers = {"authorization": "Bearer kept-secret"}
            httpx.post(server.address + EMBED, json=body, headers=headers, trust_env=False)
        server.process.terminate()
        assert server.process.stdout is not None
        said = server.process.stdout.read() + "".join(capfd.readouterr())
    assert "stopped" in said
    assert "kept-secret" not in said
    assert "987654321987" not in said


def test_what_is_counted_names_no_user_and_no_item(client: httpx.Client, server: Running) -> None:
    client.post(EMBED, json=USER | {"user": "a-name-to-be-kept-secret", "profile": {"age": "a-secret-age"}})
    client.post(RETRIEVE, json={"user": "a-name-to-be-kept-secret", "query": {"shop": 5}})
    client.post(EMBED, json=USER | {"events": {"time": [1], "item": [987654321987]}})
    client.post(EMBED, json={"user": "secret"})
    text = httpx.get(f"{server.admin}/metrics", trust_env=False).text
    assert 'stack_serve_requests_total{code="200",label="stable",route="/v1/users:embed"}' in text
    assert 'stack_serve_unknown_ids_total{feature="profile.age"}' in text
    assert 'stack_serve_cache_total{result="hits"}' in text
    assert 'stack_serve_requests_total{code="422"' in text
    assert "secret" not in text
    assert "987654321987" not in text
    assert len(text.splitlines()) < 300
