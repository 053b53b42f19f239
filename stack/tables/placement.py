"""Where every table goes: the plan that the planner writes, people read, pin and compare, and training follows.

Plain data without TorchRec. A plan of two tables over two processes::

    item   1,000,000 x 32 fp32, row_wise, fused     rank 0: rows 0 ... 499,999    rank 1: rows 500,000 ... 999,999
    shop   2,000 x 24 fp32, table_wise, fused       rank 1: all rows

Column-wise sharding splits columns instead; data-parallel gives every rank the whole table.
"""

from __future__ import annotations

from enum import Enum

import msgspec


class Sharding(Enum):
    """How a table is spread over processes."""

    row_wise = "row_wise"
    """A block of rows on each process."""
    table_wise = "table_wise"
    """The whole table on one process."""
    column_wise = "column_wise"
    """A block of columns on each process; row-wise optimizer state is then kept for each block."""
    table_row_wise = "table_row_wise"
    """Blocks of rows over the processes of one host."""
    grid = "grid"
    """Blocks of columns over hosts, and of rows over the processes of a host."""
    data_parallel = "data_parallel"
    """The whole table on every process, gradients summed like those of the dense part."""


class Kernel(Enum):
    """Which lookup and where the rows are; names as TorchRec has them."""

    dense = "dense"
    """Gradients of the whole table, for data-parallel ones."""
    fused = "fused"
    """Rows in the device's memory, updated in the backward pass."""
    fused_uvm_caching = "fused_uvm_caching"
    """CUDA: rows in host memory with a cache on the device."""
    fused_uvm = "fused_uvm"
    """CUDA: rows in host memory, read from there."""


class RowType(Enum):
    """Type of the weights of a table."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"

    @property
    def num_bytes(self) -> int:
        """Of one weight."""
        return 4 if self is RowType.fp32 else 2


class TableOptimizer(Enum):
    """What is fused into the backward pass of the tables."""

    rowwise_adagrad = "rowwise_adagrad"
    adagrad = "adagrad"
    sgd = "sgd"
    adam = "adam"
    partial_rowwise_adam = "partial_rowwise_adam"
    lamb = "lamb"


class Shard(msgspec.Struct, frozen=True, kw_only=True):
    """A block of a table on one process."""

    rank: int
    first_row: int
    num_rows: int
    first_column: int
    num_columns: int


class TablePlan(msgspec.Struct, frozen=True, kw_only=True):
    """One table: its shape and its shards, by rank and then by column."""

    name: str
    num_rows: int
    dim: int
    dtype: RowType
    sharding: Sharding
    kernel: Kernel
    shards: tuple[Shard, ...]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """All tables over all processes. `local_size`: processes of a host. `device`: "cpu" or "cuda"."""

    format_version: int = 1
    device: str
    world_size: int
    local_size: int
    optimizer: TableOptimizer
    tables: tuple[TablePlan, ...]

    def table(self, name: str) -> TablePlan:
        """The table called `name`; raises `KeyError`."""
        for table in self.tables:
            if table.name == name:
                return table
        raise KeyError(name)
