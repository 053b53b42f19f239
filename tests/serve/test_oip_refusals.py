"""What the Open Inference Protocol's routes refuse, and what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stack.data.schema import Feature, Schema
from stack.export.package import IdKind, Ids, PackageManifest
from stack.serve.oip import JSON_SIZE_HEADER
from stack.serve.oip_codec import parse
from stack.serve.oip_models import MAX_USERS, NO_ID, models_of, tensors_of, users_of
from stack.serve.request import Limits, RequestError
from tests.serve.in_process import MAX_BODY, Client, client_of, front_of, predictor_of, service_of
from tests.serve.tensors import ONE_USER, SCORE, SHOWN, USERS, instead, tensor, without


@pytest.fixture
def client(package: Path) -> Client:
    return client_of(front_of(service_of(predictor_of(package))))


@pytest.fixture
def manifest(package: Path) -> PackageManifest:
    return predictor_of(package).manifest


BAD_USERS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "no inputs": ([], "model 'users' needs the inputs now, num_events, events.time"),
    "no now": (without(ONE_USER, "now"), "model 'users' needs the inputs now"),
    "an unknown input": (
        [*ONE_USER, tensor("events.colour", "INT64", [1, 2], [1, 2])],
        "model 'users' has no input 'events.colour': now, num_events, events.time, ",
    ),
    "an input of another model": ([*ONE_USER, *SHOWN], "model 'users' has no input 'candidates.item'"),
    "an input twice": ([*ONE_USER, ONE_USER[0]], "input 'now' is given twice"),
    "texts for numbers": (
        instead(ONE_USER, tensor("events.item", "BYTES", [1, 2], ["a", "b"])),
        "input 'events.item' is INT64, not 'BYTES'",
    ),
    "numbers for texts": (
        instead(ONE_USER, tensor("profile.age", "INT64", [1], [3])), "input 'profile.age' is BYTES, not 'INT64'",
    ),
    "one dimension for two": (
        instead(ONE_USER, tensor("events.time", "INT64", [2], [1, 99])), "has a shape of 1 dimensions, not [-1, -1]",
    ),
    "another number of events": (
        instead(ONE_USER, tensor("events.item", "INT64", [1, 3], [1, 2, 3])),
        "input 'events.item' has the shape [1, 3]: 3 must be 2, by events.time",
    ),
    "another number of users": (
        instead(ONE_USER, tensor("query.shop", "INT64", [2], [5, 5])),
        "input 'query.shop' has the shape [2]: 2 must be 1, by now",
    ),
    "too many events": (
        [
            tensor("now", "INT64", [1], [100]), tensor("num_events", "INT64", [1], [1]),
            tensor("events.time", "INT64", [1, 21], [1] * 21),
        ],
        "21 events: 0 to 20 are accepted",
    ),
    "no users": (
        [
            tensor("now", "INT64", [0], []), tensor("num_events", "INT64", [0], []),
            tensor("events.time", "INT64", [0, 0], []),
        ],
        "0 users: 1 to 64 are accepted",
    ),
    "too many users": (
        [
            tensor("now", "INT64", [MAX_USERS + 1], [9] * (MAX_USERS + 1)),
            tensor("num_events", "INT64", [MAX_USERS + 1], [0] * (MAX_USERS + 1)),
            tensor("events.time", "INT64", [MAX_USERS + 1, 0], []),
        ],
        "65 users: 1 to 64 are accepted",
    ),
    "more events than there are": (
        instead(ONE_USER, tensor("num_events", "INT64", [1], [3])), "`num_events` of user 0 is 3: 0 to 2 are in",
    ),
    "less than no events": (
        instead(ONE_USER, tensor("num_events", "INT64", [1], [-1])), "`num_events` of user 0 is -1: 0 to 2 are in",
    ),
    "time goes back": (
        instead(ONE_USER, tensor("events.time", "INT64", [1, 2], [9, 8])),
        "user 0: `events.time` decreases: give events in time order",
    ),
    "an event at now": (
        instead(ONE_USER, tensor("events.time", "INT64", [1, 2], [9, 100])),
        "user 0: `events.time` holds an event at or after `now`",
    ),
    "a time before 1970": (
        instead(ONE_USER, tensor("events.time", "INT64", [1, 2], [-1, 8])),
        "a time of user 0 is not 0 to 1099511627776 epoch seconds",
    ),
    "a late now": (
        instead(ONE_USER, tensor("now", "INT64", [1], [(1 << 40) + 1])), "a time of user 0 is not 0 to 1099511627776",
    ),
}  # fmt: skip
A_VECTOR = tensor("vector", "FP32", [1, 2], [1, 2])
BAD_SCORES: dict[str, tuple[list[dict[str, Any]], str]] = {
    "a user alone": (ONE_USER, "model 'score_impression' needs candidates: at least one tensor of them"),
    "candidates alone": (SHOWN, "model 'score_impression' needs the inputs now, num_events, events.time"),
    "a vector and events": ([*ONE_USER, *SHOWN, A_VECTOR], "give either `vector`, or the user's events"),
    "a vector and a query": (
        [A_VECTOR, *SHOWN, tensor("query.shop", "INT64", [1], [5])], "give either `vector`, or the user's events",
    ),
    "a vector of another width": (
        [tensor("vector", "FP32", [1, 3], [1, 2, 3]), *SHOWN],
        "input 'vector' has the shape [1, 3]: 3 must be 2, by this model",
    ),
    "two users": (
        instead([*ONE_USER, *SHOWN], tensor("now", "INT64", [2], [100, 100])), "2 must be 1, by this model",
    ),
    "no candidates": (
        [A_VECTOR, tensor("candidates.item", "INT64", [0], [])], "0 candidates: 1 to 5 are accepted",
    ),
    "too many candidates": (
        [A_VECTOR, tensor("candidates.item", "INT64", [6], [1] * 6)], "6 candidates: 1 to 5 are accepted",
    ),
    "another number of candidates": (
        [A_VECTOR, *instead(SHOWN, tensor("candidates.item", "INT64", [3], [1, 2, 3]))],
        "input 'candidates.item' has the shape [3]: 3 must be 2, by candidates.tags.lengths",
    ),
    "another number of ranking features": (
        [A_VECTOR, *instead(SHOWN, tensor("dense", "FP32", [2, 2], [1, 2, 3, 4]))],
        "input 'dense' has the shape [2, 2]: 2 must be 1, by this model",
    ),
    "ids without lengths": (
        [A_VECTOR, *without(SHOWN, "candidates.tags.lengths")],
        "give both of the inputs 'candidates.tags' and 'candidates.tags.lengths', or neither",
    ),
    "lengths without ids": (
        [A_VECTOR, *without(SHOWN, "candidates.tags")], "give both of the inputs 'candidates.tags' and",
    ),
    "lengths of other ids": (
        [A_VECTOR, *instead(SHOWN, tensor("candidates.tags.lengths", "INT64", [2], [2, 1]))],
        "input 'candidates.tags' has 2 ids, 'candidates.tags.lengths' add up to 3",
    ),
    "a negative length": (
        [A_VECTOR, *instead(SHOWN, tensor("candidates.tags.lengths", "INT64", [2], [3, -1]))],
        "input 'candidates.tags.lengths' holds a length that is not 0 to 3",
    ),
    "a huge length": (
        [A_VECTOR, *instead(SHOWN, tensor("candidates.tags.lengths", "INT64", [2], [1 << 62, 1 << 62]))],
        "input 'candidates.tags.lengths' holds a length that is not 0 to 3",
    ),
    "too many ids of one": (
        [
            A_VECTOR, tensor("candidates.tags", "BYTES", [4], ["a"] * 4),
            tensor("candidates.tags.lengths", "INT64", [2], [4, 0]),
        ],
        "input 'candidates.tags.lengths' holds a length that is not 0 to 3",
    ),
    "too many ids of all": (
        [
            A_VECTOR, tensor("candidates.tags", "BYTES", [7], ["a"] * 7),
            tensor("candidates.tags.lengths", "INT64", [2], [3, 4]),
        ],
        "input 'candidates.tags' has 7 ids: at most 6 are of its owners",
    ),
    "no id among ids": (
        [A_VECTOR, *instead(SHOWN, tensor("candidates.tags", "BYTES", [2], ["öl", ""]))],
        "input 'candidates.tags' holds no id at 1: leave it out",
    ),
}  # fmt: skip
BAD = {f"users: {name}": (USERS, *one) for name, one in BAD_USERS.items()} | {
    f"score: {name}": (SCORE, *one) for name, one in BAD_SCORES.items()
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused_with_one_clear_line(client: Client, name: str) -> None:
    path, inputs, text = BAD[name]
    response = client.post(f"{path}/infer", content=msgspec.json.encode({"inputs": inputs}))
    assert (response.status_code, list(response.json())) == (422, ["error"])
    assert text in response.json()["error"]
    assert len(response.json()["error"].splitlines()) == 1


REFUSED: dict[str, tuple[str, str, dict[str, str], object, int, str]] = {
    "an unknown model": ("GET", "/v2/models/nobody", {}, None, 404, "no model 'nobody': users, score_impression"),
    "an unknown model is not ready": ("GET", "/v2/models/nobody/ready", {}, None, 404, "no model 'nobody'"),
    "an unknown model infers nothing": ("POST", "/v2/models/nobody/infer", {}, {}, 404, "no model 'nobody'"),
    "an unknown version": ("GET", f"{USERS}/versions/4", {}, None, 404, "no version '4' is loaded: stable, canary or"),
    "a huge version": ("GET", f"{USERS}/versions/{'9' * 50}/ready", {}, None, 404, "no version '9999"),
    "a label as version": ("POST", f"{USERS}/versions/stable/infer", {}, {}, 404, "version 'stable' is not a number"),
    "an unknown label": ("GET", USERS, {"x-stack-version": "beta"}, None, 404, "no version 'beta' is loaded"),
    "an unknown output": (
        "POST", f"{USERS}/infer", {}, {"inputs": ONE_USER, "outputs": [{"name": "ctr"}]}, 422,
        "model 'users' has no output 'ctr': vector, power",
    ),
    "an output twice": (
        "POST", f"{USERS}/infer", {}, {"inputs": ONE_USER, "outputs": [{"name": "vector"}] * 2}, 422, "asked for twice",
    ),
    "a body for another model": (
        "POST", f"{USERS}/infer", {}, {"inputs": ONE_USER, "model_name": "dssm"}, 422,
        "the body is for the model 'dssm', its address for 'users'",
    ),
    "a header that does not fit": (
        "POST", f"{USERS}/infer", {JSON_SIZE_HEADER: "x"}, {"inputs": ONE_USER}, 400, "'x' is no size within the",
    ),
    "a compressed body": (
        "POST", f"{USERS}/infer", {"content-encoding": "gzip"}, {}, 415, "content-encoding 'gzip' is not accepted",
    ),
    "a large body": ("POST", f"{USERS}/infer", {}, {"x": "x" * MAX_BODY}, 413, f"at most {MAX_BODY} are accepted"),
    "GET of inference": ("GET", f"{USERS}/infer", {}, None, 405, "Method Not Allowed"),
    "an unknown path": ("GET", "/v2/repository/index", {}, None, 404, "Not Found"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_errors_of_addresses_headers_and_outputs_are_told_in_json(client: Client, name: str) -> None:
    method, path, headers, body, status, text = REFUSED[name]
    content = None if body is None else msgspec.json.encode(body)
    response = client.request(method, path, headers=headers, content=content)
    assert (response.status_code, list(response.json())) == (status, ["error"])
    assert text in response.json()["error"]


TEXTS, NUMBERS = (Ids(kind=IdKind.key, text=text, num_ids=1) for text in (True, False))


def users_read(manifest: PackageManifest, inputs: Sequence[Mapping[str, object]]) -> list[Any]:
    schema = Schema(
        event=(Feature(name="item", table="item"), Feature(name="tags", table="tags", multi=True)),
        profile=(Feature(name="likes", table="item", multi=True),),
        query=(Feature(name="words", table="tags", multi=True),),
    )
    manifest = msgspec.structs.replace(
        manifest, schema=schema, ids={"item": NUMBERS, "tags": TEXTS}, tasks=(), retrieval=None
    )  # fmt: skip
    model = models_of(manifest)["users"]
    limits = Limits(num_events=4, num_candidates=1, num_ids=2)
    asked = parse(msgspec.json.encode({"inputs": inputs}), None)
    return users_of(model, tensors_of(model, asked.inputs, limits), manifest, limits)


MANY = [
    tensor("now", "INT64", [2], [10, 20]),
    tensor("num_events", "INT64", [2], [1, 2]),
    tensor("events.time", "INT64", [2, 2], [1, 0, 2, 3]),
    tensor("events.item", "INT64", [2, 2], [5, 6, NO_ID, 7]),
    tensor("events.tags", "BYTES", [4], ["a", "b", "c", "d"]),
    tensor("events.tags.lengths", "INT64", [2, 2], [1, 1, 0, 2]),
    tensor("profile.likes", "INT64", [1], [8]),
    tensor("profile.likes.lengths", "INT64", [2], [0, 1]),
    tensor("query.words", "BYTES", [2], ["e", "f"]),
    tensor("query.words.lengths", "INT64", [2], [2, 0]),
]


def test_bags_of_events_and_users_are_cut_by_their_lengths(manifest: PackageManifest) -> None:
    first, second = users_read(manifest, MANY)
    assert (first.now, first.time, second.now, second.time) == (10, [1], 20, [2, 3])
    assert first.events == {"item": [5], "tags": [["a"]]}
    assert second.events == {"item": [None, 7], "tags": [[], ["c", "d"]]}
    assert (first.profile, second.profile) == ({"likes": []}, {"likes": [8]})
    assert (first.query, second.query) == ({"words": ["e", "f"]}, {"words": []})


def test_an_id_that_stands_for_none_is_refused_in_a_bag_of_numbers(manifest: PackageManifest) -> None:
    with pytest.raises(RequestError, match="input 'profile.likes' holds no id at 0: leave it out"):
        users_read(manifest, instead(MANY, tensor("profile.likes", "INT64", [1], [NO_ID])))


def test_times_are_checked_of_each_user(manifest: PackageManifest) -> None:
    with pytest.raises(RequestError, match="user 1: `events.time` decreases"):
        users_read(manifest, instead(MANY, tensor("events.time", "INT64", [2, 2], [1, 0, 3, 2])))
