"""Chains of known content for tests: a toy of tables that changes in steps and saves itself through `ChainWriter`, by
any number of processes (threads that meet at a barrier), in any blocks of rows and columns.

    toy = Toy(seed=0, tables={"item": (11, 4)}, managed={"user": (9, 2)})
    toy.train(); toy.save(chain)                                    # version 1, a base
    toy.train(rows=2); toy.evict("user"); toy.save(chain, world_size=3, blocks={"item": (2, 2)})
    expected = toy.copy()                                           # what version 2 says, for `check`

Row-wise state differs by block of columns, as it does in training: `momentum` of a block is the toy's plus the block's
first column.
"""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from stack.checkpoint.chain import Chain, chain_of
from stack.checkpoint.config import CheckpointConfig
from stack.checkpoint.crew import Crew
from stack.checkpoint.load import open_version
from stack.checkpoint.manifest import Context, Lineage, LoopState, VersionManifest
from stack.checkpoint.save import ChainWriter, Facts
from stack.checkpoint.snapshot import State
from stack.data.loader import Cursor
from stack.ids.managed import MapState
from stack.tables.rows import TableShard
from tests.prepared import SCHEMA

T = TypeVar("T")
ROWWISE, ELEMENTWISE = "momentum", "second"
DELTAS = CheckpointConfig(whole_share=1.0, max_deltas=1000)
"""Writes a delta wherever one is possible."""


class Meeting:
    """What threads that play processes say to each other."""

    def __init__(self, world_size: int) -> None:
        self._barrier = threading.Barrier(world_size, timeout=60)
        self._said: list[object] = [None] * world_size

    def crew(self, rank: int, *, patience_seconds: float = 60.0) -> Crew:
        def gather(value: T) -> list[T]:
            self._said[rank] = value
            self._barrier.wait()
            said = list(self._said)
            self._barrier.wait()
            return said  # type: ignore[return-value]

        return Crew(
            rank=rank,
            world_size=len(self._said),
            totals=lambda values: [float(sum(column)) for column in zip(*gather(list(values)), strict=True)],
            from_first=lambda data: gather(data)[0],
            patience_seconds=patience_seconds,
        )


def together(world_size: int, body: Callable[[int], T]) -> list[T | Exception]:
    """What each rank returned or raised."""
    results: list[T | Exception] = [RuntimeError("did not end")] * world_size

    def one(rank: int) -> None:
        try:
            results[rank] = body(rank)
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


class Toy:
    """Tables (rows, columns) with a row-wise and an element-wise optimizer state, and managed ones with their keys."""

    def __init__(
        self, *, seed: int = 0, tables: Mapping[str, tuple[int, int]], managed: Mapping[str, tuple[int, int]] = {}
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.weight: dict[str, Tensor] = {}
        self.state: dict[str, dict[str, Tensor]] = {}
        self.changed: dict[str, set[int]] = {}
        self.keys: dict[str, dict[int, list[int]]] = {name: {} for name in managed}
        """By key: row, count, last."""
        self.gone: dict[str, dict[int, int]] = {name: {} for name in managed}
        """By key that lost its row since the last save: the row."""
        self.step = 0
        self.saved_clock = 0
        self.parent: VersionManifest | None = None
        for name, (num_rows, dim) in {**tables, **managed}.items():
            self.weight[name] = torch.zeros(0, dim)
            self.state[name] = {ROWWISE: torch.zeros(0), ELEMENTWISE: torch.zeros(0, dim)}
            self.changed[name] = set()
            self.grow(name, num_rows)

    def copy(self) -> Toy:
        """As it is now, to compare with later."""
        return copy.deepcopy(self)

    def grow(self, table: str, num_rows: int) -> None:
        """Adds rows to the end of a table."""
        dim = self.weight[table].shape[1]
        self.weight[table] = torch.cat([self.weight[table], self._draw(num_rows, dim)])
        for name, value in self.state[table].items():
            self.state[table][name] = torch.cat([value, self._draw(num_rows, *value.shape[1:])])

    def train(self, *, rows: int = 3) -> None:
        """A step: some rows of each table change, some keys of the managed ones are seen, new ones among them."""
        self.step += 1
        for table, weight in self.weight.items():
            if table in self.keys:
                self._see(table, self.rng.integers(-(2**40), 2**40, size=rows).tolist())
            else:
                self.touch(table, self.rng.integers(0, len(weight), size=min(rows, len(weight))).tolist())

    def touch(self, table: str, rows: Sequence[int]) -> None:
        """Changes rows."""
        at = torch.tensor(sorted(set(rows)), dtype=torch.int64)
        self.weight[table][at] = self._draw(len(at), self.weight[table].shape[1])
        for value in self.state[table].values():
            value[at] = self._draw(len(at), *value.shape[1:])
        self.changed[table] |= set(rows)

    def evict(self, table: str, number: int = 1) -> list[int]:
        """Takes the rows from some keys, and gives them."""
        worst = sorted(self.keys[table], key=lambda key: (self.keys[table][key][2], key))[:number]
        for key in worst:
            self.gone[table][key] = self.keys[table].pop(key)[0]
        return worst

    def _see(self, table: str, new: Sequence[int]) -> None:
        held = self.keys[table]
        old = list(held)
        seen = [old[at] for at in self.rng.integers(0, len(old), size=len(new)).tolist()] if old else []
        back = list(self.gone[table])[: self.rng.integers(0, 2)]  # a key that was evicted comes back
        for key in {*seen, *new, *back}:
            if key not in held:
                if len(held) + 1 >= len(self.weight[table]):
                    self.evict(table)
                taken = {row for row, _, _ in held.values()}
                held[key] = [next(row for row in range(1, len(self.weight[table])) if row not in taken), 0, 0]
            held[key] = [held[key][0], held[key][1] + 1, self.step]
            self.touch(table, [held[key][0]])

    def _draw(self, *shape: int) -> Tensor:
        return torch.from_numpy(self.rng.standard_normal(shape, dtype=np.float32))

    def map_state(self, table: str, first: int = 0, last: int | None = None) -> MapState:
        """Of the keys with rows in a range."""
        last = len(self.weight[table]) if last is None else last
        held = sorted((key, *about) for key, about in self.keys[table].items() if first <= about[0] < last)
        columns = list(zip(*held, strict=True)) or [(), (), (), ()]
        key, row, count, seen = (torch.tensor(column, dtype=torch.int64) for column in columns)
        none = torch.empty(0, dtype=torch.int64)
        waiting = torch.tensor([3 + first], dtype=torch.int64)
        return MapState(
            clock=self.step, queue_clock=0, key_N=key, row_N=row, count_N=count.int(), last_N=seen.int(),
            waiting_key_W=waiting, waiting_count_W=torch.ones(1, dtype=torch.int32), queue_Q=none, freed_F=none,
            pending_P=none, pending_step_P=none,
        )  # fmt: skip

    def dense(self) -> dict[str, Tensor]:
        return {"head.weight": torch.full((2, 3), float(self.step)), "norm.num_batches": torch.tensor(self.step)}

    def optimizer(self) -> dict[str, Tensor]:
        return {"head.weight/exp_avg": torch.full((2, 3), self.step / 8)}

    def loop(self) -> LoopState:
        return LoopState(step=self.step, epoch=0, cursor=Cursor(epoch=0, block=0, step=self.step))

    def context(self, day: str) -> Context:
        return Context(
            schema=SCHEMA, config_digest="c0ffee", data_days=(day,), vocabulary_digests={"item": "ab12"},
            code_version="test",
        )  # fmt: skip

    def save(
        self,
        chain: Chain,
        *,
        world_size: int = 1,
        blocks: Mapping[str, Sequence[int]] = {},
        options: CheckpointConfig = DELTAS,
        complete: bool = True,
        day: str = "2017-11-01",
        lineage: Lineage | None = None,
        rewritten: Sequence[str] = (),
        keep: bool = False,
        after: Callable[[VersionManifest], None] | None = None,
    ) -> VersionManifest:
        """The next version, a delta over the one saved before where that can be; a job of its own. `blocks`: widths of
        the blocks of columns, by table. With `keep` the toy stays as it was before: what it did is not saved yet."""
        meeting = Meeting(world_size)
        lineage = lineage or Lineage(verb="train", day=day)
        facts = Facts(
            step=self.step, complete=complete, context=self.context(day), lineage=lineage,
            shardings=dict.fromkeys(self.weight, "row_wise"), metrics={"loss/click": 1 / (1 + self.step)},
        )  # fmt: skip

        def one(rank: int) -> VersionManifest | None:
            writer = ChainWriter(
                chain, options=options, crew=meeting.crew(rank), parent=self.parent,
                clocks=dict.fromkeys(self.keys, self.saved_clock), rewritten=rewritten, after=after,
            )  # fmt: skip
            writer.save(self._state(rank, world_size, blocks), facts)
            return writer.wait()

        results = together(world_size, one)
        for result in results:
            if isinstance(result, Exception):
                raise result
        saved = results[0]
        assert isinstance(saved, VersionManifest)
        if not keep:
            self.parent, self.saved_clock = saved, self.step
            for name in self.changed:
                self.changed[name] = set()
            for name in self.gone:
                self.gone[name] = {}
        return saved

    def _state(self, rank: int, world_size: int, blocks: Mapping[str, Sequence[int]]) -> State:
        shards = [shard for name in self.weight for shard in self._shards(name, rank, world_size, blocks.get(name))]
        ranges = {name: self._range(name, rank, world_size) for name in self.keys}
        return State(
            tables=tuple(self.weight),
            shards=shards,
            dense=self.dense() if rank == 0 else {},
            optimizer=self.optimizer() if rank == 0 else {},
            loop=self.loop(),
            changed={
                name: torch.tensor(sorted(rows), dtype=torch.int64)
                for name, rows in self.changed.items()
                if name not in self.keys
            },
            maps={name: self.map_state(name, *ranges[name]) for name in self.keys},
            gone={
                name: torch.tensor(
                    [key for key in sorted(gone) if _inside(gone[key], ranges[name]) and key not in self.keys[name]],
                    dtype=torch.int64,
                )
                for name, gone in self.gone.items()
            },
        )

    def _range(self, table: str, place: int, world_size: int) -> tuple[int, int]:
        num_rows = len(self.weight[table])
        step = -(-num_rows // world_size)
        return min(place * step, num_rows), min((place + 1) * step, num_rows)

    def _shards(self, table: str, rank: int, world_size: int, widths: Sequence[int] | None) -> list[TableShard]:
        """The rows of a rank: another range in each block of columns."""
        weight = self.weight[table]
        bounds = list(itertools.accumulate(widths or (weight.shape[1],), initial=0))
        assert bounds[-1] == weight.shape[1]
        shards = []
        for number, (left, right) in enumerate(itertools.pairwise(bounds)):
            first, last = self._range(table, (rank + number) % world_size, world_size)
            if first == last and first:
                continue
            state = self.state[table]
            shards.append(
                TableShard(
                    name=table, num_rows=len(weight), dim=weight.shape[1], first_row=first, first_column=left,
                    weight_ND=weight[first:last, left:right],
                    state={
                        ROWWISE: state[ROWWISE][first:last] + left,
                        ELEMENTWISE: state[ELEMENTWISE][first:last, left:right],
                    },
                )
            )  # fmt: skip
        return shards


def _inside(row: int, bounds: tuple[int, int]) -> bool:
    return bounds[0] <= row < bounds[1]


def check(chain: Chain, version: VersionManifest, expected: Toy) -> None:
    """Asserts that a version says what the toy was when it was saved; weights and element-wise state."""
    checkpoint = open_version(chain, version)
    assert set(checkpoint.manifest.tables) == set(expected.weight)
    for table, weight in expected.weight.items():
        read = checkpoint.table_rows(table, 0, len(weight))
        if table not in expected.keys:
            assert torch.equal(read.weight_ND, weight), table
            assert torch.equal(read.state[ELEMENTWISE], expected.state[table][ELEMENTWISE]), table
            continue
        wanted, found = expected.map_state(table), checkpoint.map_state(table)
        for name in ("key_N", "row_N", "count_N", "last_N"):
            assert torch.equal(getattr(found, name), getattr(wanted, name)), (table, name)
        rows = torch.cat([torch.zeros(1, dtype=torch.int64), wanted.row_N])
        assert torch.equal(read.weight_ND[rows], weight[rows]), table
    assert all(torch.equal(value, checkpoint.dense()[name]) for name, value in expected.dense().items())
    assert checkpoint.loop() == expected.loop()


def same(one: TableShard, other: TableShard) -> bool:
    """Bit for bit, zeros of either sign apart."""
    return (
        replace(one, weight_ND=other.weight_ND, state=other.state) == other
        and _bits(one.weight_ND, other.weight_ND)
        and one.state.keys() == other.state.keys()
        and all(_bits(value, other.state[name]) for name, value in one.state.items())
    )


def _bits(one: Tensor, other: Tensor) -> bool:
    kind = {2: torch.int16, 4: torch.int32}[one.itemsize]
    return one.shape == other.shape and torch.equal(one.contiguous().view(kind), other.contiguous().view(kind))


def random_chain(folder: Path, *, seed: int, num_versions: int = 6) -> tuple[Chain, dict[int, Toy]]:
    """A chain with everything in it: several worlds, blocks of columns, bases in between, growth, evictions, saves in
    mid-training; and what each version says."""
    rng = np.random.default_rng(seed)
    chain = chain_of(folder, for_writing=True)
    toy = Toy(seed=seed, tables={"item": (11, 6), "shop": (3, 2)}, managed={"user": (9, 2)})
    said: dict[int, Toy] = {}
    for number in range(1, num_versions + 1):
        toy.train(rows=int(rng.integers(0, 4)))
        if rng.random() < 0.3:
            toy.grow("item", int(rng.integers(1, 4)))
        if rng.random() < 0.3:
            toy.evict("user", 2)
        base = rng.random() < 0.15
        saved = toy.save(
            chain,
            world_size=int(rng.integers(1, 4)),
            blocks={"item": ((6,), (2, 4), (3, 2, 1))[int(rng.integers(0, 3))]},
            options=replace(DELTAS, part_mib=1, whole_share=0.01 if base else 1.0),
            complete=bool(rng.random() < 0.6),
            day=f"2017-11-{number:02d}",
        )
        said[saved.version] = toy.copy()
    return chain, said
