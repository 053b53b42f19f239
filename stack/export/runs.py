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

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from stack.base.errors import PackageError
from stack.export.quantize import RowType, Stored, decode, encode, row_dtype

MISSING = int(np.iinfo(np.int64).min)
"""The key that stands for no id: no run has it."""
ROWS, KEYS, FENCES, GONE = "rows.npy", "keys.npy", "fences.npy", "gone.npy"
_BLOCK_KEYS = 32
_MIN_FENCED_KEYS = 1 << 18
"""Below it one bisection is as fast."""
_MERGED_KEYS = 1 << 16
"""Keys of each run that `merge_deltas` takes into memory at once."""
_KEY = np.dtype("<i8")


class Run:
    """A run's files, mapped: opening reads a few pages, however large it is.

    Raises:
        PackageError: naming a file that is missing, cut off, or not of this row type and width.
    """

    def __init__(self, folder: Path, *, row_type: RowType, dim: int) -> None:
        dtype, num_elements = row_dtype(row_type, dim)
        self.folder, self.row_type, self.dim = folder, row_type, dim
        self.rows = cast("Stored", _mapped(folder / ROWS, dtype, (num_elements,)))
        self.keys = _mapped_keys(folder / KEYS) if (folder / KEYS).exists() else None
        self.gone = _mapped_keys(folder / GONE) if (folder / GONE).exists() else np.empty(0, dtype=np.int64)
        if self.keys is not None and len(self.keys) != self.num_rows:
            raise PackageError(f"{folder / KEYS} has {len(self.keys)} keys, {ROWS} has {self.num_rows} rows")
        self._fences: NDArray[np.int64] | None = None
        if self.keys is not None and self.num_rows >= _MIN_FENCED_KEYS:
            self._fences = _mapped_fences(folder / FENCES, self.keys)
            num_fenced = len(self._fences) * _BLOCK_KEYS
            self._blocks = self.keys[:num_fenced].reshape(-1, _BLOCK_KEYS)
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
        place_N += block_N * _BLOCK_KEYS
        late_N = block_N == len(self._fences)
        if late_N.any():
            place_N[late_N] = len(self._fences) * _BLOCK_KEYS + self._rest.searchsorted(keys_N[late_N])
        return place_N


class RowStore:
    """Vectors of keys over runs, newest first: of each key the newest run that has it decides. Immutable.

    A key that no run has, or that the newest run which speaks of it calls gone, gets `default_D` and is not known.

    Raises:
        ValueError: no runs, or runs of several row types or widths.
    """

    def __init__(self, default_D: NDArray[np.float32], runs: Sequence[Run]) -> None:
        kinds = _kinds(runs)
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


def _kinds(runs: Sequence[Run]) -> list[tuple[str, int]]:
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


def write_run(
    folder: Path,
    *,
    row_type: RowType,
    dim: int,
    num_rows: int,
    parts: Iterable[tuple[NDArray[np.int64] | None, NDArray[np.float32]]],
    gone: NDArray[np.int64] | None = None,
) -> None:
    """Writes a run out of parts (keys_N or None, weight_ND), holding one part in memory. The folder must be new.

    Keys ascend within and across parts; None in all of them means that rows are numbered. A run without parts has
    keys, none. What failed half-way stays, and cannot be opened.

    Raises:
        ValueError: keys or `gone` out of order, a key in both, parts of another width or number of rows, or numbers
            that the row type cannot hold (`encode`).
    """
    rest = iter(parts)
    first = next(rest, None)
    with _writer(folder, row_type, dim, keyed=first is None or first[0] is not None) as out:
        for keys_N, weight_ND in chain([] if first is None else [first], rest):
            if weight_ND.ndim != 2 or weight_ND.shape[1] != dim:
                raise ValueError(f"{folder}: rows of shape {weight_ND.shape}, {dim} wide are expected")
            if gone is not None and _common(keys_N, out.num_rows, len(weight_ND), gone):
                raise ValueError(f"{folder}: a key has a row and is gone at once")
            out.append(keys_N, encode(weight_ND, row_type, first_row=out.num_rows))
        if gone is not None:
            out.append_gone(gone)
        if out.num_rows != num_rows:
            raise ValueError(f"{folder}: parts have {out.num_rows} rows, {num_rows} are expected")


def merge_deltas(runs_newest_first: Sequence[Run], folder: Path) -> None:
    """Writes the one run that says of every key what these do, newest first; a key that is gone stays gone.

    Stored rows are copied as they are. Memory holds at most 65,536 keys of each run, as many gone ones, and their rows.

    Raises:
        ValueError: no runs, runs of several row types or widths, or a run whose rows are numbered.
    """
    kinds = _kinds(runs_newest_first)
    if len(kinds) != 1:
        raise ValueError(f"runs of one type and width merge; these are {kinds}")
    for run in runs_newest_first:
        if run.keys is None:
            raise ValueError(f"{run.folder}: rows that are numbered do not merge: they are a whole table")
    newest = runs_newest_first[0]
    with _writer(folder, newest.row_type, newest.dim, keyed=True) as out:
        for pieces in _ranges(runs_newest_first):
            keys_N, stored_N, gone_N = _newest(runs_newest_first, pieces)
            out.append(keys_N, stored_N)
            if gone_N.size:
                out.append_gone(gone_N)


def _ranges(runs: Sequence[Run]) -> Iterator[list[NDArray[np.int64]]]:
    """By ascending ranges that leave no key out: keys of the first run, its gone ones, those of the second, ..."""
    left = [keys for run in runs for keys in (cast("NDArray[np.int64]", run.keys), run.gone)]
    while any(map(len, left)):
        heads = [keys[:_MERGED_KEYS] for keys in left]
        last = min(int(keys[-1]) for keys in heads if len(keys))
        counts = [int(keys.searchsorted(last, side="right")) for keys in heads]
        yield [keys[:count] for keys, count in zip(heads, counts, strict=True)]
        left = [keys[count:] for keys, count in zip(left, counts, strict=True)]


def _newest(
    runs: Sequence[Run], pieces: Sequence[NDArray[np.int64]]
) -> tuple[NDArray[np.int64], Stored, NDArray[np.int64]]:
    """Keys with their stored rows, and gone keys, of one range."""
    key_N, first_N = np.unique(np.concatenate(pieces), return_index=True)  # the first of equal ones: of the newest run
    piece_N = np.repeat(np.arange(len(pieces)), [len(keys) for keys in pieces])[first_N]
    gone_N = piece_N % 2 == 1
    key_A, run_A = key_N[~gone_N], piece_N[~gone_N] // 2
    stored_A = np.empty((len(key_A), runs[0].rows.shape[1]), dtype=runs[0].rows.dtype)
    for number, run in enumerate(runs):
        mine = np.flatnonzero(run_A == number)
        if mine.size:
            stored_A[mine] = run.rows.take(run.find(key_A[mine])[0], axis=0)
    return key_A, stored_A, key_N[gone_N]


@contextmanager
def _writer(folder: Path, row_type: RowType, dim: int, *, keyed: bool) -> Iterator[_RunWriter]:
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as files:
        writer = _RunWriter(folder, files, row_type, dim, keyed=keyed)
        yield writer
        writer.complete()


class _RunWriter:
    """Appends rows and keys to a run's files, in order."""

    def __init__(self, folder: Path, files: ExitStack, row_type: RowType, dim: int, *, keyed: bool) -> None:
        dtype, num_elements = row_dtype(row_type, dim)
        self._folder, self._files = folder, files
        self._rows = _ArrayFile(folder / ROWS, files, dtype, (num_elements,))
        self._keys = _KeyFile(folder / KEYS, files) if keyed else None
        self._fences = _KeyFile(folder / FENCES, files) if keyed else None
        self._gone: _KeyFile | None = None

    @property
    def num_rows(self) -> int:
        return self._rows.num_items

    def append(self, keys_N: NDArray[np.int64] | None, stored_N: Stored) -> None:
        if (keys_N is None) != (self._keys is None):
            raise ValueError(f"{self._folder}: some parts have keys and some have none")
        if keys_N is not None and self._keys is not None and self._fences is not None:
            if keys_N.shape != (len(stored_N),):
                raise ValueError(f"{self._folder}: keys of shape {keys_N.shape} for {len(stored_N)} rows")
            self._keys.append(keys_N)
            self._fences.append(keys_N[_BLOCK_KEYS - 1 - self.num_rows % _BLOCK_KEYS :: _BLOCK_KEYS])
        self._rows.append(stored_N)

    def append_gone(self, keys_N: NDArray[np.int64]) -> None:
        self._gone = self._gone or _KeyFile(self._folder / GONE, self._files)
        self._gone.append(keys_N)

    def complete(self) -> None:
        for file in (self._keys, self._fences, self._gone, self._rows):
            if file is not None:
                file.complete()
        if self._fences is not None and self.num_rows < _MIN_FENCED_KEYS:
            (self._folder / FENCES).unlink()


class _ArrayFile:
    """An .npy file that grows along its first axis; until `complete` it has no header and cannot be opened.

    Written, not mapped: a full disk is then an error, where a mapping would end the process.
    """

    def __init__(self, path: Path, files: ExitStack, dtype: np.dtype[np.generic], item_shape: tuple[int, ...]) -> None:
        self._dtype, self._item_shape, self.num_items = dtype, item_shape, 0
        self._file: BinaryIO = files.enter_context(path.open("xb"))
        self._file.write(bytes(len(self._header())))

    def append(self, item_N: NDArray[np.generic]) -> None:
        self._file.write(np.ascontiguousarray(item_N, dtype=self._dtype).data)
        self.num_items += len(item_N)

    def complete(self) -> None:
        self._file.seek(0)
        self._file.write(self._header())  # as long as the first one was: NumPy leaves room for the first axis to grow
        self._file.flush()

    def _header(self) -> bytes:
        header = BytesIO()
        shape = (self.num_items, *self._item_shape)
        described = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, described)
        return header.getvalue()


class _KeyFile:
    """Keys, each above the one before it."""

    def __init__(self, path: Path, files: ExitStack) -> None:
        self._path, self._last = path, MISSING
        self._file = _ArrayFile(path, files, _KEY, ())

    def append(self, keys_N: NDArray[np.int64]) -> None:
        if not keys_N.size:
            return
        if int(keys_N[0]) <= self._last or not bool((keys_N[1:] > keys_N[:-1]).all()):
            raise ValueError(f"{self._path}: keys must ascend strictly, above {MISSING}, within and across parts")
        self._file.append(keys_N)
        self._last = int(keys_N[-1])

    def complete(self) -> None:
        self._file.complete()


def _common(keys_N: NDArray[np.int64] | None, first_row: int, num_rows: int, gone: NDArray[np.int64]) -> bool:
    """Whether one of a part's keys is gone."""
    if keys_N is None:
        return bool(((gone >= first_row) & (gone < first_row + num_rows)).any())
    return bool(np.isin(keys_N, gone).any())


def _mapped(file: Path, dtype: np.dtype[np.generic], item_shape: tuple[int, ...]) -> NDArray[np.generic]:
    """A view of the file as a plain array, whose operations are some microseconds faster than those of `np.memmap`."""
    try:
        mapped = np.lib.format.open_memmap(file, mode="r")
    except FileNotFoundError:
        raise PackageError(f"{file} is missing: export the package again") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise PackageError(f"{file} cannot be read: {error}") from error
    if mapped.dtype != dtype or mapped.ndim == 0 or mapped.shape[1:] != item_shape or not mapped.flags.c_contiguous:
        expected = ", ".join(map(str, ("N", *item_shape)))
        raise PackageError(f"{file} holds {mapped.dtype} of shape {mapped.shape}, ({expected}) of {dtype} is expected")
    if file.stat().st_size != mapped.offset + mapped.nbytes:
        raise PackageError(f"{file} has {file.stat().st_size} bytes, its header says {mapped.offset + mapped.nbytes}")
    return np.asarray(mapped)


def _mapped_keys(file: Path) -> NDArray[np.int64]:
    keys = cast("NDArray[np.int64]", _mapped(file, _KEY, ()))
    if len(keys) and (keys[0] == MISSING or int(keys[0]) + len(keys) - 1 > int(keys[-1])):
        raise PackageError(f"{file} does not hold {len(keys)} ascending keys: from {keys[0]} to {keys[-1]}")
    return keys


def _mapped_fences(file: Path, keys: NDArray[np.int64]) -> NDArray[np.int64]:
    fences = _mapped_keys(file)
    if len(fences) != len(keys) // _BLOCK_KEYS or fences[-1] != keys[len(fences) * _BLOCK_KEYS - 1]:
        raise PackageError(f"{file} is not of the {len(keys)} keys beside it: export the package again")
    return fences
