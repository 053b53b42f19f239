"""From the raw ids of a request to rows of a package's tables: by vocabulary, by listed keys, or by a hash of the key.

Legend: N ids, K rows of an id (1 or 2).
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stack.data.keys import keys_of
from stack.data.schema import RawIds
from stack.export.package import PackageManifest, Vocabulary
from stack.export.rows import RawIds as RequestedIds
from stack.export.rows import VocabularyReader, write_vocabulary
from stack.ids.frozen import FrozenMap
from stack.ids.hashing import HashedRows


class Lookup(Protocol):
    """Rows of raw ids: (N,), or (N, K) to be summed; `PADDING_ROW` for missing and unknown ones."""

    def rows(self, raw: RequestedIds) -> NDArray[np.int64]: ...


class KeyLookup:
    """Of ids without a vocabulary, by the map that training had."""

    def __init__(self, rows_of_keys: FrozenMap | HashedRows, *, text: bool) -> None:
        self._map = rows_of_keys
        self._type = pa.string() if text else pa.int64()

    def rows(self, raw: RequestedIds) -> NDArray[np.int64]:
        return self._map.rows(keys_of(pa.array(raw, self._type)))


def write_map(folder: Path, raw_ids: RawIds, rows_of_keys: FrozenMap | HashedRows) -> Vocabulary:
    """Writes what `lookups` needs of the map of a table without a vocabulary, and says what that is."""
    if isinstance(rows_of_keys, HashedRows):
        return Vocabulary(num_ids=0, text=raw_ids.text, hash=rows_of_keys.variant)
    key_N, row_N = rows_of_keys.key_N, rows_of_keys.row_N
    write_vocabulary(folder / "vocab", raw_ids.table, raw=key_N, rows=row_N.astype(np.int32))
    return Vocabulary(num_ids=len(key_N), text=raw_ids.text)


def lookups(folder: Path, manifest: PackageManifest) -> dict[str, Lookup]:
    """By table, of all features of a package."""
    return {table: _lookup(folder / "vocab", manifest, table) for table in manifest.vocabularies}


def _lookup(folder: Path, manifest: PackageManifest, table: str) -> Lookup:
    described = manifest.vocabularies[table]
    if described.hash:
        hashed = HashedRows(num_rows=manifest.tables[table].num_rows, variant=described.hash)
        return KeyLookup(hashed, text=described.text)
    reader = VocabularyReader(folder, table)
    if manifest.schema.without_vocabulary(table) is None:
        return reader
    return KeyLookup(reader.as_map(), text=described.text)
