"""Writes runs (`stack.export.runs`): of rows as they come, and one of several.

Shape legend: N keys, rows; A keys that have a row; D width.
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

from stack.export.quantize import RowType, Stored, encode, row_dtype
from stack.export.runs import BLOCK_KEYS, FENCES, GONE, KEY, KEYS, MIN_FENCED_KEYS, MISSING, ROWS, Run, kinds_of

_MERGED_KEYS = 1 << 16
"""Keys of each run that `merge_deltas` takes into memory at once."""


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
    kinds = kinds_of(runs_newest_first)
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
            self._fences.append(keys_N[BLOCK_KEYS - 1 - self.num_rows % BLOCK_KEYS :: BLOCK_KEYS])
        self._rows.append(stored_N)

    def append_gone(self, keys_N: NDArray[np.int64]) -> None:
        self._gone = self._gone or _KeyFile(self._folder / GONE, self._files)
        self._gone.append(keys_N)

    def complete(self) -> None:
        for file in (self._keys, self._fences, self._gone, self._rows):
            if file is not None:
                file.complete()
        if self._fences is not None and self.num_rows < MIN_FENCED_KEYS:
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
        self._file = _ArrayFile(path, files, KEY, ())

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
