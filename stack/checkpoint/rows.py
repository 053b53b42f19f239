"""Rows of a table out of its runs: whichever parts they lie in, of those that several runs have the newest.

Shape legend: K rows of a run, N rows asked for, D columns asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from stack.checkpoint.blocks import (
    columns_of,
    has_all_keys,
    join,
    lies_the_same,
    line_range,
    merged_blocks,
    overlaps,
    parts_of,
    piece_of,
    put,
)
from stack.checkpoint.chain import Layer
from stack.checkpoint.manifest import COUNT, GONE, KEY, LAST, ROW, WEIGHT, KeyKind
from stack.checkpoint.store import Store
from stack.checkpoint.tensors import TensorFile
from stack.data.schema import PADDING_ROW

_BLOCK_ROWS = 262_144
TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class LiveKeys:
    """Keys of a table that have a row, ascending (`UNKNOWN_KEY` and row 0 among them), what the map knows of each, and
    where it was written last: the run, the part of it, and the line of the part."""

    key_N: Tensor
    row_N: Tensor
    count_N: Tensor
    last_N: Tensor
    layer_N: Tensor
    part_N: Tensor
    line_N: Tensor


class TableReader:
    """One table of a version. `layers`: its runs, the oldest (whole) first."""

    def __init__(self, store: Store, name: str, layers: Sequence[Layer]) -> None:
        self.name = name
        self.layers = list(layers)
        self._store = store
        self._files: dict[str, TensorFile] = {}

    @property
    def entry(self) -> object:
        return self.layers[-1].entry

    def rows(
        self, first_row: int, num_rows: int, *, columns: tuple[int, int], states: Sequence[str]
    ) -> dict[str, Tensor]:
        """Weights (N, D) and optimizer state of a range of rows; `columns` is (first, number). Of managed ids, rows
        without a key are zeros."""
        out = self._zeros(num_rows, columns[1], states)
        self.fill(out, first_row, first_column=columns[0])
        return out

    def fill(self, out: Mapping[str, Tensor], first_row: int, *, first_column: int) -> None:
        """The same into tensors that are there: as many rows as they have, in memory bounded but for managed ids."""
        num_rows, num_columns = out[WEIGHT].shape
        if self.layers[-1].entry.keys is KeyKind.id:
            self._fill_of_ids(out, first_row)
            return
        for layer in self.layers:
            blocks = overlaps(layer, (first_column, num_columns))
            if len(blocks) == 1:
                self._fill_from_block(out, first_row, layer, *blocks[0])
            for first in range(first_row, first_row + num_rows, _BLOCK_ROWS) if len(blocks) > 1 else ():
                last = min(first + _BLOCK_ROWS, first_row + num_rows)
                for key_K, values in self._pieces(layer, first, last, (first_column, num_columns), _states(out)):
                    for name, value in values.items():
                        put(out[name], key_K - first_row, value)

    def taken(self, row_N: Tensor, *, columns: tuple[int, int], states: Sequence[str]) -> dict[str, Tensor]:
        """The same for any rows, ascending and distinct; `columns` must be all where ids are managed."""
        if self.layers[-1].entry.keys is KeyKind.id:
            return self._rows_of_ids(row_N, states)
        out = self._zeros(int(row_N.shape[0]), columns[1], states)
        for layer in self.layers:
            for part_rows, values in self._pieces_of(layer, row_N, columns, states):
                for name, value in values.items():
                    out[name].index_copy_(0, part_rows, value)
        return out

    @cached_property
    def live(self) -> LiveKeys:
        """All keys of a table with managed ids. Memory: some 40 bytes for each key of each run."""
        columns = [list(self._keys_of(number)) for number in range(len(self.layers))]
        flat = [piece for layer in columns for piece in layer]
        whole = {name: torch.cat([piece[name] for piece in flat]) for name in flat[0]}
        key, order = torch.sort(whole[KEY], stable=True)  # of equal keys the newest is the last
        newest = torch.ones_like(key, dtype=torch.bool)
        newest[:-1] = key[1:] != key[:-1]
        kept = order[newest]
        kept = kept[whole["line"][kept] >= 0]
        found = {name: value[kept] for name, value in whole.items()}
        return LiveKeys(
            key_N=found[KEY], row_N=found[ROW], count_N=found[COUNT], last_N=found[LAST], layer_N=found["layer"],
            part_N=found["part"], line_N=found["line"],
        )  # fmt: skip

    def keys_of(self, layer: Layer) -> Tensor:
        """The keys of a run, ascending."""
        first_column = min((part.first_column for part in layer.entry.parts), default=0)
        parts = [part for part in layer.entry.parts if part.first_column == first_column]
        keys = [self.file(layer, part.file).rows(KEY, 0, part.num_rows) for part in parts]
        return torch.cat(keys).sort().values if keys else torch.empty(0, dtype=torch.int64)

    def gone(self, layer: Layer) -> Tensor:
        """Keys that had lost their rows when the run was written, and had them in the run below."""
        names = sorted(name for name in layer.files if name.startswith(f"ids/{self.name}/"))
        gone = [self.file(layer, name).all()[GONE] for name in names]
        return torch.cat(gone).sort().values if gone else torch.empty(0, dtype=torch.int64)

    def file(self, layer: Layer, name: str) -> TensorFile:
        """A file of a run, kept open."""
        path = f"{layer.folder}/{name}"
        if path not in self._files:
            self._files[path] = TensorFile(self._store, path)
        return self._files[path]

    def _zeros(self, num_rows: int, num_columns: int, states: Sequence[str]) -> dict[str, Tensor]:
        layer = self.layers[-1]
        out = {WEIGHT: torch.zeros(num_rows, num_columns, dtype=TYPES[layer.entry.shape.dtype])}
        sample = self.file(self.layers[0], self.layers[0].entry.parts[0].file)
        for name in states:
            shape = (num_rows, num_columns)[: len(sample.shapes[name])]
            out[name] = torch.zeros(shape, dtype=sample.dtypes[name])
        return out

    def _pieces(
        self, layer: Layer, first: int, last: int, columns: tuple[int, int], states: Sequence[str]
    ) -> list[tuple[Tensor, dict[str, Tensor]]]:
        """The run's rows from `first` to before `last`: keys, and values in the columns asked for."""
        found: list[tuple[Tensor, list[dict[str, Tensor]], list[int]]] = []
        for block, (start, width) in overlaps(layer, columns):
            pieces = []
            for part in parts_of(layer, block):
                if part.first_key >= last or part.last_key < first:
                    continue
                file = self.file(layer, part.file)
                begin, end = line_range(file, part, first, last)
                if begin < end:
                    pieces.append(piece_of(file, begin, end, slice(start - block[0], start - block[0] + width), states))
            join(found, pieces, width)
        return [(key, merged_blocks(values, widths)) for key, values, widths in found]

    def _fill_from_block(
        self, out: Mapping[str, Tensor], first_row: int, layer: Layer, block: tuple[int, int], common: tuple[int, int]
    ) -> None:
        """The run's rows out of the one block that has the columns asked for."""
        columns = slice(common[0] - block[0], sum(common) - block[0])
        last_row = first_row + int(out[WEIGHT].shape[0])
        for part in parts_of(layer, block):
            if part.first_key >= last_row or part.last_key < first_row:
                continue
            file = self.file(layer, part.file)
            begin, end = line_range(file, part, first_row, last_row)
            straight = {name for name, value in out.items() if lies_the_same(file, part, name, value, columns)}
            for name in straight:
                at = part.first_key + begin - first_row
                file.fill(name, begin, end, out[name][at : at + end - begin])
            for first in range(begin, end, _BLOCK_ROWS) if len(straight) < len(out) else ():
                last = min(first + _BLOCK_ROWS, end)
                key_K = file.rows(KEY, first, last)
                for name in out.keys() - straight:
                    put(out[name], key_K - first_row, columns_of(file.rows(name, first, last), columns))

    def _pieces_of(
        self, layer: Layer, row_N: Tensor, columns: tuple[int, int], states: Sequence[str]
    ) -> list[tuple[Tensor, dict[str, Tensor]]]:
        """The run's rows that are among `row_N`: their places in it, and values."""
        found: list[tuple[Tensor, list[dict[str, Tensor]], list[int]]] = []
        for block, (start, width) in overlaps(layer, columns):
            pieces = []
            for part in parts_of(layer, block):
                inside = ((row_N >= part.first_key) & (row_N <= part.last_key)).nonzero().squeeze(1)
                if not inside.numel():
                    continue
                file = self.file(layer, part.file)
                line = row_N[inside] - part.first_key
                if not has_all_keys(part):
                    key_K = file.rows(KEY, 0, part.num_rows)
                    line = torch.searchsorted(key_K, row_N[inside]).clamp_(max=part.num_rows - 1)
                    hit = key_K[line] == row_N[inside]
                    inside, line = inside[hit], line[hit]
                wanted = slice(start - block[0], start - block[0] + width)
                values = {name: columns_of(file.take(name, line), wanted) for name in (WEIGHT, *states)}
                pieces.append({KEY: inside} | values)
            join(found, pieces, width)
        return [(place, merged_blocks(values, widths)) for place, values, widths in found]

    def _rows_of_ids(self, row_N: Tensor, states: Sequence[str]) -> dict[str, Tensor]:
        out = self._zeros(int(row_N.shape[0]), self.layers[-1].entry.dim, states)
        sorted_row, order = self._by_row
        at = torch.searchsorted(sorted_row, row_N).clamp_(max=max(int(sorted_row.shape[0]) - 1, 0))
        hit = (sorted_row[at] == row_N).nonzero().squeeze(1)
        for file, mine, line in self._lines(order[at[hit]]):
            for name, value in out.items():
                value.index_copy_(0, hit[mine], file.take(name, line))
        return out

    def _fill_of_ids(self, out: Mapping[str, Tensor], first_row: int) -> None:
        """File after file, each from its beginning to its end."""
        for value in out.values():
            value.zero_()
        sorted_row, order = self._by_row
        bounds = torch.tensor([first_row, first_row + int(out[WEIGHT].shape[0])])
        begin, end = torch.searchsorted(sorted_row, bounds).tolist()
        for file, mine, line in self._lines(order[begin:end]):
            row = sorted_row[begin:end][mine] - first_row
            for name, value in out.items():
                for at in range(0, len(line), _BLOCK_ROWS):
                    lines = slice(at, at + _BLOCK_ROWS)
                    put(value, row[lines], file.take(name, line[lines]))

    @cached_property
    def _by_row(self) -> tuple[Tensor, Tensor]:
        """The live keys' rows ascending, and their places among the live keys."""
        row, order = torch.sort(self.live.row_N)
        return row, order

    def _lines(self, chosen_M: Tensor) -> Iterator[tuple[TensorFile, Tensor, Tensor]]:
        """Some live keys by the file they are in: the file, which of them, and their lines there, ascending."""
        if not chosen_M.numel():
            return
        live = self.live
        line, by_line = torch.sort(live.line_N[chosen_M])
        in_order = chosen_M[by_line]
        place, by_place = torch.sort((live.layer_N[in_order].long() << 32) | live.part_N[in_order], stable=True)
        places, counts = torch.unique_consecutive(place, return_counts=True)
        pieces = torch.split(by_place, counts.tolist())
        for found, piece in zip(places.tolist(), pieces, strict=True):
            layer = self.layers[found >> 32]
            file = self.file(layer, layer.entry.parts[found & 0xFFFF_FFFF].file)
            yield file, by_line[piece], line[piece]

    def _keys_of(self, number: int) -> list[dict[str, Tensor]]:
        """What a run says of its keys, and the keys that were gone by then."""
        layer = self.layers[number]
        pieces = []
        gone = self.gone(layer)
        pieces.append(_about(gone, layer=number, part=-1, line=torch.full_like(gone, -1)))
        for index, part in enumerate(layer.entry.parts):
            file = self.file(layer, part.file)
            about = {name: file.rows(name, 0, part.num_rows) for name in (KEY, ROW, COUNT, LAST)}
            where = _about(about[KEY], layer=number, part=index, line=torch.arange(part.num_rows))
            pieces.append(where | about)
        return pieces


def _about(key: Tensor, *, layer: int, part: int, line: Tensor) -> dict[str, Tensor]:
    short = torch.zeros_like(key, dtype=torch.int32)
    return {
        KEY: key,
        ROW: torch.full_like(key, PADDING_ROW),
        COUNT: short,
        LAST: short,
        "layer": short + layer,
        "part": short + part,
        "line": line,
    }


def _states(out: Mapping[str, Tensor]) -> tuple[str, ...]:
    return tuple(name for name in out if name != WEIGHT)
