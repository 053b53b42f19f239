"""What a plan says of bytes is what a process holds once it has followed the plan, through TorchRec and FBGEMM."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from stack.base.dist import process_group
from stack.tables.collection import Tables
from stack.tables.config import TableSpec
from stack.tables.optim import fuse_optimizer
from stack.tables.placement import RowType, Sharding, TableOptimizer
from stack.tables.plan import plan_tables, weights_and_state
from stack.tables.shard import shard, table_shards
from tests.tables.planning import cpus, request

CPU_OPTIMIZERS = (TableOptimizer.rowwise_adagrad, TableOptimizer.adagrad, TableOptimizer.sgd)
SHARDINGS = (Sharding.row_wise, Sharding.table_wise, Sharding.column_wise, Sharding.data_parallel)


class Model(nn.Module):
    """Tables with one dense parameter, as DDP needs one."""

    def __init__(self, tables: Tables) -> None:
        super().__init__()
        self.tables = tables
        self.scale = nn.Parameter(torch.ones(()))


@pytest.mark.parametrize("optimizer", CPU_OPTIMIZERS)
def test_planned_bytes_are_the_bytes_that_are_held(optimizer: TableOptimizer) -> None:
    """Blocks of columns keep a number of state for each row of their own: a column-wise table has twice as many."""
    specs = [
        TableSpec(name=f"{sharding.value}_{dtype.value}", num_rows=101, dim=16, sharding=sharding, dtype=dtype)
        for sharding, dtype in itertools.product(SHARDINGS, (RowType.fp32, RowType.fp16))
    ]
    planned = plan_tables(request(specs, cpus(devices_per_host=1), optimizer=optimizer))
    expected = {placed.table.name: weights_and_state(placed, optimizer) for placed in planned.placed}
    tables = Tables(specs)
    fuse_optimizer(tables, optimizer=optimizer, learning_rate=0.1, eps=1e-8)
    with process_group(device=torch.device("cpu")):
        model = shard(Model(tables), plan=planned.plan, device=torch.device("cpu"), seed=1, init_range=0.1)
        held = dict.fromkeys(expected, (0, 0))
        for rows in table_shards(model):
            weights, state = held[rows.name]
            own = sum(tensor.nbytes for tensor in rows.state.values())
            held[rows.name] = (weights + rows.weight_ND.nbytes, state + own)
    assert held == expected
