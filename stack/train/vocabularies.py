"""Which ids the rows of a version stand for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cached_property

import torch
from torch import Tensor, nn

from stack.base.files import sha256_of
from stack.data.dataset import Dataset
from stack.ids.config import IdMode
from stack.tables.shard import shardings
from stack.train.id_state import id_maps


def vocabulary_digests(dataset: Dataset, tables: Iterable[str], *, last_day: str) -> dict[str, str]:
    """By table, over the files that hold ids known by the end of `last_day`."""
    return {table: _digest(dataset, table, last_day) for table in tables}


def _digest(dataset: Dataset, table: str, last_day: str) -> str:
    files = sorted(file for file in (dataset.path / "vocab" / table).glob("*.parquet") if file.stem <= last_day)
    return hashlib.sha256("".join(f"{file.name} {sha256_of(file)}\n" for file in files).encode()).hexdigest()


class RawKeys:
    """The 64-bit keys of a vocabulary's rows; read when first asked for, and kept."""

    def __init__(self, dataset: Dataset, table: str) -> None:
        self._dataset = dataset
        self._table = table

    def __call__(self, row_K: Tensor) -> Tensor:
        return self._keys[row_K]

    @cached_property
    def _keys(self) -> Tensor:
        return torch.from_numpy(self._dataset.keys(self._table))


def raw_keys(model: nn.Module, dataset: Dataset) -> dict[str, RawKeys]:
    """Those of the tables whose rows, or whose managed keys, are rows of a vocabulary."""
    maps = id_maps(model)
    hashed = {name for name, one in (maps.specs if maps else {}).items() if one.mode is IdMode.hashed}
    return {
        name: RawKeys(dataset, name)
        for name in shardings(model)
        if name not in hashed and dataset.schema.without_vocabulary(name) is None
    }
