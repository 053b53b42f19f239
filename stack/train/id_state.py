"""Managed ids to a checkpoint and back: their maps, and their rows to where the maps now have them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from stack.checkpoint.load import Checkpoint
from stack.data.schema import PADDING_ROW
from stack.ids.managed import Moved
from stack.ids.maps import IdMaps
from stack.tables.rows import TableShard


@dataclass(frozen=True, kw_only=True)
class Restored:
    """`merged`: what `Checkpoint.restore` says. `clocks`: steps of each map. `rewritten`: tables whose keys did not all
    stay in their rows."""

    merged: list[str]
    clocks: dict[str, int]
    rewritten: tuple[str, ...]


def id_maps(model: nn.Module) -> IdMaps | None:
    """The maps in a model's tables, None where all ids are rows already."""
    return next((module for module in model.modules() if isinstance(module, IdMaps)), None)


def restore_tables(model: nn.Module, shards: list[TableShard], checkpoint: Checkpoint) -> Restored:
    """Fills maps, rows and optimizer state. Rows that no id has keep their first values."""
    maps = id_maps(model)
    names = () if maps is None else maps.managed_names
    whole = {name: checkpoint.map_state(name) for name in names}
    moved = {} if maps is None else maps.load(whole)
    for shard in (one for one in shards if one.name in moved):
        unknown = torch.tensor([PADDING_ROW] if shard.first_row == PADDING_ROW else [], dtype=torch.int64)
        move = moved[shard.name]
        checkpoint.place(
            shard,
            from_row_N=torch.cat([unknown, move.from_row_N.cpu()]),
            to_row_N=torch.cat([unknown, move.to_row_N.cpu()]),
        )
    return Restored(
        merged=checkpoint.restore([shard for shard in shards if shard.name not in moved]),
        clocks={name: state.clock for name, state in whole.items()},
        rewritten=tuple(name for name in names if not _stays(name, moved[name], checkpoint)),
    )


def _stays(name: str, move: Moved, checkpoint: Checkpoint) -> bool:
    """Whether the keys of this process are in the rows that the checkpoint has them in, and none was dropped."""
    same_processes = checkpoint.manifest.world_size == dist.get_world_size()
    return same_processes and torch.equal(move.from_row_N, move.to_row_N)
