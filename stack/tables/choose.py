"""Which plan a job follows: the one that is pinned, or the one that its options describe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from stack.base.dist import world
from stack.tables.capabilities import check_capable
from stack.tables.config import TablesConfig, TableSpec
from stack.tables.layout import check_plan, fixed_plan
from stack.tables.placement import Plan, TableOptimizer
from stack.tables.plan_file import load_plan


def plan_for(config: TablesConfig, specs: Sequence[TableSpec], *, optimizer: TableOptimizer, device: str) -> Plan:
    """The plan for the processes of this job.

    Raises:
        ConfigError: the device cannot do what the options ask for, or the pinned plan is for another job.
    """
    here = world()
    if config.plan is None:
        plan = fixed_plan(specs, world_size=here.size, local_size=here.local_size, device=device, optimizer=optimizer)
    else:
        plan = load_plan(Path(config.plan))
        check_plan(
            plan, {spec.name: spec for spec in specs}, world_size=here.size, local_size=here.local_size, device=device
        )
    check_capable(
        [replace(spec, sharding=plan.table(spec.name).sharding) for spec in specs],
        device=device,
        optimizer=optimizer,
        data_parallel_mib=config.data_parallel_mib,
        stochastic_rounding=config.stochastic_rounding,
        communication=config.communication,
    )
    return plan
