"""What is saved comes back: any version, at any split of rows and columns, against tables kept in plain arrays."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stack.base.errors import CheckpointError
from stack.checkpoint.chain import Chain, chain_of
from stack.checkpoint.config import CheckpointConfig
from stack.checkpoint.load import open_version
from stack.checkpoint.manifest import VersionManifest
from stack.checkpoint.posix_store import PosixStore
from stack.checkpoint.save import ChainWriter
from stack.checkpoint.snapshot import State
from stack.tables.rows import TableShard
from tests.checkpoint.chains import DELTAS, ELEMENTWISE, ROWWISE, Meeting, Toy, check, random_chain, together
from tests.checkpoint.fault_worker import facts_of, save_day, toy_before

Splits = dict[str, list[tuple[int, int, int, int, int]]]
"""By table, its shards: rank, first row, rows, first column, columns."""
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(kw_only=True)
class Said:
    """What a version must give back of a table. `blocks` and `rowwise`: by row the blocks of columns in which it was
    written last, and the row-wise state of each."""

    dtype: torch.dtype
    weight: np.ndarray
    second: np.ndarray
    blocks: list[list[tuple[int, int]]]
    rowwise: list[list[np.float32]]

    def check(self, shard: TableShard) -> None:
        rows, first = range(shard.first_row, shard.first_row + len(shard.weight_ND)), shard.first_column
        columns = slice(first, first + shard.num_columns)
        assert shard.weight_ND.dtype == self.dtype
        assert np.array_equal(shard.weight_ND.float().numpy(), self.weight[list(rows), columns])
        assert np.array_equal(shard.state[ELEMENTWISE].numpy(), self.second[list(rows), columns])
        for place, row in enumerate(rows):
            found = np.float32(shard.state[ROWWISE][place].item())
            parts = [
                (value, common)
                for (start, width), value in zip(self.blocks[row], self.rowwise[row], strict=True)
                if (common := min(start + width, first + shard.num_columns) - max(start, first)) > 0
            ]
            if len(parts) == 1:
                assert found == parts[0][0]
            else:  # the mean over columns
                wanted = sum(float(value) * common for value, common in parts) / shard.num_columns
                assert abs(found - wanted) <= 1e-6 * max(1, abs(wanted))


@dataclass(kw_only=True)
class Model:
    """Tables in plain arrays, and what training changes of them. `rowwise` has a number for each column that a block
    may begin with."""

    rng: np.random.Generator
    dtype: dict[str, torch.dtype]
    weight: dict[str, np.ndarray] = field(default_factory=dict)
    second: dict[str, np.ndarray] = field(default_factory=dict)
    rowwise: dict[str, np.ndarray] = field(default_factory=dict)
    changed: dict[str, set[int]] = field(default_factory=dict)
    blocks: dict[str, list[list[tuple[int, int]]]] = field(default_factory=dict)
    kept: dict[str, list[list[np.float32]]] = field(default_factory=dict)

    def add(self, table: str, num_rows: int, dim: int) -> None:
        old = len(self.weight.get(table, ()))
        self.weight.setdefault(table, np.zeros((0, dim), np.float32))
        self.second.setdefault(table, np.zeros((0, dim), np.float32))
        self.rowwise.setdefault(table, np.zeros((0, dim), np.float32))
        for name in ("weight", "second", "rowwise"):
            values = getattr(self, name)
            values[table] = np.concatenate([values[table], np.zeros((num_rows, dim), np.float32)])
        self.changed.setdefault(table, set())
        self.blocks.setdefault(table, []).extend([[] for _ in range(num_rows)])
        self.kept.setdefault(table, []).extend([[] for _ in range(num_rows)])
        self._draw(table, range(old, old + num_rows))

    def train(self) -> None:
        for table, weight in self.weight.items():
            rows = set(self.rng.integers(0, len(weight), size=self.rng.integers(0, 4)).tolist())
            self._draw(table, sorted(rows))
            self.changed[table] |= rows

    def _draw(self, table: str, rows: Sequence[int]) -> None:
        shape = (len(rows), self.weight[table].shape[1])
        drawn = torch.from_numpy(self.rng.standard_normal(shape).astype(np.float32))
        self.weight[table][list(rows)] = drawn.to(self.dtype[table]).float().numpy()
        for values in (self.second, self.rowwise):
            values[table][list(rows)] = self.rng.standard_normal(shape).astype(np.float32)

    def shards(self, splits: Splits, rank: int) -> list[TableShard]:
        """Fresh memory of those blocks (rank, first row, rows, first column, columns) that are of a rank."""
        return [
            TableShard(
                name=table, num_rows=len(self.weight[table]), dim=self.weight[table].shape[1], first_row=first,
                first_column=left,
                weight_ND=_copy(self.weight[table][first : first + count, left : left + width]).to(self.dtype[table]),
                state={
                    ELEMENTWISE: _copy(self.second[table][first : first + count, left : left + width]),
                    ROWWISE: _copy(self.rowwise[table][first : first + count, left]),
                },
            )
            for table, split in splits.items()
            for owner, first, count, left, width in split
            if owner == rank
        ]  # fmt: skip

    def saved(self, version: VersionManifest) -> dict[str, Said]:
        """What the version must give back, once it was written."""
        said = {}
        for table, entry in version.tables.items():
            blocks = self.layout[table]
            num_old = sum(bool(one) for one in self.blocks[table])
            rows = range(len(self.weight[table])) if entry.whole else {*self.changed[table], *range(num_old, 10**4)}
            for row in sorted(set(rows) & set(range(len(self.weight[table])))):
                self.blocks[table][row] = blocks
                self.kept[table][row] = [self.rowwise[table][row, first] for first, _ in blocks]
            self.changed[table] = set()
            said[table] = Said(
                dtype=self.dtype[table], weight=self.weight[table].copy(), second=self.second[table].copy(),
                blocks=list(self.blocks[table]), rowwise=list(self.kept[table]),
            )  # fmt: skip
        return said

    layout: dict[str, list[tuple[int, int]]] = field(default_factory=dict)

    def split(self, world_size: int) -> Splits:
        """Any blocks of columns, each with any ranges of rows over the ranks; some ranks have none."""
        splits = {}
        for table, weight in self.weight.items():
            self.layout[table] = _cut(self.rng, weight.shape[1], int(self.rng.integers(1, 4)))
            pieces = []
            for left, width in self.layout[table]:
                ranks = self.rng.permutation(world_size)
                for first, count in _cut(self.rng, len(weight), int(self.rng.integers(1, world_size + 1))):
                    pieces.append((int(ranks[len(pieces) % world_size]), first, count, left, width))
            splits[table] = pieces
        return splits


def _copy(value: np.ndarray) -> Tensor:
    return torch.from_numpy(value.copy())


def _cut(rng: np.random.Generator, size: int, num_pieces: int) -> list[tuple[int, int]]:
    """(first, number) of pieces that are not empty."""
    cuts = sorted({0, size, *rng.integers(0, size, size=num_pieces - 1).tolist()})
    return [(first, last - first) for first, last in itertools.pairwise(cuts)]


def _state(model: Model, shards: list[TableShard], *, rank: int, step: int) -> State:
    toy = Toy(tables={})
    toy.step = step
    return State(
        tables=tuple(model.weight), shards=shards, dense=toy.dense() if rank == 0 else {},
        optimizer=toy.optimizer() if rank == 0 else {}, loop=toy.loop(),
        changed={
            table: torch.tensor(sorted(rows), dtype=torch.int64)
            for table, rows in model.changed.items()
        },
    )  # fmt: skip


def _job(chain: Chain, model: Model, parent: VersionManifest | None, step: int) -> list[tuple[VersionManifest, dict]]:
    """A job of some processes saves some versions, and trains on meanwhile. Gives what each version must say."""
    rng = model.rng
    world_size, num_saves = int(rng.integers(1, 5)), int(rng.integers(1, 4))
    options = CheckpointConfig(
        whole_share=float(rng.choice([0.2, 0.6, 1.0])), max_deltas=int(rng.choice([1, 2, 1000])),
        asynchronous=bool(rng.random() < 0.7), max_snapshot_gib=float(rng.choice([0.0, 1.0])),
    )  # fmt: skip
    meeting, done = Meeting(world_size), []
    crews = [meeting.crew(rank) for rank in range(world_size)]
    writers = together(
        world_size, lambda rank: ChainWriter(chain, options=options, crew=crews[rank], parent=parent)
    )  # fmt: skip
    splits = model.split(world_size)
    for number in range(num_saves):
        toy = Toy(tables={})
        toy.step = step + number

        def save(rank: int, toy: Toy = toy, splits: Splits = splits) -> None:
            shards = model.shards(splits, rank)
            writer = writers[rank]
            assert isinstance(writer, ChainWriter)
            writer.save(_state(model, shards, rank=rank, step=toy.step), facts_of(toy, 1))
            for shard in shards:  # training goes on in the same memory
                for tensor in (shard.weight_ND, *shard.state.values()):
                    tensor.fill_(torch.nan)
            writer.wait()

        for result in together(world_size, save):
            if result is not None:
                raise result
        head = chain.head()
        assert head is not None
        done.append((head, model.saved(head)))
        model.train()
        if rng.random() < 0.3:
            model.add("item", int(rng.integers(1, 4)), 6)
            splits = model.split(world_size)
    return done


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_every_version_at_any_time_gives_back_what_was_trained(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    model = Model(rng=rng, dtype={"item": DTYPES[rng.integers(3)], "shop": DTYPES[rng.integers(3)]})
    model.add("item", int(rng.integers(1, 9)), 6)
    model.add("shop", int(rng.integers(1, 5)), 2)
    chain = chain_of(tmp_path_factory.mktemp("chain"), for_writing=True)
    said: list[tuple[VersionManifest, dict[str, Said]]] = []
    for _ in range(3):
        said += _job(chain, model, chain.head(), step=len(said))
    assert chain.numbers() == tuple(range(1, len(said) + 1))
    for version, tables in said:
        checkpoint = open_version(chain, version)
        checkpoint.verify()
        for table, wanted in tables.items():
            num_rows, dim = wanted.weight.shape
            for left, width in _cut(rng, dim, 2):
                shards = [
                    _empty(table, wanted, first=first, count=count, left=left, width=width)
                    for first, count in _cut(rng, num_rows, 3)
                ]
                checkpoint.restore(shards)
                for shard in shards:
                    wanted.check(shard)
                    rows = {"first_column": left, "num_columns": width}
                    read = checkpoint.table_rows(table, shard.first_row, len(shard.weight_ND), **rows)
                    wanted.check(read)
                moved = _empty(table, wanted, first=0, count=num_rows, left=left, width=width)
                taken = torch.from_numpy(rng.permutation(num_rows)[: max(num_rows - 1, 1)].copy())
                checkpoint.place(moved, from_row_N=taken, to_row_N=num_rows - 1 - taken)
                whole = checkpoint.table_rows(table, 0, num_rows, first_column=left, num_columns=width)
                for old, new in (
                    (whole.weight_ND, moved.weight_ND),
                    *((whole.state[n], moved.state[n]) for n in whole.state),
                ):
                    assert torch.equal(old[taken], new[num_rows - 1 - taken])
                    assert num_rows == 1 or bool(new.isnan().any())  # what was not asked for is as it was


def _empty(table: str, wanted: Said, *, first: int, count: int, left: int, width: int) -> TableShard:
    num_rows, dim = wanted.weight.shape
    return TableShard(
        name=table, num_rows=num_rows, dim=dim, first_row=first, first_column=left,
        weight_ND=torch.full((count, width), torch.nan, dtype=wanted.dtype),
        state={ELEMENTWISE: torch.full((count, width), torch.nan), ROWWISE: torch.full((count,), torch.nan)},
    )  # fmt: skip


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_managed_ids_come_back_through_admissions_evictions_and_returns(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    """`check` compares the maps and the rows of every version with the toy that it was."""
    chain, said = random_chain(tmp_path_factory.mktemp("chain"), seed=seed, num_versions=8)
    for number, toy in said.items():
        check(chain, chain.manifest(number), toy)
        checkpoint = open_version(chain, chain.manifest(number))
        held = sorted(toy.keys["user"].values())
        rows = torch.tensor([0, *(row for row, _, _ in held)])
        shard = TableShard(
            name="user", num_rows=9, dim=2, first_row=0, weight_ND=torch.full((9, 2), torch.nan),
            state={ELEMENTWISE: torch.zeros(9, 2), ROWWISE: torch.zeros(9)},
        )  # fmt: skip
        checkpoint.place(shard, from_row_N=rows, to_row_N=8 - rows)
        assert torch.equal(shard.weight_ND[8 - rows], toy.weight["user"][rows])
        assert torch.equal(shard.state[ROWWISE][8 - rows], toy.state["user"][ROWWISE][rows])
        assert int(shard.weight_ND.isnan().all(1).sum()) == 9 - len(rows)


def test_a_key_that_lost_its_row_and_came_back_has_the_new_row_and_one_that_did_not_has_none(tmp_path: Path) -> None:
    chain = chain_of(tmp_path, for_writing=True)
    toy = Toy(tables={}, managed={"user": (5, 2)})
    toy.keys["user"] = {100: [1, 1, 1], 200: [2, 1, 1], 300: [3, 1, 1]}
    toy.step = 1
    toy.save(chain)
    early = toy.copy()
    toy.step = 2
    toy.gone["user"] = {100: 1, 200: 2}
    toy.keys["user"] = {300: [3, 1, 1], 400: [1, 1, 2], 100: [4, 1, 2]}
    toy.touch("user", [1, 4])
    second = toy.save(chain)
    assert not second.tables["user"].whole
    assert second.tables["user"].num_written == 3  # 400, 100 and row 0
    check(chain, second, toy)
    check(chain, chain.manifest(1), early)
    late = toy.copy()
    toy.step = 3
    toy.keys["user"][200] = [2, 5, 3]
    toy.touch("user", [2])
    check(chain, toy.save(chain), toy)
    check(chain, second, late)


def _digest(chain: Chain, version: VersionManifest) -> str:
    return open_version(chain, version).digest()


def test_the_digest_is_that_of_the_content_however_it_was_written(tmp_path: Path) -> None:
    """Bases and deltas, by one process and by three, in one file and in many; one block of columns."""
    digests = []
    for number, world_size in enumerate((1, 3, 2)):
        toy = Toy(seed=1, tables={"item": (11, 4)}, managed={"user": (9, 2)})
        chain = chain_of(tmp_path / str(number), for_writing=True)
        for step in range(4):
            toy.train()
            options = replace(DELTAS, max_deltas=(0, 1, 1000)[number], asynchronous=step % 2 == 0)
            toy.save(chain, world_size=world_size, options=options)
        head = chain.head()
        assert head is not None
        assert len(chain.layers(head)["item"]) == (1, 2, 4)[number]
        assert len(head.files) >= 3 * world_size
        digests.append(_without_waiting(chain, head))
    assert len(set(digests)) == 1


def _without_waiting(chain: Chain, version: VersionManifest) -> str:
    """The toy's waiting room says how many processes there were: a digest of all else."""
    checkpoint = open_version(chain, version)
    found = [_digest_of(checkpoint.map_state("user").key_N), _digest_of(checkpoint.map_state("user").row_N)]
    for table in version.tables:
        rows = checkpoint.table_rows(table, 0, version.tables[table].num_rows)
        found += [_digest_of(rows.weight_ND), *(_digest_of(value) for value in rows.state.values())]
    return str([*found, sorted((name, value.tolist()) for name, value in checkpoint.dense().items())])


def _digest_of(value: Tensor) -> bytes:
    return value.numpy().tobytes()


@pytest.mark.parametrize("what", ["nothing", "weight", "rowwise", "second", "dense", "loop", "count", "waiting", "row"])
def test_the_digest_changes_with_anything_that_training_goes_on_from(tmp_path: Path, what: str) -> None:
    chain = chain_of(tmp_path, for_writing=True)
    toy = Toy(tables={"item": (5, 2)}, managed={"user": (9, 2)})
    toy.train()
    first = toy.save(chain)
    key, about = next(iter(toy.keys["user"].items()))
    if what == "weight":
        toy.weight["item"][3, 1] = torch.nextafter(toy.weight["item"][3, 1], torch.tensor(9.0))
    elif what in ("rowwise", "second"):
        toy.state["item"][{"rowwise": ROWWISE, "second": ELEMENTWISE}[what]][3] += 1
    elif what in ("dense", "loop"):
        toy.step += 1  # the toy's dense tensors and its loop both follow the step
    elif what == "count":
        about[1] += 1
    elif what == "row":
        free = next(row for row in range(1, 9) if row not in {one[0] for one in toy.keys["user"].values()})
        toy.weight["user"][free] = toy.weight["user"][about[0]]
        toy.keys["user"][key] = [free, *about[1:]]
    toy.parent = None  # a base
    second = toy.save(chain, world_size=2 if what == "waiting" else 1)
    assert (_digest(chain, first) == _digest(chain, second)) == (what == "nothing")


@pytest.mark.parametrize(
    ("num_changed", "share", "whole"),
    [(0, 0.5, False), (4, 0.5, False), (5, 0.5, True), (9, 1.0, False), (10, 1.0, True)],
)
@pytest.mark.parametrize("world_size", [1, 3])
def test_a_table_of_which_much_changed_is_written_whole(
    tmp_path: Path, num_changed: int, share: float, whole: bool, world_size: int
) -> None:
    chain = chain_of(tmp_path, for_writing=True)
    toy = Toy(tables={"item": (10, 4), "shop": (3, 2)})
    options = CheckpointConfig(whole_share=share)
    toy.save(chain, options=options)
    toy.touch("item", range(num_changed))
    second = toy.save(chain, options=options, world_size=world_size, blocks={"item": (1, 3)})
    assert second.tables["item"].whole is whole
    assert not second.tables["shop"].whole
    assert second.tables["item"].num_written == (10 if whole else num_changed)
    check(chain, second, toy)


def test_after_so_many_deltas_a_table_is_written_whole(tmp_path: Path) -> None:
    chain = chain_of(tmp_path, for_writing=True)
    toy = Toy(tables={"item": (50, 2)}, managed={"user": (20, 2)})
    versions = []
    for _ in range(8):
        toy.train()
        versions.append(toy.save(chain, options=CheckpointConfig(max_deltas=2, whole_share=1.0)))
    assert [version.tables["item"].whole for version in versions] == [True, False, False] * 2 + [True, False]
    assert [version.tables["user"].whole for version in versions] == [True, False, False] * 2 + [True, False]


@pytest.mark.parametrize("how", ["dtype", "state", "dim", "rows", "new", "rewritten", "managed", "nothing"])
def test_a_table_whose_shape_changed_is_written_whole_and_the_others_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    chain = chain_of(tmp_path, for_writing=True)
    toy = Toy(tables={"item": (10, 4), "shop": (30, 2)}, managed={"user": (9, 2)})
    toy.train()
    toy.save(chain)
    toy.train()
    changed = "item"
    if how == "dtype":
        toy.weight["item"] = toy.weight["item"].half()
    elif how == "state":
        own = toy._state
        monkeypatch.setattr(toy, "_state", lambda *about: _without(own(*about), "item", ROWWISE))
    elif how == "dim":
        toy.weight["item"], toy.state["item"][ELEMENTWISE] = torch.ones(10, 5), torch.ones(10, 5)
    elif how == "rows":
        toy.weight["item"] = toy.weight["item"][:8]
        toy.state["item"] = {name: value[:8] for name, value in toy.state["item"].items()}
        toy.changed["item"] = {row for row in toy.changed["item"] if row < 8}
    elif how == "new":
        changed = "brand"
        toy.weight["brand"], toy.changed["brand"] = torch.ones(3, 2), set()
        toy.state["brand"] = {ROWWISE: torch.ones(3), ELEMENTWISE: torch.ones(3, 2)}
    elif how == "managed":
        changed = "user"
        toy.grow("user", 2)
    second = toy.save(chain, rewritten=("item",) if how == "rewritten" else ())
    whole = {name for name, entry in second.tables.items() if entry.whole}
    assert whole == (set() if how == "nothing" else {changed})
    check(chain, second, toy)


def _without(state: State, table: str, name: str) -> State:
    """Another optimizer: one that does not have this state."""
    shards = [
        replace(one, state={key: value for key, value in one.state.items() if (one.name, key) != (table, name)})
        for one in state.shards
    ]
    return replace(state, shards=shards)


def test_rows_that_a_table_grew_by_are_in_its_delta(tmp_path: Path) -> None:
    chain = chain_of(tmp_path, for_writing=True)
    toy = Toy(tables={"item": (10, 4)})
    toy.save(chain)
    toy.grow("item", 3)
    toy.touch("item", [1, 12])
    second = toy.save(chain, world_size=4, blocks={"item": (2, 2)})
    assert (second.tables["item"].whole, second.tables["item"].num_written) == (False, 4)
    check(chain, second, toy)


def _spoil(toy: Toy, where: str, value: float) -> None:
    if where == "weight":
        toy.weight["item"][9, 2] = value
    elif where in (ROWWISE, ELEMENTWISE):
        toy.state["item"][where][9] = value
    elif where == "managed":
        toy.weight["user"][next(iter(toy.keys["user"].values()))[0], 1] = value
    toy.changed["item"].add(9)


@pytest.mark.parametrize("where", ["weight", ROWWISE, ELEMENTWISE, "managed", "dense", "optimizer"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("asynchronous", [True, False])
def test_what_is_not_finite_is_refused_by_every_process_and_nothing_is_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, value: float, asynchronous: bool
) -> None:
    chain = chain_of(tmp_path, for_writing=True)
    toy = Toy(tables={"item": (10, 4)}, managed={"user": (9, 2)})
    toy.train()
    toy.save(chain)
    before = chain.store.list("manifests")
    toy.train()
    if where in ("dense", "optimizer"):
        bad = getattr(toy, where)()
        next(iter(bad.values()))[0, 1] = value
        monkeypatch.setattr(toy, where, lambda: bad)
    else:
        _spoil(toy, where, value)
    meeting = Meeting(2)

    def one(rank: int) -> None:
        writer = ChainWriter(
            chain, options=replace(DELTAS, asynchronous=asynchronous), crew=meeting.crew(rank), parent=toy.parent,
            clocks={"user": toy.saved_clock},
        )  # fmt: skip
        writer.save(toy._state(rank, 2, {}), facts_of(toy, 2))
        writer.wait()

    results = together(2, one)
    assert [type(result) for result in results] == [CheckpointError] * 2
    told = {"dense": "dense tensor 'head.weight'", "optimizer": "optimizer state 'head.weight/exp_avg'"}
    told |= {"weight": "table 'item': weight of row 9", ROWWISE: "table 'item': momentum of row 9"}
    told |= {ELEMENTWISE: "table 'item': second of row 9", "managed": "table 'user': weight of id "}
    assert any(told[where] in str(result) for result in results), results
    assert chain.store.list("manifests") == before
    assert chain.store.list("leases") == []


class Full(PosixStore):
    """A disk that is full for what has a word in its name."""

    word = ""

    def create(self, name: str) -> AbstractContextManager[BinaryIO]:
        if self.word and self.word in name:
            raise OSError(28, "No space left on device")
        return super().create(name)

    def publish(self, source: str, name: str) -> None:
        if self.word and name.startswith(self.word):
            raise OSError(5, "Input/output error")
        super().publish(source, name)


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize(
    ("rank", "word"),
    [(0, "tables/"), (1, "tables/"), (1, "said/"), (0, "leases/"), (0, "manifest"), (0, "dense"), (0, "manifests/")],
)
def test_where_one_process_fails_every_process_raises_and_nothing_is_out(
    tmp_path: Path, rank: int, word: str, asynchronous: bool
) -> None:
    chain = chain_of(tmp_path, for_writing=True)
    toy = Toy(tables={"item": (10, 4)})
    toy.train()
    toy.save(chain)
    early = toy.copy()
    toy.train()
    meeting = Meeting(2)
    writers = []

    def one(own: int) -> None:
        store = Full(tmp_path)
        writer = ChainWriter(
            Chain(store), options=replace(DELTAS, asynchronous=asynchronous), parent=toy.parent,
            crew=meeting.crew(own, patience_seconds=0.5),
        )  # fmt: skip
        store.word = word if own == rank else ""
        writers.append(writer)
        writer.save(toy._state(own, 2, {}), facts_of(toy, 2))
        writer.wait()

    results = together(2, one)
    assert [type(result) for result in results] == [CheckpointError] * 2, results
    assert all("the version of step 2 was not written: " in str(result) for result in results)
    assert chain.numbers() == (1,)
    check(chain, chain.manifest(1), early)
    for result in together(2, lambda own: writers[own].save(toy._state(own, 2, {}), facts_of(toy, 3))):
        assert isinstance(result, CheckpointError)  # the rows taken for the version that failed are in no other
    check(chain, toy.save(chain, world_size=2), toy)


def test_what_follows_a_version_can_fail_and_the_version_is_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chain, called = chain_of(tmp_path, for_writing=True), threading.Event()

    def fail(version: VersionManifest) -> None:
        called.set()
        raise OSError(28, "No space left on device")

    toy = toy_before(chain, 1)
    writer = ChainWriter(chain, options=DELTAS, after=fail)
    writer.save(toy._state(0, 1, {}), facts_of(toy, 1))
    saved = writer.wait()
    assert called.is_set()
    assert saved is not None
    assert saved == chain.head()
    assert "No space left on device" in capsys.readouterr().out
    save_day(chain, 2)
    assert chain.numbers() == (1, 2)
