"""What a plan is made for: tables, machines, optimizer, and what a step asks of the tables. Checked before planning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from stack.base.errors import ConfigError
from stack.ids.config import IdMode, IdsConfig, ManagedConfig
from stack.tables.capabilities import SUMMED_ON_THE_WAY, check_capable
from stack.tables.cluster import ClusterConfig, Device
from stack.tables.config import Communication, TablesConfig, TableSpec
from stack.tables.layout import COLUMN_UNIT
from stack.tables.placement import Kernel, Sharding, TableOptimizer
from stack.tables.plan_config import PlanConfig
from stack.tables.with_ids import map_bytes

MOST_BYTES = 2**60
"""Of a table's weights: torch counts bytes in 64 bits, and the planner those of all tables."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a step asks of the tables on each process; names as in `stack.tables.plan_config`."""

    num_timelines: int = 128
    ids_per_timeline: float = 100.0
    ids: Mapping[str, float] = field(default_factory=dict)
    distinct_share: float = 1.0

    def num_ids(self, table: TableSpec) -> int:
        """Distinct ids of a table."""
        asked = self.num_timelines * self.ids.get(table.name, self.ids_per_timeline) * self.distinct_share
        return max(1, min(table.num_rows, math.ceil(asked)))


@dataclass(frozen=True, kw_only=True)
class Request:
    """All that decides a plan.

    `free`: names of tables whose sharding the planner chooses; the others are spread as they say. `host_memory`: rows
    may also lie in host memory, read through a cache on the GPU. `managed`: names of tables whose ids are managed, by
    maps of `managed_ids` that lie beside the rows.

    Raises: `ConfigError` for tables that cannot be on such a device.
    """

    tables: tuple[TableSpec, ...]
    cluster: ClusterConfig
    optimizer: TableOptimizer = TableOptimizer.rowwise_adagrad
    free: frozenset[str] = frozenset()
    load: Load = field(default_factory=Load)
    host_memory: bool = False
    data_parallel_mib: float = 1.0
    communication: Communication = Communication.fp32
    stochastic_rounding: bool = False
    managed: frozenset[str] = frozenset()
    managed_ids: ManagedConfig = field(default_factory=ManagedConfig)

    def __post_init__(self) -> None:
        if not self.tables:
            raise ConfigError("there is no table to plan: give rows as plan.rows, or prepare a dataset")
        if self.host_memory and self.cluster.device is Device.cpu:
            raise ConfigError("plan.host_memory=true is for cluster.device=cuda: a CPU's tables are in host memory")
        names = [table.name for table in self.tables]
        for name in self.load.ids:
            if name not in names:
                raise ConfigError(f"plan.ids names {name!r}; the tables are: {', '.join(names)}")
        for table in self.tables:
            self._check(table)
        check_capable(
            [replace(table, sharding=self.shardings(table)[0]) for table in self.tables],
            device=self.cluster.device.value,
            optimizer=self.optimizer,
            data_parallel_mib=self.data_parallel_mib,
            stochastic_rounding=self.stochastic_rounding,
            communication=self.communication,
        )

    def map_bytes(self, table: str, *, first_row: int, num_rows: int) -> int:
        """Memory of the map of a block of rows; 0 where ids are not managed."""
        if table not in self.managed:
            return 0
        return map_bytes(self.managed_ids, first_row=first_row, num_rows=num_rows)

    @property
    def num_bags(self) -> int:
        """Bags of each table in a lookup: `stack.tables.collection` pads all tables to the longest."""
        return max(self.load.num_ids(table) for table in self.tables)

    def kernels(self, table: TableSpec) -> tuple[Kernel, ...]:
        """Those that the planner may choose from; never host memory unless it was asked for."""
        if self.shardings(table) == (Sharding.data_parallel,):
            return (Kernel.dense,)
        return (Kernel.fused, Kernel.fused_uvm_caching) if self.host_memory else (Kernel.fused,)

    def shardings(self, table: TableSpec) -> tuple[Sharding, ...]:
        """Those that the planner may choose from.

        Left to itself it is not offered column-wise and grid, whose row-wise state is kept for each block and so
        learns differently, nor data-parallel, which sums gradients of whole tables; nor what int8 cannot sum.
        """
        if table.name not in self.free:
            return (table.sharding,)
        hosts = (Sharding.table_row_wise,) if self.cluster.hosts > 1 and self.cluster.local_size > 1 else ()
        in_int8 = self.communication is Communication.int8
        return tuple(
            sharding
            for sharding in (Sharding.row_wise, Sharding.table_wise, *hosts)
            if not (in_int8 and sharding in SUMMED_ON_THE_WAY)
        )

    def _check(self, table: TableSpec) -> None:
        if table.num_rows < 1:
            raise ConfigError(f"table {table.name!r} has {table.num_rows} rows: at least 1 is needed (plan.rows)")
        if table.weight_bytes > MOST_BYTES:
            raise ConfigError(
                f"table {table.name!r} of {table.num_rows:,} x {table.dim} is more than {MOST_BYTES:,} bytes: "
                "give it fewer rows (plan.rows)"
            )
        if table.dim < COLUMN_UNIT or table.dim % COLUMN_UNIT:
            raise ConfigError(f"table {table.name!r} has dim {table.dim}: it must be a positive multiple of 4 (FBGEMM)")
        split = {Sharding.column_wise, Sharding.grid} & set(self.shardings(table))
        if split and block_columns(table.dim) == table.dim:
            raise ConfigError(
                f"table {table.name!r} of dim {table.dim} has no columns to split: choose row_wise, or dim 8 or more"
            )


def request_of(
    specs: Sequence[TableSpec],
    *,
    tables: TablesConfig,
    optimizer: TableOptimizer,
    cluster: ClusterConfig,
    options: PlanConfig,
    ids: IdsConfig,
) -> Request:
    """What the planner is asked; tables that `tables.shardings` names are not its to choose."""
    return Request(
        tables=tuple(specs),
        cluster=cluster.resolved(),
        optimizer=optimizer,
        free=frozenset(spec.name for spec in specs if options.choose and spec.name not in tables.shardings),
        load=Load(
            num_timelines=options.timelines,
            ids_per_timeline=options.ids_per_timeline,
            ids=options.ids,
            distinct_share=options.distinct_share,
        ),
        host_memory=options.host_memory,
        data_parallel_mib=tables.data_parallel_mib,
        communication=tables.communication,
        stochastic_rounding=tables.stochastic_rounding,
        managed=frozenset(spec.name for spec in specs if ids.mode_of(spec.name) is IdMode.managed),
        managed_ids=ids.managed,
    )


def block_columns(dim: int) -> int:
    """Columns of a block where columns are split: half of them, or the largest part that divides them in fours."""
    parts = range(dim // 2 // COLUMN_UNIT * COLUMN_UNIT, 0, -COLUMN_UNIT)
    return next((part for part in parts if dim % part == 0), dim)
