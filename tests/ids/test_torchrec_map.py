"""TorchRec's module behind the same interface: what it guarantees too, and what it does not."""

from __future__ import annotations

import pytest
import torch

from stack.base.errors import DataError
from stack.ids.blocks import even_blocks
from stack.ids.config import ManagedConfig, Policy
from stack.ids.torchrec_map import TorchRecMap


def made(num_rows: int, **options: object) -> TorchRecMap:
    config = ManagedConfig(**options)  # type: ignore[arg-type]
    return TorchRecMap(config, even_blocks(num_rows), device=torch.device("cpu"))


def step(managed: TorchRecMap, *keys: int) -> list[int]:
    return managed.rows(torch.tensor(keys, dtype=torch.int64), training=True).tolist()


def look_up(managed: TorchRecMap, *keys: int) -> list[int]:
    return managed.rows(torch.tensor(keys, dtype=torch.int64), training=False).tolist()


def test_every_id_misses_until_the_first_interval_and_all_rows_but_0_are_used() -> None:
    managed = made(4, admit_after=1, interval_steps=3)
    assert [step(managed, 5, 6, 7), step(managed, 5, 6, 7)] == [[0, 0, 0], [0, 0, 0]]
    assert sorted(step(managed, 5, 6, 7)) == [1, 2, 3]
    assert managed.drain_resets().tolist() == [], "rows that were free are as new"


def test_admission_waits_for_the_sightings_and_then_for_the_interval() -> None:
    managed = made(10, admit_after=3, interval_steps=2)
    rows = [step(managed, 7)[0] for _ in range(6)]
    assert rows[:3] == [0, 0, 0]
    assert rows[3] == rows[4] == rows[5] > 0


def test_evicted_rows_are_reported_and_taken_by_others() -> None:
    managed = made(3, admit_after=1, interval_steps=1, policy=Policy.lru)
    first = step(managed, 1, 2)
    step(managed, 1)
    assert step(managed, 9) == [first[1]]
    assert managed.drain_resets().tolist() == [first[1]]
    assert look_up(managed, 1, 2, 9) == [first[0], 0, first[1]]


def test_under_lfu_an_id_of_the_batch_can_be_evicted_and_then_misses_in_that_step() -> None:
    """The guarantee that the module cannot give; no row serves two ids even so."""
    managed = made(3, admit_after=1, interval_steps=4, policy=Policy.lfu)
    step(managed, 1, 2)
    for _ in range(3):
        step(managed)
    assert sorted(look_up(managed, 1, 2)) == [1, 2]
    for _ in range(3):
        step(managed, 3, 4)
    rows = step(managed, 1, 2, 3, 4)
    assert sorted(rows) == [0, 0, 1, 2]
    assert rows[:2] == [0, 0], "1 and 2 were in the batch that evicted them"


def test_batches_larger_than_the_first_are_not_dropped() -> None:
    managed = made(200, admit_after=1, interval_steps=2)
    step(managed, 1)
    rows = step(managed, *range(1, 101))
    assert len(set(rows)) == 100
    assert min(rows) > 0


def test_ids_are_evicted_by_age_and_their_rows_given_again() -> None:
    managed = made(4, admit_after=1, interval_steps=1, max_age_steps=8, policy=Policy.lfu)
    rows = step(managed, 1, 2, 3)
    for _ in range(9):
        step(managed, 2)
    assert look_up(managed, 1, 2, 3) == [0, rows[1], 0]
    assert managed.drain_resets().tolist() == sorted([rows[0], rows[2]])
    assert step(managed, 8)[0] in (rows[0], rows[2])
    assert managed.figures().num_evicted_by_age == 2


def test_looking_up_changes_nothing() -> None:
    managed = made(10, admit_after=1, interval_steps=2)
    for number in range(7):
        step(managed, number + 1, number + 2)
    before = managed.state().tensors()
    look_up(managed, *range(1, 50))
    for name, value in managed.state().tensors().items():
        assert torch.equal(value, before[name]), name


def test_the_key_that_marks_its_free_slots_is_refused() -> None:
    with pytest.raises(DataError, match="the key 9223372036854775807 marks free slots in TorchRec's map"):
        look_up(made(10), 2**63 - 1)
