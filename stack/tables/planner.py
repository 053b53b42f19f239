"""The one place that meets TorchRec's planner. Tables are on the meta device: nothing is allocated, no GPU is needed.

The collection and the codecs are those of training (`stack.tables.collection`, `stack.tables.communication`).

What would go wrong without a sound, and what is done here instead:

    bandwidths given to TopologyFactory are not read       KernelConfig(use_hardware_based_bandwidth=True)
    a reserved share is taken of HBM alone                 capacities are handed over without it
    DDR is a host's for us, a process's for TorchRec       divided by the processes of the host
    optimizer state: none, or in the weights' type         counted by `TableSpec.state_bytes`, added to each shard
    rows in host memory when HBM is short                  kernels are constrained to those asked for
    data-parallel for small tables                         sharding types are constrained
    no row-wise for an EmbeddingBagCollection on a CPU     offered by our sharder; it runs
    columns are split only from 128 on                     the width of a block is given
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.shard_estimators import EmbeddingPerfEstimator, EmbeddingStorageEstimator
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import (
    HardwareConfig,
    KernelConfig,
    ParameterConstraints,
    PlannerError,
    SharderDataMap,
    ShardEstimator,
    ShardingOption,
    Storage,
    Topology,
    TopologyFactory,
    TrainerConfig,
)
from torchrec.modules.embedding_configs import DataType

from stack.tables.cluster import ClusterConfig, Device
from stack.tables.collection import collection_of, module_name, table_name
from stack.tables.communication import codecs
from stack.tables.config import TableSpec
from stack.tables.placement import Kernel, Shard, Sharding
from stack.tables.plan_request import Request, block_columns
from stack.tables.torchrec_plan import SHARDING_NAMES

_BYTES_PER_MS = 1e6  # of a GB per second
_SHARDINGS = {name: sharding for sharding, name in SHARDING_NAMES.items()}
_IN_HOST_MEMORY = (Kernel.fused_uvm, Kernel.fused_uvm_caching)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A shard with what it needs and what it costs a step, as estimated."""

    shard: Shard
    device_bytes: int
    host_bytes: int
    lookup_ms: float
    update_ms: float
    vectors_ms: float
    ids_ms: float


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A table as the planner placed it; pieces by rank and then by column."""

    table: TableSpec
    sharding: Sharding
    kernel: Kernel
    pieces: tuple[Piece, ...]


class NoPlacementError(Exception):
    """The planner found no plan. `options`: what each table could be, unplaced (every rank is -1)."""

    def __init__(self, options: Sequence[Placed]) -> None:
        super().__init__("no placement fits")
        self.options = list(options)


def place(request: Request) -> list[Placed]:
    """Places every table, in the order of the request.

    Raises:
        NoPlacementError: nothing that the request allows fits.
    """
    topology = _topology(request.cluster)
    constraints = {module_name(table.name): _constraints(request, table) for table in request.tables}
    enumerator = EmbeddingEnumerator(
        topology=topology,
        batch_size=request.num_bags,
        constraints=constraints,
        estimator=[
            EmbeddingPerfEstimator(topology=topology, constraints=constraints),
            _Storage(topology, constraints, request),
        ],
    )
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=request.num_bags,
        enumerator=enumerator,
        storage_reservation=FixedPercentageStorageReservation(percentage=0.0),
        constraints=constraints,
        stats=[],
        debug=False,
        callbacks=[_stop],
    )
    communication = codecs(request.communication, torch.device(request.cluster.device.value))
    collection, sharders = collection_of(request.tables), [_Sharder(qcomm_codecs_registry=communication)]
    try:
        planner.plan(collection, sharders)
    except PlannerError as error:
        options = enumerator.enumerate(collection, sharders)
        raise NoPlacementError([_placed(option, request) for option in options]) from error
    except _FoundError as found:
        placed = {one.table.name: one for one in (_placed(option, request) for option in found.best)}
        return [placed[table.name] for table in request.tables]
    raise AssertionError("the planner neither found a plan nor failed")


class _FoundError(Exception):
    """Carries the plan out of the planner before it is put into TorchRec's own form, which training does not take from
    it, and which logs a warning for each data-parallel table."""

    def __init__(self, best: list[ShardingOption]) -> None:
        super().__init__()
        self.best = best


def _stop(best: list[ShardingOption]) -> list[ShardingOption]:
    raise _FoundError(best)


def _placed(option: ShardingOption, request: Request) -> Placed:
    on_cpu, alone = request.cluster.device is Device.cpu, request.cluster.world_size == 1
    pieces = [
        Piece(
            shard=Shard(
                rank=-1 if shard.rank is None else shard.rank,
                first_row=shard.offset[0],
                num_rows=shard.size[0],
                first_column=shard.offset[1],
                num_columns=shard.size[1],
            ),
            device_bytes=shard.storage.ddr if on_cpu else shard.storage.hbm,
            host_bytes=0 if on_cpu else shard.storage.ddr,
            lookup_ms=shard.perf.fwd_compute + shard.perf.prefetch_compute,
            update_ms=shard.perf.bwd_compute,
            vectors_ms=0.0 if alone else shard.perf.fwd_comms + shard.perf.bwd_comms,
            ids_ms=0.0 if alone else shard.perf.input_dist_comms,
        )
        for shard in option.shards
    ]
    return Placed(
        table=next(table for table in request.tables if table.name == table_name(option.name)),
        sharding=_SHARDINGS[option.sharding_type],
        kernel=Kernel(option.compute_kernel),
        pieces=tuple(sorted(pieces, key=lambda piece: (piece.shard.rank, piece.shard.first_column))),
    )


def _topology(cluster: ClusterConfig) -> Topology:
    on_cpu = cluster.device is Device.cpu
    per_process = cluster.ddr_gb_per_second / cluster.local_size
    return TopologyFactory.create_topology(
        TrainerConfig(world_size=cluster.world_size, local_world_size=cluster.local_size),
        HardwareConfig(
            hbm_cap_bytes=None if on_cpu else cluster.device_bytes,
            ddr_cap_bytes=cluster.device_bytes if on_cpu else cluster.overflow_bytes,
            ssd_cap_bytes=0,
            intra_host_bw=cluster.intra_host_gb_per_second * _BYTES_PER_MS,
            inter_host_bw=cluster.inter_host_gb_per_second * _BYTES_PER_MS,
            hbm_mem_bw=None if on_cpu else cluster.hbm_gb_per_second * _BYTES_PER_MS,
            ddr_mem_bw=per_process * _BYTES_PER_MS,
            hbm_to_ddr_mem_bw=min(cluster.host_link_gb_per_second, per_process) * _BYTES_PER_MS,
        ),
        KernelConfig(compute_device=cluster.device.value, use_hardware_based_bandwidth=True),
    )


def _constraints(request: Request, table: TableSpec) -> ParameterConstraints:
    return ParameterConstraints(
        sharding_types=[SHARDING_NAMES[sharding] for sharding in request.shardings(table)],
        compute_kernels=[kernel.value for kernel in request.kernels(table)],
        min_partition=block_columns(table.dim),
        pooling_factors=[1.0],
        batch_sizes=[request.num_bags],
        output_dtype=DataType.FP32,
    )


class _Sharder(EmbeddingBagCollectionSharder):  # type: ignore[misc]  # TorchRec has no types
    """Offers every kind on every device; `Request` has refused what a device cannot do."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return list(_SHARDINGS)


class _Storage(ShardEstimator):  # type: ignore[misc]  # TorchRec has no types
    """TorchRec's estimate of weights, caches and buffers, with optimizer state, dense gradients and the maps of managed
    ids as they will be.

    The tables' weights carry no optimizer, so TorchRec adds none of its own.
    """

    def __init__(self, topology: Topology, constraints: dict[str, ParameterConstraints], request: Request) -> None:
        self._inner = EmbeddingStorageEstimator(topology=topology, constraints=constraints)
        self._on_cpu = request.cluster.device is Device.cpu
        self._request = request

    def estimate(self, sharding_options: list[ShardingOption], sharder_data_map: SharderDataMap) -> None:
        self._inner.estimate(sharding_options, sharder_data_map)
        for option in sharding_options:
            kernel = Kernel(option.compute_kernel)
            for shard in option.shards:
                block = TableSpec(name=option.name, num_rows=shard.size[0], dim=shard.size[1])
                more = block.state_bytes(self._request.optimizer)
                if kernel is Kernel.dense:
                    more += block.weight_bytes  # the gradient
                in_host = self._on_cpu or kernel in _IN_HOST_MEMORY
                shard.storage += Storage(hbm=0 if in_host else more, ddr=more if in_host else 0)
                of_map = self._request.map_bytes(
                    table_name(option.name), first_row=shard.offset[0], num_rows=shard.size[0]
                )
                shard.storage += Storage(hbm=0 if self._on_cpu else of_map, ddr=of_map if self._on_cpu else 0)
