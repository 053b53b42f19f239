"""Vocabularies and chains of known content, for tests of what export makes of ids and rows."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from stack.checkpoint.chain import Chain, chain_of
from stack.checkpoint.load import Checkpoint, open_version
from stack.checkpoint.snapshot import State
from stack.data.dataset import Dataset
from stack.export.tables import ExportedTable
from tests.checkpoint.chains import Toy

DAY = "2016-07-18"


def with_vocabularies(prepared: Path, folder: Path, raw: Mapping[str, Sequence[str] | Sequence[int]]) -> Dataset:
    """A copy of a prepared dataset in which some tables have these raw ids, with rows from 1 on."""
    shutil.copytree(prepared, folder)
    for table, ids in raw.items():
        place = folder / "vocab" / table
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        kind = pa.string() if ids and isinstance(ids[0], str) else pa.int64()
        rows = pa.table({"raw": pa.array(ids, kind), "row": pa.array(range(1, len(ids) + 1), pa.int32())})
        pq.write_table(rows.append_column("first_day", pa.array([DAY] * len(ids))), place / f"{DAY}.parquet")
    return Dataset(folder)


def saved(folder: Path, tables: Mapping[str, tuple[int, int]]) -> tuple[Checkpoint, dict[str, np.ndarray]]:
    """A checkpoint of tables (rows, width) of random numbers, and the numbers."""
    toy = Toy(seed=3, tables=tables)
    chain = chain_of(folder, for_writing=True)
    version = toy.save(chain)
    return open_version(chain, version), {name: weight.numpy().copy() for name, weight in toy.weight.items()}


class Shop(Toy):
    """A toy whose runs tell raw ids as training's do: `item` by a vocabulary, `user` managed by a vocabulary, `brand`
    managed without one, `shop` hashed into shared rows. The raw key of row r of a vocabulary is `raw_key(r)`."""

    def __init__(self, *, seed: int = 0, num_items: int = 11) -> None:
        super().__init__(
            seed=seed, tables={"item": (num_items, 4), "shop": (7, 2)}, managed={"user": (9, 2), "brand": (6, 3)}
        )

    def _see(self, table: str, new: Sequence[int]) -> None:
        """Users are rows of a vocabulary."""
        super()._see(table, [1 + key % 40 for key in new] if table == "user" else new)

    def _state(self, rank: int, world_size: int, blocks: Mapping[str, Sequence[int]]) -> State:
        state = super()._state(rank, world_size, blocks)
        return replace(state, raw=dict.fromkeys(("item", "user"), raw_keys))

    def vectors(self) -> dict[str, dict[int, np.ndarray]]:
        """What a package must say now: by table and key of the package, the vector; the slow and obvious way."""
        found = {"item": {raw_key(row): self.weight["item"][row].numpy() for row in range(1, len(self.weight["item"]))}}
        found["shop"] = {row: self.weight["shop"][row].numpy() for row in range(1, len(self.weight["shop"]))}
        for table in ("user", "brand"):
            held = {key: self.weight[table][row].numpy() for key, (row, _, _) in self.keys[table].items()}
            found[table] = {raw_key(key) if table == "user" else key: vector for key, vector in held.items()}
        return found


def raw_key(row: int) -> int:
    """Of a row of a vocabulary; of either sign and in another order than the rows, as hashes of texts are."""
    return 0 if row == 0 else (row * 7_919 % 1_009 + 1) * (-1) ** row * 2**40


def raw_keys(row_K: Tensor) -> Tensor:
    return torch.tensor([raw_key(row) for row in row_K.tolist()], dtype=torch.int64)


def chain_in(folder: Path) -> Chain:
    return chain_of(folder / "checkpoints", for_writing=True)


def keyed(table: ExportedTable) -> dict[int, list[int]]:
    """Trained rows by key."""
    return dict(zip(table.key_N.tolist(), table.row_NK.tolist(), strict=True))
