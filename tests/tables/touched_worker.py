"""Trains, refuses and evaluates random batches on one rank, for each of many cases; prints what changed and what
`TouchedRows` says."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor
from torchrec.distributed.model_parallel import DistributedModelParallel

from stack.base.dist import World, process_group
from stack.data.batch import Jagged
from stack.ids.config import IdMode, IdSpec, ManagedConfig, Policy
from stack.ids.hashing import HashVariant
from stack.ids.maps import IdMaps
from stack.tables.collection import Tables
from stack.tables.config import Sharding, TableOptimizer, TableSpec
from stack.tables.layout import fixed_plan
from stack.tables.optim import fuse_optimizer
from stack.tables.shard import shard, table_shards
from stack.tables.touched import TouchedRows, track_touched
from stack.tables.with_ids import managed_blocks
from tests.tables.worker import Model

SHAPES = {"item": (200, 12), "type": (40, 4), "tags": (90, 8)}
MANAGED_ROWS, NUM_KEYS = 24, 80
NUM_OWNERS, NUM_ROUNDS = 6, 4
CPU = torch.device("cpu")


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """`modes`: of the ids of tables that are not direct. `zeros`: the last owner's vectors get gradients of zero."""

    sharding: Sharding
    optimizer: TableOptimizer = TableOptimizer.rowwise_adagrad
    others: dict[str, Sharding] = {}
    modes: dict[str, IdMode] = {}
    zeros: bool = False

    @property
    def name(self) -> str:
        kinds = [f"{table}-{kind.value}" for table, kind in (self.others | self.modes).items()]
        return "-".join([self.sharding.value, self.optimizer.value, *kinds, *(["zeros"] if self.zeros else [])])


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """Rows by table: those that differ from before, those taken, those as they are when they begin anew; how often
    rows changed hands so far."""

    changed: dict[str, list[int]]
    taken: dict[str, list[int]]
    fresh: dict[str, list[int]]
    num_evicted: int


def build(case: Case, world: World) -> tuple[DistributedModelParallel, IdMaps]:
    rows = {name: MANAGED_ROWS if case.modes.get(name) is IdMode.managed else size[0] for name, size in SHAPES.items()}
    specs = [
        TableSpec(name=name, num_rows=rows[name], dim=dim, sharding=case.others.get(name, case.sharding))
        for name, (_, dim) in SHAPES.items()
    ]
    managed = ManagedConfig(policy=Policy.lru, admit_after=1, max_age_steps=8)
    ids = [
        IdSpec(
            name=name, mode=case.modes.get(name, IdMode.direct), num_rows=rows[name], hash=HashVariant.double,
            managed=managed,
        )
        for name in SHAPES
    ]  # fmt: skip
    plan = fixed_plan(specs, world_size=world.size, local_size=world.local_size, device="cpu", optimizer=case.optimizer)
    maps = IdMaps(ids, blocks=managed_blocks(plan, ids, rank=world.rank))
    tables = Tables(specs, ids=maps)
    fuse_optimizer(tables, optimizer=case.optimizer, learning_rate=0.1, eps=1e-8)
    return shard(Model(tables), plan=plan, device=CPU, seed=3, init_range=0.05), maps


def forward(model: DistributedModelParallel, rng: np.random.Generator) -> list[Tensor]:
    """A batch of this rank's own: unknown ids, owners without tags, and sometimes no owner at all."""
    owners = int(rng.choice([0, NUM_OWNERS, NUM_OWNERS], 1)[0])
    lengths = rng.integers(0, 4, owners)
    history, candidate, kind, tags = (
        torch.from_numpy(rng.integers(low, NUM_KEYS, size))
        for low, size in ((-2, owners), (0, owners), (0, owners), (0, int(lengths.sum())))
    )
    found: list[Tensor] = model(history, candidate, kind, Jagged(values_N=tags, lengths=torch.from_numpy(lengths)))
    return found


def act(model: DistributedModelParallel, action: str, rng: np.random.Generator, *, zeros: bool) -> None:
    model.train(action in ("learn", "refuse"))
    if action == "evaluate":
        with torch.no_grad():
            forward(model, rng)
        return
    answers = forward(model, rng)
    if action != "learn":
        return
    gradients = [torch.from_numpy(rng.normal(size=tuple(answer.shape))).float() for answer in answers]
    for gradient in gradients:
        gradient[-1:] *= 0.0 if zeros else 1.0
    model.zero_grad()
    torch.stack([(a * g).sum() for a, g in zip(answers, gradients, strict=True)]).sum().backward()


def snapshot(model: DistributedModelParallel) -> list[tuple[Tensor, ...]]:
    """Weights and state of each block held, a line a row."""
    return [
        tuple(value.reshape(value.shape[0], -1).clone() for value in (one.weight_ND, *one.state.values()))
        for one in table_shards(model)
    ]


def changed(model: DistributedModelParallel, before: list[tuple[Tensor, ...]]) -> dict[str, list[int]]:
    found: dict[str, set[int]] = {}
    for one, old, new in zip(table_shards(model), before, snapshot(model), strict=True):
        differs = torch.stack([(a != b).any(1) for a, b in zip(old, new, strict=True)]).any(0)
        found.setdefault(one.name, set()).update((differs.nonzero().squeeze(1) + one.first_row).tolist())
    return {name: sorted(rows) for name, rows in found.items()}


def fresh(model: DistributedModelParallel) -> dict[str, list[int]]:
    """Of the managed table: rows that begin anew a second time, without having learnt, are not changed by it."""
    values = model.module.tables.first_values
    found = {}
    for one in table_shards(model):
        row_N = torch.arange(one.first_row, one.first_row + one.weight_ND.shape[0])
        again_ND = values.again(row_N, table=one.name, first_column=one.first_column, num_columns=one.num_columns)
        found[one.name] = row_N[(again_ND == one.weight_ND).all(1)].tolist()
    return found


def taken(touched: TouchedRows) -> dict[str, list[int]]:
    """By way of a save that came to nothing."""
    counts = touched.count()
    first = touched.take()
    assert set(touched.count().values()) <= {0}
    touched.put_back(first)
    again = touched.take()
    assert {name: len(rows) for name, rows in again.items()} == counts
    assert all(torch.equal(rows, again[name]) for name, rows in first.items())
    return {name: rows.tolist() for name, rows in again.items()}


def run(case: Case, world: World, *, number: int) -> list[Round]:
    model, maps = build(case, world)
    touched = track_touched(model)
    actions = np.random.default_rng([7, number])
    own = np.random.default_rng([8, number, world.rank])
    rounds = []
    for _ in range(NUM_ROUNDS):
        before = snapshot(model)
        for action in ("learn", *actions.choice(["learn", "refuse", "evaluate", "look up"], 4), "refuse"):
            act(model, str(action), own, zeros=case.zeros)
        num_evicted = sum(figures.num_evicted for figures in maps.figures().values())
        rounds.append(
            Round(
                changed=changed(model, before), taken=taken(touched), fresh=fresh(model), num_evicted=num_evicted
            )
        )  # fmt: skip
    return rounds


if __name__ == "__main__":
    torch.set_num_threads(1)
    cases = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=list[Case])
    with process_group(device=CPU) as here:
        result = [run(case, here, number=number) for number, case in enumerate(cases)]
    sys.stdout.write(msgspec.json.encode(result).decode())
