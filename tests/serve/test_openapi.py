"""What `/openapi.json` says is what the application of the toy package does; a fuzzer compares them in test_clients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator

from stack.export.package import PackageManifest
from stack.serve.openapi import describe
from stack.serve.request import Limits
from tests.serve.in_process import (
    CANDIDATES,
    MAX_CANDIDATES,
    MAX_IDS,
    USER,
    Client,
    client_of,
    front_of,
    predictor_of,
    service_of,
)
from tests.serve.tensors import ONE_USER, SCORE, SHOWN, USERS

JSON = "application/json"
LIMITS = Limits(num_events=20, num_candidates=MAX_CANDIDATES, num_ids=MAX_IDS)


@pytest.fixture
def manifest(package: Path) -> PackageManifest:
    return predictor_of(package).manifest


@pytest.fixture
def client(package: Path) -> Client:
    return client_of(front_of(service_of(predictor_of(package))))


@pytest.fixture
def document(client: Client) -> dict[str, Any]:
    return dict(client.get("/openapi.json").json())


def body_schema(document: dict[str, Any], path: str) -> dict[str, Any]:
    return dict(document["paths"][path]["post"]["requestBody"]["content"][JSON]["schema"])


def is_valid(schema: dict[str, Any], value: object) -> bool:
    return Draft202012Validator(schema).is_valid(value)


def test_the_document_is_of_the_version_that_answers_with_its_limits(client: Client, manifest: PackageManifest) -> None:
    answer = client.get("/openapi.json", headers={"x-stack-version": "12"}).json()
    assert answer == msgspec.json.decode(msgspec.json.encode(describe(manifest, LIMITS, 12)))
    assert (answer["openapi"], answer["info"]["version"]) == ("3.1.0", "12")
    time = body_schema(answer, "/v1/users:embed")["properties"]["events"]["properties"]["time"]
    assert time["maxItems"] == manifest.max_events == 20


def test_every_schema_is_one_and_every_operation_has_its_own_name(document: dict[str, Any]) -> None:
    operations = [one for path in document["paths"].values() for one in path.values()]
    assert len(operations) == 21
    assert len({one["operationId"] for one in operations}) == 21
    for operation in operations:
        contents = [operation.get("requestBody", {}), *operation["responses"].values()]
        for content in contents:
            for media in content.get("content", {}).values():
                Draft202012Validator.check_schema(media["schema"])


def test_every_example_fits_its_schema_and_is_answered_as_described(client: Client, document: dict[str, Any]) -> None:
    paths = [path for path, one in document["paths"].items() if "post" in one]
    assert len(paths) == 7
    for path in paths:
        operation = document["paths"][path]["post"]
        media = operation["requestBody"]["content"][JSON]
        assert is_valid(media["schema"], media["example"]), path
        response = client.post(path.replace("{version}", "3"), content=msgspec.json.encode(media["example"]))
        assert response.status_code == 200, (path, response.text)
        Draft202012Validator(operation["responses"]["200"]["content"][JSON]["schema"]).validate(response.json())


def test_every_get_is_answered_as_described(client: Client, document: dict[str, Any]) -> None:
    paths = [path for path, one in document["paths"].items() if "get" in one]
    assert len(paths) == 14
    for path in paths:
        response = client.get(path.replace("{version}", "12"))
        schema = document["paths"][path]["get"]["responses"]["200"]["content"][JSON]["schema"]
        assert response.status_code == 200, (path, response.text)
        Draft202012Validator(schema).validate(response.json())


def with_value(body: dict[str, Any], place: str, value: object) -> dict[str, Any]:
    changed = msgspec.json.decode(msgspec.json.encode(body))
    *steps, last = place.split(".")
    inner = changed
    for step in steps:
        inner = inner[step]
    inner[last] = value
    return dict(changed)


SCORE_BODY = USER | CANDIDATES
VALUES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "as it is": ("/v1/users:embed", USER, True),
    "a null feature": ("/v1/users:embed", with_value(USER, "events.item", None), True),
    "a null event": ("/v1/users:embed", with_value(USER, "events.item", [None, 5]), True),
    "a named user": ("/v1/users:embed", with_value(USER, "user", "anna"), True),
    "a text for an integer": ("/v1/users:embed", with_value(USER, "events.item", ["a", 5]), False),
    "an integer for a text": ("/v1/users:embed", with_value(USER, "profile.age", 5), False),
    "an unknown feature": ("/v1/users:embed", with_value(USER, "events.colour", [1, 2]), False),
    "an integer beyond 64 bits": ("/v1/users:embed", with_value(USER, "query.shop", 1 << 63), False),
    "a long text": ("/v1/users:embed", with_value(USER, "profile.age", "a" * 257), False),
    "a text of 256 letters of two bytes": ("/v1/users:embed", with_value(USER, "profile.age", "ö" * 256), True),
    "a negative time": ("/v1/users:embed", with_value(USER, "now", -1), False),
    "no time": ("/v1/users:embed", {"now": 5, "events": {}}, False),
    "candidates": ("/v1/items:score", SCORE_BODY, True),
    "a vector": ("/v1/items:score", CANDIDATES | {"vector": [1, 2]}, True),
    "a vector of another width": ("/v1/items:score", CANDIDATES | {"vector": [1, 2, 3]}, False),
    "a vector and events": ("/v1/items:score", SCORE_BODY | {"vector": [1, 2]}, False),
    "an unknown group": ("/v1/items:score", SCORE_BODY | {"group": "x"}, False),
    "a task": ("/v1/items:score", SCORE_BODY | {"tasks": ["ctr"]}, True),
    "an unknown task": ("/v1/items:score", SCORE_BODY | {"tasks": ["x"]}, False),
    "no tasks": ("/v1/items:score", SCORE_BODY | {"tasks": []}, False),
    "no candidates": ("/v1/items:score", with_value(SCORE_BODY, "candidates", {"item": []}), False),
    "too many candidates": ("/v1/items:score", with_value(SCORE_BODY, "candidates", {"item": [1] * 6}), False),
    "too many ids": ("/v1/items:score", with_value(SCORE_BODY, "candidates", {"tags": [["a"] * 4]}), False),
    "a large number": ("/v1/items:score", with_value(SCORE_BODY, "candidates.dense.price", [1e31, 1]), False),
    "items": ("/v1/users:retrieve", USER | {"k": 1000}, True),
    "too many items": ("/v1/users:retrieve", USER | {"k": 1001}, False),
    "tensors": (f"{USERS}/infer", {"inputs": ONE_USER}, True),
    "tensors of candidates": (f"{SCORE}/infer", {"inputs": [*ONE_USER, *SHOWN]}, True),
    "a tensor of another model": (f"{USERS}/infer", {"inputs": [*ONE_USER, *SHOWN]}, False),
    "an unknown output": (f"{USERS}/infer", {"inputs": ONE_USER, "outputs": [{"name": "x"}]}, False),
    "an unknown parameter": (f"{USERS}/infer", {"inputs": ONE_USER, "parameters": {"x": 1}}, False),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_body_fits_the_schema_just_where_it_is_answered(client: Client, document: dict[str, Any], name: str) -> None:
    path, body, fits = VALUES[name]
    assert is_valid(body_schema(document, path), body) == fits
    assert (client.post(path, content=msgspec.json.encode(body)).status_code == 200) == fits


def test_where_candidates_attend_over_events_a_vector_is_in_no_schema(manifest: PackageManifest) -> None:
    attending = describe(msgspec.structs.replace(manifest, scorer_needs_states=True), LIMITS, 1)
    schema = body_schema(attending, "/v1/items:score")
    assert is_valid(schema, SCORE_BODY)
    assert not is_valid(schema, CANDIDATES | {"vector": [1, 2]})
    assert not is_valid(schema, CANDIDATES | {"user": "anna"})
    names = {one["properties"]["name"]["const"] for one in inputs_of(attending)}
    assert "vector" not in names
    assert "vector" in {one["properties"]["name"]["const"] for one in inputs_of(describe(manifest, LIMITS, 1))}


def inputs_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    return list(body_schema(document, f"{SCORE}/infer")["properties"]["inputs"]["items"]["anyOf"])


def test_a_package_without_an_index_promises_no_items(manifest: PackageManifest) -> None:
    plain = describe(msgspec.structs.replace(manifest, retrieval=None), LIMITS, 1)
    statuses = plain["paths"]["/v1/users:retrieve"]["post"]["responses"]
    assert "200" not in statuses
    assert "422" in statuses
