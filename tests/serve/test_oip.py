"""The routes of the Open Inference Protocol over the toy package: equal to those under /v1."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from stack.export.runner import Runner
from stack.serve.app import Front
from stack.serve.oip import JSON_SIZE_HEADER
from stack.serve.oip_models import NO_ID
from stack.serve.tokens import generate_token
from tests.serve.in_process import CANDIDATES, USER, Client, client_of, front_of, predictor_of, service_of
from tests.serve.tensors import ONE_USER, SCORE, SHOWN, USERS, tensor, without


@pytest.fixture
def front(package: Path) -> Front:
    return front_of(service_of(predictor_of(package)))


@pytest.fixture
def client(front: Front) -> Client:
    return client_of(front)


def outputs_of(client: Client, path: str, inputs: Sequence[dict[str, Any]], **more: object) -> dict[str, Any]:
    response = client.post(f"{path}/infer", content=msgspec.json.encode({"inputs": inputs, **more}))
    assert response.status_code == 200, response.text
    return {
        one["name"]: np.array(one["data"], dtype=np.float32).reshape(one["shape"]) for one in response.json()["outputs"]
    }


def test_server_and_health_are_told(client: Client) -> None:
    assert client.get("/v2").json() == {"name": "stack", "version": "0.1.0", "extensions": ["binary_tensor_data"]}
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"live": True, "ready": True}
    assert client.get(f"{USERS}/ready").json() == {"name": "users", "ready": True}


def test_a_server_that_stops_lives_and_is_not_ready(client: Client, front: Front) -> None:
    front.stopping = True
    assert client.get("/v2/health/live").status_code == 200
    response = client.get("/v2/health/ready")
    assert (response.status_code, response.json()) == (503, {"live": True, "ready": False})
    response = client.get(f"{SCORE}/versions/12/ready")
    assert (response.status_code, response.json()) == (503, {"name": "score_impression", "ready": False})


def test_a_server_without_a_package_lives_and_is_not_ready() -> None:
    client = client_of(front_of(service_of(None)))
    assert client.get("/v2/health/live").status_code == 200
    assert client.get("/v2/health/ready").status_code == 503
    response = client.get(f"{USERS}/ready")
    assert (response.status_code, response.json()) == (503, {"error": "no package is loaded yet"})


def test_metadata_names_every_tensor_with_its_type_and_shape(client: Client) -> None:
    users = client.get(USERS).json()
    assert (users["name"], users["versions"], users["platform"]) == ("users", ["3", "12"], "onnxruntime_onnx")
    inputs = {one["name"]: (one["datatype"], one["shape"]) for one in users["inputs"]}
    assert inputs == {
        "now": ("INT64", [-1]),
        "num_events": ("INT64", [-1]),
        "events.time": ("INT64", [-1, -1]),
        "events.item": ("INT64", [-1, -1]),
        "events.type": ("BYTES", [-1, -1]),
        "profile.age": ("BYTES", [-1]),
        "query.shop": ("INT64", [-1]),
    }
    outputs = {one["name"]: (one["datatype"], one["shape"]) for one in users["outputs"]}
    assert outputs["vector"] == ("FP32", [-1, 2])
    assert outputs["power"] == ("FP32", [-1, 3])
    assert outputs["taste"] == ("FP32", [-1, 2])
    score = client.get(SCORE).json()
    inputs = {one["name"]: (one["datatype"], one["shape"]) for one in score["inputs"]}
    assert inputs["events.item"] == ("INT64", [1, -1])
    assert inputs["vector"] == ("FP32", [1, 2])
    assert inputs["candidates.tags"] == ("BYTES", [-1])
    assert inputs["candidates.tags.lengths"] == ("INT64", [-1])
    assert inputs["dense"] == ("FP32", [-1, 1])
    assert {"name": "ctr", "datatype": "FP32", "shape": [-1]} in score["outputs"]


def test_a_version_is_asked_by_its_number_in_the_address_or_by_the_header(client: Client) -> None:
    body = msgspec.json.encode({"inputs": ONE_USER})
    versions = [
        client.post(f"{USERS}{path}/infer", content=body, headers=headers).json()["model_version"]
        for path, headers in (
            ("", {}), ("", {"x-stack-version": "canary"}), ("/versions/12", {}),
            ("/versions/3", {"x-stack-version": "canary"}),
        )
    ]  # fmt: skip
    assert versions == ["3", "12", "12", "3"]


def test_users_are_answered_as_users_embed_answers_them(client: Client) -> None:
    wanted = client.post("/v1/users:embed", json=USER).json()
    found = outputs_of(client, USERS, ONE_USER)
    np.testing.assert_array_equal(found["vector"], np.array([wanted["vector"]], dtype=np.float32))
    power = [[wanted["tasks"]["power"][name] for name in ("low", "mid", "high")]]
    np.testing.assert_array_equal(found["power"], np.array(power, dtype=np.float32))
    np.testing.assert_array_equal(found["taste"], found["vector"])


def test_users_of_one_request_are_answered_as_each_alone_whatever_pads_them(client: Client) -> None:
    bodies = [
        USER,
        {"now": 9, "events": {"time": []}},
        {"now": 50, "events": {"time": [7], "item": [900]}, "query": {"shop": 5}},
    ]
    batch = [
        tensor("now", "INT64", [3], [100, 9, 50]),
        tensor("num_events", "INT64", [3], [2, 0, 1]),
        tensor("events.time", "INT64", [3, 2], [[1, 99], [-5, 1 << 50], [7, 0]]),
        tensor("events.item", "INT64", [3, 2], [-7, 900, 900, 900, 900, -7]),
        tensor("events.type", "BYTES", [3, 2], ["buy", "", "buy", "buy", "", "buy"]),
        tensor("profile.age", "BYTES", [3], ["alt", "", ""]),
        tensor("query.shop", "INT64", [3], [5, NO_ID, 5]),
    ]
    wanted = [client.post("/v1/users:embed", json=body).json()["vector"] for body in bodies]
    assert len({tuple(vector) for vector in wanted}) == 3
    np.testing.assert_allclose(outputs_of(client, USERS, batch)["vector"], wanted, rtol=1e-6)


def test_candidates_are_scored_as_items_score_does_by_events_and_by_vector(client: Client) -> None:
    wanted = client.post("/v1/items:score", json=USER | CANDIDATES).json()["scores"]
    by_events = outputs_of(client, SCORE, [*ONE_USER, *SHOWN])
    assert by_events.keys() == wanted.keys()
    vector = outputs_of(client, USERS, ONE_USER, outputs=[{"name": "vector"}])["vector"]
    by_vector = outputs_of(client, SCORE, [tensor("vector", "FP32", [1, 2], vector.tolist()), *SHOWN])
    for name, values in wanted.items():
        np.testing.assert_array_equal(by_events[name], np.array(values, dtype=np.float32))
        np.testing.assert_array_equal(by_vector[name], by_events[name])


def test_a_feature_without_a_tensor_counts_as_unknown(client: Client) -> None:
    least = without(ONE_USER, "events.item", "events.type", "profile.age", "query.shop")
    wanted = client.post("/v1/users:embed", json={"now": 100, "events": {"time": [1, 99]}}).json()["vector"]
    np.testing.assert_allclose(outputs_of(client, USERS, least)["vector"], [wanted], rtol=1e-6)
    shown = without(SHOWN, "candidates.tags", "candidates.tags.lengths", "dense")
    body = USER | {"group": "impression", "candidates": {"item": [900, 1 << 40]}}
    scores = client.post("/v1/items:score", json=body).json()["scores"]
    np.testing.assert_allclose(outputs_of(client, SCORE, [*ONE_USER, *shown])["ctr"], scores["ctr"], rtol=1e-6)


def test_outputs_are_those_asked_for_in_that_order_and_the_id_comes_back(client: Client) -> None:
    body = {"id": "a7", "model_name": "users", "inputs": ONE_USER, "outputs": [{"name": "power"}, {"name": "vector"}]}
    answer = client.post(f"{USERS}/infer", content=msgspec.json.encode(body)).json()
    assert [one["name"] for one in answer["outputs"]] == ["power", "vector"]
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("a7", "users", "3")


def test_binary_tensors_are_answered_as_json_ones_are(client: Client) -> None:
    behind = {
        "now": struct.pack("<q", 100),
        "events.type": b"\3\0\0\0buy\0\0\0\0",
        "events.item": struct.pack("<2q", -7, 900),
    }
    inputs = [
        {name: one[name] for name in ("name", "datatype", "shape")}
        | {"parameters": {"binary_data_size": len(behind[one["name"]])}}
        if one["name"] in behind
        else one
        for one in ONE_USER
    ]
    outputs = [{"name": "power"}, {"name": "vector", "parameters": {"binary_data": True}}]
    head = msgspec.json.encode({"inputs": inputs, "outputs": outputs})
    body = head + b"".join(behind[one["name"]] for one in ONE_USER if one["name"] in behind)
    response = client.post(f"{USERS}/infer", content=body, headers={JSON_SIZE_HEADER: str(len(head))})
    assert response.headers["content-type"] == "application/octet-stream"
    size = int(response.headers[JSON_SIZE_HEADER])
    power, vector = msgspec.json.decode(response.content[:size])["outputs"]
    wanted = outputs_of(client, USERS, ONE_USER)
    assert power["data"] == wanted["power"].ravel().tolist()
    assert vector == {"name": "vector", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}}
    np.testing.assert_array_equal(np.frombuffer(response.content[size:], dtype="<f4"), wanted["vector"][0])


def test_requests_and_unknown_ids_are_counted(client: Client, front: Front) -> None:
    two = [*without(ONE_USER, "query.shop", "profile.age"), tensor("profile.age", "BYTES", [1], ["nobody"])]
    outputs_of(client, USERS, two)
    client.post("/v2/models/users/infer", content=b"{")
    registry_value = front.metrics.requests.labels("/v2/models/{model}/infer", "stable", "200")._value.get()
    assert registry_value == 1
    assert front.metrics.requests.labels("/v2/models/{model}/infer", "stable", "400")._value.get() == 1
    assert front.metrics.unknown_ids.labels("profile.age")._value.get() == 1


def test_all_but_health_asks_for_a_token(front: Front, tmp_path: Path) -> None:
    token = generate_token()
    file = tmp_path / "tokens"
    file.write_text(token + "\n")
    file.chmod(0o600)
    guarded = front_of(front.service, file)
    client = client_of(guarded)
    assert [client.get(f"/v2/health/{name}").status_code for name in ("live", "ready")] == [200, 200]
    paths = ["/v2", USERS, f"{USERS}/ready", f"{SCORE}/versions/3", "/openapi.json"]
    assert [client.get(path).status_code for path in paths] == [401] * 5
    assert client.post(f"{USERS}/infer", content=b"{}").status_code == 401
    bearer = {"authorization": f"Bearer {token}"}
    assert [client.get(path, headers=bearer).status_code for path in paths] == [200] * 5


def test_an_answer_that_is_not_finite_is_refused_and_counted(
    client: Client, front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Runner.user_half
    broken = {"power": np.array([[1.0, np.nan]], dtype=np.float32)}
    monkeypatch.setattr(Runner, "user_half", lambda *given: whole(*given) | broken)
    body = {"inputs": ONE_USER, "outputs": [{"name": "vector"}]}
    said = {"error": "the answer to this request is not finite, and is not given"}
    for response in (
        client.post(f"{USERS}/infer", content=msgspec.json.encode(body)), client.post("/v1/users:embed", json=USER),
    ):  # fmt: skip
        assert (response.status_code, response.json()) == (422, said)
    assert front.metrics.not_finite._value.get() == 2
    count = front.metrics.requests.labels("/v1/users:embed", "stable", "422")
    assert count._value.get() == 1
