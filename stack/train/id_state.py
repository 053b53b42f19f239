"""Managed ids to a checkpoint and back: their maps, and their rows to where the maps now have them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from stack.checkpoint.load import Checkpoint
from stack.data.schema import PADDING_ROW
from stack.ids.managed import MapState, Moved, join_states
from stack.ids.maps import IdMaps
from stack.tables.rows import TableShard


def id_maps(model: nn.Module) -> IdMaps | None:
    """The maps in a model's tables, None where all ids are rows already."""
    return next((module for module in model.modules() if isinstance(module, IdMaps)), None)


def id_tensors(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """This process's part of every managed map, by table."""
    maps = id_maps(model)
    return {} if maps is None else {name: state.tensors() for name, state in maps.state().items()}


def restore_tables(model: nn.Module, shards: list[TableShard], checkpoint: Checkpoint) -> list[str]:
    """Fills maps, rows and optimizer state; returns what `Checkpoint.restore` does.

    Rows that no id has keep their first values where the processes or the rows of the table are others than those the
    checkpoint was saved with. Where they are the same, all rows are as they were.
    """
    maps = id_maps(model)
    whole = {} if maps is None else dict(_whole_states(maps, checkpoint))
    moved = {} if maps is None else maps.load(whole)
    unmoved = [shard for shard in shards if shard.name not in moved or _all_stay(shard, moved, whole, checkpoint)]
    for shard in shards:
        if not any(shard is one for one in unmoved):
            unknown = torch.tensor([PADDING_ROW] if shard.first_row == PADDING_ROW else [], dtype=torch.int64)
            move = moved[shard.name]
            checkpoint.place(
                shard,
                from_row_N=torch.cat([unknown, move.from_row_N.cpu()]),
                to_row_N=torch.cat([unknown, move.to_row_N.cpu()]),
            )
    return checkpoint.restore(unmoved)


def _whole_states(maps: IdMaps, checkpoint: Checkpoint) -> Iterator[tuple[str, MapState]]:
    for name in maps.managed_names:
        yield name, join_states([MapState.of_tensors(part) for part in checkpoint.ids(name)])


def _all_stay(shard: TableShard, moved: dict[str, Moved], whole: dict[str, MapState], checkpoint: Checkpoint) -> bool:
    """Whether every saved row with an id in this block's range stays there, so that the block is as it was saved."""
    if shard.num_rows != checkpoint.manifest.tables[shard.name].num_rows:
        return False
    move, saved = moved[shard.name], whole[shard.name].row_N
    inside = (saved >= shard.first_row) & (saved < shard.first_row + shard.weight_ND.shape[0])
    return torch.equal(move.from_row_N, move.to_row_N) and int(inside.sum()) == int(move.to_row_N.shape[0])
