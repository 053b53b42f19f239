"""Ways to know which rows of a table changed since the last save: what each costs a step, a save, and in memory.

All are told of the same distinct ids of a step and must come to the same rows. Beside them, steps of a real table
without and with `stack.tables.touched`, which also looks through the gradients.

Legend: N distinct ids of a step, R rows of the table.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from stack.base.dist import process_group
from stack.base.seed import derive
from stack.tables.collection import Tables
from stack.tables.config import TableOptimizer, TableSpec
from stack.tables.layout import fixed_plan
from stack.tables.optim import fuse_optimizer
from stack.tables.shard import shard, tables_in
from stack.tables.touched import track_touched
from stack.train.build import build_loop
from tools.bench.assembly import workload_of
from tools.bench.harness import Figure, interleaved, ratio, seconds_of

NUM_IDS = (20_000, 200_000)
STEPS_PER_SAVE = 20
DIM, MOST_ROWS_WITH_WEIGHTS = 32, 10_000_000
_CPU = torch.device("cpu")
_NAME = "item"


class Way(ABC):
    """Told of distinct ids step by step, and asked for all of them, ascending."""

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """Memory held before a save."""

    @abstractmethod
    def mark(self, id_N: Tensor) -> None: ...

    @abstractmethod
    def take(self) -> Tensor: ...


class Bytes(Way):
    """What `stack.tables.touched` does."""

    def __init__(self, num_rows: int) -> None:
        self._mark_R = torch.zeros(num_rows, dtype=torch.bool)

    @property
    def num_bytes(self) -> int:
        return self._mark_R.nbytes

    def mark(self, id_N: Tensor) -> None:
        self._mark_R.index_fill_(0, id_N, True)

    def take(self) -> Tensor:
        found = self._mark_R.nonzero().squeeze(1)
        self._mark_R.zero_()
        return found


class Bits(Way):
    """Eight rows share a byte. torch has no scatter by "or": one pass for each bit, in which no two ids want a byte."""

    def __init__(self, num_rows: int) -> None:
        self._mark = torch.zeros(-(-num_rows // 8), dtype=torch.uint8)

    @property
    def num_bytes(self) -> int:
        return self._mark.nbytes

    def mark(self, id_N: Tensor) -> None:
        place_N, bit_N = id_N >> 3, id_N & 7
        for bit in range(8):
            place = place_N[bit_N == bit]
            self._mark.index_copy_(0, place, self._mark.index_select(0, place) | (1 << bit))

    def take(self) -> Tensor:
        place = self._mark.nonzero()
        found = ((self._mark[place] >> torch.arange(8, dtype=torch.uint8)) & 1).nonzero()
        self._mark.zero_()
        return place[found[:, 0], 0] * 8 + found[:, 1]


class Kept(Way):
    """All ids as they come, made distinct at the save."""

    def __init__(self, _num_rows: int) -> None:
        self._ids: list[Tensor] = []

    @property
    def num_bytes(self) -> int:
        return sum(id_N.nbytes for id_N in self._ids)

    def mark(self, id_N: Tensor) -> None:
        self._ids.append(id_N.clone())

    def take(self) -> Tensor:
        ids, self._ids = self._ids, []
        found: Tensor = torch.unique(torch.cat(ids))
        return found


class Compared(Way):
    """The optimizer's state (row-wise: a number for each row) against a copy of it. A step only moves the state, as it
    would anyway, so its time is not this way's cost."""

    def __init__(self, num_rows: int) -> None:
        self._state_R = torch.zeros(num_rows)
        self._copy_R = self._state_R.clone()

    @property
    def num_bytes(self) -> int:
        return self._copy_R.nbytes

    def mark(self, id_N: Tensor) -> None:
        self._state_R.index_add_(0, id_N, torch.ones(id_N.shape[0]))

    def take(self) -> Tensor:
        found = (self._state_R != self._copy_R).nonzero().squeeze(1)
        self._copy_R.copy_(self._state_R)
        return found


WAYS: dict[str, Callable[[int], Way]] = {
    "a byte a row": Bytes,
    "a bit a row": Bits,
    "all ids kept": Kept,
    "state compared": Compared,
}


def measure(overrides: list[str], *, num_rounds: int, rows: Sequence[int]) -> list[Figure]:
    """Milliseconds on one thread, and the share of a training job's steps. Raises `AssertionError` where two ways come
    to other rows."""
    torch.set_num_threads(1)
    figures = _in_training(overrides, num_rounds=num_rounds) if overrides else []
    for num_rows, num_ids in itertools.product(rows, NUM_IDS):
        figures += _ways(num_rows, num_ids, num_rounds=num_rounds)
        if num_rows <= MOST_ROWS_WITH_WEIGHTS:
            figures += _steps(num_rows, num_ids, num_rounds=num_rounds)
    return figures


def _ways(num_rows: int, num_ids: int, *, num_rounds: int) -> list[Figure]:
    """A round is `STEPS_PER_SAVE` steps and a save."""
    ways = {name: make(num_rows) for name, make in WAYS.items()}
    seconds: dict[tuple[str, str], list[float]] = {(name, what): [] for name in ways for what in ("step", "save")}
    num_bytes: dict[str, int] = {}
    for number in range(1 + num_rounds):
        batches = [_ids(num_rows, num_ids, number * STEPS_PER_SAVE + step) for step in range(STEPS_PER_SAVE)]
        found: list[Tensor] = []
        for name in ways if number % 2 == 0 else reversed(ways):
            steps = [seconds_of(partial(ways[name].mark, id_N)) for id_N in batches]
            num_bytes[name] = ways[name].num_bytes
            started = time.perf_counter()
            found.append(ways[name].take())
            if number:
                seconds[name, "save"].append(time.perf_counter() - started)
                seconds[name, "step"].append(sum(steps) / len(steps))
        assert all(torch.equal(rows, found[0]) for rows in found), "the ways come to other rows"
    case = f"{num_rows:,} rows, {num_ids:,} ids"
    times = [
        Figure(name=f"{case}: {name}, a {what}", unit="ms", values=tuple(1e3 * value for value in values))
        for (name, what), values in seconds.items()
        if (name, what) != ("state compared", "step")
    ]
    return times + [
        Figure(name=f"{case}: {name}, memory", unit="MiB", values=(value / 2**20,)) for name, value in num_bytes.items()
    ]


def _steps(num_rows: int, num_ids: int, *, num_rounds: int) -> list[Figure]:
    """Look-up, backward and update of a table."""
    with process_group(device=_CPU):
        plain, tracked = _model(num_rows), _model(num_rows)
        touched = track_touched(tracked)
        numbers = {name: itertools.count() for name in ("without", "with")}

        def step(name: str, model: nn.Module) -> float:
            id_N = _ids(num_rows, num_ids, next(numbers[name]))
            gradient_ND = torch.randn(id_N.shape[0], DIM, generator=torch.Generator().manual_seed(1))
            return seconds_of(lambda: (model(id_N) * gradient_ND).sum().backward())

        variants = {"without": lambda: step("without", plain), "with": lambda: step("with", tracked)}
        found = interleaved(variants, num_rounds=3 * num_rounds, num_warmup=2)
        assert touched.count()[_NAME] > 0
    case = f"{num_rows:,} rows, {num_ids:,} ids"
    figures = [
        Figure(name=f"{case}: step of a table {name}", unit="ms", values=tuple(1e3 * value for value in values))
        for name, values in found.items()
    ]
    return [*figures, ratio(f"{case}: step of a table with over without", found["with"], found["without"])]


def _in_training(overrides: list[str], *, num_rounds: int) -> list[Figure]:
    """What part of the time of a job's steps goes by inside `TouchedRows`; a round is `STEPS_PER_SAVE` of them."""
    spent = 0.0  # seconds

    def timed(given: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: object, **named: object) -> None:
            nonlocal spent
            spent += seconds_of(partial(given, *arguments, **named))

        return call

    workload = workload_of(overrides, num_batches=0)
    with tempfile.TemporaryDirectory() as folder, process_group(device=_CPU):
        setup = workload.in_folder(Path(folder))
        setup.run.folder.mkdir(parents=True)
        loop = build_loop(setup, device=_CPU, checkpoint=None)
        touched = track_touched(loop.stepper.model)
        touched._learnt = timed(touched._learnt)  # type: ignore[method-assign]
        for _, tables in tables_in(loop.stepper.model):
            if tables.replicated is not None:
                tables.replicated.changed = timed(touched.add)
        batches = iter(loop.loader)
        steps, shares = itertools.count(), []
        for _ in range(1 + num_rounds):
            spent, whole = 0.0, 0.0
            for batch in itertools.islice(batches, STEPS_PER_SAVE):
                whole += seconds_of(partial(loop.stepper, batch, step=next(steps), asked_to_stop=False))
            shares.append(100 * spent / whole)
        for periodic in loop.periodics:
            periodic.close()
    return [Figure(name="of a training step", unit="%", values=tuple(shares[1:]))]


class _Model(nn.Module):
    """A table, with one dense parameter, as DDP needs one."""

    def __init__(self, tables: Tables) -> None:
        super().__init__()
        self.tables = tables
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, id_N: Tensor) -> Tensor:
        vectors: Tensor = self.tables({_NAME: [id_N]})[_NAME][0]
        return vectors * self.scale


def _model(num_rows: int) -> nn.Module:
    specs = [TableSpec(name=_NAME, num_rows=num_rows, dim=DIM)]
    tables = Tables(specs)
    optimizer = TableOptimizer.rowwise_adagrad
    fuse_optimizer(tables, optimizer=optimizer, learning_rate=0.02, eps=1e-8)
    plan = fixed_plan(specs, world_size=1, local_size=1, device="cpu", optimizer=optimizer)
    model: nn.Module = shard(_Model(tables), plan=plan, device=_CPU, seed=1, init_range=0.05).train()
    return model


def _ids(num_rows: int, num_ids: int, number: int) -> Tensor:
    """Distinct uniform ids of step `number`: the worst for every cache."""
    generator = torch.Generator().manual_seed(derive(0, num_rows, num_ids, number))
    distinct: Tensor = torch.unique(torch.randint(num_rows, (num_ids,), generator=generator))
    return distinct
