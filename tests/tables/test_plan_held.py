"""What a plan says of bytes is what a process holds once it has followed the plan, through TorchRec and FBGEMM."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from stack.base.dist import process_group
from stack.ids.blocks import Blocks
from stack.ids.bounded import BoundedMap
from stack.ids.config import ManagedConfig
from stack.tables.collection import Tables
from stack.tables.config import TableSpec
from stack.tables.optim import fuse_optimizer
from stack.tables.placement import RowType, Sharding, TableOptimizer
from stack.tables.plan import plan_tables, weights_and_state
from stack.tables.plan_report import report_of
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


def test_the_map_of_managed_ids_is_planned_at_the_bytes_that_it_takes() -> None:
    config, blocks = ManagedConfig(), Blocks(bounds=(0, 301, 601), rank=1)
    taken = BoundedMap(config, blocks, device=torch.device("cpu")).num_bytes
    asked = request({"a": (601, 16)}, cpus(devices_per_host=2), managed=frozenset("a"), managed_ids=config)
    assert asked.map_bytes("a", first_row=301, num_rows=300) == taken
    # 300 keys, counts, times and marks of new keys; 1,024 entries are the power of two above 3 x 300, 1,024 places that
    # above 2 x 300
    assert taken == 300 * (8 + 4 + 4 + 1) + 1024 * 4 + 1024 * 12
    one = replace(asked, tables=(replace(asked.tables[0], sharding=Sharding.row_wise),), free=frozenset())
    plain = report_of(plan_tables(replace(one, managed=frozenset())))
    managed = report_of(plan_tables(one))
    assert [more.device_bytes - less.device_bytes for more, less in zip(managed.ranks, plain.ranks, strict=True)] == [
        taken,
        taken,
    ]
    assert (managed.tables[0].map_bytes, plain.tables[0].map_bytes) == (2 * taken, 0)
    assert managed.tables[0].buffer_bytes == plain.tables[0].buffer_bytes
