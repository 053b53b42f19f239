"""A user and two candidates as tensors of the Open Inference Protocol: what `tests.serve.in_process` has as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

USERS, SCORE = "/v2/models/users", "/v2/models/score_impression"


def tensor(name: str, datatype: str, shape: Sequence[int], data: object) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": list(shape), "data": data}


ONE_USER = [
    tensor("now", "INT64", [1], [100]),
    tensor("num_events", "INT64", [1], [2]),
    tensor("events.time", "INT64", [1, 2], [[1, 99]]),
    tensor("events.item", "INT64", [1, 2], [-7, 900]),
    tensor("events.type", "BYTES", [1, 2], ["buy", ""]),
    tensor("profile.age", "BYTES", [1], ["alt"]),
    tensor("query.shop", "INT64", [1], [5]),
]
SHOWN = [
    tensor("candidates.item", "INT64", [2], [900, 1 << 40]),
    tensor("candidates.tags", "BYTES", [2], ["öl", "wine"]),
    tensor("candidates.tags.lengths", "INT64", [2], [2, 0]),
    tensor("dense", "FP32", [2, 1], [[1.5], [2]]),
]


def without(tensors: Sequence[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    return [one for one in tensors if one["name"] not in names]


def instead(tensors: Sequence[dict[str, Any]], *others: dict[str, Any]) -> list[dict[str, Any]]:
    return [*without(tensors, *(one["name"] for one in others)), *others]
