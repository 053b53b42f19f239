"""What a save takes from training before it lets training go on: the rows to write, and everything that is not rows.

Shape legend: N rows held here, K of them to be written, D columns held here.
"""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stack.base.errors import CheckpointError
from stack.checkpoint.manifest import COUNT, GONE, KEY, LAST, RAW, ROW, WEIGHT, KeyKind, LoopState, TableShape
from stack.data.keys import UNKNOWN_KEY
from stack.data.schema import PADDING_ROW
from stack.ids.managed import MapState
from stack.tables.rows import TableShard, dtype_name

OF_KEYS = ("key_N", "row_N", "count_N", "last_N")
"""What a map knows of each key; it goes with the key's row."""


@dataclass(frozen=True, kw_only=True)
class State:
    """What a process trains, as live memory.

    `tables`: the names of all tables, the same on every process, also of those whose rows are elsewhere. `changed`: by
    table the rows held here that changed since the parent was saved, ascending; tables that are not in it are written
    whole. `maps`: the managed ids of this process, and `gone` the keys that lost their rows since the parent; tables
    that are in `maps` alone are written whole. `raw`: of tables with a vocabulary, the 64-bit keys of any of its rows.
    """

    tables: tuple[str, ...]
    shards: Sequence[TableShard]
    dense: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    loop: LoopState
    changed: Mapping[str, Tensor] = field(default_factory=dict)
    maps: Mapping[str, MapState] = field(default_factory=dict)
    gone: Mapping[str, Tensor] = field(default_factory=dict)
    raw: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A table's rows that this process writes: `tensors` has a line for each, keys ascending."""

    table: str
    keys: KeyKind
    whole: bool
    shape: TableShape
    first_column: int
    num_columns: int
    tensors: dict[str, Tensor]

    @property
    def num_rows(self) -> int:
        return int(self.tensors[KEY].shape[0])


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """All that this process writes."""

    runs: list[Run]
    ids: dict[str, dict[str, Tensor]]
    dense: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    loop: LoopState


def shape_of(shard: TableShard) -> TableShape:
    return TableShape(
        num_rows=shard.num_rows,
        dim=shard.dim,
        dtype=dtype_name(shard.weight_ND.dtype),
        state=tuple(sorted(shard.state)),
    )


def take(state: State, *, whole: Mapping[str, bool], old: Mapping[str, TableShape], since: Mapping[str, int],
         copies: bool, first: bool) -> Snapshot:  # fmt: skip
    """Takes what a save writes. `whole` by table; `old`: the tables' shapes in the parent; `since`: the clocks of the
    maps in the parent. Without `copies`, whole runs and dense tensors are the live memory: write before training on.
    """
    runs = [
        _run(shard, state, whole=whole[shard.name], old=old.get(shard.name), since=since.get(shard.name, 0),
             copies=copies)
        for shard in state.shards
        if shard.written
    ]  # fmt: skip
    ids = {
        table: _without_keys(one) | {GONE: _gone(state, table, whole=whole[table])} for table, one in state.maps.items()
    }
    return Snapshot(
        runs=runs,
        ids=ids,
        dense=_copied(state.dense, copies) if first else {},
        optimizer=_copied(state.optimizer, copies) if first else {},
        loop=state.loop,
    )


def refuse_not_finite(snapshot: Snapshot) -> None:
    """Raises `CheckpointError` naming the first number to be written that is NaN or infinite."""
    for run in snapshot.runs:
        for name, value in run.tensors.items():
            for first in range(0, run.num_rows, _BLOCK_ROWS) if value.is_floating_point() else ():
                block = value[first : first + _BLOCK_ROWS]
                if not _all_finite(block):
                    row = int((~torch.isfinite(block)).view(block.shape[0], -1).any(1).nonzero()[0]) + first
                    key = int(run.tensors[KEY][row])
                    raise CheckpointError(f"table '{run.table}': {name} of {run.keys.value} {key} is not finite")
    for kind, tensors in (("dense tensor", snapshot.dense), ("optimizer state", snapshot.optimizer)):
        for name, value in tensors.items():
            if value.is_floating_point() and not _all_finite(value):
                raise CheckpointError(f"{kind} '{name}' is not finite")


_BLOCK_ROWS = 262_144
_HUGE_BYTES = 4 << 20


def _all_finite(value: Tensor) -> bool:
    """NaN goes before every number in both; twenty times as fast as a look at each number."""
    return not value.numel() or all(math.isfinite(float(bound)) for bound in value.aminmax())


def _run(shard: TableShard, state: State, *, whole: bool, old: TableShape | None, since: int, copies: bool) -> Run:
    managed = state.maps.get(shard.name)
    if managed is not None:
        tensors = _keyed_by_id(shard, managed, since=None if whole else since)
    elif whole:
        rows = torch.arange(shard.first_row, shard.first_row + shard.weight_ND.shape[0])
        tensors = {KEY: rows} | _copied({WEIGHT: shard.weight_ND, **shard.state}, copies)
    else:
        assert old is not None, "only what is in the parent has a delta"
        tensors = _keyed_by_row(shard, _rows_of_delta(shard, state.changed[shard.name].cpu(), old))
    if shard.name in state.raw:
        tensors[RAW] = state.raw[shard.name](tensors[KEY])
    return Run(
        table=shard.name,
        keys=KeyKind.row if managed is None else KeyKind.id,
        whole=whole,
        shape=shape_of(shard),
        first_column=shard.first_column,
        num_columns=shard.num_columns,
        tensors=tensors,
    )


def _rows_of_delta(shard: TableShard, changed: Tensor, old: TableShape) -> Tensor:
    """Rows that changed, and those that the parent did not have."""
    last_row = shard.first_row + int(shard.weight_ND.shape[0])
    grown = torch.arange(max(old.num_rows, shard.first_row), max(last_row, old.num_rows))
    inside = changed[(changed >= shard.first_row) & (changed < min(last_row, old.num_rows))]
    return torch.cat([inside, grown])


def _keyed_by_row(shard: TableShard, row_K: Tensor) -> dict[str, Tensor]:
    here_K = (row_K - shard.first_row).to(shard.weight_ND.device)
    live = {WEIGHT: shard.weight_ND, **shard.state}
    return {KEY: row_K} | {name: _selected(value.detach(), here_K) for name, value in live.items()}


def _selected(value: Tensor, row_K: Tensor) -> Tensor:
    if value.device.type != "cpu":
        return value.index_select(0, row_K).cpu()
    return torch.index_select(value, 0, row_K, out=_memory((row_K.shape[0], *value.shape[1:]), value.dtype))


def _keyed_by_id(shard: TableShard, managed: MapState, *, since: int | None) -> dict[str, Tensor]:
    """Rows that a key of this process has, or those whose key was seen after the step `since`; and row 0."""
    own = torch.ones_like(managed.key_N, dtype=torch.bool) if since is None else managed.last_N > since
    about = {
        KEY: managed.key_N[own].cpu(),
        ROW: managed.row_N[own].cpu(),
        COUNT: managed.count_N[own].cpu(),
        LAST: managed.last_N[own].cpu(),
    }
    if shard.first_row == PADDING_ROW and shard.weight_ND.shape[0]:
        unknown = {KEY: UNKNOWN_KEY, ROW: PADDING_ROW, COUNT: 0, LAST: 0}
        about = {name: torch.cat([value, value.new_tensor([unknown[name]])]) for name, value in about.items()}
        order = torch.argsort(about[KEY])
        about = {name: value[order] for name, value in about.items()}
    rows = _keyed_by_row(shard, about[ROW])
    return about | {name: value for name, value in rows.items() if name != KEY}


def _gone(state: State, table: str, *, whole: bool) -> Tensor:
    """Below a whole run there is nothing that could be gone."""
    return torch.empty(0, dtype=torch.int64) if whole else state.gone[table].cpu().sort().values


def _without_keys(state: MapState) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in state.tensors().items() if name not in OF_KEYS}


def _copied(tensors: Mapping[str, Tensor], copies: bool) -> dict[str, Tensor]:
    return {name: _copy(value.detach()) if copies else value.detach() for name, value in tensors.items()}


def _copy(value: Tensor) -> Tensor:
    return _memory(value.shape, value.dtype).copy_(value)


def _memory(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Memory to copy into while training waits: most of that wait is the system handing out new pages, so large ones
    are asked for."""
    size = math.prod(shape) * dtype.itemsize
    if size < _HUGE_BYTES or sys.platform != "linux":
        return torch.empty(tuple(shape), dtype=dtype)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(tuple(shape))
