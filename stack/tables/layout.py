"""Plans made without TorchRec's planner, and whether a plan is one that can be followed. Plain arithmetic.

Blocks, for 10 rows of width 12 over 2 hosts of 2 processes::

    row_wise         rank 0: rows 0-2   rank 1: rows 3-5    rank 2: rows 6-8   rank 3: row 9
    table_row_wise   host 0 (say):      rank 0: rows 0-4    rank 1: rows 5-9
    column_wise      rank 0: columns 0-3   rank 1: 4-7      rank 2: 8-11
    grid             rank 0: rows 0-4, columns 0-7          rank 1: rows 5-9, columns 0-7
                     rank 2: rows 0-4, columns 8-11         rank 3: rows 5-9, columns 8-11
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from stack.base.errors import ConfigError
from stack.tables.config import TableSpec
from stack.tables.placement import Kernel, Plan, Shard, Sharding, TableOptimizer, TablePlan

COLUMN_UNIT = 4
"""Widths are multiples of this (FBGEMM)."""


def fixed_plan(
    specs: Iterable[TableSpec], *, world_size: int, local_size: int, device: str, optimizer: TableOptimizer
) -> Plan:
    """Spreads each table as its spec says, the largest first, each to where there is least so far.

    Blocks of columns are as many as processes (grid: hosts), but at least 4 wide.
    """
    _check_world(world_size, local_size)
    load = _Load(bytes_by_rank=[0] * world_size, local_size=local_size)
    specs = list(specs)
    tables: dict[str, TablePlan] = {}
    for spec in sorted(specs, key=lambda spec: (-spec.num_bytes(optimizer), spec.name)):
        shards = _SPREAD[spec.sharding](spec, load)
        load.add(spec, shards, optimizer)
        tables[spec.name] = TablePlan(
            name=spec.name,
            num_rows=spec.num_rows,
            dim=spec.dim,
            dtype=spec.dtype,
            sharding=spec.sharding,
            kernel=Kernel.dense if spec.sharding is Sharding.data_parallel else Kernel.fused,
            shards=tuple(shards),
        )
    return Plan(
        device=device,
        world_size=world_size,
        local_size=local_size,
        optimizer=optimizer,
        tables=tuple(tables[spec.name] for spec in specs),
    )


def check_plan(
    plan: Plan,
    specs: Mapping[str, TableSpec],
    *,
    world_size: int,
    local_size: int,
    device: str,
    optimizer: TableOptimizer,
) -> None:
    """Raises `ConfigError` where the plan is not for these tables and processes, or cannot be followed exactly."""
    for what, planned, here in (
        ("device", plan.device, device),
        ("processes", plan.world_size, world_size),
        ("processes per host", plan.local_size, local_size),
    ):
        if planned != here:
            raise ConfigError(f"the plan is for {what}={planned}, this job has {here}: plan again, or start it so")
    if plan.optimizer is not optimizer:
        raise ConfigError(
            f"the plan is for optim.tables={plan.optimizer.value}, this job has {optimizer.value}, whose state takes "
            "other memory: plan again"
        )
    names = [table.name for table in plan.tables]
    if sorted(names) != sorted(specs):
        raise ConfigError(
            f"the plan has the tables {', '.join(sorted(names))}; the model has {', '.join(sorted(specs))}: plan again"
        )
    for table in plan.tables:
        spec = specs[table.name]
        if _shape(table) != _shape(spec):
            raise ConfigError(
                f"the plan's table '{table.name}' has {_shape(table)}; the model's has {_shape(spec)}: plan again"
            )
        _check_kernel(table, device)
        _check_blocks(table, world_size=world_size, local_size=local_size)


def _check_kernel(table: TablePlan, device: str) -> None:
    if (table.kernel is Kernel.dense) != (table.sharding is Sharding.data_parallel):
        raise _cannot_follow(table, f"{table.sharding.value} with the kernel {table.kernel.value}")
    if device == "cpu" and table.kernel in (Kernel.fused_uvm, Kernel.fused_uvm_caching):
        raise _cannot_follow(table, f"the kernel {table.kernel.value} needs CUDA")


def _check_world(world_size: int, local_size: int) -> None:
    if world_size < 1 or local_size < 1 or world_size % local_size:
        raise ConfigError(
            f"{world_size} processes on hosts of {local_size}: both must be at least 1, and hosts equally full"
        )


def row_blocks(num_rows: int, count: int) -> list[tuple[int, int]]:
    """(first row, rows) of `count` blocks, as TorchRec finds the process of an id: id // ceil(rows / count)."""
    size = -(-num_rows // count)
    starts = [min(block * size, num_rows) for block in range(count)]
    return [(start, min(size, num_rows - start)) for start in starts]


def column_blocks(dim: int, most: int) -> list[tuple[int, int]]:
    """(first column, columns) of at most `most` blocks in multiples of 4, the first ones widest."""
    units = dim // COLUMN_UNIT
    count = min(most, units)
    widths = [(units // count + (block < units % count)) * COLUMN_UNIT for block in range(count)]
    return [(sum(widths[:block]), width) for block, width in enumerate(widths)]


@dataclass(kw_only=True)
class _Load:
    """Bytes given to each rank so far."""

    bytes_by_rank: list[int]
    local_size: int

    @property
    def world_size(self) -> int:
        return len(self.bytes_by_rank)

    @property
    def num_hosts(self) -> int:
        return self.world_size // self.local_size

    def emptiest_ranks(self, count: int) -> list[int]:
        """`count` ranks, those with least first."""
        return sorted(range(self.world_size), key=lambda rank: (self.bytes_by_rank[rank], rank))[:count]

    def emptiest_hosts(self, count: int) -> list[range]:
        """Ranks of `count` hosts, the one with least first."""
        hosts = [range(host * self.local_size, (host + 1) * self.local_size) for host in range(self.num_hosts)]
        return sorted(hosts, key=lambda ranks: (sum(self.bytes_by_rank[rank] for rank in ranks), ranks.start))[:count]

    def add(self, spec: TableSpec, shards: Sequence[Shard], optimizer: TableOptimizer) -> None:
        """Counts what does not fall on all ranks alike."""
        if spec.sharding in (Sharding.row_wise, Sharding.data_parallel):
            return
        for shard in shards:
            part = TableSpec(name=spec.name, num_rows=shard.num_rows, dim=shard.num_columns, dtype=spec.dtype)
            self.bytes_by_rank[shard.rank] += part.num_bytes(optimizer)


def _row_wise(spec: TableSpec, load: _Load) -> list[Shard]:
    return _rows_over(range(load.world_size), spec, (0, spec.dim))


def _table_wise(spec: TableSpec, load: _Load) -> list[Shard]:
    return _rows_over(load.emptiest_ranks(1), spec, (0, spec.dim))


def _column_wise(spec: TableSpec, load: _Load) -> list[Shard]:
    blocks = column_blocks(spec.dim, load.world_size)
    ranks = sorted(load.emptiest_ranks(len(blocks)))
    return [shard for rank, block in zip(ranks, blocks, strict=True) for shard in _rows_over([rank], spec, block)]


def _table_row_wise(spec: TableSpec, load: _Load) -> list[Shard]:
    return _rows_over(load.emptiest_hosts(1)[0], spec, (0, spec.dim))


def _grid(spec: TableSpec, load: _Load) -> list[Shard]:
    blocks = column_blocks(spec.dim, load.num_hosts)
    hosts = sorted(load.emptiest_hosts(len(blocks)), key=lambda ranks: ranks.start)
    return [shard for ranks, block in zip(hosts, blocks, strict=True) for shard in _rows_over(ranks, spec, block)]


def _data_parallel(spec: TableSpec, load: _Load) -> list[Shard]:
    return [shard for rank in range(load.world_size) for shard in _rows_over([rank], spec, (0, spec.dim))]


_SPREAD = {
    Sharding.row_wise: _row_wise,
    Sharding.table_wise: _table_wise,
    Sharding.column_wise: _column_wise,
    Sharding.table_row_wise: _table_row_wise,
    Sharding.grid: _grid,
    Sharding.data_parallel: _data_parallel,
}


def _rows_over(ranks: Sequence[int], spec: TableSpec, columns: tuple[int, int]) -> list[Shard]:
    first_column, num_columns = columns
    return [
        Shard(rank=rank, first_row=first, num_rows=count, first_column=first_column, num_columns=num_columns)
        for rank, (first, count) in zip(ranks, row_blocks(spec.num_rows, len(ranks)), strict=True)
    ]


def _check_blocks(table: TablePlan, *, world_size: int, local_size: int) -> None:
    """The blocks must be ones that `_rows_over` cuts, on the ranks that the sharding asks for."""
    columns = sorted({(shard.first_column, shard.num_columns) for shard in table.shards})
    next_column = 0
    for first, count in columns:
        if first != next_column or count < COLUMN_UNIT or count % COLUMN_UNIT:
            raise _cannot_follow(table, f"its blocks of columns {columns} do not follow on each other in fours")
        next_column += count
    if next_column != table.dim:
        raise _cannot_follow(table, f"its blocks of columns end at {next_column} of {table.dim}")
    if len(columns) > 1 and table.sharding not in (Sharding.column_wise, Sharding.grid):
        raise _cannot_follow(table, f"{table.sharding.value} has whole rows, but it is cut into columns {columns}")
    for block in columns:
        held = [shard for shard in table.shards if (shard.first_column, shard.num_columns) == block]
        _check_ranks(table, [shard.rank for shard in held], world_size=world_size, local_size=local_size)
        rows = [(shard.first_row, shard.num_rows) for shard in held]
        wanted = (
            [(0, table.num_rows)] * world_size
            if table.sharding is Sharding.data_parallel
            else row_blocks(table.num_rows, len(held))
        )
        if rows != wanted:
            raise _cannot_follow(table, f"its rows are cut at {rows}; TorchRec looks for them at {wanted}")


def _check_ranks(table: TablePlan, ranks: list[int], *, world_size: int, local_size: int) -> None:
    """`ranks` of one block of columns."""
    first = ranks[0]
    if table.sharding in (Sharding.row_wise, Sharding.data_parallel):
        wanted = list(range(world_size))
    elif table.sharding in (Sharding.table_row_wise, Sharding.grid):
        host = first // local_size
        wanted = list(range(host * local_size, (host + 1) * local_size))
    else:
        wanted = [first]
    if ranks != wanted or not 0 <= first < world_size:
        raise _cannot_follow(table, f"{table.sharding.value} over {world_size} processes cannot be on ranks {ranks}")


def _shape(table: TablePlan | TableSpec) -> str:
    return f"{table.num_rows:,} rows of {table.dim} in {table.dtype.value}"


def _cannot_follow(table: TablePlan, reason: str) -> ConfigError:
    return ConfigError(f"the plan of table '{table.name}' cannot be followed: {reason}: plan again")
