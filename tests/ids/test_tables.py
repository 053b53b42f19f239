"""Hashed and managed ids in front of real tables: sums of rows, shared misses, evicted rows as new with their state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torchrec.distributed.model_parallel import DistributedModelParallel

from stack.base.dist import process_group
from stack.data.batch import Jagged
from stack.ids.config import IdMode, IdSpec, ManagedConfig, Policy
from stack.ids.hashing import HashVariant
from stack.ids.maps import IdMaps
from stack.tables.collection import Tables
from stack.tables.config import TableOptimizer, TableSpec
from stack.tables.layout import fixed_plan
from stack.tables.optim import fuse_optimizer
from stack.tables.shard import shard, table_shards

CPU = torch.device("cpu")
LEARNING_RATE = 0.5


class Model(nn.Module):
    """Tables with one dense parameter, as DDP needs one."""

    def __init__(self, tables: Tables) -> None:
        super().__init__()
        self.tables = tables
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, *asked: Tensor | Jagged) -> list[Tensor]:
        return [vectors * self.scale for vectors in self.tables({"item": asked})["item"]]


@contextmanager
def sharded(
    mode: IdMode, *, num_rows: int, variant: HashVariant = HashVariant.modulo, admit_after: int = 1
) -> Iterator[tuple[DistributedModelParallel, IdMaps]]:
    managed = ManagedConfig(policy=Policy.lru, admit_after=admit_after)
    spec = IdSpec(name="item", mode=mode, num_rows=num_rows, hash=variant, managed=managed)
    with process_group(device=CPU):
        specs = [TableSpec(name="item", num_rows=num_rows, dim=4)]
        maps = IdMaps([spec])
        tables = Tables(specs, ids=maps)
        fuse_optimizer(tables, optimizer=TableOptimizer.rowwise_adagrad, learning_rate=LEARNING_RATE, eps=1e-8)
        plan = fixed_plan(specs, world_size=1, local_size=1, device="cpu", optimizer=TableOptimizer.rowwise_adagrad)
        yield shard(Model(tables), plan=plan, device=CPU, seed=1, init_range=0.1).train(), maps


def held(model: DistributedModelParallel) -> tuple[Tensor, Tensor]:
    """Weights and optimizer state, copied."""
    (rows,) = table_shards(model)
    return rows.weight_ND.clone(), next(iter(rows.state.values())).clone()


@pytest.mark.parametrize("variant", HashVariant)
def test_a_hashed_id_has_the_sum_of_its_rows_and_each_row_its_gradient(variant: HashVariant) -> None:
    with sharded(IdMode.hashed, num_rows=50, variant=variant) as (model, maps):
        ids = torch.tensor([7, -9, 7, 0, 2**40])
        jagged = Jagged(values_N=torch.tensor([-9, 5, 7]), lengths=torch.tensor([2, 0, 1]))
        before, _ = held(model)
        rows = maps("item", ids).reshape(len(ids), -1)
        one, pooled = model(ids, jagged)
        torch.testing.assert_close(one, before[rows].sum(1))
        jagged_rows = maps("item", jagged.values_N).reshape(3, -1)
        vectors = before[jagged_rows].sum(1)
        torch.testing.assert_close(pooled, torch.stack([vectors[:2].mean(0), torch.zeros(4), vectors[2]]))

        (one.sum() + 2.0 * pooled.sum()).backward()
        gradient = torch.zeros(50, 4)
        for row in rows.reshape(-1):
            gradient[row] += 1.0
        for row, share in zip(jagged_rows, (0.5, 0.5, 1.0), strict=True):
            for each in row:
                gradient[each] += 2.0 * share
        touched = gradient[:, 0] > 0
        after, _ = held(model)
        # Row-wise Adagrad's first step moves each touched row by the rate, whatever the size of its gradient.
        torch.testing.assert_close(after[touched], before[touched] - LEARNING_RATE)
        torch.testing.assert_close(after[~touched], before[~touched])


def test_ids_without_a_row_share_row_0_and_get_their_own_once_admitted() -> None:
    with sharded(IdMode.managed, num_rows=10, admit_after=2) as (model, _):
        before, _ = held(model)
        (first,) = model(torch.tensor([100, 200, 0]))
        torch.testing.assert_close(first, before[[0, 0, 0]])
        (second,) = model(torch.tensor([200, 300]))
        torch.testing.assert_close(second, before[[1, 0]])


def test_a_row_that_changes_hands_is_new_in_the_very_step_with_its_optimizer_state() -> None:
    with sharded(IdMode.managed, num_rows=4) as (model, maps):
        for _ in range(3):
            (vectors,) = model(torch.tensor([1, 2, 3]))
            vectors.sum().backward()
        trained, state = held(model)
        assert bool((state[1:4] > 0).all())
        (found,) = model(torch.tensor([9]))
        reset, state_after = held(model)
        row = int(maps.eval()("item", torch.tensor([9])))
        assert row == 1
        assert float(state_after[row].sum()) == 0.0
        torch.testing.assert_close(found[0], reset[row])
        assert float(reset[row].abs().max()) <= 0.1
        assert not torch.allclose(reset[row], trained[row])
        torch.testing.assert_close(reset[2:], trained[2:])
        torch.testing.assert_close(state_after[2:], state[2:])


def test_evaluation_gives_no_rows_and_resets_none() -> None:
    with sharded(IdMode.managed, num_rows=4) as (model, _):
        model(torch.tensor([1, 2, 3]))
        before, _ = held(model)
        model.eval()
        (vectors,) = model(torch.tensor([1, 8]))
        torch.testing.assert_close(vectors, before[[1, 0]])
        after, _ = held(model)
        torch.testing.assert_close(after, before)
