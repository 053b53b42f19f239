"""Rows of a package looked up out of memory-mapped runs: time of 100 keys, time to open, memory that it costs.

Keys lie at random over most of 64 bits, as hashes of texts do; those asked for are drawn evenly among the base's. A
delta has 10,000 rows, half of them of the base's keys. A timing of lookups is the median of `_CALLS` calls, each with
other keys, after as many with keys of their own, none of which is timed: all pages are mapped by then, and the
processor's caches hold what they hold of any table that is asked all the time, not the very rows that are timed.

The large table has 1e8 rows of 16 numbers in fp16 (4 GB, as much disk in `folder`). It is opened and looked up in once
with nothing of it in the system's memory ("cold"), and once more ("warm") with other keys of the pages that the first
pass brought there.

Shape legend: N rows, D columns, C calls, Q keys of a call.
"""

from __future__ import annotations

import mmap
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stack.base.files import sync_tree
from stack.base.seed import derive
from stack.export.quantize import RowType
from stack.export.run_writer import write_run
from stack.export.runs import RowStore, Run
from tools.bench.disk import forget
from tools.bench.harness import Figure, interleaved, seconds_of

_DIM = 32
_KEYS_PER_CALL = 100
_CALLS = 2_000
_DELTAS = (0, 1, 8)
_DELTA_ROWS = 10_000
_PART_ROWS = 1_000_000
_LARGE_ROWS = 100_000_000
_LARGE_DIM = 16
_LARGE_LOOKUPS = 100_000
_SPAN = 1 << 63
"""Of the keys of a table, from -2^62 up."""
_BESIDE_ROWS = 64
"""Between two rows of the large table that share a page of 128, and no line of the processor's caches."""


def measure(*, num_rounds: int, rows: Sequence[int], folder: Path, large: bool = False) -> list[Figure]:
    """Microseconds of a lookup and milliseconds of an opening, by rows, row type and deltas; with `large` also those
    of the large table and the MiB that it takes, once. What is written under `folder` is deleted."""
    figures: list[Figure] = []
    for num_rows in rows:
        with tempfile.TemporaryDirectory(dir=folder) as work:
            found = interleaved(_variants(Path(work), num_rows), num_rounds=num_rounds)
            figures += [
                Figure(name=f"{num_rows:,} rows, {name}", unit="ms" if name.endswith("open") else "us", values=values)
                for name, values in found.items()
            ]
    if large:
        with tempfile.TemporaryDirectory(dir=folder) as work:
            figures += _large(Path(work), _LARGE_ROWS)
    return figures


def _variants(folder: Path, num_rows: int) -> dict[str, Callable[[], float]]:
    made: dict[str, Callable[[], float]] = {}
    for row_type in RowType:
        base, *deltas = _tables(folder / row_type.value, num_rows, row_type)
        assert base.keys is not None
        key_N = np.array(base.keys)
        for num_deltas in _DELTAS:
            runs = [*deltas[:num_deltas], base]
            store = RowStore(np.zeros(_DIM, np.float32), runs)
            made[f"{row_type.value}: 100 keys, {num_deltas} deltas"] = _lookups(store, runs, key_N)
        made[f"{row_type.value}: open"] = partial(_open_milliseconds, base)
    return made


def _tables(folder: Path, num_rows: int, row_type: RowType) -> list[Run]:
    """The base and its deltas."""
    draw = np.random.default_rng(derive(0, "tables", num_rows))
    sampled = write_table(
        folder / "base", row_type, num_rows=num_rows, dim=_DIM, num_sampled=_DELTA_ROWS // 2, draw=draw
    )
    runs = [Run(folder / "base", row_type=row_type, dim=_DIM)]
    for number in range(max(_DELTAS)):
        added = draw.integers(-(1 << 62), 1 << 62, _DELTA_ROWS - len(sampled))
        key_N = np.unique(np.concatenate([sampled, added]))
        part = (key_N, draw.standard_normal((len(key_N), _DIM), dtype=np.float32))
        write_run(folder / f"{number}", row_type=row_type, dim=_DIM, num_rows=len(key_N), parts=[part])
        runs.append(Run(folder / f"{number}", row_type=row_type, dim=_DIM))
    return runs


def write_table(
    folder: Path, row_type: RowType, *, num_rows: int, dim: int, num_sampled: int, draw: np.random.Generator
) -> NDArray[np.int64]:
    """Writes a base in parts, and gives about as many of its keys as are asked for, drawn evenly, in any order."""
    sampled: list[NDArray[np.int64]] = []
    step = _SPAN // num_rows

    def parts() -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        weight_ND = draw.standard_normal((min(num_rows, _PART_ROWS), dim), dtype=np.float32)
        for first in range(0, num_rows, _PART_ROWS):
            count = min(_PART_ROWS, num_rows - first)
            key_N = -(1 << 62) + np.arange(first, first + count) * step + draw.integers(0, step, count)
            sampled.append(draw.choice(key_N, min(count, -(-num_sampled * count // num_rows)), replace=False))
            yield key_N, weight_ND[:count]

    write_run(folder, row_type=row_type, dim=dim, num_rows=num_rows, parts=parts())
    return draw.permutation(np.concatenate(sampled))


def _lookups(store: RowStore, runs: Sequence[Run], key_N: NDArray[np.int64]) -> Callable[[], float]:
    """Median microseconds of a call; every round draws other keys: to warm with out of one half, to time out of the
    other."""
    draw = np.random.default_rng(derive(0, "lookups"))

    def run() -> float:
        for one in runs:
            _map(one)
        warming_CQ, timed_CQ = (draw.choice(half, (_CALLS, _KEYS_PER_CALL)) for half in (key_N[::2], key_N[1::2]))
        _microseconds(store, warming_CQ)
        return statistics.median(_microseconds(store, timed_CQ))

    return run


def _map(run: Run) -> None:
    """Reads a byte of each page of a run."""
    assert run.keys is not None
    for array in (run.keys, run.rows):
        array.view(np.uint8).reshape(-1)[:: mmap.PAGESIZE].sum()


def _microseconds(store: RowStore, asked_CQ: NDArray[np.int64]) -> list[float]:
    """Of each call."""
    found: list[float] = []
    for keys in asked_CQ:
        started = time.perf_counter_ns()
        _, known_Q = store.find(keys)
        found.append((time.perf_counter_ns() - started) / 1e3)
        assert known_Q.all(), "every key that is asked for has a row"
    return found


def _open_milliseconds(run: Run) -> float:
    return seconds_of(partial(Run, run.folder, row_type=run.row_type, dim=run.dim)) * 1e3


def _large(folder: Path, num_rows: int) -> list[Figure]:
    draw = np.random.default_rng(derive(0, "large"))
    name = f"{num_rows:,} rows x {_LARGE_DIM}, fp16"
    sampled = write_table(
        folder / "base", RowType.fp16, num_rows=num_rows, dim=_LARGE_DIM, num_sampled=_LARGE_LOOKUPS, draw=draw
    )
    asked_CQ = sampled[: len(sampled) // _KEYS_PER_CALL * _KEYS_PER_CALL].reshape(-1, _KEYS_PER_CALL)
    beside_CQ = _beside(folder / "base", asked_CQ)
    sync_tree(folder)
    forget(list((folder / "base").iterdir()))
    cold = _pass(f"{name}, cold", folder / "base", asked_CQ)
    warm = _pass(f"{name}, warm", folder / "base", beside_CQ)
    shutil.rmtree(folder / "base")
    return [*cold, *warm]


def _beside(folder: Path, asked_CQ: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each key another one whose row and key lie on the same pages (but for some at their ends)."""
    keys = Run(folder, row_type=RowType.fp16, dim=_LARGE_DIM).keys
    assert keys is not None
    place_CQ = keys.searchsorted(asked_CQ) ^ _BESIDE_ROWS
    return keys.take(place_CQ, mode="clip")


def _pass(name: str, folder: Path, asked_CQ: NDArray[np.int64]) -> list[Figure]:
    """Opens the table, looks keys up, and lets go of it."""
    before = resident_mib()
    started = time.perf_counter()
    run = Run(folder, row_type=RowType.fp16, dim=_LARGE_DIM)
    store = RowStore(np.zeros(_LARGE_DIM, np.float32), [run])
    opened = (time.perf_counter() - started) * 1e3
    at_open = resident_mib()
    microseconds = _microseconds(store, asked_CQ)
    at_end = resident_mib()
    figures = [
        Figure(name=f"{name}: open", unit="ms", values=(opened,)),
        Figure(name=f"{name}: 100 keys", unit="us", values=(statistics.median(microseconds),)),
    ]
    for kind in ("RssFile", "RssAnon"):
        for when, resident in (("opening", at_open), (f"{asked_CQ.size:,} lookups", at_end)):
            grown = resident[kind] - before[kind]
            figures.append(Figure(name=f"{name}: {kind} after {when}", unit="MiB", values=(grown,)))
    return figures


def resident_mib() -> dict[str, float]:
    """Memory of this process (Linux): pages of files, which the system may take back, and its own."""
    lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines()]
    return {line[0].rstrip(":"): int(line[1]) / 1024 for line in lines if line and line[0].startswith("Rss")}
