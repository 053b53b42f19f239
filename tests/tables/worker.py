"""A few steps of lookups with gradients on one rank, for each of many cases; saves, loads, and prints what it holds.

The requests are fixed by the step and cut between ranks, so that any number of them does the same global work.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor, nn
from torchrec.distributed.model_parallel import DistributedModelParallel

from stack.base.dist import World, process_group
from stack.checkpoint.chain import chain_of
from stack.checkpoint.config import CheckpointConfig
from stack.checkpoint.load import open_version
from stack.checkpoint.manifest import Context, Lineage, LoopState
from stack.checkpoint.save import ChainWriter, Facts
from stack.checkpoint.snapshot import State
from stack.data.batch import Jagged
from stack.data.loader import Cursor
from stack.tables.collection import Tables
from stack.tables.config import Communication, RowType, Sharding, TableOptimizer, TableSpec
from stack.tables.layout import fixed_plan
from stack.tables.optim import fuse_optimizer
from stack.tables.shard import reset_rows, shard, shardings, table_shards
from stack.train.saving import crew
from tests.prepared import SCHEMA

SHAPES = {"item": (23, 12), "type": (7, 4), "tags": (11, 8)}
SEED, INIT_RANGE, LEARNING_RATE, EPS = 3, 0.05, 0.1, 1e-8
NUM_STEPS, NUM_OWNERS = 4, 12
CUTS = {1: (0, 12), 2: (0, 8, 12), 4: (0, 5, 5, 8, 12)}
"""Owners by rank: uneven on purpose; the second of four has none."""
RESET_ROWS = (0, 5, 13, 22)
LOOP = LoopState(step=1, epoch=0, cursor=Cursor())
CONTEXT = Context(
    schema=SCHEMA, config_digest="", data_days=("2016-07-18",), vocabulary_digests={}, code_version="test"
)


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One sharding of the tables (`others`: exceptions by table), with an optimizer and a type of rows."""

    sharding: Sharding
    optimizer: TableOptimizer = TableOptimizer.rowwise_adagrad
    dtype: RowType = RowType.fp32
    others: dict[str, Sharding] = {}
    communication: Communication = Communication.fp32

    @property
    def name(self) -> str:
        parts = (self.sharding, self.optimizer, self.dtype, self.communication)
        return "-".join([*(part.value for part in parts), *(f"{k}-{v.value}" for k, v in self.others.items())])

    def specs(self) -> list[TableSpec]:
        return [
            TableSpec(
                name=name, num_rows=rows, dim=dim, sharding=self.others.get(name, self.sharding), dtype=self.dtype
            )
            for name, (rows, dim) in SHAPES.items()
        ]


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What a run of ranks does: trains and saves `cases`, then loads what was saved elsewhere into other cases."""

    folder: str
    cases: list[Case] = []
    loads: list[tuple[str, Case]] = []


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """A block of a table on one rank; state is flat."""

    name: str
    num_rows: int
    dim: int
    first_row: int
    first_column: int
    written: bool
    dtype: str
    weight: list[list[float]]
    state: dict[str, list[float]]


class Trained(msgspec.Struct, frozen=True, kw_only=True):
    """`answers` by step and request, for this rank's owners; `scale_gradient` by step; `reset`: after `reset_rows`."""

    answers: list[list[list[list[float]]]]
    scale_gradient: list[float]
    held: list[Held]
    reset: list[Held]


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What one rank prints; `loaded` with the names of the tables whose state was merged."""

    trained: list[Trained]
    loaded: list[tuple[list[Held], list[str]]]


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


def build(case: Case, world: World, *, seed: int = SEED) -> DistributedModelParallel:
    """The case's model over the processes there are."""
    specs = case.specs()
    tables = Tables(specs)
    fuse_optimizer(tables, optimizer=case.optimizer, learning_rate=LEARNING_RATE, eps=EPS)
    plan = fixed_plan(specs, world_size=world.size, local_size=world.local_size, device="cpu", optimizer=case.optimizer)
    return shard(
        Model(tables), plan=plan, device=torch.device("cpu"), seed=seed, init_range=INIT_RANGE,
        communication=case.communication,
    )  # fmt: skip


def train(model: DistributedModelParallel, world: World) -> tuple[list[list[list[list[float]]]], list[float]]:
    """The answers of each step, and the gradient of the dense parameter, which stays as it is."""
    mine = slice(*CUTS[world.size][world.rank : world.rank + 2])
    all_answers, gradients = [], []
    for step in range(NUM_STEPS):
        history, candidate, kind, tags = requests(step)
        own_tags = tags[mine]
        jagged = Jagged(
            values_N=torch.tensor([tag for owner in own_tags for tag in owner], dtype=torch.int64),
            lengths=torch.tensor([len(owner) for owner in own_tags], dtype=torch.int64),
        )
        answers = model(*(torch.from_numpy(ids[mine]) for ids in (history, candidate, kind)), jagged)
        incoming = [torch.from_numpy(targets(step, v.shape[1], i)[mine]) for i, v in enumerate(answers)]
        loss = torch.stack([(vectors * gradient).sum() for vectors, gradient in zip(answers, incoming, strict=True)])
        model.zero_grad()
        (loss.sum() * world.size).backward()  # TorchRec and DDP average over ranks; the job sums
        all_answers.append([vectors.tolist() for vectors in answers])
        gradients.append(float(model.module.scale.grad))
    return all_answers, gradients


def held(model: DistributedModelParallel) -> list[Held]:
    return [
        Held(
            name=rows.name, num_rows=rows.num_rows, dim=rows.dim, first_row=rows.first_row,
            first_column=rows.first_column, written=rows.written, dtype=str(rows.weight_ND.dtype),
            weight=rows.weight_ND.tolist(), state={key: value.flatten().tolist() for key, value in rows.state.items()},
        )
        for rows in table_shards(model)
    ]  # fmt: skip


def save_whole(model: DistributedModelParallel, folder: Path) -> None:
    writer = ChainWriter(chain_of(folder, for_writing=True), options=CheckpointConfig(), crew=crew(patience_seconds=60))
    state = State(tables=tuple(sorted(shardings(model))), shards=table_shards(model), dense={}, optimizer={}, loop=LOOP)
    writer.save(state, Facts(step=1, complete=True, context=CONTEXT, lineage=Lineage(verb="train")))
    writer.wait()


def run(order: Order, world: World) -> Done:
    trained, loaded = [], []
    for case in order.cases:
        model = build(case, world)
        answers, gradients = train(model, world)
        at_end = held(model)
        save_whole(model, Path(order.folder) / case.name)
        reset_rows(model, "item", torch.tensor(RESET_ROWS))
        trained.append(Trained(answers=answers, scale_gradient=gradients, held=at_end, reset=held(model)))
    for path, case in order.loads:
        model = build(case, world, seed=99)
        chain = chain_of(Path(path))
        merged = open_version(chain, chain.find(None)).restore(table_shards(model))
        loaded.append((held(model), merged))
    return Done(trained=trained, loaded=loaded)


if __name__ == "__main__":
    torch.set_num_threads(1)
    given = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Order)
    with process_group(device=torch.device("cpu")) as here:
        result = run(given, here)
    sys.stdout.write(msgspec.json.encode(result).decode())
