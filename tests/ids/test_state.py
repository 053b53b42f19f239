"""The state of a managed map is by key: it goes on as if nothing had been, and into other numbers of rows or blocks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stack.ids.blocks import Blocks, even_blocks
from stack.ids.bounded import BoundedMap
from stack.ids.config import Implementation, ManagedConfig, Policy
from stack.ids.managed import ManagedMap, MapState, join_states
from stack.ids.torchrec_map import TorchRecMap

CPU = torch.device("cpu")
BOTH = [Implementation.bounded, Implementation.torchrec]


def made(implementation: Implementation, blocks: Blocks, policy: Policy, **options: int) -> ManagedMap:
    config = ManagedConfig(policy=policy, admit_after=2, interval_steps=4, waiting_per_row=100.0, **options)  # type: ignore[arg-type]
    kind = BoundedMap if implementation is Implementation.bounded else TorchRecMap
    return kind(config, blocks, device=CPU)


def keys_of_step(number: int) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.unique((torch.rand(60, generator=generator).pow(3) * 400).long() + number // 4 - 200)


def train(managed: ManagedMap, first: int, last: int) -> list[Tensor]:
    found = []
    for number in range(first, last):
        keys = keys_of_step(number)
        found.append(managed.rows(keys[keys != 0], training=True))
        found.append(managed.drain_resets())
    return found


def through_files(state: MapState) -> MapState:
    return MapState.of_tensors({name: value.clone() for name, value in state.tensors().items()})


@pytest.mark.parametrize("implementation", BOTH)
@pytest.mark.parametrize("policy", Policy)
@pytest.mark.parametrize("max_age_steps", [0, 12])
def test_a_loaded_map_goes_on_as_the_one_that_was_saved(
    implementation: Implementation, policy: Policy, max_age_steps: int
) -> None:
    saved, loaded = (made(implementation, even_blocks(60), policy, max_age_steps=max_age_steps) for _ in range(2))
    train(saved, 0, 42)
    moved = loaded.load(through_files(saved.state()))
    assert torch.equal(moved.from_row_N, moved.to_row_N)
    assert torch.equal(loaded.drain_resets(), saved.state().freed_F), "reset before the save, and so once more"
    for mine, other in zip(train(saved, 42, 90), train(loaded, 42, 90), strict=True):
        assert torch.equal(mine, other)
    assert saved.figures().num_evicted > 0
    for name, value in saved.state().tensors().items():
        assert torch.equal(value, loaded.state().tensors()[name]), name


@pytest.mark.parametrize("implementation", BOTH)
def test_a_larger_table_keeps_all_keys_in_their_rows(implementation: Implementation) -> None:
    saved = made(implementation, even_blocks(60), Policy.lru)
    train(saved, 0, 40)
    state = saved.state()
    larger = made(implementation, even_blocks(200), Policy.lru)
    moved = larger.load(state)
    assert torch.equal(moved.from_row_N, moved.to_row_N)
    assert torch.equal(larger.rows(state.key_N, training=False), state.row_N)
    train(larger, 40, 80)
    assert larger.figures().num_held > 59


@pytest.mark.parametrize("implementation", BOTH)
@pytest.mark.parametrize("policy", Policy)
def test_a_smaller_table_keeps_the_best_by_policy_and_tells_their_rows(
    implementation: Implementation, policy: Policy
) -> None:
    saved = made(implementation, even_blocks(60), policy)
    train(saved, 0, 40)
    state = saved.state()
    smaller = made(implementation, even_blocks(21), policy)
    moved = smaller.load(state)
    old_row = dict(zip(state.key_N.tolist(), state.row_N.tolist(), strict=True))
    score = {
        key: {"lru": last, "lfu": count, "distance_lfu": count / (state.clock - last + 1)}[policy.value]
        for key, count, last in zip(state.key_N.tolist(), state.count_N.tolist(), state.last_N.tolist(), strict=True)
    }
    best = sorted(score, key=lambda key: (-score[key], key))[:20]
    rows = smaller.rows(torch.tensor(sorted(score)), training=False).tolist()
    kept = {key: row for key, row in zip(sorted(score), rows, strict=True) if row}
    assert set(kept) == set(best)
    assert all(kept[key] == old_row[key] for key in kept if old_row[key] <= 20), "rows that fit stay"
    assert sorted(zip(moved.from_row_N.tolist(), moved.to_row_N.tolist(), strict=True)) == sorted(
        (old_row[key], kept[key]) for key in kept
    )


@pytest.mark.parametrize("implementation", BOTH)
def test_state_goes_from_one_block_to_three_and_back(implementation: Implementation) -> None:
    saved = made(implementation, even_blocks(301), Policy.lru)
    train(saved, 0, 20)
    state = saved.state()
    parts = [made(implementation, even_blocks(301, num_blocks=3, rank=rank), Policy.lru) for rank in range(3)]
    moves = [part.load(state) for part in parts]
    owner = even_blocks(301, num_blocks=3).owner(state.key_N)
    for rank, (part, moved) in enumerate(zip(parts, moves, strict=True)):
        own = owner == rank
        rows = part.rows(state.key_N, training=False)
        assert bool(((rows > 0) == own).all()), "every key has a row at its owner, and nowhere else"
        bounds = even_blocks(301, num_blocks=3).bounds
        assert bounds[rank] <= int(rows[own].min()) <= int(rows[own].max()) < bounds[rank + 1]
        assert torch.equal(moved.from_row_N.sort().values, state.row_N[own].sort().values)
    joined = join_states([part.state() for part in parts])
    for name in ("key_N", "count_N", "last_N", "waiting_key_W", "waiting_count_W"):
        assert torch.equal(getattr(joined, name), getattr(state, name)), name
    back = made(implementation, even_blocks(301), Policy.lru)
    back.load(joined)
    assert torch.equal(back.rows(state.key_N, training=False), joined.row_N)


def test_a_state_of_torchrecs_map_loads_into_ours() -> None:
    saved = made(Implementation.torchrec, even_blocks(60), Policy.lfu)
    train(saved, 0, 40)
    ours = made(Implementation.bounded, even_blocks(60), Policy.lfu)
    ours.load(saved.state())
    keys = saved.state().key_N
    assert keys.shape[0] > 40
    assert torch.equal(ours.rows(keys, training=False), saved.rows(keys, training=False))


def test_blocks_are_those_of_row_wise_sharding_and_keys_spread_as_usable_rows_do() -> None:
    assert even_blocks(10, num_blocks=3).bounds == (0, 4, 8, 10)
    assert even_blocks(9, num_blocks=4).bounds == (0, 3, 6, 9, 9)
    assert [even_blocks(10, num_blocks=3, rank=rank).capacity for rank in range(3)] == [3, 4, 2]
    assert even_blocks(9, num_blocks=4, rank=3).capacity == 0
    owner = even_blocks(10, num_blocks=3).owner(torch.arange(-50_000, 50_000))
    shares = torch.bincount(owner, minlength=3) / 100_000
    assert shares.tolist() == pytest.approx([3 / 9, 4 / 9, 2 / 9], abs=0.006)
    whole = Blocks(bounds=(0, 0, 10, 10))
    assert bool((whole.owner(torch.arange(1000)) == 1).all()), "a table held by one process"
