"""Embedding tables without sharding, for tests of dense code: same calls and answers as `stack.tables`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from stack.data.batch import Ids, Jagged

DIMS = {
    "item": 32,
    "shop": 24,
    "brand": 24,
    "category": 16,
    "tags": 28,
    "age": 16,
    "income": 16,
    "icon": 16,
    "user": 32,
}


class PlainTables(nn.Module):
    """`nn.Embedding` by table; ids out of range are row 0; several ids of one owner are averaged, none gives zeros."""

    def __init__(self, num_rows: Mapping[str, int], dims: Mapping[str, int]) -> None:
        super().__init__()
        self.tables = nn.ModuleDict({f"t_{name}": nn.Embedding(num_rows[name], dim) for name, dim in dims.items()})

    def ask(self, requests: Mapping[str, Sequence[Ids]]) -> Mapping[str, Sequence[Ids]]:
        return requests

    def forward(self, requests: Mapping[str, Sequence[Ids]]) -> dict[str, list[Tensor]]:
        return {name: [self._one(f"t_{name}", ids) for ids in asked] for name, asked in requests.items()}

    def _one(self, name: str, ids: Ids) -> Tensor:
        weight = self.tables[name].weight
        flat_N = ids.values_N if isinstance(ids, Jagged) else ids
        flat_N = torch.where((flat_N < 0) | (flat_N >= weight.shape[0]), 0, flat_N)
        if not isinstance(ids, Jagged):
            return functional.embedding(flat_N, weight)
        offsets = ids.lengths.cumsum(0) - ids.lengths
        return functional.embedding_bag(flat_N, weight, offsets, mode="mean")
