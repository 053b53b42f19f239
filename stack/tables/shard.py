"""The one place that meets DistributedModelParallel: shards a model's tables and shows the rows held here.

Shape legend: N rows held here, D columns held here.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchrec.distributed import comm
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder, ShardedEmbeddingBagCollection
from torchrec.distributed.model_parallel import DataParallelWrapper, DistributedModelParallel
from torchrec.distributed.types import ShardingEnv, ShardingPlan

from stack.base.dist import world
from stack.tables.collection import Tables, table_name
from stack.tables.communication import codecs
from stack.tables.config import Communication
from stack.tables.first_values import FirstValues
from stack.tables.layout import check_plan
from stack.tables.placement import Plan, Sharding
from stack.tables.replicated import Replicated
from stack.tables.rows import TableShard
from stack.tables.torchrec_plan import torchrec_plan


def shard(
    model: nn.Module,
    *,
    plan: Plan,
    device: torch.device,
    seed: int,
    init_range: float,
    communication: Communication = Communication.fp32,
    stochastic_rounding: bool = False,
) -> DistributedModelParallel:
    """`model` with its tables spread over all processes exactly as `plan` says, and its dense part replicated by DDP.

    The optimizer must have been fused already (`fuse_optimizer`). Rows start uniform in [-init_range, init_range], by
    `seed`, table and row alone, so any number of processes starts from the same model. Needs a process group, also for
    one process. What the device can do at all is checked by `stack.tables.capabilities.check_capable`.

    Raises:
        ConfigError: the plan is for other tables, optimizer or processes, or cannot be followed exactly.
    """
    _mute_notes_to_torchrec()
    found = list(tables_in(model))
    for _, tables in found:
        _follow(plan, tables, device)
        tables.first_values = FirstValues(seed=seed, init_range=init_range)
        tables.renew.reset_rows = partial(reset_rows, tables)
    modules = {
        f"{path}.collection" if path else "collection": torchrec_plan(plan)
        for path, tables in found
        if any(True for _ in tables.collection.parameters())
    }
    sharder = EmbeddingBagCollectionSharder(
        fused_params={"stochastic_rounding": stochastic_rounding}, qcomm_codecs_registry=codecs(communication, device)
    )
    sharded = DistributedModelParallel(
        model, device=device, plan=ShardingPlan(modules), sharders=[sharder], data_parallel_wrapper=_Replicate()
    )
    # TorchRec keeps the groups of a host for ever; gloo's threads must end before Python does.
    comm._INTRA_PG = comm._CROSS_PG = None
    for rows in table_shards(sharded):
        FirstValues(seed=seed, init_range=init_range).fill(
            rows.weight_ND, table=rows.name, dim=rows.dim, first_row=rows.first_row, first_column=rows.first_column
        )
    return sharded


def table_shards(model: nn.Module) -> list[TableShard]:
    """What this process holds, table by table; tensors are views of live memory. Data-parallel tables are held by
    every process and written by the first."""
    shards = [shard for _, tables in tables_in(model) for shard in (*_sharded(tables.collection), *_replicated(tables))]
    return sorted(shards, key=lambda shard: (shard.name, shard.first_column))


def reset_rows(model: nn.Module, table: str, rows_N: Tensor) -> None:
    """Gives rows of a table to other ids: new first values, optimizer state zero. Rows held elsewhere are passed over,
    so every process may be told of all rows, or of its own.

    The values come from seed, table and row (`FirstValues.again`), whoever holds the row.
    """
    for _, tables in tables_in(model):
        if table not in tables.specs:
            continue
        assert tables.first_values is not None, "reset_rows comes after shard"
        for shard in (one for one in table_shards(model) if one.name == table):
            own = (rows_N >= shard.first_row) & (rows_N < shard.first_row + shard.weight_ND.shape[0])
            own_N = rows_N[own].to(shard.weight_ND.device)
            values_ND = tables.first_values.again(
                own_N, table=table, first_column=shard.first_column, num_columns=shard.num_columns
            )
            with torch.no_grad():
                shard.weight_ND.index_copy_(0, own_N - shard.first_row, values_ND.to(shard.weight_ND.dtype))
                for state in shard.state.values():
                    state.index_fill_(0, own_N - shard.first_row, 0.0)


def kernels_of(collection: nn.Module) -> Iterator[Any]:
    """TorchRec's kernels of a sharded collection: each looks up the blocks of some tables that are held here."""
    if isinstance(collection, ShardedEmbeddingBagCollection):
        for lookup in collection._lookups:
            yield from lookup._emb_modules


def shardings(model: nn.Module) -> dict[str, str]:
    """How each table is spread, by name: all tables, also those whose rows are elsewhere."""
    return {name: kind.value for _, tables in tables_in(model) for name, kind in tables.shardings.items()}


def dense_module(model: DistributedModelParallel) -> nn.Module:
    """The model without its wrappers; names of parameters as the model's author wrote them."""
    module: nn.Module = model.module
    return module


def dense_parameters(model: DistributedModelParallel) -> dict[str, nn.Parameter]:
    """Parameters that every process holds whole, by name: all but the tables."""
    module = dense_module(model)
    tables = {id(weight) for _, part in tables_in(module) for weight in part.parameters()}
    return {name: weight for name, weight in module.named_parameters() if id(weight) not in tables}


def dense_tensors(model: DistributedModelParallel) -> dict[str, Tensor]:
    """Parameters and buffers that every process holds whole, by name, as live memory: all but the tables."""
    module = dense_module(model)
    inside = tuple(f"{path}." for path, _ in tables_in(module))
    return {name: value for name, value in module.state_dict().items() if not name.startswith(inside)}


def _follow(plan: Plan, tables: Tables, device: torch.device) -> None:
    """Checks the plan against the tables, and takes those out of the collection that every process holds whole."""
    here, fused = world(), tables.fused
    assert fused is not None, "fuse_optimizer comes before shard"
    check_plan(
        plan,
        tables.specs,
        world_size=here.size,
        local_size=here.local_size,
        device=device.type,
        optimizer=fused.optimizer,
    )
    tables.shardings = {table.name: table.sharding for table in plan.tables}
    whole = {table.name for table in plan.tables if table.sharding is Sharding.data_parallel}
    if whole:
        replicated = Replicated(
            {name: spec for name, spec in tables.specs.items() if name in whole}, device=device, fused=fused
        )
        tables.replicate(replicated)
        fused.mark(tables.collection)


def _sharded(collection: nn.Module) -> Iterator[TableShard]:
    """The blocks in TorchRec's hands, read off its kernels: one for each table and block of columns held here."""
    for kernel in kernels_of(collection):
        held = kernel.config.embedding_tables
        weights = kernel.emb_module.split_embedding_weights()
        states = kernel.emb_module.get_optimizer_state() or [{}] * len(held)  # SGD has none
        for table, weight, state in zip(held, weights, states, strict=True):
            first_row, first_column = table.local_metadata.shard_offsets
            yield TableShard(
                name=table_name(table.name),
                num_rows=table.num_embeddings,
                dim=table.embedding_dim,
                first_row=first_row,
                first_column=first_column,
                weight_ND=weight.detach(),
                # FBGEMM says "sum" or "exp_avg", by optimizer
                state={f"momentum{number}": value for number, value in enumerate(state.values(), start=1)},
            )


def _replicated(tables: Tables) -> Iterator[TableShard]:
    if tables.replicated is None:
        return
    for name, replica in tables.replicated.tables.items():
        yield TableShard(
            name=name,
            num_rows=tables.specs[name].num_rows,
            dim=tables.specs[name].dim,
            first_row=0,
            weight_ND=replica.weight_RD,
            state=replica.state,
            written=dist.get_rank() == 0,
        )


def _mute_notes_to_torchrec() -> None:
    """TorchRec 1.8 calls functions that torch 2.13 has renamed; torch's notes about it are for TorchRec's authors."""
    for name in ("torch.fx._symbolic_trace", "torchrec.distributed.comm"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in ("reduce_scatter_tensor", "all_gather_into_tensor"):
        warnings.filterwarnings(
            "ignore", message=rf"`torch\.distributed\.{name}` is deprecated", category=FutureWarning
        )


def tables_in(model: nn.Module) -> Iterator[tuple[str, Tables]]:
    """Every set of tables with its path in the model."""
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
