"""Bodies of requests of set sizes, out of those that a package recorded: real ids and times, repeated as needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from stack.export.package import REQUESTS, PackageManifest
from stack.serve.oip_models import NO_ID

Body = dict[str, Any]
NUM_EVENTS = 100
WHO = ("now", "events", "profile", "query")


def recorded_bodies(package: Path, group: str) -> list[Body]:
    """Of the requests that a package recorded for a group of candidates, those with the most events first."""
    found = msgspec.json.decode((package / REQUESTS).read_bytes(), type=list[Body])
    bodies = [one["body"] for one in found if one["body"].get("group") == group]
    return sorted(bodies, key=lambda body: -len(body["events"]["time"]))


def sized(body: Mapping[str, Any], *, num_events: int = NUM_EVENTS, num_candidates: int = 1) -> Body:
    """The same user and candidates, so many of each."""
    return {
        **body,
        "events": _columns(body["events"], num_events),
        "candidates": _columns(body["candidates"], num_candidates, cut_end=True),
    }


def user_of(body: Mapping[str, Any]) -> Body:
    """What `users:embed` takes of a body."""
    return {name: body[name] for name in WHO}


def binary_scoring(
    body: Mapping[str, Any], vector: Sequence[float], manifest: PackageManifest, task: str
) -> tuple[bytes, int]:
    """The candidates of a body and a user's vector as a request of the Open Inference Protocol with binary tensors, and
    the size of its JSON part."""
    group = manifest.schema.group(body["group"])
    candidates = body["candidates"]
    tensors: list[tuple[str, str, list[int], bytes]] = []

    def add(name: str, values: NDArray[Any] | Sequence[str]) -> None:
        if isinstance(values, np.ndarray):
            kind = "FP32" if values.dtype == np.float32 else "INT64"
            tensors.append((name, kind, list(values.shape), values.tobytes()))
        else:
            encoded = [text.encode() for text in values]
            data = b"".join(len(text).to_bytes(4, "little") + text for text in encoded)
            tensors.append((name, "BYTES", [len(encoded)], data))

    def ids(name: str, table: str, column: Sequence[Any]) -> None:
        if manifest.ids[table].text:
            add(name, ["" if one is None else one for one in column])
        else:
            add(name, np.array([NO_ID if one is None else one for one in column], dtype=np.int64))

    add("vector", np.array([vector], dtype=np.float32))
    for feature in group.candidate:
        column, name = candidates[feature.name], f"candidates.{feature.name}"
        if feature.multi:
            ids(name, feature.table, [one for bag in column for one in bag])
            add(f"{name}.lengths", np.array([len(bag) for bag in column], dtype=np.int64))
        else:
            ids(name, feature.table, column)
    dense = np.array([candidates["dense"][name] for name in group.dense], dtype=np.float32)
    add("dense", np.ascontiguousarray(dense.T))
    told = [
        {"name": name, "datatype": kind, "shape": shape, "parameters": {"binary_data_size": len(data)}}
        for name, kind, shape, data in tensors
    ]
    head = msgspec.json.encode({"inputs": told, "outputs": [{"name": task, "parameters": {"binary_data": True}}]})
    return head + b"".join(data for *_, data in tensors), len(head)


def _columns(columns: Mapping[str, Any], number: int, *, cut_end: bool = False) -> Body:
    """`number` of each column: the last ones (the first, with `cut_end`), or all of them over and over."""
    found: Body = {}
    for name, column in columns.items():
        if isinstance(column, Mapping):
            found[name] = _columns(column, number, cut_end=cut_end)
        else:
            found[name] = _times(column, number) if name == "time" else _repeated(column, number, cut_end)
    return found


def _repeated(column: Sequence[Any], number: int, cut_end: bool) -> list[Any]:
    many = list(column) * (-(-number // max(len(column), 1)))
    return many[:number] if cut_end else many[len(many) - number :]


def _times(column: Sequence[int], number: int) -> list[int]:
    """Never decreasing: what is added comes before."""
    first = column[0] if column else 0
    return [max(0, first - 60 * (number - index)) for index in range(max(0, number - len(column)))] + list(
        column[-number:] if number else []
    )
