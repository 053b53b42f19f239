"""A real server process on loopback answers real HTTP."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.export.toy import write_toy_package

MAX_BODY = 3_000
SCRIPT = f"""
import sys
from stack.serve.config import ServeConfig; from stack.serve.serve import serve
serve(ServeConfig(package=sys.argv[1], port=0, max_body_bytes={MAX_BODY}, max_candidates=4, max_ids=3,
                  body_timeout_seconds=1.0))
print("loaded:", *sorted(name for name in sys.modules if name.split(".")[0] in ("torchrec", "fbgemm_gpu", "hydra")
      or name.startswith(("stack.train", "stack.model", "stack.tables", "stack.towers", "stack.tasks"))))
"""
EMBED, SCORE = "/v1/users:embed", "/v1/items:score"
USER = {
    "now": 100,
    "events": {"time": [1, 99], "item": [-7, 900], "type": ["buy", None]},
    "profile": {"age": "alt"},
    "query": {"shop": 5},
}
CANDIDATES = {
    "group": "impression",
    "candidates": {"item": [900, 1 << 40], "tags": [["öl", "wine"], []], "dense": {"price": [1.5, 2]}},
}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_package(tmp_path_factory.mktemp("toy") / "package")


@pytest.fixture(scope="module")
def client(package: Path) -> Iterator[httpx.Client]:
    command = [sys.executable, "-c", SCRIPT, str(package)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stderr is not None
        line = server.stdout.readline()
        assert "at http://127.0.0.1:" in line, server.stderr.read()
        with httpx.Client(base_url=line.split()[-1], trust_env=False, timeout=20) as client:
            yield client
        server.terminate()
        rest, errors = server.communicate(timeout=20)
    assert rest == "stopped\nloaded:\n"
    assert errors == ""
    assert server.returncode == 0


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_a_ready_server_is_healthy_and_names_its_package(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    model = client.get("/v1/model").json()
    assert model["lineage"]["run"] == "toy"
    assert [task["name"] for task in model["tasks"]] == ["power", "ctr"]
    assert len(model["package"]) == 64


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


def test_a_user_without_events_has_a_vector(client: httpx.Client) -> None:
    assert client.post(EMBED, json={"now": 9, "events": {"time": []}}).json()["vector"] == [0.5, 0.5]


BAD = {
    "no json": (EMBED, b"{", 400, "the body is not JSON in UTF-8"),
    "bad utf-8 in a key": (EMBED, b'{"\xff": 1}', 400, "the body is not JSON in UTF-8"),
    "bad utf-8 in an id": (EMBED, b'{"now": 9, "events": {"time": [1], "type": ["\xff"]}}', 400, "not JSON in UTF-8"),
    "deep json": (EMBED, b'{"now": 9, "events": ' + b"[" * 2_900, 400, "the body is not JSON"),
    "a list": (EMBED, b"[]", 422, "Expected `object`, got `array`"),
    "no now": (EMBED, b'{"events": {"time": []}}', 422, "missing required field `now`"),
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
        SCORE, b'{"vector": [1, 2], "now": 9, "group": "impression", "candidates": {"item": [1]}}', 422, "not both",
    ),
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
    import socket

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
    assert client.get("/v2").json() == {"error": "GET /v2: Not Found"}
    response = client.get(EMBED)
    assert (response.status_code, response.json()) == (405, {"error": f"GET {EMBED}: Method Not Allowed"})
