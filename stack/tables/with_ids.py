"""Tables whose ids are hashed or managed: how many rows they get, and which rows a process manages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from stack.base.errors import ConfigError
from stack.data.schema import Schema
from stack.ids.blocks import Blocks
from stack.ids.bounded import BoundedMap
from stack.ids.config import IdMode, IdsConfig, IdSpec, ManagedConfig, id_specs
from stack.tables.config import TableSpec
from stack.tables.placement import Plan, TablePlan


def specs_with_ids(
    specs: Sequence[TableSpec], config: IdsConfig, *, schema: Schema | None = None
) -> tuple[list[TableSpec], list[IdSpec]]:
    """The tables with the rows that `ids` gives them (those of `specs` where ids are direct), and their maps.

    `schema`: of the data, where there are any: ids that have no vocabulary there cannot be direct.
    Raises: `ConfigError` where `ids` names no table, a hashed or managed table has no rows, or such ids are direct.
    """
    for spec in specs:
        raw = schema is not None and schema.without_vocabulary(spec.name) is not None
        if raw and config.mode_of(spec.name) is IdMode.direct:
            raise ConfigError(
                f"table {spec.name!r} has no vocabulary (ingest.raw_ids), so its ids cannot be direct: set "
                f"ids.modes.{spec.name} to managed or hashed, and ids.rows.{spec.name} to its number of rows"
            )
    maps = id_specs(config, names=[spec.name for spec in specs], num_rows={spec.name: spec.num_rows for spec in specs})
    return [replace(spec, num_rows=one.num_rows) for spec, one in zip(specs, maps, strict=True)], maps


def managed_blocks(plan: Plan, maps: Iterable[IdSpec], *, rank: int) -> dict[str, Blocks]:
    """The rows of each managed table by the process that manages them: the one that holds them.

    Raises: `ConfigError` where a managed table's rows are held by several processes.
    """
    names = [one.name for one in maps if one.mode is IdMode.managed]
    return {name: _blocks(plan.table(name), world_size=plan.world_size, rank=rank) for name in names}


def map_bytes(config: ManagedConfig, *, first_row: int, num_rows: int) -> int:
    """Memory of the map of a block of managed rows, beside the rows; found on the meta device, where none is taken.

    It is that of our own map, also where `config` has TorchRec's.
    """
    if num_rows == 0:
        return 0
    bounds = (0, first_row, first_row + num_rows) if first_row else (0, num_rows)
    return BoundedMap(config, Blocks(bounds=bounds, rank=len(bounds) - 2), device=torch.device("meta")).num_bytes


def check_held_once(table: TablePlan, *, world_size: int) -> None:
    """Raises `ConfigError` where a row of a managed table would be held by several processes, or in several blocks."""
    by_rank = {shard.rank: shard for shard in table.shards}
    held = sum(shard.num_rows for shard in table.shards)
    if len(by_rank) != len(table.shards) or held != table.num_rows:
        raise ConfigError(
            f"table '{table.name}' has managed ids and is {table.sharding.value} over {world_size} processes: a row "
            f"that changes hands must be held by one process alone: set tables.shardings.{table.name} to row_wise, "
            "table_wise or table_row_wise"
        )


def _blocks(table: TablePlan, *, world_size: int, rank: int) -> Blocks:
    check_held_once(table, world_size=world_size)
    by_rank = {shard.rank: shard for shard in table.shards}
    bounds = [0]
    for number in range(world_size):
        bounds.append(bounds[-1] + (by_rank[number].num_rows if number in by_rank else 0))
    return Blocks(bounds=tuple(bounds), rank=rank)
