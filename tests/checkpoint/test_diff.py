"""Two versions compared: against what the toys say, for random chains, and by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.checkpoint.chain import Chain, chain_of
from stack.checkpoint.compact import compact
from stack.checkpoint.diff import VersionDiff, diff
from stack.checkpoint.load import open_version
from tests.checkpoint.chains import Toy, random_chain


def compared(chain: Chain, one: int, two: int, **options: int) -> VersionDiff:
    return diff(open_version(chain, chain.manifest(one)), open_version(chain, chain.manifest(two)), **options)


def by_key(toy: Toy, table: str) -> dict[int, torch.Tensor]:
    """Rows by what names them: of managed ids the key, 0 for the unknown."""
    weight = toy.weight[table]
    if table not in toy.keys:
        return dict(enumerate(weight))
    return {0: weight[0]} | {key: weight[about[0]] for key, about in toy.keys[table].items()}


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), one=st.integers(1, 6), two=st.integers(1, 6), compacted=st.integers(1, 6))
def test_differences_are_those_of_what_was_saved(
    tmp_path_factory: pytest.TempPathFactory, seed: int, one: int, two: int, compacted: int
) -> None:
    chain, said = random_chain(tmp_path_factory.mktemp("chain"), seed=seed)
    for again in range(2):
        found = compared(chain, one, two, num_moved=3)
        for table, told in found.tables.items():
            before, after = by_key(said[one], table), by_key(said[two], table)
            both = before.keys() & after.keys()
            changed = {key: (after[key] - before[key]).double().norm() for key in both}
            changed = {key: float(moved) for key, moved in changed.items() if not torch.equal(before[key], after[key])}
            assert told.num_changed == len(changed), table
            assert (told.num_added, told.num_dropped) == (len(after) - len(both), len(before) - len(both))
            most = sorted(changed.values(), reverse=True)[:3]
            assert [row.distance for row in told.moved] == pytest.approx(most, rel=1e-5)
            if changed:
                old = torch.stack([before[key] for key in changed]).double().norm()
                assert told.relative == pytest.approx(
                    sum(m * m for m in changed.values()) ** 0.5 / float(old), rel=1e-5
                )
        if again == 0:
            compact(chain, chain.manifest(compacted))


def test_a_version_is_no_different_from_itself(tmp_path: Path) -> None:
    chain, _ = random_chain(tmp_path, seed=2)
    found = compared(chain, 4, 4)
    assert found.facts == {}
    assert found.dense == ()
    assert found.num_dense == 2
    assert all((one.num_changed, one.num_added, one.num_dropped) == (0, 0, 0) for one in found.tables.values())


def test_by_hand(tmp_path: Path) -> None:
    chain = chain_of(tmp_path, for_writing=True)
    toy = Toy(tables={"item": (4, 2)})
    toy.weight["item"] = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0], [6.0, 8.0]])
    toy.step = 4
    toy.save(chain, day="2017-11-01")
    toy.weight["item"] = torch.tensor([[3.0, 4.0], [1.0, 3.0], [0.0, 2.0], [6.0, 12.0]])
    toy.changed["item"] = {1, 3}
    toy.grow("item", 1)
    toy.step = 8
    toy.save(chain, day="2017-11-02", world_size=2)
    found = compared(chain, 1, 2)
    item = found.tables["item"]
    assert (item.num_rows, item.num_changed, item.num_added, item.num_dropped) == (5, 2, 1, 0)
    assert item.relative == pytest.approx((9 + 16) ** 0.5 / (1 + 100) ** 0.5)
    assert [(row.key, row.distance, row.length) for row in item.moved] == [(3, 4.0, 10.0), (1, 3.0, 1.0)]
    assert [(one.name, one.relative) for one in found.dense] == [("head.weight", 1.0), ("norm.num_batches", 1.0)]
    assert found.facts == {
        "step": ("4", "8"),
        "world_size": ("1", "2"),
        "days": ("2017-11-01", "2017-11-02"),
        "loss/click": ("0.2000", "0.1111"),
    }


def test_between_neighbours_only_deltas_are_read(tmp_path: Path) -> None:
    chain = chain_of(tmp_path, for_writing=True)
    toy = Toy(tables={"item": (1000, 2)}, managed={"user": (50, 2)})
    toy.train(rows=20)
    toy.save(chain)
    for _ in range(2):
        toy.train()
        toy.save(chain)
    one, two = (open_version(chain, chain.manifest(number)) for number in (2, 3))
    assert diff(one, two).tables["item"].num_changed <= 3
    base = {part.file for part in chain.manifest(1).tables["item"].parts}
    opened = {name.split("/", 2)[2] for name in one.readers["item"]._files}
    assert opened & base == base  # for the rows that changed, as they were
    assert sum(part.num_rows for part in chain.manifest(3).tables["item"].parts) <= 3
