"""What tables there are: their rows, widths, types, spread over processes, and bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from stack.base.errors import ConfigError, DataError
from stack.tables.placement import RowType as RowType
from stack.tables.placement import Sharding as Sharding
from stack.tables.placement import TableOptimizer as TableOptimizer

_STATE_BYTES = 4


class Communication(Enum):
    """Type of vectors and gradients on their way between processes."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"
    int8 = "int8"


class Planner(Enum):
    """Who decides where tables go, where no plan is pinned."""

    fixed = "fixed"
    torchrec = "torchrec"


@dataclass(kw_only=True)
class TablesConfig:
    """The `tables` group of the configuration."""

    dims: dict[str, int] = field(default_factory=dict)
    # embedding width by table name; DUPN section 4.1 for item, shop, brand, category, tags
    default_dim: int = 16
    # width of every table that `dims` does not name
    sharding: Sharding = Sharding.row_wise
    # how tables are spread over processes
    shardings: dict[str, Sharding] = field(default_factory=dict)
    # exceptions from `sharding`, by table name
    row_type: RowType = RowType.fp32
    # type of the weights; the optimizer's state is always fp32
    row_types: dict[str, RowType] = field(default_factory=dict)
    # exceptions from `row_type`, by table name
    stochastic_rounding: bool = False
    # weights below fp32 are rounded up or down at random in the update, so that small steps count (CUDA)
    data_parallel_mib: float = 1.0
    # largest table, in MiB of weights, that may be data_parallel: its whole gradient is summed in every step
    communication: Communication = Communication.fp32
    # type of vectors and of their gradients on their way between processes
    planner: Planner = Planner.fixed
    # who decides where tables go: fixed (by `sharding` and `shardings`), or torchrec's planner, by the groups `cluster`
    # and `plan`, which leaves alone what `shardings` names
    plan: str | None = None
    # a plan to follow, as `stack plan plan.out=...` writes it, instead of `sharding` and `shardings`
    headroom: float = 0.0
    # share of additional rows for ids that later days bring
    init_range: float = 0.05
    # rows start uniform in [-init_range, init_range]

    def __post_init__(self) -> None:
        for name, dim in [*self.dims.items(), ("default_dim", self.default_dim)]:
            if dim < 4 or dim % 4:
                raise ConfigError(f"tables.dims: {name}={dim} must be a positive multiple of 4 (FBGEMM)")
        if not (self.headroom >= 0.0 and math.isfinite(self.headroom)):
            raise ConfigError(f"tables.headroom={self.headroom} must be a share of rows, 0 or more")
        if not (self.init_range > 0.0 and math.isfinite(self.init_range)):
            raise ConfigError(
                f"tables.init_range={self.init_range} must be above 0 and finite: rows that are all zero never learn"
            )
        if not self.data_parallel_mib >= 0.0:
            raise ConfigError(f"tables.data_parallel_mib={self.data_parallel_mib} must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class TableSpec:
    """One table as it will be allocated."""

    name: str
    num_rows: int
    dim: int
    sharding: Sharding = Sharding.row_wise
    dtype: RowType = RowType.fp32

    @property
    def weight_bytes(self) -> int:
        """Memory of the weights, over all processes (of one copy, where every process has one)."""
        return self.num_rows * self.dim * self.dtype.num_bytes

    def state_bytes(self, optimizer: TableOptimizer, *, num_blocks: int = 1) -> int:
        """Memory of the optimizer's state; `num_blocks`: blocks of columns, each with row-wise state of its own."""
        return self.num_rows * state_numbers_per_row(optimizer, dim=self.dim, num_blocks=num_blocks) * _STATE_BYTES

    def num_bytes(self, optimizer: TableOptimizer, *, num_blocks: int = 1) -> int:
        """Memory of weights and optimizer state."""
        return self.weight_bytes + self.state_bytes(optimizer, num_blocks=num_blocks)


def state_numbers_per_row(optimizer: TableOptimizer, *, dim: int, num_blocks: int = 1) -> int:
    """How many fp32 numbers an optimizer keeps for a row of width `dim` that is held in `num_blocks` column blocks."""
    return {
        TableOptimizer.sgd: 0,
        TableOptimizer.rowwise_adagrad: num_blocks,
        TableOptimizer.adagrad: dim,
        TableOptimizer.partial_rowwise_adam: dim + num_blocks,
        TableOptimizer.adam: 2 * dim,
        TableOptimizer.lamb: 2 * dim,
    }[optimizer]


def table_specs(config: TablesConfig, *, names: Iterable[str], num_rows: Mapping[str, int]) -> list[TableSpec]:
    """The tables `names` (as a schema lists them), sized by the vocabularies `num_rows` and the headroom.

    Raises:
        ConfigError: `shardings` or `row_types` names none of them.
        DataError: a table has no vocabulary, or one without rows.
    """
    names = list(names)
    for option, given in (("shardings", config.shardings), ("row_types", config.row_types)):
        for name in given:
            if name not in names:
                raise ConfigError(f"tables.{option} names {name!r}; the tables are: {', '.join(names)}")
    missing = [name for name in names if name not in num_rows]
    if missing:
        known = ", ".join(sorted(num_rows))
        raise DataError(f"the dataset has no vocabulary for {', '.join(missing)}; it has: {known}")
    for name in names:
        if num_rows[name] < 1:
            raise DataError(f"table {name!r} would have {num_rows[name]} rows: a table needs at least row 0 (unknown)")
    return [
        TableSpec(
            name=name,
            num_rows=math.ceil(num_rows[name] * (1.0 + config.headroom)),
            dim=config.dims.get(name, config.default_dim),
            sharding=config.shardings.get(name, config.sharding),
            dtype=config.row_types.get(name, config.row_type),
        )
        for name in names
    ]
