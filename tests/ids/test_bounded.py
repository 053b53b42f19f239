"""What a bounded map guarantees, against a slow map of dictionaries and by worked examples."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.ids.blocks import even_blocks
from stack.ids.bounded import BoundedMap
from stack.ids.config import ManagedConfig, Policy
from tests.ids.slow_map import SlowLru

CPU = torch.device("cpu")


def bounded(num_rows: int, **options: object) -> BoundedMap:
    """By `lru`, whose order of evictions is exact, unless told otherwise."""
    config = ManagedConfig(**{"policy": Policy.lru, "waiting_per_row": 100.0, **options})  # type: ignore[arg-type]
    return BoundedMap(config, even_blocks(num_rows), device=CPU)


def step(made: BoundedMap, *keys: int) -> list[int]:
    return made.rows(torch.tensor(keys, dtype=torch.int64), training=True).tolist()


def look_up(made: BoundedMap, *keys: int) -> list[int]:
    return made.rows(torch.tensor(keys, dtype=torch.int64), training=False).tolist()


# Few distinct keys, some of them extreme, so that admissions, evictions and returns are frequent.
_KEYS = st.sampled_from([*range(1, 25), -1, -(2**63), 2**63 - 1])
_STEPS = st.lists(st.lists(_KEYS, unique=True, max_size=12).map(sorted), max_size=40)


@settings(max_examples=80, deadline=None)
@given(_STEPS, st.integers(4, 12), st.integers(1, 3), st.sampled_from([0, 3, 20]))
def test_rows_and_resets_are_those_of_a_slow_map_of_dictionaries(
    steps: list[list[int]], num_rows: int, admit_after: int, max_age_steps: int
) -> None:
    # So many places in the waiting room that no count is lost.
    made = bounded(num_rows, admit_after=admit_after, max_age_steps=max_age_steps, waiting_per_row=10_000.0)
    slow = SlowLru(config=ManagedConfig(admit_after=admit_after, max_age_steps=max_age_steps), capacity=num_rows - 1)
    for keys in steps:
        assert step(made, *keys) == slow.step(keys)
        assert made.drain_resets().tolist() == sorted(slow.resets)
        slow.resets.clear()


@settings(max_examples=60, deadline=None)
@given(_STEPS, st.sampled_from(Policy), st.integers(1, 3), st.sampled_from([0, 5]))
def test_no_two_keys_have_a_row_and_none_is_beyond_the_table_whatever_the_policy(
    steps: list[list[int]], policy: Policy, admit_after: int, max_age_steps: int
) -> None:
    made = bounded(8, policy=policy, admit_after=admit_after, max_age_steps=max_age_steps)
    seen: dict[int, int] = {}
    before: dict[int, int] = {}
    for keys in steps:
        for key in keys:
            seen[key] = seen.get(key, 0) + 1
        rows = dict(zip(keys, step(made, *keys), strict=True))
        held = [row for row in rows.values() if row]
        assert len(held) == len(set(held))
        assert all(1 <= row < 8 for row in held)
        assert all(seen[key] >= admit_after for key, row in rows.items() if row)
        assert all(rows[key] == row for key, row in before.items() if key in rows), "an id of the batch lost its row"
        resets = set(made.drain_resets().tolist())
        after = {int(key): int(row) for key, row in zip(made.state().key_N, made.state().row_N, strict=True)}
        gone = {key for key in before if after.get(key) != before[key]}
        assert resets == {before[key] for key in gone}, "what is evicted is reported, and nothing else"
        for key in gone:
            seen[key] = 1 if key in keys else 0
        before = after


def test_an_id_gets_a_row_at_its_nth_sighting_and_shares_row_0_until_then() -> None:
    made = bounded(10, admit_after=3)
    assert [step(made, 7), step(made, 7), step(made, 7), step(made, 7)] == [[0], [0], [1], [1]]
    figures = made.figures()
    assert (figures.num_waiting, figures.num_admitted, figures.num_hits, figures.num_sightings) == (2, 1, 1, 4)
    assert (figures.hit_share, figures.miss_share, figures.occupancy) == (0.25, 0.5, pytest.approx(1 / 9))


def test_counts_of_waiting_ids_are_never_too_high_though_places_are_few() -> None:
    made = bounded(4, admit_after=2, waiting_per_row=0.5)
    generator = torch.Generator().manual_seed(0)
    seen: dict[int, int] = {}
    for _ in range(200):
        keys = torch.unique(torch.randint(1, 500, (20,), generator=generator)).tolist()
        for key in keys:
            seen[key] = seen.get(key, 0) + 1
        for key, row in zip(keys, step(made, *keys), strict=True):
            assert row == 0 or seen[key] >= 2
    assert made.figures().num_admitted > 20


def test_the_id_not_seen_for_longest_goes_first_and_comes_back_as_a_new_one() -> None:
    made = bounded(4, admit_after=1)
    step(made, 1, 2, 3)
    step(made, 1, 3)
    assert step(made, 9) == [2]
    assert made.drain_resets().tolist() == [2]
    assert look_up(made, 1, 2, 3, 9) == [1, 0, 3, 2]
    assert step(made, 2) == [1]
    assert made.drain_resets().tolist() == [1]
    assert made.figures().num_evicted_for_others == 2


def test_an_id_that_was_evicted_waits_again() -> None:
    made = bounded(4, admit_after=2)
    for _ in range(2):
        step(made, 1, 2, 3)
    for _ in range(2):
        step(made, 4)
    assert look_up(made, 1) == [0]
    assert [step(made, 1), step(made, 1)] == [[0], [2]]


def test_a_batch_larger_than_the_table_evicts_none_of_its_own() -> None:
    made = bounded(4, admit_after=1)
    assert step(made, 1, 2, 3) == [1, 2, 3]
    assert step(made, 1, 2, 3, 4, 5) == [1, 2, 3, 0, 0]
    assert step(made, 2, 3, 4, 5) == [2, 3, 1, 0]
    assert made.figures().num_refused == 3


def test_lfu_keeps_the_frequent_against_newcomers_that_were_seen_less() -> None:
    made = bounded(4, admit_after=1, policy=Policy.lfu)
    for _ in range(3):
        step(made, 1, 2)
    step(made, 3)
    assert step(made, 4) == [0], "seen once, as 3: not more"
    assert step(made, 4) == [3], "seen twice, 3 once"
    assert made.drain_resets().tolist() == [3]
    assert look_up(made, 1, 2, 3, 4) == [1, 2, 0, 3]


def test_distance_lfu_lets_the_frequent_go_once_they_are_old() -> None:
    made = bounded(4, admit_after=1, policy=Policy.distance_lfu, decay=1.0)
    for _ in range(5):
        step(made, 1)  # worth 5 / 1 now, 5 / (steps + 1) later
    step(made, 2, 3)
    assert step(made, 2, 3, 4) == [2, 3, 0], "1 is worth 5 / 3 against 1"
    for _ in range(4):
        step(made, 2, 3)
    assert step(made, 2, 3, 4) == [2, 3, 1], "1 is worth 5 / 8, and 4 was seen twice"


def test_ids_are_evicted_by_age_at_the_next_sweep() -> None:
    made = bounded(10, admit_after=1, max_age_steps=16)  # sweeps at every second step
    step(made, 1, 2)
    for _ in range(16):
        step(made, 2)
    assert look_up(made, 1, 2) == [1, 2], "16 steps ago"
    step(made, 2)
    assert look_up(made, 1, 2) == [0, 2], "17 steps ago, and step 18 sweeps"
    assert made.drain_resets().tolist() == [1]
    assert step(made, 3) == [1], "the lowest free row"
    assert made.figures().num_evicted_by_age == 1


@settings(max_examples=25, deadline=None)
@given(_STEPS, _STEPS, st.sampled_from(Policy))
def test_looking_up_changes_nothing(learnt: list[list[int]], asked: list[list[int]], policy: Policy) -> None:
    made, same = (bounded(6, policy=policy, admit_after=2) for _ in range(2))
    for number, keys in enumerate(learnt):
        for others in asked[number::3]:
            look_up(made, *others)
        assert step(made, *keys) == step(same, *keys)
    for name, value in made.state().tensors().items():
        assert torch.equal(value, same.state().tensors()[name]), name


@pytest.mark.parametrize("policy", Policy)
def test_a_large_stream_stays_bounded_and_every_sighting_is_counted_once(policy: Policy) -> None:
    made = bounded(5_000, policy=policy, admit_after=2, max_age_steps=60, waiting_per_row=2.0)
    generator = torch.Generator().manual_seed(1)
    for _ in range(150):
        draws = torch.rand(4_000, generator=generator).pow(4) * 60_000
        keys = torch.unique(draws.long() - 30_000)
        rows = made.rows(keys[keys != 0], training=True)
        held = rows[rows > 0]
        assert torch.unique(held).shape == held.shape
        assert bool((held < 5_000).all())
    figures = made.figures()
    assert figures.num_held == made.state().key_N.shape[0] <= figures.capacity == 4_999
    assert figures.num_held == figures.num_admitted - figures.num_evicted
    assert figures.num_evicted_for_others > 0
    assert figures.num_evicted_by_age > 0 or policy is not Policy.lfu, "only lfu keeps what is old"
    parts = (figures.num_hits, figures.num_admitted, figures.num_waiting, figures.num_refused)
    assert sum(parts) == figures.num_sightings
