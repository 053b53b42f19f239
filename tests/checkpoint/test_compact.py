"""Compaction: bit-identical to replaying, in bounded memory, beside whoever else works on the chain."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.base.errors import CheckpointError
from stack.checkpoint.chain import Chain, chain_of
from stack.checkpoint.compact import compact
from stack.checkpoint.leases import held
from stack.checkpoint.load import open_version
from stack.checkpoint.manifest import KEY, VersionManifest, data_folder
from stack.checkpoint.merge import merge
from stack.tables.rows import TableShard
from tests.checkpoint.chains import DELTAS, ELEMENTWISE, ROWWISE, Toy, check, random_chain, same

COLUMNS = ((0, None), (0, 1), (1, 3), (2, 4), (4, 2))


def read_all(chain: Chain, version: VersionManifest) -> dict[object, object]:
    """Everything that can be read of a version: rows in all columns asked for, keys, dense tensors."""
    checkpoint = open_version(chain, version)
    found: dict[object, object] = {"dense": checkpoint.dense(), "loop": checkpoint.loop()}
    for table, entry in version.tables.items():
        if entry.keys.value == "id":
            found[table, "map"] = checkpoint.map_state(table)
            found[table] = checkpoint.table_rows(table, 0, entry.num_rows)
            continue
        for first, count in COLUMNS:
            if first + (count or 0) <= entry.dim:
                found[table, first, count] = checkpoint.table_rows(
                    table, 0, entry.num_rows, first_column=first, num_columns=count
                )
    return found


def assert_same(one: dict[object, object], other: dict[object, object]) -> None:
    assert one.keys() == other.keys()
    for what, value in one.items():
        if isinstance(value, TableShard):
            assert same(value, other[what]), what  # type: ignore[arg-type]
        elif isinstance(what, tuple):
            for name, tensor in value.tensors().items():  # type: ignore[attr-defined]
                assert torch.equal(tensor, other[what].tensors()[name]), (what, name)  # type: ignore[attr-defined]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), at=st.integers(1, 6))
def test_any_version_reads_the_same_bits_through_a_compaction_of_itself_or_of_one_it_builds_on(
    tmp_path_factory: pytest.TempPathFactory, seed: int, at: int
) -> None:
    chain, said = random_chain(tmp_path_factory.mktemp("chain"), seed=seed)
    before = {number: read_all(chain, chain.manifest(number)) for number in said}
    base = compact(chain, chain.manifest(at), part_mib=1)
    if base is None:
        assert chain.manifest(at).whole
        return
    assert chain.compacted() == (at,)
    assert chain.base(chain.manifest(at)) == base
    for number, toy in said.items():
        version = chain.manifest(number)
        assert_same(read_all(chain, version), before[number])
        check(chain, version, toy)
        open_version(chain, version).verify()
    layers = chain.layers(chain.manifest(at))
    assert {layer.folder for below in layers.values() for layer in below} == {data_folder(base.data)}
    assert chain.store.list("leases") == []


@pytest.mark.parametrize("part_bytes", [1, 100, 1000, 10**6])
def test_pieces_of_any_size_come_to_the_same_run(tmp_path: Path, part_bytes: int) -> None:
    chain = chain_of(tmp_path, for_writing=True)
    toy = Toy(seed=3, tables={"item": (40, 4)}, managed={"user": (30, 2)})
    for number in range(8):
        toy.train(rows=6)
        if number % 3 == 2:
            toy.evict("user", 3)
        head = toy.save(chain, world_size=1 + number % 3, blocks={"item": (1, 3)})
    for table, wanted in (("item", None), ("user", toy.map_state("user"))):
        (run,) = merge(chain.store, table, chain.layers(head)[table], part_bytes=part_bytes)
        pieces = list(run.pieces)
        if wanted is not None:
            keys = torch.cat([piece.tensors[KEY] for piece in pieces])
            assert torch.equal(keys, torch.cat([wanted.key_N, torch.tensor([0])]).sort().values)
            assert torch.equal(torch.cat([p.tensors["last"] for p in pieces])[keys != 0], wanted.last_N)
        assert all(sum(v.nbytes for v in p.tensors.values()) <= part_bytes or len(p.tensors[KEY]) <= 12 for p in pieces)
        assert len(pieces) > 4 or part_bytes >= 1000


def test_blocks_that_changed_stay_apart_only_where_state_is_row_wise(tmp_path: Path) -> None:
    chain = chain_of(tmp_path, for_writing=True)
    toy = Toy(tables={"item": (10, 6)})
    toy.save(chain, blocks={"item": (6,)})
    for widths in ((6,), (2, 4), (2, 4), (6,)):
        toy.train()
        head = toy.save(chain, blocks={"item": widths})
    base = compact(chain, head)
    assert base is not None
    assert [entry.blocks for entry in base.tables["item"]] == [((0, 6),), ((0, 2), (2, 4)), ((0, 6),)]
    assert [entry.whole for entry in base.tables["item"]] == [True, False, False]
    layers = chain.layers(head)["item"]
    (run,) = merge(chain.store, "item", layers, part_bytes=1000, one_run=True)
    assert len(list(run.pieces)) == 1
    (bare,) = merge(chain.store, "item", layers, part_bytes=1000, with_state=False)
    assert [sorted(piece.tensors) for piece in bare.pieces] == [["key", "weight"]]


def test_compacting_again_does_nothing_and_a_base_needs_none(tmp_path: Path) -> None:
    chain, _ = random_chain(tmp_path, seed=0)
    head = chain.head()
    assert head is not None
    first = compact(chain, head)
    files = chain.store.list()
    assert compact(chain, head) == first
    assert chain.store.list() == files
    assert compact(chain, chain.manifest(1)) is None


def test_of_many_that_compact_at_once_one_is_kept_and_nothing_else_stays(tmp_path: Path) -> None:
    chain, said = random_chain(tmp_path, seed=1)
    head = chain.manifest(5)
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(compact(chain_of(tmp_path), head))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [chain.base(head)] * 4
    folders = {name.split("/")[1] for name in chain.store.list("data")}
    base = chain.base(head)
    assert base is not None
    assert folders == {chain.manifest(number).data for number in said} | {base.data}
    assert held(chain.store) == []


def test_a_compaction_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain, said = random_chain(tmp_path, seed=0)
    head = chain.manifest(6)
    files = chain.store.list()

    def fail(num_bytes: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        compact(chain, head, progress=fail)
    assert chain.store.list() == files
    check(chain, head, said[6])
    assert compact(chain, head) is not None


def test_a_damaged_or_pruned_version_is_refused(tmp_path: Path) -> None:
    chain, _ = random_chain(tmp_path, seed=0)
    with chain.store.create("pruned/00000004.json") as file:
        file.write(b"{}")
    with pytest.raises(CheckpointError, match="version 4, whose files were pruned"):
        compact(chain, chain.manifest(4))
    assert chain.compacted() == ()


def test_memory_is_a_small_number_of_parts(tmp_path: Path) -> None:
    """What is written in one part stays the same, however many rows and keys there are."""
    chain = chain_of(tmp_path, for_writing=True)
    toy = Toy(seed=1, tables={"item": (200_000, 8)})
    toy.save(chain)
    for _ in range(3):
        toy.train(rows=20_000)
        head = toy.save(chain, options=replace(DELTAS, part_mib=1), world_size=2)
    (run,) = merge(chain.store, "item", chain.layers(head)["item"], part_bytes=1 << 20)
    sizes = [sum(value.nbytes for value in piece.tensors.values()) for piece in _one_at_a_time(run.pieces)]
    assert max(sizes) <= 1 << 20
    assert sum(sizes) == 200_000 * (8 + 4 * (8 + 8 + 1))
    assert {ROWWISE, ELEMENTWISE} == set(run.shape.state)


def _one_at_a_time(pieces: Iterator[object]) -> Iterator[object]:
    yield from pieces
