"""Going back to a version, and copying one to another place."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.base.errors import CheckpointError
from stack.checkpoint.chain import chain_of
from stack.checkpoint.config import CheckpointConfig
from stack.checkpoint.load import open_version
from stack.checkpoint.restore import copy_to, repaired, restore
from stack.checkpoint.retain import prune
from stack.checkpoint.verify import verify
from tests.checkpoint.chains import Toy, check, random_chain


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), at=st.integers(1, 6), weights_only=st.booleans())
def test_a_version_restored_or_copied_says_what_it_said(
    tmp_path_factory: pytest.TempPathFactory, seed: int, at: int, weights_only: bool
) -> None:
    folder = tmp_path_factory.mktemp("chains")
    chain, said = random_chain(folder / "one", seed=seed)
    old = chain.manifest(at)
    made = restore(chain, old)
    assert (made.version, made.parent, made.previous) == (7, old.link, chain.manifest(6).link)
    assert (made.lineage.verb, made.lineage.restores) == ("restore", old.link)
    assert made.complete == old.complete
    check(chain, made, said[at])
    assert sum(entry.num_written for entry in made.tables.values()) == 0
    toy = said[at].copy()
    toy.parent = made
    toy.train()
    check(chain, toy.save(chain, world_size=2), toy)

    other = chain_of(folder / "two", for_writing=True)
    copy = copy_to(chain, old, other, weights_only=weights_only)
    assert (copy.version, copy.parent, copy.whole) == (1, None, True)
    for table in old.tables:
        one, two = (open_version(*pair).table_rows(table, 0, old.tables[table].num_rows) for pair in
                    ((chain, old), (other, copy)))  # fmt: skip
        assert torch.equal(one.weight_ND, two.weight_ND)
        assert two.state.keys() == (set() if weights_only else one.state.keys())
    if not weights_only:
        check(other, copy, said[at])
    assert (open_version(other, copy).optimizer() == {}) is weights_only
    for one in (chain, other):
        assert verify(one, deep=True).findings == ()
    assert chain.store.list("leases") == other.store.list("leases") == []


def test_what_was_restored_keeps_the_version_that_it_is(tmp_path: Path) -> None:
    chain, said = random_chain(tmp_path, seed=5)
    made = restore(chain, chain.manifest(2))
    prune(chain, CheckpointConfig(keep_last=1, keep_days=1))
    check(chain, made, said[2])
    assert 2 not in chain.pruned()


def test_a_damaged_version_or_a_place_in_use_is_refused(tmp_path: Path) -> None:
    chain, _ = random_chain(tmp_path / "one", seed=5)
    version = chain.manifest(3)
    with pytest.raises(CheckpointError, match="one has versions: choose an empty folder"):
        copy_to(chain, version, chain)
    path = tmp_path / "one/data" / version.data / "dense.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    before = chain.store.list()
    with pytest.raises(CheckpointError, match="dense.safetensors is damaged"):
        restore(chain, version)
    assert chain.store.list() == before


def test_another_job_that_publishes_meanwhile_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = chain_of(tmp_path, for_writing=True)
    toy = Toy(tables={"item": (5, 2)})
    toy.save(chain)
    toy.train()
    numbers = chain.numbers()
    second = toy.save(chain_of(tmp_path))
    before = [name for name in chain.store.list() if not name.startswith("leases/")]
    monkeypatch.setattr(type(chain), "numbers", lambda self: numbers)
    with pytest.raises(CheckpointError, match="another job has committed version 2 meanwhile"):
        restore(chain, chain.manifest(1))
    assert chain.manifest(2) == second
    assert chain.store.list() == before


def test_a_mended_version_is_the_one_below_with_other_dense_numbers(tmp_path: Path) -> None:
    chain, said = random_chain(tmp_path, seed=3)
    newest = chain.manifest(chain.numbers()[-1])
    name, value = next(iter(said[newest.version].dense().items()))
    made = repaired(chain, newest, verb="audit", how="by one", dense={name: value + 1})
    assert (made.version, made.parent) == (newest.version + 1, newest.link)
    assert (made.lineage.verb, made.lineage.repairs, made.lineage.how) == ("audit", newest.link, "by one")
    assert made.lineage.day is None
    check(chain, newest, said[newest.version])
    before, after = open_version(chain, newest), open_version(chain, made)
    assert torch.equal(after.dense()[name], value + 1)
    assert all(torch.equal(after.dense()[one], kept) for one, kept in before.dense().items() if one != name)
    for table in made.tables:
        rows = [one.table_rows(table, 0, made.tables[table].num_rows).weight_ND for one in (before, after)]
        assert torch.equal(*rows)
    assert after.loop() == before.loop()
    assert verify(chain, deep=True).findings == ()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda value: torch.full_like(value, torch.nan), "would hold a number that is NaN or infinite"),
        (lambda value: torch.cat([value, value]), "of this shape and type is not in the version"),
        (lambda value: value.double(), "of this shape and type is not in the version"),
    ],
)
def test_what_cannot_be_mended_leaves_the_chain_as_it_was(tmp_path: Path, change: object, text: str) -> None:
    chain, said = random_chain(tmp_path, seed=3)
    numbers = chain.numbers()
    newest = chain.manifest(numbers[-1])
    name, value = next(iter(said[newest.version].dense().items()))
    with pytest.raises(CheckpointError, match=text):
        repaired(chain, newest, verb="audit", how="", dense={name: change(value)})  # type: ignore[operator]
    with pytest.raises(CheckpointError, match="is not the newest of .*: repair the newest, or bring this one back"):
        repaired(chain, chain.manifest(numbers[0]), verb="audit", how="", dense={})
    assert chain.numbers() == numbers
    assert chain.store.list("leases") == []
    assert verify(chain, deep=True).findings == ()
