"""Clusters, the paper's tables, and an independent sum of the bytes of a plan, for the tests of planning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stack.tables.cluster import ClusterConfig, Device
from stack.tables.config import TableSpec
from stack.tables.placement import Plan, RowType, TableOptimizer
from stack.tables.plan_request import Load, Request

PAPER = {
    "item": (10**9, 32), "shop": (10**7, 24), "brand": (10**6, 24), "category": (10**6, 16), "tags": (10**5, 28),
}  # fmt: skip
GIB = 2**30


def gpus(hosts: int = 1, *, devices_per_host: int = 2, hbm_gib: float = 1.0, **others: Any) -> ClusterConfig:
    """A small cluster of GPUs; nothing is reserved."""
    figures: dict[str, Any] = {
        "ddr_gib": 4.0, "hbm_gb_per_second": 1000.0, "ddr_gb_per_second": 100.0, "host_link_gb_per_second": 20.0,
        "intra_host_gb_per_second": 100.0, "inter_host_gb_per_second": 10.0, "reserved_share": 0.0,
    }  # fmt: skip
    return ClusterConfig(
        name="gpus", hosts=hosts, devices_per_host=devices_per_host, device=Device.cuda, hbm_gib=hbm_gib,
        **(figures | others),
    )  # fmt: skip


def cpus(hosts: int = 1, *, devices_per_host: int = 2, ddr_gib: float = 1.0, **others: Any) -> ClusterConfig:
    """A small cluster of CPUs; nothing is reserved."""
    others = {"reserved_share": 0.0} | others
    return ClusterConfig(name="cpus", hosts=hosts, devices_per_host=devices_per_host, ddr_gib=ddr_gib, **others)


def request(
    tables: Sequence[TableSpec] | Mapping[str, tuple[int, int]], cluster: ClusterConfig, **others: Any
) -> Request:
    """A request of few ids a step; tables given as rows and dims are free."""
    others = {"load": Load(num_timelines=1, ids_per_timeline=10.0)} | others
    if isinstance(tables, Mapping):
        others = {"free": frozenset(tables)} | others
        tables = [TableSpec(name=name, num_rows=rows, dim=dim) for name, (rows, dim) in tables.items()]
    return Request(tables=tuple(tables), cluster=cluster, **others)


def rows_and_state_by_rank(plan: Plan) -> list[int]:
    """Bytes of weights and optimizer state on each process, counted number by number from the plan's blocks."""
    total = [0] * plan.world_size
    for table in plan.tables:
        for shard in table.shards:
            weights = shard.num_rows * shard.num_columns * {RowType.fp32: 4, RowType.fp16: 2}[table.dtype]
            if plan.optimizer is TableOptimizer.sgd:
                state = 0
            elif plan.optimizer is TableOptimizer.rowwise_adagrad:
                state = shard.num_rows
            elif plan.optimizer is TableOptimizer.adagrad:
                state = shard.num_rows * shard.num_columns
            elif plan.optimizer is TableOptimizer.partial_rowwise_adam:
                state = shard.num_rows * shard.num_columns + shard.num_rows
            else:
                state = 2 * shard.num_rows * shard.num_columns
            total[shard.rank] += weights + 4 * state
    return total
