"""What a user of tritonclient does with a server of the toy package: triton_client.py <address> <user> <candidates>

Runs in `.venv/clients`, which does not have this project; `tests/serve/test_clients.py` starts it. Numbers must equal
those that the server's own routes give.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

USER, CANDIDATES = map(json.loads, sys.argv[2:])
USER_ARRAYS = {
    "now": np.array([100]),
    "num_events": np.array([2]),
    "events.time": np.array([[1, 99]]),
    "events.item": np.array([[-7, 900]]),
    "events.type": np.array([["buy", ""]], dtype=np.object_),
    "profile.age": np.array(["alt"], dtype=np.object_),
    "query.shop": np.array([5]),
}
CANDIDATE_ARRAYS = {
    "candidates.item": np.array([900, 1 << 40]),
    "candidates.tags": np.array(["öl", "wine"], dtype=np.object_),
    "candidates.tags.lengths": np.array([2, 0]),
    "dense": np.array([[1.5], [2]], dtype=np.float32),
}
DATATYPES = {"i": "INT64", "O": "BYTES", "f": "FP32"}
NO_ID = np.iinfo(np.int64).min


def main(address: str) -> None:
    client = InferenceServerClient(url=address.removeprefix("http://"), network_timeout=30.0)
    check_what_is_told(client)
    embedded = ask(address, "/v1/users:embed", USER)
    scores = ask(address, "/v1/items:score", USER | CANDIDATES)["scores"]
    for binary in (False, True):
        check_users(client, embedded, binary)
        check_scores(client, scores, binary)
    check_batch(client, address)
    check_errors(client)
    client.close()
    sys.stdout.write("all as it should be\n")


def check_what_is_told(client: InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("users")
    assert client.is_model_ready("score_impression", "1")
    assert not client.is_model_ready("users", "99")
    assert not client.is_model_ready("nobody")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    users = client.get_model_metadata("users")
    assert (users["name"], users["versions"]) == ("users", ["1"])
    assert {"name": "events.item", "datatype": "INT64", "shape": [-1, -1]} in users["inputs"]
    score = client.get_model_metadata("score_impression", "1")
    assert {"name": "ctr", "datatype": "FP32", "shape": [-1]} in score["outputs"]


def check_users(client: InferenceServerClient, embedded: Mapping[str, Any], binary: bool) -> None:
    wanted = [InferRequestedOutput(name, binary_data=binary) for name in ("vector", "power")]
    found = client.infer("users", inputs_of(USER_ARRAYS, binary), outputs=wanted, request_id="a7", model_version="1")
    answer = found.get_response()
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("a7", "users", "1")
    np.testing.assert_array_equal(found.as_numpy("vector"), as_float32([embedded["vector"]]))
    power = list(embedded["tasks"]["power"].values())
    np.testing.assert_array_equal(found.as_numpy("power"), as_float32([power]))
    everything = client.infer("users", inputs_of(USER_ARRAYS, binary))  # then the client asks for binary outputs
    np.testing.assert_array_equal(everything.as_numpy("vector"), as_float32([embedded["vector"]]))


def check_scores(client: InferenceServerClient, scores: Mapping[str, Any], binary: bool) -> None:
    wanted = [InferRequestedOutput(name, binary_data=binary) for name in scores]
    arrays = USER_ARRAYS | CANDIDATE_ARRAYS
    by_events = client.infer("score_impression", inputs_of(arrays, binary), outputs=wanted)
    vector = client.infer("users", inputs_of(USER_ARRAYS, binary)).as_numpy("vector")
    arrays = {"vector": vector} | CANDIDATE_ARRAYS
    by_vector = client.infer("score_impression", inputs_of(arrays, binary), outputs=wanted)
    for name, values in scores.items():
        np.testing.assert_array_equal(by_events.as_numpy(name), as_float32(values))
        np.testing.assert_array_equal(by_vector.as_numpy(name), as_float32(values))


def check_batch(client: InferenceServerClient, address: str) -> None:
    """Two users, the second without events or anything else known."""
    arrays = {
        "now": np.array([100, 9]),
        "num_events": np.array([2, 0]),
        "events.time": np.array([[1, 99], [0, 0]]),
        "events.item": np.array([[-7, 900], [0, 0]]),
        "profile.age": np.array(["alt", ""], dtype=np.object_),
        "query.shop": np.array([5, NO_ID]),
    }
    found = client.infer("users", inputs_of(arrays, binary=True)).as_numpy("vector")
    first = {
        "now": 100,
        "events": {"time": [1, 99], "item": [-7, 900]},
        "profile": {"age": "alt"},
        "query": {"shop": 5},
    }
    second = {"now": 9, "events": {"time": []}}
    wanted = [ask(address, "/v1/users:embed", body)["vector"] for body in (first, second)]
    np.testing.assert_allclose(found, as_float32(wanted), rtol=1e-6)


def check_errors(client: InferenceServerClient) -> None:
    good = inputs_of(USER_ARRAYS, binary=True)
    refused("404", "there is no model 'nobody'", lambda: client.infer("nobody", good))
    refused("404", "no version '99' is loaded", lambda: client.get_model_metadata("users", "99"))
    wrong = inputs_of(USER_ARRAYS | {"events.item": np.array([[1, 2, 3]])}, binary=True)
    refused("422", "3 must be 2, by events.time", lambda: client.infer("users", wrong))
    wrong = inputs_of(USER_ARRAYS | {"colour": np.array([1])}, binary=False)
    refused("422", "has no input 'colour'", lambda: client.infer("users", wrong))
    wrong = inputs_of({**CANDIDATE_ARRAYS, "vector": as_float32([[np.nan, 1]])}, binary=True)
    refused("422", "'vector' holds a number that is not finite", lambda: client.infer("score_impression", wrong))
    outputs = [InferRequestedOutput("ctr")]
    refused("422", "has no output 'ctr'", lambda: client.infer("users", good, outputs=outputs))
    refused("422", "field `sequence_id`", lambda: client.infer("users", good, sequence_id=5))
    refused("415", "'gzip' is not", lambda: client.infer("users", good, request_compression_algorithm="gzip"))


def refused(status: str, text: str, call: Callable[[], object]) -> None:
    error = None
    try:
        call()
    except InferenceServerException as raised:
        error = raised
    assert error is not None, f"not refused: {text}"
    assert error.status() == status, (error.status(), status, error.message())
    assert text in error.message(), error.message()


def inputs_of(arrays: Mapping[str, np.ndarray], binary: bool) -> Sequence[InferInput]:
    inputs = []
    for name, array in arrays.items():
        one = InferInput(name, list(array.shape), DATATYPES[array.dtype.kind])
        one.set_data_from_numpy(array, binary_data=binary)
        inputs.append(one)
    return inputs


def as_float32(values: object) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def ask(address: str, path: str, body: Mapping[str, object]) -> dict[str, Any]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(address + path, json.dumps(body).encode()), timeout=30) as response:
        return dict(json.load(response))


if __name__ == "__main__":
    main(sys.argv[1])
