"""Rows that count as changed are exactly those whose weights or optimizer state differ from before."""

from __future__ import annotations

from itertools import product

import msgspec
import numpy as np
import pytest
import torch

from stack.base.dist import process_group
from stack.ids.config import IdMode
from stack.tables.config import Sharding, TableOptimizer
from stack.tables.touched import track_touched
from tests.distributed.launch import run_ranks
from tests.tables.touched_worker import CPU, NUM_ROUNDS, SHAPES, Case, Round, act, build

WHOLE_ROWS = (Sharding.row_wise, Sharding.table_wise, Sharding.table_row_wise, Sharding.data_parallel)
OPTIMIZERS = (TableOptimizer.rowwise_adagrad, TableOptimizer.adagrad, TableOptimizer.sgd)
MANAGED = {"item": IdMode.managed, "tags": IdMode.hashed}
CASES = [
    *(Case(sharding=sharding, optimizer=optimizer) for sharding, optimizer in product(Sharding, OPTIMIZERS)),
    *(Case(sharding=sharding, zeros=True) for sharding in WHOLE_ROWS),
    Case(sharding=Sharding.row_wise, others={"type": Sharding.table_wise, "tags": Sharding.data_parallel}),
    *(Case(sharding=sharding, modes={"item": IdMode.hashed}) for sharding in Sharding),
    *(Case(sharding=sharding, modes=MANAGED) for sharding in WHOLE_ROWS[:3]),
    Case(sharding=Sharding.column_wise, others={"item": Sharding.row_wise}, modes=MANAGED),
]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[list[list[Round]]]]:
    """By number of processes, rank and case: what came of each round."""
    file = tmp_path_factory.mktemp("touched") / "cases.json"
    file.write_bytes(msgspec.json.encode(CASES))
    return {
        size: [
            msgspec.json.decode(output, type=list[list[Round]])
            for output in run_ranks("tests.tables.touched_worker", file, world_size=size)
        ]
        for size in (1, 2)
    }


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.name for case in CASES])
def test_taken_rows_are_those_that_differ(done: dict[int, list[list[list[Round]]]], number: int, size: int) -> None:
    case, ranks = CASES[number], [rank[number] for rank in done[size]]
    for rank in ranks:
        for one in rank:
            assert one.taken.keys() == one.changed.keys()
            for name, rows in one.taken.items():
                if case.modes.get(name) is IdMode.managed:
                    assert set(one.changed[name]) <= set(rows) <= {*one.changed[name], *one.fresh[name]}
                    assert rank[-1].num_evicted > 10
                else:
                    assert rows == one.changed[name]
    for name, (num_rows, _) in SHAPES.items():
        found = [{row for rank in ranks for row in rank[i].taken.get(name, [])} for i in range(NUM_ROUNDS)]
        assert sum(map(len, found)) > 5
        assert name == "type" or case.modes or min(map(len, found)) < num_rows / 2
        if case.others.get(name, case.sharding) is Sharding.data_parallel:
            assert all(one.taken[name] == other.taken[name] for one, other in zip(ranks[0], ranks[-1], strict=True))


def test_column_blocks_have_rows_without_a_gradient_too_so_that_all_blocks_agree() -> None:
    with process_group(device=CPU) as world:
        model, _ = build(Case(sharding=Sharding.row_wise), world)
        touched = track_touched(model)
        for whole in (True, False):
            if not whole:
                for held in model.module.tables.collection._lookups[0]._emb_modules[0].config.embedding_tables:
                    held.embedding_dim *= 2
            vectors = model.module.tables({"item": [torch.tensor([3, 5])]})["item"][0]
            (vectors * torch.tensor([[0.0], [1.0]])).sum().backward()
            assert touched.take()["item"].tolist() == ([5] if whole else [3, 5])


def test_nothing_is_kept_of_a_batch_that_is_dropped() -> None:
    with process_group(device=CPU) as world:
        model, _ = build(Case(sharding=Sharding.row_wise), world)
        touched = track_touched(model)
        rng = np.random.default_rng(1)
        for action in ("refuse", "evaluate", "look up"):
            act(model, action, rng, zeros=False)
        assert touched.count() == dict.fromkeys(SHAPES, 0)
        assert touched.num_bytes == sum(rows for rows, _ in SHAPES.values())
