"""Which ids the rows of a version stand for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import cached_property

import torch
from torch import Tensor, nn

from stack.base.files import sha256_of
from stack.data.dataset import Dataset
from stack.ids.config import IdMode
from stack.tables.shard import shardings
from stack.train.id_state import id_maps


def vocabulary_digests(dataset: Dataset, tables: Iterable[str], *, last_day: str) -> dict[str, str]:
    """By table, "<rows> <sha256>": of the ids, in the order of their rows, that are known by the end of `last_day`.
    Later ids come behind them, so it stays what it is; tables without a vocabulary have none."""
    num_rows = dataset.num_rows(last_day)
    return {
        table: f"{num_rows[table]} {_digest(dataset, table, num_rows[table])}"
        for table in tables
        if dataset.schema.without_vocabulary(table) is None
    }


def other_vocabularies(dataset: Dataset, digests: Mapping[str, str], *, last_day: str) -> set[str]:
    """The tables of `digests` (as above, of a version that learnt up to `last_day`) whose rows stand for other ids in
    this dataset."""
    return {table for table, digest in digests.items() if not _same(dataset, table, digest, last_day)}


def _same(dataset: Dataset, table: str, digest: str, last_day: str) -> bool:
    if dataset.schema.without_vocabulary(table) is not None:
        return True  # a key is what it is
    if not (dataset.path / "vocab" / table).is_dir():
        return False
    num_rows, _, of_rows = digest.partition(" ")
    if of_rows:
        return _digest(dataset, table, int(num_rows)) == of_rows
    return _digest_of_files(dataset, table, last_day) == digest


def _digest(dataset: Dataset, table: str, num_rows: int) -> str:
    return hashlib.sha256(dataset.keys(table)[:num_rows].astype("<i8").tobytes()).hexdigest()


def _digest_of_files(dataset: Dataset, table: str, last_day: str) -> str:
    """What versions written before November 2026 have: it knows nothing of ids in a file that goes on after the day."""
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
