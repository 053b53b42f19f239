"""Rows of embedding tables and vocabularies as plain files: written by export, memory-mapped by whoever serves.

`tables/<table>.npy` holds (rows, D) float32. A vocabulary is two files sorted by raw id, `<table>.ids.npy` and
`<table>.rows.npy`, searched by bisection: it costs memory for the pages touched, not for the whole. Text ids are
UTF-8 bytes padded with NUL to the longest id's width, which keeps one vectorised search for both kinds.

Shape legend: N ids or rows, K rows that an id has, D width of a table, G owners of the ids (events or candidates).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stack.base.errors import UserError
from stack.data.schema import PADDING_ROW
from stack.ids.frozen import FrozenMap

MAX_TEXT_BYTES = 256
RawIds = Sequence[int | str | None]
"""Raw ids as a request has them; None means missing."""


def write_table(
    file: Path, *, num_rows: int, dim: int, parts: Iterable[tuple[NDArray[np.int64], NDArray[np.float32]]]
) -> None:
    """Writes the rows of `parts` (rows_N, weight_ND) to an .npy file without holding the table in memory.

    Raises:
        ValueError: a row is outside the table, or some row was in no part.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    out_ND = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(num_rows, dim))
    seen_N = np.zeros(num_rows, dtype=bool)
    for rows_N, weight_ND in parts:
        if rows_N.size and not 0 <= int(rows_N.min()) <= int(rows_N.max()) < num_rows:
            raise ValueError(f"{file.stem}: rows {rows_N.min()} to {rows_N.max()}, the table has {num_rows}")
        out_ND[rows_N] = weight_ND
        seen_N[rows_N] = True
    if not seen_N.all():
        raise ValueError(
            f"{file.stem}: {num_rows - int(seen_N.sum())} of {num_rows} rows are in no part of the checkpoint"
        )
    out_ND.flush()


def write_vocabulary(
    folder: Path, table: str, *, raw: NDArray[np.int64] | Sequence[str], rows: NDArray[np.int32]
) -> None:
    """Writes raw ids and their rows, sorted by id.

    Raises:
        UserError: a text id that cannot be stored (too long, or holding NUL), or an id given twice.
    """
    ids_N = raw.astype(np.int64) if isinstance(raw, np.ndarray) else _to_bytes(table, raw)
    order_N = np.argsort(ids_N, kind="stable")
    ids_N = ids_N[order_N]
    if bool((ids_N[1:] == ids_N[:-1]).any()):
        raise UserError(f"vocabulary {table!r} holds the same raw id more than once: ingest it again")
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{table}.ids.npy", ids_N, allow_pickle=False)
    np.save(folder / f"{table}.rows.npy", rows[order_N].astype(np.int32), allow_pickle=False)


def _to_bytes(table: str, raw: Sequence[str]) -> NDArray[np.bytes_]:
    encoded = [text.encode() for text in raw]
    for text in encoded:
        if len(text) > MAX_TEXT_BYTES or b"\0" in text:
            raise UserError(
                f"vocabulary {table!r}: the raw id {text[:40]!r}... has {len(text)} bytes or holds NUL; "
                f"a package stores at most {MAX_TEXT_BYTES} bytes without NUL: shorten ids before ingest"
            )
    width = max(map(len, encoded), default=1) or 1
    return np.array(encoded, dtype=f"S{width}")


class VocabularyReader:
    """Raw id to row, over the two memory-mapped files of a table."""

    def __init__(self, folder: Path, table: str) -> None:
        self._ids_N = np.load(folder / f"{table}.ids.npy", mmap_mode="r", allow_pickle=False)
        self._rows_N = np.load(folder / f"{table}.rows.npy", mmap_mode="r", allow_pickle=False)
        self.is_text = self._ids_N.dtype.kind == "S"

    def __len__(self) -> int:
        return int(self._ids_N.shape[0])

    def as_map(self) -> FrozenMap:
        """Of files that hold keys."""
        return FrozenMap(key_N=self._ids_N, row_N=self._rows_N)

    def rows(self, raw: RawIds) -> NDArray[np.int64]:
        """Row of each raw id; missing and unknown ids get `PADDING_ROW`."""
        if not len(raw) or not len(self):
            return np.full(len(raw), PADDING_ROW, dtype=np.int64)
        known_N = np.array([value is not None for value in raw])
        if self.is_text:
            width = self._ids_N.dtype.itemsize
            encoded = [b"" if value is None else str(value).encode() for value in raw]
            known_N &= np.array([len(text) <= width and b"\0" not in text for text in encoded])
            query_N: NDArray[np.bytes_] | NDArray[np.int64] = np.array(encoded, dtype=self._ids_N.dtype)
        else:
            query_N = np.array([0 if value is None else value for value in raw], dtype=np.int64)
        position_N = np.minimum(np.searchsorted(self._ids_N, query_N), len(self) - 1)
        known_N &= self._ids_N[position_N] == query_N
        return np.where(known_N, self._rows_N[position_N], PADDING_ROW).astype(np.int64)


class TableReader:
    """Vectors of rows, over a table's memory-mapped file."""

    def __init__(self, file: Path) -> None:
        self._weight_ND: NDArray[np.float32] = np.load(file, mmap_mode="r", allow_pickle=False)

    @property
    def dim(self) -> int:
        return int(self._weight_ND.shape[1])

    @property
    def num_rows(self) -> int:
        return int(self._weight_ND.shape[0])

    def vectors(self, rows_N: NDArray[np.int64]) -> NDArray[np.float32]:
        """(N, D): one row each, or for (N, K) the sum of K; rows the table does not have give row 0."""
        found = self._weight_ND[self._clamp(rows_N)]
        return found if rows_N.ndim == 1 else found.sum(axis=1)

    def means(self, rows_N: NDArray[np.int64], lengths_G: NDArray[np.int64]) -> NDArray[np.float32]:
        """(G, D): the mean of each owner's rows, as `stack.tables` pools them; zeros for an owner without any."""
        mean_GD = np.zeros((len(lengths_G), self.dim), dtype=np.float32)
        filled_G = np.flatnonzero(lengths_G)
        if filled_G.size:
            starts_G = np.concatenate([[0], np.cumsum(lengths_G)[:-1]])[filled_G]
            sum_GD = np.add.reduceat(self.vectors(rows_N), starts_G, axis=0)
            mean_GD[filled_G] = sum_GD / lengths_G[filled_G, None].astype(np.float32)
        return mean_GD

    def _clamp(self, rows_N: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.where((rows_N >= 0) & (rows_N < self.num_rows), rows_N, PADDING_ROW)
