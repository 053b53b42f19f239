"""Which plan a job follows: the one that is pinned, TorchRec's planner's, or the one that its options describe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from stack.base.dist import World, world
from stack.base.errors import ConfigError
from stack.ids.config import IdsConfig
from stack.tables.capabilities import check_capable
from stack.tables.cluster import ClusterConfig
from stack.tables.config import Planner, TablesConfig, TableSpec
from stack.tables.layout import check_plan, fixed_plan
from stack.tables.placement import Plan, TableOptimizer
from stack.tables.plan import plan_tables
from stack.tables.plan_config import PlanConfig
from stack.tables.plan_file import load_plan
from stack.tables.plan_request import request_of


def plan_for(
    config: TablesConfig,
    specs: Sequence[TableSpec],
    *,
    optimizer: TableOptimizer,
    device: str,
    cluster: ClusterConfig,
    options: PlanConfig,
    ids: IdsConfig,
) -> Plan:
    """The plan for the processes of this job; `cluster`, `options` and `ids` are for TorchRec's planner alone.

    Raises:
        ConfigError: the device cannot do what the options ask for, the pinned plan or the cluster is another job's,
            or the tables do not fit.
    """
    here = world()
    if config.plan is None and config.planner is Planner.torchrec:
        asked = request_of(
            specs,
            tables=config,
            optimizer=optimizer,
            cluster=machines(cluster, here, device),
            options=options,
            ids=ids,
        )
        plan = plan_tables(asked).plan
    elif config.plan is None:
        plan = fixed_plan(specs, world_size=here.size, local_size=here.local_size, device=device, optimizer=optimizer)
    else:
        plan = load_plan(Path(config.plan))
        check_plan(
            plan,
            {spec.name: spec for spec in specs},
            world_size=here.size,
            local_size=here.local_size,
            device=device,
            optimizer=optimizer,
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


def machines(cluster: ClusterConfig, here: World, device: str) -> ClusterConfig:
    """The cluster as this job has it: as many of its hosts as there are (`launch.min_hosts` lets a job go on with
    fewer), and where it leaves the processes of a host open, those of the job."""
    if cluster.device.value != device:
        example = "here" if device == "cpu" else "h100x8"
        raise ConfigError(
            f"tables.planner=torchrec plans for cluster.device={cluster.device.value}, this job has {device}: choose "
            f"the cluster that it runs on, e.g. cluster={example}"
        )
    if cluster.devices_per_host not in (None, here.local_size):
        raise ConfigError(
            f"tables.planner=torchrec plans for {cluster.name}, whose hosts have {cluster.devices_per_host} processes, "
            f"this job has {here.local_size} on each: choose the cluster that it runs on, or start as many"
        )
    return replace(cluster, hosts=here.size // here.local_size, devices_per_host=here.local_size)
