"""Rows by key as immutable runs on disk, and the store that searches them, newest first, out of memory-mapped files.

A run is a folder, complete when whoever writes it says so (write it aside, rename it into place)::

    rows.npy     (N, elements) stored rows (`stack.export.quantize.row_dtype`)
    keys.npy     (N,) int64, strictly ascending; absent where rows are numbered: row k is of key k
    fences.npy   every 32nd of the keys, in a run of 262,144 keys or more, which is searched in two steps
    gone.npy     int64, strictly ascending, none of them in keys: keys that lost their rows; absent where none did

A search goes through fences, which stay in the processor's cache, to one block of 32 keys, which are compared at once:
of a million keys in less than half the time of a bisection, and of more than memory holds with one page read a key.

Shape legend: N keys, rows; K keys of an id, whose vectors are summed; B keys of a block; D width; G owners of ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from stack.base.errors import PackageError
from stack.export.quantize import RowType, Stored, decode, row_dtype

MISSING = int(np.iinfo(np.int64).min)
"""The key that stands for no id: no run has it."""
ROWS, KEYS, FENCES, GONE = "rows.npy", "keys.npy", "fences.npy", "gone.npy"
BLOCK_KEYS = 32
MIN_FENCED_KEYS = 1 << 18
"""Below it one bisection is as fast."""
KEY = np.dtype("<i8")


class Run:
    """A run's files, mapped: opening reads a few pages, however large it is.

    Raises:
        PackageError: naming a file that is missing, cut off, or not of this row type and width.
    """

    def __init__(self, folder: Path, *, row_type: RowType, dim: int) -> None:
        dtype, num_elements = row_dtype(row_type, dim)
        self.folder, self.row_type, self.dim = folder, row_type, dim
        self.rows = cast("Stored", mapped(folder / ROWS, dtype, (num_elements,)))
        self.keys = _mapped_keys(folder / KEYS) if (folder / KEYS).exists() else None
        self.gone = _mapped_keys(folder / GONE) if (folder / GONE).exists() else np.empty(0, dtype=np.int64)
        if self.keys is not None and len(self.keys) != self.num_rows:
            raise PackageError(f"{folder / KEYS} has {len(self.keys)} keys, {ROWS} has {self.num_rows} rows")
        self._fences: NDArray[np.int64] | None = None
        if self.keys is not None and self.num_rows >= MIN_FENCED_KEYS:
            self._fences = _mapped_fences(folder / FENCES, self.keys)
            num_fenced = len(self._fences) * BLOCK_KEYS
            self._blocks = self.keys[:num_fenced].reshape(-1, BLOCK_KEYS)
            self._rest = self.keys[num_fenced:]

    @property
    def num_rows(self) -> int:
        return len(self.rows)

    def find(self, keys_N: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Place of each key's row, and whether it has one; the place of a key without a row means nothing."""
        if self.keys is None:
            return keys_N, keys_N.view(np.uint64) < self.num_rows  # a negative key is a large one without sign
        if not self.num_rows:
            return keys_N, np.zeros(len(keys_N), dtype=bool)
        place_N = self._places(keys_N)
        return place_N, self.keys.take(place_N, mode="clip") == keys_N

    def lookup(self, keys_N: NDArray[np.int64]) -> tuple[Stored, NDArray[np.bool_]]:
        """Stored row of each key, as a copy, and whether it has one; the row of a key without one means nothing."""
        place_N, known_N = self.find(keys_N)
        if not self.num_rows:
            return np.zeros((len(keys_N), self.rows.shape[1]), dtype=self.rows.dtype), known_N
        return self.rows.take(place_N, axis=0, mode="clip"), known_N

    def overlay(self, keys_N: NDArray[np.int64], stored_N: Stored, known_N: NDArray[np.bool_]) -> None:
        """Puts what this run says of these keys over what older runs said of them, in place."""
        place_N, found_N = self.find(keys_N)
        hit = found_N.nonzero()[0]
        if hit.size:
            stored_N[hit] = self.rows.take(place_N[hit], axis=0)
            known_N[hit] = True
        if self.gone.size:
            known_N[self.gone.take(self.gone.searchsorted(keys_N), mode="clip") == keys_N] = False

    def _places(self, keys_N: NDArray[np.int64]) -> NDArray[np.int64]:
        assert self.keys is not None
        if self._fences is None:
            return self.keys.searchsorted(keys_N)
        block_N = self._fences.searchsorted(keys_N)
        block_NB = self._blocks.take(block_N, axis=0, mode="clip")
        place_N: NDArray[np.int64] = (block_NB == keys_N[:, None]).argmax(axis=1)
        place_N += block_N * BLOCK_KEYS
        late_N = block_N == len(self._fences)
        if late_N.any():
            place_N[late_N] = len(self._fences) * BLOCK_KEYS + self._rest.searchsorted(keys_N[late_N])
        return place_N


class RowStore:
    """Vectors of keys over runs, newest first: of each key the newest run that has it decides. Immutable.

    A key that no run has, or that the newest run which speaks of it calls gone, gets `default_D` and is not known.

    Raises:
        ValueError: no runs, or runs of several row types or widths.
    """

    def __init__(self, default_D: NDArray[np.float32], runs: Sequence[Run]) -> None:
        kinds = kinds_of(runs)
        if len(kinds) != 1 or kinds[0][1] != len(default_D):
            raise ValueError(f"runs of one type, {len(default_D)} wide, make a store; these are {kinds}")
        self._default_D = default_D
        self._runs = tuple(runs)
        self._base, *self._oldest_first = reversed(self._runs)

    @property
    def dim(self) -> int:
        return self._base.dim

    @property
    def num_rows(self) -> int:
        """Of all runs: a key that two of them have counts twice."""
        return sum(run.num_rows for run in self._runs)

    @property
    def num_deltas(self) -> int:
        return len(self._oldest_first)

    def with_default(self, default_D: NDArray[np.float32]) -> RowStore:
        """This store with another vector for what is not known."""
        return RowStore(default_D, self._runs)

    def with_delta(self, run: Run) -> RowStore:
        """This store with a newer run before it, which must be of its row type and width."""
        return RowStore(self._default_D, (run, *self._runs))

    def find(self, keys: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """(N, D) vectors and (N,) whether they are known, of keys (N,), or (N, K) of which each K are summed.

        Of K keys those that are `MISSING` add nothing, and K of them are the default, once; others that are not
        known add the default each. K keys are known where one of them is.
        """
        if keys.ndim == 2:
            return self._sums(keys)
        stored_N, known_N = self._base.lookup(keys)
        for run in self._oldest_first:
            run.overlay(keys, stored_N, known_N)
        vector_ND = decode(stored_N, self._base.row_type, self._base.dim)
        if not known_N.all():
            vector_ND[~known_N] = self._default_D
        return vector_ND, known_N

    def means(
        self, keys: NDArray[np.int64], lengths_G: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """(G, D): the mean of each owner's vectors, zeros for an owner without any; and (N,) `find`'s known flags.

        An owner has the next `lengths_G` of the keys, (N,) or (N, K) as `find` takes them.
        """
        vector_ND, known_N = self.find(keys)
        return pooled(vector_ND, lengths_G), known_N

    def _sums(self, keys_NK: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        vector_ND, known_N = self.find(keys_NK.ravel())
        vector_NKD = vector_ND.reshape(*keys_NK.shape, self.dim)
        missing_NK = keys_NK == MISSING
        vector_NKD[missing_NK] = 0
        sum_ND = vector_NKD.sum(axis=1)
        sum_ND[missing_NK.all(axis=1)] = self._default_D
        return sum_ND, np.any(known_N.reshape(keys_NK.shape), axis=1)


def kinds_of(runs: Sequence[Run]) -> list[tuple[str, int]]:
    return sorted({(run.row_type.value, run.dim) for run in runs})


def pooled(vector_ND: NDArray[np.float32], lengths_G: NDArray[np.int64]) -> NDArray[np.float32]:
    """(G, D): the mean of each owner's vectors, which are the next `lengths_G` of them; zeros for one without any."""
    start_G = lengths_G.cumsum() - lengths_G
    if len(lengths_G) and lengths_G.all():
        mean_GD: NDArray[np.float32] = np.add.reduceat(vector_ND, start_G, axis=0)
        mean_GD /= lengths_G[:, None].astype(np.float32)
        return mean_GD
    mean_GD = np.zeros((len(lengths_G), vector_ND.shape[1]), dtype=np.float32)
    filled_G = np.flatnonzero(lengths_G)
    if filled_G.size:
        mean_GD[filled_G] = pooled(vector_ND, lengths_G[filled_G])
    return mean_GD


def mapped(file: Path, dtype: np.dtype[np.generic], item_shape: tuple[int, ...]) -> NDArray[np.generic]:
    """A view of the file as a plain array, whose operations are some microseconds faster than those of `np.memmap`."""
    try:
        found = np.lib.format.open_memmap(file, mode="r")
    except FileNotFoundError:
        raise PackageError(f"{file} is missing: export the package again") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise PackageError(f"{file} cannot be read: {error}") from error
    if found.dtype != dtype or found.ndim == 0 or found.shape[1:] != item_shape or not found.flags.c_contiguous:
        expected = ", ".join(map(str, ("N", *item_shape)))
        raise PackageError(f"{file} holds {found.dtype} of shape {found.shape}, ({expected}) of {dtype} is expected")
    if file.stat().st_size != found.offset + found.nbytes:
        raise PackageError(f"{file} has {file.stat().st_size} bytes, its header says {found.offset + found.nbytes}")
    return np.asarray(found)


def _mapped_keys(file: Path) -> NDArray[np.int64]:
    keys = cast("NDArray[np.int64]", mapped(file, KEY, ()))
    if len(keys) and (keys[0] == MISSING or int(keys[0]) + len(keys) - 1 > int(keys[-1])):
        raise PackageError(f"{file} does not hold {len(keys)} ascending keys: from {keys[0]} to {keys[-1]}")
    return keys


def _mapped_fences(file: Path, keys: NDArray[np.int64]) -> NDArray[np.int64]:
    fences = _mapped_keys(file)
    if len(fences) != len(keys) // BLOCK_KEYS or fences[-1] != keys[len(fences) * BLOCK_KEYS - 1]:
        raise PackageError(f"{file} is not of the {len(keys)} keys beside it: export the package again")
    return fences
