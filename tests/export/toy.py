"""A package of a model small enough to be worked out by hand, for tests of the package format and of serving.

vector (2,)   = sum of the events' item vectors + age vector + shop vector + number of events
ctr           = vector . item vector / 100 + price / 10 + sum of the mean tag vector / 10
tiers (3,)    = [vector[0], vector[1], 0] / 10
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from stack.data.schema import Feature, Group, Schema
from stack.export.package import (
    FORMAT_VERSION,
    USER_HALF,
    USER_VECTOR,
    Graph,
    Input,
    Kind,
    Lineage,
    Link,
    PackageManifest,
    Parity,
    Table,
    Task,
    Vocabulary,
    describe_files,
    write_manifest,
)  # fmt: skip
from stack.export.rows import write_table, write_vocabulary

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


class UserHalf(nn.Module):
    """Item vectors, number of events, age, shop -> vector, tiers."""

    def forward(self, item_BLD: Tensor, num_events_B: Tensor, age_BD: Tensor, shop_BD: Tensor) -> tuple[Tensor, Tensor]:
        vector_BR = item_BLD.sum(1) + age_BD + shop_BD + num_events_B[:, None].to(item_BLD.dtype)
        return vector_BR, torch.cat([vector_BR, torch.zeros_like(vector_BR[:, :1])], dim=1) / 10


class Scorer(nn.Module):
    """The user's vector and candidates -> logit."""

    def forward(self, vector_1R: Tensor, item_ED: Tensor, tags_ED: Tensor, dense_EF: Tensor) -> tuple[Tensor]:
        return ((vector_1R * item_ED).sum(1) / 100 + dense_EF[:, 0] / 10 + tags_ED.sum(1) / 10,)


def write_toy_package(folder: Path) -> Path:
    """Writes the package and returns its folder."""
    for table, vectors in VECTORS.items():
        weight_ND = np.array(vectors, dtype=np.float32)
        parts = [(np.arange(len(weight_ND)), weight_ND)]
        write_table(folder / "tables" / f"{table}.npy", num_rows=len(weight_ND), dim=2, parts=parts)
    for table, raw in RAW.items():
        write_vocabulary(folder / "vocab", table, raw=raw, rows=np.arange(1, len(raw) + 1, dtype=np.int32))
    (folder / "graphs").mkdir()
    batch, length, candidates = (torch.export.Dim(name, min=1) for name in ("batch", "length", "candidates"))
    user_half = torch.export.export(
        UserHalf().eval(),
        (torch.zeros(3, 4, 2), torch.zeros(3, dtype=torch.int64), torch.zeros(3, 2), torch.zeros(3, 2)),
        dynamic_shapes=({0: batch, 1: length}, {0: batch}, {0: batch}, {0: batch}),
    )
    torch.export.save(user_half, folder / "graphs" / "user_half.pt2")
    scorer = torch.export.export(
        Scorer().eval(),
        (torch.zeros(1, 2), torch.zeros(5, 2), torch.zeros(5, 2), torch.zeros(5, 1)),
        dynamic_shapes=({}, *({0: candidates},) * 3),
    )
    torch.export.save(scorer, folder / "graphs" / "scorer_impression.pt2")
    write_manifest(folder, msgspec.structs.replace(MANIFEST_OF_TOY, files=describe_files(folder)))
    return folder


MANIFEST_OF_TOY = PackageManifest(
    format_version=FORMAT_VERSION,
    schema=SCHEMA,
    max_history=10,
    max_events=20,
    vector_dim=2,
    query_in_vector=True,
    scorer_needs_states=False,
    graphs={
        USER_HALF: Graph(
            file="graphs/user_half.pt2",
            inputs=(
                Input(kind=Kind.EVENT_VECTORS, feature="item"),
                Input(kind=Kind.NUM_EVENTS),
                Input(kind=Kind.PROFILE_VECTORS, feature="age"),
                Input(kind=Kind.QUERY_VECTORS, feature="shop"),
            ),
            outputs=(USER_VECTOR, "tiers"),
        ),
        "scorer_impression": Graph(
            file="graphs/scorer_impression.pt2",
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
    tables={name: Table(num_rows=len(vectors), dim=2) for name, vectors in VECTORS.items()},
    vocabularies={name: Vocabulary(num_ids=len(raw), text=isinstance(raw, list)) for name, raw in RAW.items()},
    lineage=Lineage(
        run="toy", step=1, checkpoint_digest="0" * 64, source="test", first_day="2020-01-01", last_day="2020-01-02",
        code_version="test", created="2020-01-03T00:00:00Z", versions={},
    ),
    parity=Parity(tolerance=1e-5, num_moments=1, num_examples={}, max_abs_difference={"vector": 0.0}),
    files={},
)  # fmt: skip
