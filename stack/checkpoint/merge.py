"""Runs of a table merged to as few runs as read the same, bit for bit, in bounded memory.

Row-keyed runs that begin with a whole one are merged by ranges of rows. Others, and those keyed by ids, are merged by
ranges of keys: each file's keys ascend, so a sample of them (every so many lines) cuts the keys into ranges of about as
many lines each, and of each file a range is found by looking between two of its samples.

Row-wise optimizer state is one number for each row of a block of columns, and blocks change when tables are spread
anew. Numbers of other blocks cannot be made one without rounding, so runs are merged as long as their blocks agree; a
table becomes one run, and one more for each change of its blocks. Without row-wise state, blocks mean nothing.

Legend: K lines of a piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import msgspec
import torch
from torch import Tensor

from stack.checkpoint.chain import Layer
from stack.checkpoint.manifest import COUNT, GONE, KEY, LAST, RAW, ROW, WEIGHT, KeyKind, Part, TableShape
from stack.checkpoint.rows import TableReader
from stack.checkpoint.store import Store
from stack.checkpoint.tensors import TensorFile

_OF_IDS = (ROW, COUNT, LAST)
_CHECKED_LINES = 1 << 20
_SLACK = 1.5
"""A range of keys may have this many times the lines that were asked for."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Lines for one file: keys ascend, and are all above those of the piece before in this block of columns."""

    first_column: int
    num_columns: int
    tensors: dict[str, Tensor]

    @property
    def part(self) -> Part:
        """What a manifest says of it; without the file's name."""
        key = self.tensors[KEY]
        return Part(
            file="", num_rows=len(key), first_key=int(key[0]), last_key=int(key[-1]), first_column=self.first_column,
            num_columns=self.num_columns,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Merged:
    """A run that runs come to. `pieces` are made one at a time, as they are taken."""

    shape: TableShape
    keys: KeyKind
    whole: bool
    pieces: Iterator[Piece]


def merge(
    store: Store,
    table: str,
    layers: Sequence[Layer],
    *,
    part_bytes: int,
    one_run: bool = False,
    with_state: bool = True,
) -> list[Merged]:
    """The runs that `layers` (the oldest, which is whole, first) come to, from the oldest. A piece has `part_bytes` at
    most, and making it takes a small number of times that.

    With `one_run` a table whose blocks changed becomes one run all the same, in its newest blocks: what a job with
    these blocks reads, which others read rounded (`merged_blocks`).
    """
    states = layers[-1].entry.shape.state if with_state else ()
    others = (RAW,) if _all_have_raw(store, layers) else ()
    merged = []
    for number, group in enumerate(_groups(store, layers, states=states, one_run=one_run)):
        entry = group[-1].entry
        names = (*states, *others)
        source = _Source(store=store, table=table, layers=group, states=names, part_bytes=part_bytes)
        by_rows = entry.keys is KeyKind.row and number == 0
        merged.append(
            Merged(
                shape=msgspec.structs.replace(entry.shape, state=states),
                keys=entry.keys,
                whole=number == 0,
                pieces=source.by_rows() if by_rows else source.by_keys(),
            )
        )
    return merged


def _all_have_raw(store: Store, layers: Sequence[Layer]) -> bool:
    """Whether the runs tell which id of a vocabulary each key is."""
    files = [f"{layer.folder}/{layer.entry.parts[0].file}" for layer in layers if layer.entry.parts]
    return all(RAW in TensorFile(store, name).shapes for name in files)


def _groups(store: Store, layers: Sequence[Layer], *, states: Sequence[str], one_run: bool) -> list[list[Layer]]:
    """Neighbouring runs that can become one. Runs without rows say nothing, but for the keys that were gone."""
    first = layers[0]
    if first.entry.keys is KeyKind.id:
        return [list(layers)]
    written = [layer for layer in layers if layer.entry.parts]
    sample = TensorFile(store, f"{first.folder}/{first.entry.parts[0].file}")
    if one_run or all(len(sample.shapes[name]) > 1 for name in states):
        return [written]
    groups: list[list[Layer]] = []
    for layer in written:
        if groups and groups[-1][-1].entry.blocks == layer.entry.blocks:
            groups[-1].append(layer)
        else:
            groups.append([layer])
    return groups


class _Source:
    """Runs that become one."""

    def __init__(
        self, *, store: Store, table: str, layers: Sequence[Layer], states: Sequence[str], part_bytes: int
    ) -> None:
        self._reader = TableReader(store, table, layers)
        self._layers = layers
        self._entry = layers[-1].entry
        self._states = states
        self._part_bytes = part_bytes

    def by_rows(self) -> Iterator[Piece]:
        num_rows = self._entry.num_rows
        for block in self._entry.blocks:
            step = max(self._part_bytes // self._line_bytes(block[1]), 1)
            for first in range(0, num_rows, step):
                count = min(step, num_rows - first)
                values = self._reader.rows(first, count, columns=block, states=self._states)
                yield Piece(
                    first_column=block[0], num_columns=block[1],
                    tensors={KEY: torch.arange(first, first + count), **values},
                )  # fmt: skip

    def by_keys(self) -> Iterator[Piece]:
        for block in self._entry.blocks or ((0, self._entry.dim),):
            files = self._files(block)
            budget = max(int(self._part_bytes / self._line_bytes(block[1]) / _SLACK), 1)
            stride = max(budget // (2 * len(files)), 1)
            sorted_files = [_SortedFile(file, tensor, stride) for file, tensor in files]
            for bounds in _ranges(sorted_files, max(budget // stride, 1)):
                tensors = self._newest(sorted_files, bounds)
                if len(tensors[KEY]):
                    yield Piece(first_column=block[0], num_columns=block[1], tensors=tensors)

    def _files(self, block: tuple[int, int]) -> list[tuple[TensorFile, str]]:
        """Files with ascending keys, of equal keys the newest file last; with each the name of its keys."""
        found = []
        for layer in self._layers:
            gone = sorted(name for name in layer.files if name.startswith(f"ids/{self._reader.name}/"))
            parts = [part.file for part in layer.entry.parts if (part.first_column, part.num_columns) == block]
            found += [(self._reader.file(layer, name), GONE) for name in gone]
            found += [(self._reader.file(layer, name), KEY) for name in parts]
        return found

    def _newest(self, files: Sequence[_SortedFile], bounds: tuple[int | None, int | None]) -> dict[str, Tensor]:
        """The newest line of each key in a range; none of keys that were gone by then."""
        lines = [file.lines(*bounds) for file in files]
        key = torch.cat([file.file.rows(file.name, *own) for file, own in zip(files, lines, strict=True)])
        number = torch.cat([torch.full((end - first,), at) for at, (first, end) in enumerate(lines)])
        line = torch.cat([torch.arange(*own) for own in lines])
        key, order = torch.sort(key, stable=True)
        newest = torch.ones_like(key, dtype=torch.bool)
        newest[:-1] = key[1:] != key[:-1]
        newest &= torch.tensor([file.name == KEY for file in files])[number[order]]
        key, number, line = key[newest], number[order][newest], line[order][newest]
        out = {KEY: key}
        for at, file in enumerate(files):
            mine = (number == at).nonzero().squeeze(1)
            for name in self._names() if mine.numel() else ():
                taken = file.file.take(name, line[mine])
                if name not in out:
                    out[name] = torch.empty((len(key), *taken.shape[1:]), dtype=taken.dtype)
                out[name].index_copy_(0, mine, taken)
        return out

    def _names(self) -> tuple[str, ...]:
        return (*(_OF_IDS if self._entry.keys is KeyKind.id else ()), WEIGHT, *self._states)

    def _line_bytes(self, num_columns: int) -> int:
        first = self._layers[0]
        sample = self._reader.file(first, first.entry.parts[0].file)
        widths = {name: num_columns if len(sample.shapes[name]) > 1 else 1 for name in self._names()}
        return 8 + sum(width * sample.dtypes[name].itemsize for name, width in widths.items())


class _SortedFile:
    """A file with ascending keys, of which every `stride`-th is in memory."""

    def __init__(self, file: TensorFile, name: str, stride: int) -> None:
        self.file = file
        self.name = name
        self.num_lines = file.shapes[name][0]
        self.sample = file.take(name, torch.arange(0, self.num_lines, stride))
        self._stride = stride

    def lines(self, low: int | None, high: int | None) -> tuple[int, int]:
        """First and behind the last of the lines with keys from `low` to before `high`; None is without a bound."""
        first = 0 if low is None else self._line_of(low)
        return first, self.num_lines if high is None else self._line_of(high)

    def _line_of(self, key: int) -> int:
        """The first line with a key of at least this."""
        below = int(torch.searchsorted(self.sample, key))
        if below == 0:
            return 0
        first = (below - 1) * self._stride
        keys = self.file.rows(self.name, first, min(first + self._stride, self.num_lines))
        return first + int(torch.searchsorted(keys, key))


def _ranges(files: Sequence[_SortedFile], num_samples: int) -> Iterator[tuple[int | None, int | None]]:
    """Ranges of keys, together all, each with about so many of the samples of all files."""
    samples = torch.cat([file.sample for file in files]).sort().values
    cuts = sorted(set(samples[num_samples::num_samples].tolist()))
    yield from pairwise([None, *cuts, None])


def repeated_key(files: Sequence[TensorFile]) -> int | None:
    """A key that several of the files have, or one of them twice; in bounded memory."""
    sorted_files = [_SortedFile(file, KEY, _CHECKED_LINES // (2 * len(files)) or 1) for file in files]
    for bounds in _ranges(sorted_files, 2 * len(files)):
        key = torch.cat([one.file.rows(KEY, *one.lines(*bounds)) for one in sorted_files]).sort().values
        twice = key[1:][key[1:] == key[:-1]]
        if len(twice):
            return int(twice[0])
    return None
