"""Hashed and managed ids in a package: how its raw ids lead to the rows of its tables.

A vocabulary of a package maps raw ids to rows of the package's table. Where a table's ids are hashed or managed, the
vocabulary's own rows are keys of the map, so the two are composed here, once, and serving knows nothing of it. An id
without a row is left out and is unknown to serving, as it was to the model. Where an id has several rows the package's
table has their sum, a row for each id of the vocabulary.

Where ids have no vocabulary the package has the map itself (of a managed table the keys that have a row, of a hashed
one nothing but its formula) and the rows as they were trained.

Legend: N keys, K rows of a key, R rows, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stack.base.errors import PackageError
from stack.data.schema import Schema
from stack.ids.config import IdMode
from stack.ids.frozen import FrozenMap
from stack.ids.hashing import HashedRows
from stack.ids.maps import IdMaps, RowsOf, frozen

_BLOCK_KEYS = 65_536


@dataclass(frozen=True, kw_only=True)
class ExportedIds:
    """`of_keys`: the map of each table whose ids are not rows. `summed`: those of them with a vocabulary and several
    rows for an id. `raw`: the maps of tables without a vocabulary."""

    of_keys: Mapping[str, RowsOf] = field(default_factory=dict)
    summed: frozenset[str] = frozenset()
    raw: Mapping[str, FrozenMap | HashedRows] = field(default_factory=dict)

    def rows(self, table: str, row_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the package's table for rows of the vocabulary, or keys: (N,), or (N, K) of a table in `raw`."""
        if table not in self.of_keys or table in self.summed:
            return row_N
        return self.of_keys[table](row_N)

    def sums(
        self, table: str, num_rows: int, parts: Iterable[tuple[NDArray[np.int64], NDArray[np.float32]]]
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """The package's rows of a table in `summed`, from the trained ones, which are held in memory together."""
        weight_RD = np.concatenate([weight_ND for _, weight_ND in parts])
        for first in range(0, num_rows, _BLOCK_KEYS):
            keys = np.arange(first, min(first + _BLOCK_KEYS, num_rows))
            yield keys, weight_RD[self.of_keys[table](keys)].sum(axis=1)

    def check(self, schema: Schema) -> None:
        """Raises `PackageError` where a property, which is embedded by its vocabulary's rows, is of such a table."""
        for feature in schema.property:
            if feature.table in self.of_keys:
                raise PackageError(
                    f"property {feature.name!r} and a hashed or managed table share the vocabulary {feature.table!r}, "
                    f"which a package cannot map twice: train with ids.modes.{feature.table}=direct"
                )


def exported_ids(maps: IdMaps | None, schema: Schema) -> ExportedIds:
    """What a package needs of a trained model's maps, whose rows this process holds all. `schema`: the data's."""
    if maps is None:
        return ExportedIds()
    states = maps.state()
    functions = maps.exported(states)
    names = [name for name, spec in maps.specs.items() if spec.mode is not IdMode.direct]
    raw = {
        name: frozen(states[name]) if name in states else maps.hashed(name)
        for name in names
        if schema.without_vocabulary(name) is not None
    }
    return ExportedIds(
        of_keys={name: functions[name] for name in names},
        summed=frozenset(name for name in names if maps.rows_per_key(name) > 1 and name not in raw),
        raw=raw,
    )
