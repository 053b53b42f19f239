"""From the raw ids of a request to the keys that a package's rows are found by. Needs no torch.

Legend: N ids, K rows of an id (1 or 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import xxhash
from numpy.typing import NDArray

from stack.base.errors import PackageError
from stack.data.keys import UNKNOWN_KEY
from stack.data.schema import PADDING_ROW
from stack.export.package import IDS, IdKind, Ids, PackageManifest
from stack.export.runs import MISSING, mapped
from stack.ids.frozen import FrozenMap
from stack.ids.hashing import HashedRows

MAX_TEXT_BYTES = 256
"""Of a raw id in a request."""
_LIST = {"keys.npy": "<i8", "rows.npy": "<i4"}
NOT_LISTED = -1
"""The key of an id that a list does not have: no table has such a row."""
RawIds = Sequence[int | str | None] | NDArray[np.int64]
"""Raw ids as a request has them; None means missing."""


class Lookup(Protocol):
    """Keys of raw ids: (N,), or (N, K) of rows to be summed; `MISSING` for those that are None."""

    def keys(self, raw: RawIds) -> NDArray[np.int64]: ...


class KeyLookup:
    """Where rows have the keys of their ids."""

    def __init__(self, *, text: bool) -> None:
        self._raw_keys = text_keys if text else number_keys

    def keys(self, raw: RawIds) -> NDArray[np.int64]:
        return self._raw_keys(raw)


class HashLookup:
    """Where the numbers of rows are computed from the key."""

    def __init__(self, rows_of_keys: HashedRows, *, text: bool) -> None:
        self._raw_keys = text_keys if text else number_keys
        self._map = rows_of_keys

    def keys(self, raw: RawIds) -> NDArray[np.int64]:
        key_N = self._raw_keys(raw)
        missing_N = (key_N == MISSING) | (key_N == UNKNOWN_KEY)
        found: NDArray[np.int64] = self._map.rows(key_N)
        found[missing_N] = MISSING
        return found


class ListLookup:
    """Where a list tells the number of an id's row."""

    def __init__(self, folder: Path, *, text: bool) -> None:
        self._raw_keys = text_keys if text else number_keys
        key_N, row_N = (mapped(folder / name, np.dtype(dtype), ()) for name, dtype in _LIST.items())
        if len(key_N) != len(row_N):
            raise PackageError(f"{folder} has {len(key_N)} keys and {len(row_N)} rows: export the package again")
        self._map = FrozenMap(key_N=cast("NDArray[np.int64]", key_N), row_N=cast("NDArray[np.int32]", row_N))

    def keys(self, raw: RawIds) -> NDArray[np.int64]:
        key_N = self._raw_keys(raw)
        row_N = self._map.rows(key_N)
        return np.where(key_N == MISSING, MISSING, np.where(row_N == PADDING_ROW, NOT_LISTED, row_N))

    def rows(self, raw: RawIds) -> NDArray[np.int64]:
        """(N,): numbers of rows, `PADDING_ROW` for missing and unknown ids."""
        return self._map.rows(self._raw_keys(raw))


def lookups(folder: Path, manifest: PackageManifest) -> dict[str, Lookup]:
    """By table, of all features of a package. Raises: `PackageError` where a list does not fit."""
    return {table: _lookup(folder / IDS / table, ids) for table, ids in manifest.ids.items()}


def write_list(folder: Path, key_N: NDArray[np.int64], row_N: NDArray[np.integer]) -> None:
    """Writes what `ListLookup` reads, in order of keys."""
    order_N = np.argsort(key_N, kind="stable")
    folder.mkdir(parents=True, exist_ok=True)
    for (name, dtype), column_N in zip(_LIST.items(), (key_N, row_N), strict=True):
        np.save(folder / name, column_N[order_N].astype(dtype), allow_pickle=False)


def number_keys(raw: RawIds) -> NDArray[np.int64]:
    """Whole numbers are their own keys. An array, in which `MISSING` stands for None, is what it is."""
    if isinstance(raw, np.ndarray):
        return raw
    if None in raw:
        return np.array([MISSING if value is None else value for value in raw], dtype=np.int64)
    return np.array(raw, dtype=np.int64)


def text_keys(raw: RawIds) -> NDArray[np.int64]:
    """XXH64 of each text, as `stack.data.keys.hash_texts` gives it. What was hashed lately is remembered: requests hold
    the same few categories and types again and again."""
    return np.fromiter(map(_REMEMBERED.__getitem__, cast("Sequence[str | None]", raw)), np.int64, count=len(raw))


class _Remembered(dict[str | None, int]):
    """Keys of texts; begun anew when there are too many."""

    def __missing__(self, text: str | None) -> int:
        if text is None:
            return MISSING
        if len(self) >= _MOST_REMEMBERED:
            self.clear()
        unsigned = xxhash.xxh64_intdigest(text.encode()) or 1  # 0 is that of no id
        self[text] = key = unsigned - (1 << 64) if unsigned >> 63 else unsigned
        return key


_MOST_REMEMBERED = 1 << 16
_REMEMBERED = _Remembered()


def _lookup(folder: Path, ids: Ids) -> Lookup:
    match ids.kind:
        case IdKind.key:
            return KeyLookup(text=ids.text)
        case IdKind.list:
            return ListLookup(folder, text=ids.text)
        case IdKind.hash:
            if ids.hashed is None:
                raise PackageError(f"{folder.parent.parent}: the manifest does not say how {folder.name!r} is hashed")
            return HashLookup(ids.hashed, text=ids.text)
