"""What checkpoints cost: in time and bytes, beside what the disk and the memory could do at best in the same minutes.

A table of 32 columns with row-wise state is saved, restored and compacted in a folder that is deleted at the end; it
must lie on the disk that is to be measured. Bare writes and reads move as many bytes with as many threads. What is
restored is compared with what was saved.
"""

from __future__ import annotations

import gc
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from stack.checkpoint.compact import compact
from stack.checkpoint.load import _THREADS as READ_THREADS
from stack.checkpoint.manifest import VersionManifest
from stack.checkpoint.save import _WRITE_THREADS as WRITE_THREADS
from tools.bench.chains import OPTIONS, Table
from tools.bench.disk import Spent, counted_flushes, forget, read_files, spent, watched_memory, write_files
from tools.bench.harness import Figure, gib, interleaved, ratio, seconds_of

SHARES = (0.0001, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5)
NUM_DELTAS, DELTA_SHARE = 30, 0.01
ROWS_BESIDE_TRAINING = 8_000_000
"""About a GiB."""
SECONDS_ALONE = 2.0
LARGE_ROWS = 100_000_000
_GB = 1e9


def measure(*, num_rounds: int, rows: int, large: bool, folder: Path) -> list[Figure]:
    """Raises `AssertionError` where a restored table is not the one that was saved."""
    if large:
        return _of_table(folder, LARGE_ROWS, torch.float16, num_rounds=1, num_warmup=0)
    figures = [*_smallest(folder, num_rounds), *_beside_training(folder, num_rounds)]
    return figures + _of_table(folder, rows, torch.float32, num_rounds=num_rounds, num_warmup=1)


@contextmanager
def _table(folder: Path, **options: object) -> Iterator[tuple[Table, Path]]:
    """A table and a folder for bare files, on one disk."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".bench-") as name:
        path = Path(name)
        yield Table(path / "chain", **options), path  # type: ignore[arg-type]
    gc.collect()


def _of_table(folder: Path, num_rows: int, dtype: torch.dtype, *, num_rounds: int, num_warmup: int) -> list[Figure]:
    case = f"{num_rows:,} rows of {str(dtype).removeprefix('torch.')}"
    with _table(folder, num_rows=num_rows, dtype=dtype) as (table, path):
        base = table.save(None)
        figures = _deltas(table, base, num_rounds=num_rounds)
        found, base = _whole(table, path, base, num_rounds=num_rounds, num_warmup=num_warmup)
        figures += found
        figures += _chain(table, base, num_rounds=num_rounds, num_warmup=num_warmup)
    return [replace(figure, name=f"{case}: {figure.name}") for figure in figures]


def _deltas(table: Table, base: VersionManifest, *, num_rounds: int) -> list[Figure]:
    seconds: dict[float, list[float]] = {share: [] for share in SHARES}
    sizes: dict[float, list[float]] = {share: [] for share in SHARES}
    for _, share in itertools.product(range(num_rounds), SHARES):
        row = table.touch(share)
        started = time.perf_counter()
        version = table.save(row)
        seconds[share].append(time.perf_counter() - started)
        sizes[share].append(100 * version.num_bytes / base.num_bytes)
        table.drop(version)
    bytes_of = [
        Figure(name=f"delta of {100 * share:g}%, of the base", unit="%", values=tuple(sizes[share])) for share in SHARES
    ]
    return bytes_of + [
        Figure(name=f"delta of {100 * share:g}%", unit="s", values=tuple(seconds[share])) for share in SHARES
    ]  # fmt: skip


def _whole(
    table: Table, path: Path, base: VersionManifest, *, num_rounds: int, num_warmup: int
) -> tuple[list[Figure], VersionManifest]:
    """Saves and restores of all rows. Of the versions, `base` the first, the last stays."""
    kept = [base]
    num_bytes = base.num_bytes
    files = table.files(base)
    sizes = [file.num_bytes for file in base.files.values()]
    processor: dict[str, list[float]] = {}

    def timed(acts: Mapping[str, Callable[[], Spent]]) -> dict[str, tuple[float, ...]]:
        def call(name: str, act: Callable[[], Spent]) -> float:
            found = act()
            processor.setdefault(name, []).append(found.processor_seconds)
            return found.seconds

        variants = {name: partial(call, name, act) for name, act in acts.items()}
        return interleaved(variants, num_rounds=num_rounds, num_warmup=num_warmup)

    def save() -> Spent:
        table.drop(kept.pop())
        return spent(lambda: kept.append(table.save(None)))

    def cold(act: Callable[[], Spent]) -> Spent:
        forget(files)
        return act()

    bare = partial(write_files, path, sizes, num_threads=WRITE_THREADS)
    found = timed({"save": save, "bare write and flush": bare})
    files = table.files(kept[0])
    restore = partial(_restore, table, kept[0])
    read = partial(read_files, files, num_threads=READ_THREADS)
    acts: dict[str, Callable[[], Spent]] = {
        "restore from the disk": partial(cold, restore),
        "bare read from the disk": partial(cold, read),
        "restore from the system's memory": restore,
        "restore without verifying, from the system's memory": partial(restore, verify=False),
        "bare read from the system's memory": read,
    }
    found |= timed(acts)
    return [
        *(_speed(name, num_bytes, seconds) for name, seconds in found.items()),
        ratio("save over bare write, speed", found["bare write and flush"], found["save"]),
        ratio(
            "restore over bare read from the disk, speed",
            found["bare read from the disk"],
            found["restore from the disk"],
        ),
        *(
            Figure(
                name=f"{name}, processor time of a GB",
                unit="s",
                values=tuple(_GB / num_bytes * value for value in values[num_warmup:]),
            )
            for name, values in processor.items()
        ),
    ], kept[0]


def _chain(table: Table, base: VersionManifest, *, num_rounds: int, num_warmup: int) -> list[Figure]:
    """A base and deltas of rows drawn anew, restored beside the base alone; then compacted."""
    expected = table.checksum()
    versions = [table.save(table.touch(DELTA_SHARE)) for _ in range(NUM_DELTAS)]
    head, live = versions[-1], table.checksum()

    def restored(version: VersionManifest, sums: Sequence[int]) -> float:
        table.spoil()
        seconds = _restore(table, version).seconds
        assert table.checksum() == sums, f"version {version.version} was restored otherwise than it was saved"
        return seconds

    variants = {"base": partial(restored, base, expected), "chain": partial(restored, head, live)}
    found = interleaved(variants, num_rounds=num_rounds, num_warmup=num_warmup)
    with watched_memory() as memory:
        started = time.perf_counter()
        compacted = compact(table.chain, head)
        seconds = time.perf_counter() - started
    assert compacted is not None
    restored(head, live)
    num_bytes = sum(file.num_bytes for file in compacted.files.values())
    deltas = f"{NUM_DELTAS} deltas of {100 * DELTA_SHARE:g}%"
    return [
        Figure(name="restore of a base", unit="s", values=found["base"]),
        Figure(name=f"restore of a base and {deltas}", unit="s", values=found["chain"]),
        ratio("restore of base and deltas over base alone", found["chain"], found["base"]),
        _speed("compaction", num_bytes, (seconds,)),
        Figure(name="compaction, memory of its own", unit="GiB", values=(gib(memory.own_bytes),)),
        Figure(name="compaction, memory with pages of files", unit="GiB", values=(gib(memory.all_bytes),)),
    ]  # fmt: skip


def _restore(table: Table, version: VersionManifest, *, verify: bool = True) -> Spent:
    def act() -> None:
        checkpoint = table.checkpoint(version)
        if verify:
            checkpoint.verify()
        checkpoint.restore([table.shard])

    return spent(act)


def _beside_training(folder: Path, num_rounds: int) -> list[Figure]:
    """What a save that is written beside training takes from it; seconds for a GiB copied."""
    options = replace(OPTIONS, asynchronous=True)
    with _table(folder, num_rows=ROWS_BESIDE_TRAINING, dtype=torch.float32, options=options) as (table, _):
        step, size = _Step(), gib(table.num_bytes)
        live = [table.shard.weight_ND, *table.shard.state.values()]
        there = [value.clone() for value in live]
        slower: list[float] = []
        lost: list[float] = []

        def pause() -> float:
            alone = step.seconds_until(partial(_passed, time.perf_counter() + SECONDS_ALONE))
            paused = seconds_of(partial(table.begin, None))
            beside = step.seconds_until(lambda: not table.writing)
            table.drop(table.end())
            means = [sum(times) / len(times) for times in (alone, beside)]
            slower.append(100 * (means[1] / means[0] - 1))
            lost.append((paused + sum(beside) - len(beside) * means[0]) / size)
            return paused / size

        variants: dict[str, Callable[[], float]] = {
            "pause of training": pause,
            "copy into new memory": lambda: seconds_of(partial(_clone, live)) / size,
            "copy into memory that is there": lambda: seconds_of(partial(_copy, live, there)) / size,
        }
        found = interleaved(variants, num_rounds=num_rounds)
    return [
        *(Figure(name=f"a GiB saved beside training: {name}", unit="s", values=found[name]) for name in found),
        Figure(name="a step while a version is written, slower by", unit="%", values=tuple(slower[1:])),
        Figure(name="a GiB saved beside training: all that training loses", unit="s", values=tuple(lost[1:])),
    ]


def _smallest(folder: Path, num_rounds: int) -> list[Figure]:
    """A delta of one row."""
    with _table(folder, num_rows=16, dtype=torch.float32) as (table, path):
        table.save(None)
        row = torch.tensor([3])
        with counted_flushes() as flushes:
            table.save(row)
        variants: dict[str, Callable[[], float]] = {
            "commit": lambda: seconds_of(partial(table.save, row)),
            "flush": lambda: write_files(path, [1], num_threads=1).seconds,
        }
        found = interleaved(variants, num_rounds=5 * num_rounds)
    return [
        Figure(name="smallest version, flushes", unit="", values=(float(len(flushes)),)),
        Figure(name="smallest version", unit="ms", values=tuple(1e3 * value for value in found["commit"])),
        Figure(name="a file of one byte, flushed", unit="ms", values=tuple(1e3 * value for value in found["flush"])),
    ]


class _Step:
    """A training step that keeps all cores busy for some milliseconds."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self._model = nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 1))
        self._optimizer = torch.optim.Adam(self._model.parameters())
        self._input_BD = torch.randn(512, 512)

    def __call__(self) -> None:
        self._optimizer.zero_grad()
        self._model(self._input_BD).square().mean().backward()
        self._optimizer.step()

    def seconds_until(self, done: Callable[[], bool]) -> list[float]:
        """Of each step; at least one."""
        times = [seconds_of(self)]
        while not done():
            times.append(seconds_of(self))
        return times


def _passed(deadline: float) -> bool:
    return time.perf_counter() > deadline


def _clone(values: Sequence[Tensor]) -> None:
    for value in values:
        value.clone()


def _copy(values: Sequence[Tensor], there: Sequence[Tensor]) -> None:
    for value, into in zip(values, there, strict=True):
        into.copy_(value)


def _speed(name: str, num_bytes: int, seconds: Sequence[float]) -> Figure:
    return Figure(name=name, unit="GB/s", values=tuple(num_bytes / _GB / value for value in seconds))
