"""A package of a model small enough to be worked out by hand, for tests of the package format and of serving.

vector (2,)   = sum of the events' item vectors + age vector + shop vector + number of events
ctr           = vector . item vector / 100 + price / 10 + sum of the mean tag vector / 10
tiers (3,)    = [vector[0], vector[1], 0] / 10
taste (2,)    = vector, with which items are retrieved: the best by vector . item vector
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from stack.data.keys import hash_texts
from stack.data.schema import Feature, Group, Schema
from stack.export.answers import Recorded
from stack.export.delta import DeltaManifest, DeltaTable
from stack.export.engines import input_name
from stack.export.fields import fields_of
from stack.export.index import build_index
from stack.export.lookup import write_list
from stack.export.onnx import save_onnx
from stack.export.package import (
    DEFAULT,
    IDS,
    INDEX,
    REQUESTS,
    ROWS,
    USER_HALF,
    USER_VECTOR,
    Graph,
    GraphFormat,
    IdKind,
    Ids,
    Input,
    Kind,
    Lineage,
    Link,
    PackageManifest,
    Parity,
    Retrieval,
    Table,
    Task,
    read_manifest,
)
from stack.export.quantize import RowType
from stack.export.run_writer import write_run
from stack.export.sealed import FORMAT_VERSION, describe_files, write_sealed

ITEM = Feature(name="item", table="item")
SCHEMA = Schema(
    event=(ITEM,),
    property=(Feature(name="type", table="type"),),
    profile=(Feature(name="age", table="age"),),
    query=(Feature(name="shop", table="shop"),),
    groups=(
        Group(
            name="impression",
            candidate=(ITEM, Feature(name="tags", table="tags", multi=True)),
            dense=("price",),
            labels=("clicked",),
        ),
    ),
)
RAW: dict[str, list[str] | np.ndarray] = {
    "item": np.array([900, -7, 1 << 40]),
    "type": ["buy", "view"],
    "age": ["young", "alt"],
    "shop": np.array([5]),
    "tags": ["dairy", "wine", "öl"],
}
VECTORS = {
    "item": [[0, 0], [1, 2], [3, 4], [5, 6]],
    "age": [[0.5, 0.5], [1, 0], [0, 1]],
    "shop": [[0, 0], [10, 20]],
    "tags": [[0, 0], [1, 1], [2, 2], [3, 3]],
}
"""The first of each is that of unknown ids; the others are those of `RAW`, in order."""
DIGEST = "0" * 64
"""Of the checkpoint that the package says it is of."""


class UserHalf(nn.Module):
    """Item vectors, number of events, age, shop -> vector, tiers, taste."""

    def forward(self, item_BLD: Tensor, num_events_B: Tensor, age_BD: Tensor, shop_BD: Tensor) -> tuple[Tensor, ...]:
        vector_BR = item_BLD.sum(1) + age_BD + shop_BD + num_events_B[:, None].to(item_BLD.dtype)
        tiers_BK = torch.cat([vector_BR, torch.zeros_like(vector_BR[:, :1])], dim=1) / 10
        return vector_BR, tiers_BK, vector_BR * 1.0


class Scorer(nn.Module):
    """The user's vector and candidates -> logit."""

    def forward(self, vector_1R: Tensor, item_ED: Tensor, tags_ED: Tensor, dense_EF: Tensor) -> tuple[Tensor]:
        return ((vector_1R * item_ED).sum(1) / 100 + dense_EF[:, 0] / 10 + tags_ED.sum(1) / 10,)


def keys_of(table: str) -> np.ndarray:
    """Of the raw ids of a table, in their order."""
    raw = RAW[table]
    return raw.astype(np.int64) if isinstance(raw, np.ndarray) else hash_texts(raw)


def write_toy_package(
    folder: Path, *, change: Callable[[PackageManifest], PackageManifest] = lambda manifest: manifest,
    vectors: Mapping[str, list[list[float]]] = VECTORS, row_type: RowType = RowType.fp32,
) -> Path:  # fmt: skip
    """Writes the package and returns its folder."""
    for table, numbers in vectors.items():
        write_rows(folder / ROWS / table, table, numbers, row_type)
    write_list(folder / IDS / "type", keys_of("type"), np.array([1, 2]))
    items = np.array(vectors["item"][1:], dtype=np.float32)
    build_index(folder / INDEX, vectors=[(keys_of("item"), items)], num_items=len(items), dim=2)
    manifest = change(MANIFEST_OF_TOY)
    (folder / "graphs").mkdir()
    batch, length, candidates = (torch.export.Dim(name, min=1) for name in ("batch", "length", "candidates"))
    user_half = torch.export.export(
        UserHalf().eval(),
        (torch.zeros(3, 4, 2), torch.zeros(3, dtype=torch.int64), torch.zeros(3, 2), torch.zeros(3, 2)),
        dynamic_shapes=({0: batch, 1: length}, {0: batch}, {0: batch}, {0: batch}),
    )
    scorer = torch.export.export(
        Scorer().eval(),
        (torch.zeros(1, 2), torch.zeros(5, 2), torch.zeros(5, 2), torch.zeros(5, 1)),
        dynamic_shapes=({}, *({0: candidates},) * 3),
    )
    for name, program in ((USER_HALF, user_half), ("scorer_impression", scorer)):
        graph = MANIFEST_OF_TOY.graphs[name]
        names = [input_name(entry) for entry in graph.inputs]
        save_onnx(program, folder / graph.files["onnx"], inputs=names, outputs=graph.outputs)
    (folder / REQUESTS).write_bytes(msgspec.json.encode([recorded(vectors)]))
    tables = {
        name: msgspec.structs.replace(table, row_type=row_type) for name, table in manifest.tables.items()
    }  # fmt: skip
    write_sealed(folder, msgspec.structs.replace(manifest, tables=tables, files=describe_files(folder)))
    return folder


def write_rows(folder: Path, table: str, numbers: list[list[float]], row_type: RowType = RowType.fp32) -> None:
    """Rows of a table by the keys of its ids, and the row of unknown ones."""
    weight_ND = np.array(numbers, dtype=np.float32)
    order = np.argsort(keys_of(table))
    write_run(
        folder, row_type=row_type, dim=2, num_rows=len(order), parts=[(keys_of(table)[order], weight_ND[1:][order])]
    )
    np.save(folder / DEFAULT, weight_ND[0])


def recorded(vectors: Mapping[str, list[list[float]]] = VECTORS) -> Recorded:
    """One event of the first item, the first age, the shop; the second item as candidate for 2.0, without tags."""
    item, age, shop = vectors["item"], vectors["age"], vectors["shop"]
    vector = [item[1][index] + age[1][index] + shop[1][index] + 1 for index in range(2)]
    logit = sum(one * two for one, two in zip(vector, item[2], strict=True)) / 100 + 2.0 / 10
    body = {
        "now": 1_000, "events": {"time": [900], "item": [900], "type": ["buy"]}, "profile": {"age": "young"},
        "query": {"shop": 5}, "group": "impression",
        "candidates": {"item": [-7], "tags": [[]], "dense": {"price": [2.0]}},
    }  # fmt: skip
    return Recorded(body=body, vector=vector, scores={"ctr": [float(1 / (1 + np.exp(-logit)))]})


_IDS = {
    name: Ids(
        kind=IdKind.list if name == "type" else IdKind.key, text=isinstance(raw, list), num_ids=len(raw)
    )
    for name, raw in RAW.items()
}  # fmt: skip
MANIFEST_OF_TOY = PackageManifest(
    format_version=FORMAT_VERSION,
    name="toy",
    schema=SCHEMA,
    inputs=fields_of(SCHEMA, _IDS, max_events=20),
    max_history=10,
    max_events=20,
    vector_dim=2,
    query_in_vector=True,
    scorer_needs_states=False,
    formats=(GraphFormat.onnx,),
    graphs={
        USER_HALF: Graph(
            files={"onnx": "graphs/user_half.onnx"},
            inputs=(
                Input(kind=Kind.EVENT_VECTORS, feature="item"),
                Input(kind=Kind.NUM_EVENTS),
                Input(kind=Kind.PROFILE_VECTORS, feature="age"),
                Input(kind=Kind.QUERY_VECTORS, feature="shop"),
            ),
            outputs=(USER_VECTOR, "tiers", "taste"),
        ),
        "scorer_impression": Graph(
            files={"onnx": "graphs/scorer_impression.onnx"},
            inputs=(
                Input(kind=Kind.USER_OUTPUT, feature=USER_VECTOR),
                Input(kind=Kind.CANDIDATE_VECTORS, feature="item"),
                Input(kind=Kind.CANDIDATE_VECTORS, feature="tags"),
                Input(kind=Kind.DENSE),
            ),
            outputs=("ctr",),
            group="impression",
        ),
    },
    tasks=(
        Task(name="power", graph=USER_HALF, output="tiers", link=Link.SOFTMAX, columns=("low", "mid", "high")),
        Task(name="ctr", graph="scorer_impression", output="ctr", link=Link.SIGMOID),
    ),
    tables={
        name: Table(num_rows=len(vectors) - 1, dim=2, row_type=RowType.fp32, keyed=True)
        for name, vectors in VECTORS.items()
    },
    ids=_IDS,
    lineage=Lineage(
        run="toy", step=1, version=1, checkpoint_digest=DIGEST, source="test", first_day="2020-01-01",
        last_day="2020-01-02", num_days=2, code_version="test", exported_by="test", created="2020-01-03T00:00:00Z",
        versions={},
    ),
    parity=Parity(tolerance=1e-5, num_moments=1, num_examples={}, max_abs_difference={"vector": 0.0}),
    retrieval=Retrieval(
        task="next_item", output="taste", table="item", dim=2, num_items=3, kind="exact", recall_at_10=1.0,
        recall_at_100=1.0,
    ),
)  # fmt: skip


def write_toy_delta(
    folder: Path, package: Path, items: Mapping[int, list[float]], *, from_version: int, gone: tuple[int, ...] = ()
) -> Path:
    """A delta of the toy's items, by raw id, from a version to the next one."""
    manifest = read_manifest(package)
    order = sorted(items)
    weight_ND = np.array([items[raw] for raw in order], dtype=np.float32).reshape(-1, 2)
    write_run(
        folder / ROWS / "item", row_type=manifest.tables["item"].row_type, dim=2, num_rows=len(order),
        parts=[(np.array(order, dtype=np.int64), weight_ND)], gone=np.array(sorted(gone)) if gone else None,
    )  # fmt: skip
    np.save(folder / ROWS / "item" / DEFAULT, np.zeros(2, dtype=np.float32))
    write_sealed(
        folder,
        DeltaManifest(
            format_version=FORMAT_VERSION, name=folder.name, package=manifest.digest, from_version=from_version,
            from_digest=_digest(from_version), to_version=from_version + 1, to_digest=_digest(from_version + 1),
            last_day=f"2020-01-{from_version + 2:02d}", created="2020-01-04T00:00:00Z",
            tables={"item": DeltaTable(num_rows=len(order), num_gone=len(gone))}, files=describe_files(folder),
        ),
    )  # fmt: skip
    return folder


def _digest(version: int) -> str:
    return DIGEST if version == 1 else f"{version:064d}"
