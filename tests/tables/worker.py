"""A few steps of lookups with gradients on one rank; prints the rows it holds at the end as JSON.

The requests are fixed by the step and cut between ranks, so that any number of them does the same global work.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import torch
from torch import Tensor, nn

from stack.base.dist import World, process_group
from stack.data.batch import Jagged
from stack.tables.collection import Tables
from stack.tables.config import Sharding, TableOptimizer, TableSpec
from stack.tables.optim import fuse_optimizer
from stack.tables.shard import fixed_plan, shard, table_shards

SPECS = (
    TableSpec(name="item", num_rows=23, dim=8),
    TableSpec(name="type", num_rows=7, dim=4, sharding=Sharding.table_wise),
    TableSpec(name="tags", num_rows=11, dim=4),
)
SEED, INIT_RANGE, LEARNING_RATE, EPS = 3, 0.05, 0.1, 1e-8
NUM_STEPS, NUM_OWNERS = 4, 12


class Model(nn.Module):
    """Tables with one dense parameter, as DDP needs one."""

    def __init__(self, tables: Tables) -> None:
        super().__init__()
        self.tables = tables
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, history_N: Tensor, candidate_N: Tensor, type_N: Tensor, tags: Jagged) -> list[Tensor]:
        found = self.tables({"item": [history_N, candidate_N], "type": [type_N], "tags": [tags]})
        return [vectors * self.scale for vectors in (*found["item"], *found["type"], *found["tags"])]


def requests(step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[list[int]]]:
    """Ids of a step by owner: unknown and negative ones among them, and owners without tags."""
    rng = np.random.default_rng(step)
    history = rng.integers(-2, 26, NUM_OWNERS)
    tags = [[int(tag) for tag in rng.integers(0, 11, rng.integers(0, 4))] for _ in range(NUM_OWNERS)]
    return history, rng.integers(0, 23, NUM_OWNERS), rng.integers(0, 7, NUM_OWNERS), tags


def targets(step: int, width: int, which: int) -> np.ndarray:
    """d loss / d vector of the step's `which`-th answer, by owner."""
    return np.random.default_rng([step, which]).normal(size=(NUM_OWNERS, width)).astype(np.float32)


def run(world: World) -> list[dict[str, object]]:
    """Trains and returns this rank's rows."""
    tables = Tables(SPECS)
    fuse_optimizer(tables, optimizer=TableOptimizer.rowwise_adagrad, learning_rate=LEARNING_RATE, eps=EPS)
    plan = fixed_plan(
        SPECS,
        world_size=world.size,
        local_size=world.local_size,
        device="cpu",
        optimizer=TableOptimizer.rowwise_adagrad,
    )
    model = shard(Model(tables), plan=plan, device=torch.device("cpu"), seed=SEED, init_range=INIT_RANGE)
    # Uneven on purpose: rank 1 of 2 has 4 owners, rank 0 has 8.
    cut = [0, NUM_OWNERS] if world.size == 1 else [0, 8, NUM_OWNERS]
    mine = slice(cut[world.rank], cut[world.rank + 1])
    for step in range(NUM_STEPS):
        history, candidate, kind, tags = requests(step)
        own_tags = tags[mine]
        jagged = Jagged(
            values_N=torch.tensor([tag for owner in own_tags for tag in owner], dtype=torch.int64),
            lengths=torch.tensor([len(owner) for owner in own_tags]),
        )
        answers = model(*(torch.from_numpy(ids[mine]) for ids in (history, candidate, kind)), jagged)
        gradients = [torch.from_numpy(targets(step, v.shape[1], i)[mine]) for i, v in enumerate(answers)]
        loss = sum(((vectors * gradient).sum() for vectors, gradient in zip(answers, gradients, strict=True)))
        (loss * world.size).backward()  # TorchRec and DDP average over ranks; the job sums
    return [
        {
            "name": rows.name, "num_rows": rows.num_rows, "first_row": rows.first_row,
            "weight": rows.weight_ND.tolist(), "state": {k: v.tolist() for k, v in rows.state.items()},
        }
        for rows in table_shards(model)
    ]  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    with process_group(device=torch.device("cpu")) as here:
        sys.stdout.write(json.dumps(run(here)))
