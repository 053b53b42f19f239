"""The tables of a run as tables of a package: which keys find which trained rows.

Where an id has a row of its own the package's rows are sorted by the key of the raw id (`stack.data.keys`), so that a
request needs one search, and a later day's rows are laid over them by key. Where rows are shared by a hash, they stay
numbered. Where a hash gives an id of a vocabulary two rows, the package has their sum, a row for each id.

Legend: N ids or keys, K trained rows of an id (1 or 2), R rows of a trained table, D its width, G owners of a bag.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from stack.base.errors import PackageError
from stack.checkpoint.load import Checkpoint
from stack.checkpoint.manifest import WEIGHT
from stack.data.dataset import Dataset
from stack.data.keys import UNKNOWN_KEY
from stack.data.schema import PADDING_ROW, Schema
from stack.export.package import IdKind, Ids
from stack.export.quantize import RowType, decode, encode
from stack.export.runs import MISSING, pooled
from stack.ids.config import IdMode
from stack.ids.frozen import FrozenMap
from stack.ids.hashing import HashedRows
from stack.ids.maps import IdMaps, RowsOf, frozen

_BLOCK_KEYS = 65_536


@dataclass(frozen=True, kw_only=True)
class TrainedIds:
    """How ids find their rows in a trained model, where they are not the rows themselves.

    `of_keys`: the map of each such table, from rows of its vocabulary, or from keys. `summed`: those of them with a
    vocabulary and several rows for an id. `raw`: the maps of tables without a vocabulary.
    """

    of_keys: Mapping[str, RowsOf] = field(default_factory=dict)
    managed: frozenset[str] = frozenset()
    summed: frozenset[str] = frozenset()
    raw: Mapping[str, FrozenMap | HashedRows] = field(default_factory=dict)


def trained_ids(maps: IdMaps | None, schema: Schema) -> TrainedIds:
    """Of a trained model whose rows this process holds all. `schema`: the data's."""
    if maps is None:
        return TrainedIds()
    states = maps.state()
    functions = maps.exported(states)
    names = [name for name, spec in maps.specs.items() if spec.mode is not IdMode.direct]
    raw = {
        name: frozen(states[name]) if name in states else maps.hashed(name)
        for name in names
        if schema.without_vocabulary(name) is not None
    }
    return TrainedIds(
        of_keys={name: functions[name] for name in names},
        managed=frozenset(states),
        summed=frozenset(name for name in names if maps.rows_per_key(name) > 1 and name not in raw),
        raw=raw,
    )


@dataclass(frozen=True, kw_only=True)
class ExportedTable:
    """One table. `ids` says how a server finds keys; `keys_of` turns what prepared data hold (rows of the vocabulary,
    or keys) into the package's keys. `key_N`, ascending, and `row_NK`: the trained rows of each id, what a keyed table
    stores and a list tells; empty where ids are hashed."""

    name: str
    ids: Ids
    keys_of: Callable[[NDArray[np.int64]], NDArray[np.int64]]
    key_N: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    row_NK: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 1), dtype=np.int64))

    @property
    def keyed(self) -> bool:
        return self.ids.kind is IdKind.key


def exported_tables(
    names: tuple[str, ...], *, schema: Schema, dataset: Dataset, checkpoint: Checkpoint, ids: TrainedIds
) -> dict[str, ExportedTable]:
    """Those of `names`, which are looked up, and of the properties, which graphs embed.

    Raises: `PackageError` where a property shares its vocabulary with hashed or managed rows, or two texts of a
    vocabulary have one key.
    """
    properties = {feature.table for feature in schema.property}
    for table in sorted(properties & set(ids.of_keys)):
        raise PackageError(
            f"a property and a hashed or managed table share the vocabulary {table!r}, which a package cannot map "
            f"twice: train with ids.modes.{table}=direct"
        )
    found = {}
    for table in sorted({*names, *properties}):
        if table in ids.raw:
            found[table] = _without_vocabulary(table, schema, ids.raw[table])
        else:
            num_rows = checkpoint.manifest.tables[table].num_rows if table in names else None
            found[table] = _with_vocabulary(table, dataset, ids, num_rows=num_rows, listed=table in properties)
    return found


class TrainedRows:
    """A table's rows as they were trained, found by the package's keys, and rounded as a type of row rounds them: what
    the files of a package must equal (`stack.export.runner.Rows`). `default_D` is that of unknown ids."""

    def __init__(self, table: ExportedTable, checkpoint: Checkpoint, *, row_type: RowType = RowType.fp32) -> None:
        self._table = table
        self._reader = checkpoint.readers[table.name]
        entry = checkpoint.manifest.tables[table.name]
        self.dim, self._num_rows = entry.dim, entry.num_rows
        self._row_type = row_type
        num_summed = table.ids.rows_per_id if table.ids.hashed else table.row_NK.shape[1]
        self.default_D = self._gathered(np.full((1, num_summed), PADDING_ROW), RowType.fp32)[0]

    def find(self, keys: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        known_N, row_NK = self._rows(keys)
        vector_ND = np.tile(self.default_D, (len(keys), 1))
        if known_N.any():
            vector_ND[known_N] = self._gathered(row_NK[known_N], self._row_type)
        return vector_ND, known_N

    def means(
        self, keys: NDArray[np.int64], lengths_G: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        vector_ND, known_N = self.find(keys)
        return pooled(vector_ND, lengths_G), known_N

    @property
    def num_stored(self) -> int:
        """Rows of the package's table."""
        return len(self._table.key_N) if self._table.keyed else self._num_rows

    def parts(self) -> Iterator[tuple[NDArray[np.int64] | None, NDArray[np.float32]]]:
        """All rows of the package's table in order, a bounded number at a time, not rounded."""
        table = self._table
        for first in range(0, self.num_stored, _BLOCK_KEYS):
            last = min(first + _BLOCK_KEYS, self.num_stored)
            if table.keyed:
                yield table.key_N[first:last], self._gathered(table.row_NK[first:last], RowType.fp32)
            else:
                yield None, self._gathered(np.arange(first, last)[:, None], RowType.fp32)

    def _rows(self, keys: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Which keys have rows, and (N, K) rows."""
        if not self._table.keyed:
            found_NK = _columns(keys)
            return np.asarray(((found_NK >= 0) & (found_NK < self._num_rows)).any(axis=1)), found_NK
        key_N = self._table.key_N
        if not len(key_N):
            return np.zeros(len(keys), dtype=bool), np.zeros((len(keys), 1), dtype=np.int64)
        place_N = np.minimum(np.searchsorted(key_N, keys), len(key_N) - 1)
        return (key_N[place_N] == keys) & (keys != MISSING), self._table.row_NK[place_N]

    def _gathered(self, row_NK: NDArray[np.int64], row_type: RowType) -> NDArray[np.float32]:
        """(N, D): each line's rows summed. What a package stores is rounded: sums where it is keyed, else each row."""
        distinct, inverse = np.unique(row_NK.reshape(-1), return_inverse=True)
        taken = self._reader.taken(torch.from_numpy(distinct), columns=(0, self.dim), states=())[WEIGHT]
        vector_RD = taken.float().numpy()
        if not self._table.keyed:
            vector_RD = self._rounded(vector_RD, row_type)
        sum_ND: NDArray[np.float32] = vector_RD[inverse.reshape(row_NK.shape)].sum(axis=1)
        return self._rounded(sum_ND, row_type) if self._table.keyed else sum_ND

    def _rounded(self, vector_ND: NDArray[np.float32], row_type: RowType) -> NDArray[np.float32]:
        return vector_ND if row_type is RowType.fp32 else decode(encode(vector_ND, row_type), row_type, self.dim)


def _without_vocabulary(table: str, schema: Schema, of_keys: FrozenMap | HashedRows) -> ExportedTable:
    raw_ids = schema.without_vocabulary(table)
    assert raw_ids is not None
    if isinstance(of_keys, HashedRows):
        ids = Ids(kind=IdKind.hash, text=raw_ids.text, num_rows=of_keys.num_rows, hash=of_keys.variant)

        def hashed(keys: NDArray[np.int64]) -> NDArray[np.int64]:
            found: NDArray[np.int64] = of_keys.rows(keys)
            found[keys == UNKNOWN_KEY] = MISSING
            return found

        return ExportedTable(name=table, ids=ids, keys_of=hashed)
    key_N, row_N = np.asarray(of_keys.key_N), np.asarray(of_keys.row_N, dtype=np.int64)
    _refuse_missing(table, key_N)
    return ExportedTable(
        name=table,
        ids=Ids(kind=IdKind.key, text=raw_ids.text, num_ids=len(key_N)),
        keys_of=lambda keys: _missing_where(keys == UNKNOWN_KEY, keys),
        key_N=key_N,
        row_NK=row_N[:, None],
    )


def _with_vocabulary(
    table: str, dataset: Dataset, ids: TrainedIds, *, num_rows: int | None, listed: bool
) -> ExportedTable:
    """`num_rows` of the trained table, None where it is not looked up; `listed`: graphs take its rows' own numbers."""
    raw_key_R = dataset.keys(table)
    text = pa.types.is_string(dataset.vocabulary(table).raw.type)
    rows_of = ids.of_keys.get(table, _same)
    hashed = table in ids.of_keys and table not in ids.managed and table not in ids.summed
    known_R = np.arange(1, len(raw_key_R))
    if table not in ids.of_keys and not listed and num_rows is not None:
        known_R = known_R[known_R < num_rows]  # later days' ids have no row yet
    row_NK = _columns(rows_of(known_R))
    has_row = (row_NK != PADDING_ROW).any(axis=1)
    key_N, row_NK = _sorted(table, raw_key_R[known_R][has_row], row_NK[has_row])
    if listed or hashed:
        kind, keys_of = IdKind.list, lambda row_N: _missing_where(row_N == PADDING_ROW, rows_of(row_N))
    else:
        kind, keys_of = IdKind.key, lambda row_N: _missing_where(row_N == PADDING_ROW, raw_key_R[row_N])
    return ExportedTable(
        name=table, ids=Ids(kind=kind, text=text, num_ids=len(key_N)), keys_of=keys_of, key_N=key_N, row_NK=row_NK
    )


def _same(row_N: NDArray[np.int64]) -> NDArray[np.int64]:
    return row_N


def _columns(row_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N, K) of (N,) or (N, K), also where N is 0."""
    return row_N if row_N.ndim == 2 else row_N[:, None]


def _missing_where(missing_N: NDArray[np.bool_], key_N: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.where(missing_N, MISSING, key_N)


def _sorted(
    table: str, key_N: NDArray[np.int64], row_NK: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    _refuse_missing(table, key_N)
    order_N = np.argsort(key_N, kind="stable")
    key_N = key_N[order_N]
    if (key_N[1:] == key_N[:-1]).any():
        raise PackageError(
            f"two ids of the vocabulary {table!r} have one 64-bit key: a package cannot tell them apart; ingest it "
            f"without a vocabulary (ingest.raw_ids=[{table}]), or rename one of them in the log"
        )
    return key_N, row_NK[order_N]


def _refuse_missing(table: str, key_N: NDArray[np.int64]) -> None:
    """Some logs write the least whole number for no id: so does a package."""
    if (key_N == MISSING).any():
        raise PackageError(
            f"table {table!r} has the id {MISSING}, which stands for a missing id in a package: leave it empty in the "
            "log, ingest and train again"
        )
