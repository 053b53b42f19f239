"""Our plan as TorchRec has it: explicit shards, so that nothing is left for it to choose."""

from __future__ import annotations

from torchrec.distributed.sharding_plan import placement
from torchrec.distributed.types import (
    EmbeddingModuleShardingPlan,
    EnumerableShardingSpec,
    ParameterSharding,
    ShardMetadata,
)

from stack.tables.collection import module_name
from stack.tables.placement import Plan, Sharding, TablePlan

SHARDING_NAMES = {one: one.value for one in Sharding} | {Sharding.grid: "grid_shard"}
"""What TorchRec calls them."""


def torchrec_plan(plan: Plan) -> EmbeddingModuleShardingPlan:
    """For the one collection of all tables but the data-parallel ones, which it does not hold."""
    return EmbeddingModuleShardingPlan(
        {
            module_name(table.name): _parameter_sharding(table, plan)
            for table in plan.tables
            if table.sharding is not Sharding.data_parallel
        }
    )


def _parameter_sharding(table: TablePlan, plan: Plan) -> ParameterSharding:
    return ParameterSharding(
        sharding_type=SHARDING_NAMES[table.sharding],
        compute_kernel=table.kernel.value,
        ranks=[shard.rank for shard in table.shards],
        sharding_spec=EnumerableShardingSpec(
            [
                ShardMetadata(
                    shard_sizes=[shard.num_rows, shard.num_columns],
                    shard_offsets=[shard.first_row, shard.first_column],
                    placement=placement(plan.device, shard.rank, plan.local_size),
                )
                for shard in table.shards
            ]
        ),
    )
