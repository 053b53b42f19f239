"""The one place that meets DistributedModelParallel: shards a model's tables and shows the rows held here.

Shape legend: N rows held here, D embedding width.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DataParallelWrapper, DistributedModelParallel
from torchrec.distributed.sharding_plan import (
    ParameterShardingGenerator,
    construct_module_sharding_plan,
    row_wise,
    table_wise,
)
from torchrec.distributed.types import ShardedTensor, ShardingEnv, ShardingPlan

from stack.base.seed import derive
from stack.tables.collection import Tables, module_name, table_name
from stack.tables.config import Placement, TableSpec
from stack.tables.rows import TableShard

_INIT_BLOCK_ROWS = 65_536


def shard(model: nn.Module, *, device: torch.device, seed: int, init_range: float) -> DistributedModelParallel:
    """`model` with its tables spread over all processes and its dense part replicated by DDP.

    The optimizer must have been fused already (`fuse_optimizer`). Rows start uniform in [-init_range, init_range], by
    `seed`, table and row alone, so any number of processes starts from the same model. Needs a process group, also for
    one process.
    """
    _mute_notes_to_torchrec()
    plan: dict[str, object] = {}
    sharder = EmbeddingBagCollectionSharder()
    for path, tables in _tables_in(model):
        plan[f"{path}.collection" if path else "collection"] = construct_module_sharding_plan(
            tables.collection,
            per_param_sharding=_placements(list(tables.specs.values())),
            sharder=sharder,
            local_size=dist.get_world_size(),
            world_size=dist.get_world_size(),
            device_type=device.type,
        )
    sharded = DistributedModelParallel(
        model, device=device, plan=ShardingPlan(plan), sharders=[sharder], data_parallel_wrapper=_Replicate()
    )
    for rows in table_shards(sharded):
        initialise_rows(rows.weight_ND, table=rows.name, first_row=rows.first_row, seed=seed, init_range=init_range)
    return sharded


def table_shards(model: DistributedModelParallel) -> list[TableShard]:
    """The rows that this process holds, table by table; tensors are views of live memory."""
    state_by_weight = model.fused_optimizer.state_dict()["state"]
    shards: list[TableShard] = []
    for key, weight in model.state_dict().items():
        if not isinstance(weight, ShardedTensor):
            continue
        module = key.split(".")[-2]
        states: dict[str, ShardedTensor] = state_by_weight.get(key, {})
        for index, local in enumerate(weight.local_shards()):
            shards.append(
                TableShard(
                    name=table_name(module),
                    num_rows=int(weight.metadata().size[0]),
                    first_row=int(local.metadata.shard_offsets[0]),
                    weight_ND=local.tensor.detach(),
                    state={
                        name.removeprefix(f"{module}."): state.local_shards()[index].tensor.detach()
                        for name, state in states.items()
                    },
                )
            )
    return sorted(shards, key=lambda rows: rows.name)


def initialise_rows(weight_ND: Tensor, *, table: str, first_row: int, seed: int, init_range: float) -> None:
    """Fills rows `first_row ...` of a table with their first values, whoever holds them.

    Values are drawn in fixed blocks of rows, each from its own generator, so a holder draws only what it needs.
    """
    last_row = first_row + int(weight_ND.shape[0])
    for block in range(first_row // _INIT_BLOCK_ROWS, -(-last_row // _INIT_BLOCK_ROWS)):
        generator = torch.Generator().manual_seed(derive(seed, "table", table, block))
        block_start = block * _INIT_BLOCK_ROWS
        num_rows = min(last_row - block_start, _INIT_BLOCK_ROWS)
        values = torch.rand(num_rows, weight_ND.shape[1], generator=generator).mul_(2.0).sub_(1.0).mul_(init_range)
        skipped = max(first_row - block_start, 0)
        target = block_start + skipped - first_row
        weight_ND[target : target + num_rows - skipped].copy_(values[skipped:])


def dense_module(model: DistributedModelParallel) -> nn.Module:
    """The model without its wrappers; names of parameters as the model's author wrote them."""
    module: nn.Module = model.module
    return module


def dense_parameters(model: DistributedModelParallel) -> dict[str, nn.Parameter]:
    """Parameters that every process holds whole, by name: all but the tables."""
    module = dense_module(model)
    tables = {id(weight) for _, part in _tables_in(module) for weight in part.parameters()}
    return {name: weight for name, weight in module.named_parameters() if id(weight) not in tables}


def dense_tensors(model: DistributedModelParallel) -> dict[str, Tensor]:
    """Parameters and buffers that every process holds whole, by name, as live memory: all but the tables."""
    module = dense_module(model)
    inside = tuple(f"{path}." for path, _ in _tables_in(module))
    return {name: value for name, value in module.state_dict().items() if not name.startswith(inside)}


def _placements(specs: list[TableSpec]) -> dict[str, ParameterShardingGenerator]:
    """Row-wise as configured; whole tables go to the process that has least so far."""
    load = [0] * dist.get_world_size()
    placements: dict[str, ParameterShardingGenerator] = {}
    for spec in sorted(specs, key=lambda spec: (-spec.num_bytes, spec.name)):
        if spec.placement is Placement.row_wise:
            placements[module_name(spec.name)] = row_wise()
        else:
            rank = load.index(min(load))
            load[rank] += spec.num_bytes
            placements[module_name(spec.name)] = table_wise(rank=rank)
    return placements


def _mute_notes_to_torchrec() -> None:
    """TorchRec 1.8 calls functions that torch 2.13 has renamed; torch's notes about it are for TorchRec's authors."""
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    for name in ("reduce_scatter_tensor", "all_gather_into_tensor"):
        warnings.filterwarnings(
            "ignore", message=rf"`torch\.distributed\.{name}` is deprecated", category=FutureWarning
        )


def _tables_in(model: nn.Module) -> Iterator[tuple[str, Tables]]:
    for path, module in model.named_modules():
        if isinstance(module, Tables):
            yield path, module


class _Replicate(DataParallelWrapper):  # type: ignore[misc]  # TorchRec has no types
    """DDP for the dense part. TorchRec's own wrapper passes `broadcast_buffers`, which torch 2.13 warns about, and
    assumes a static graph, which a refused batch (forward without backward) is not."""

    def wrap(self, dmp: DistributedModelParallel, env: ShardingEnv, device: torch.device) -> None:
        module = dmp._dmp_wrapped_module
        ignored = set(DistributedModelParallel._sharded_parameter_names(module))
        if not any(name not in ignored for name, _ in module.named_parameters()):
            return
        set_ignored = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
        set_ignored(module, list(ignored))  # type: ignore[no-untyped-call]
        dmp._dmp_wrapped_module = DistributedDataParallel(
            module.to(device),
            device_ids=None if device.type == "cpu" else [device],
            process_group=env.process_group,
            gradient_as_bucket_view=True,
            forward_sync_buffers=False,
        )
