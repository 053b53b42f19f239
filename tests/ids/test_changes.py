"""What changed in managed maps since a state was kept: each state from the one before, and restarts from any."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stack.ids.blocks import even_blocks
from stack.ids.bounded import BoundedMap
from stack.ids.config import IdMode, IdSpec, Implementation, ManagedConfig, Policy
from stack.ids.hashing import HashVariant
from stack.ids.managed import MapState, join_states
from stack.ids.maps import IdMaps

CPU = torch.device("cpu")
FIRST, ANEW = -1.0, 0.0
"""What rows hold that never had a key, and what they begin anew with."""

_KEYS = st.sampled_from([*range(1, 25), -1, -(2**63), 2**63 - 1])
_BATCH = st.lists(_KEYS, unique=True, max_size=9).map(sorted)
_ACTIONS = st.lists(st.one_of(_BATCH, st.sampled_from(["save", "save fails", "restart"])), max_size=45)

Line = tuple[int, int, int, float]
"""Row, count, last step and weight of a key."""


@dataclass
class Trained:
    """Maps of all blocks of a table with their rows, of one number each: how often they were learnt from."""

    maps: list[BoundedMap]
    weight_R: np.ndarray
    resets: list[int] = field(default_factory=list)

    @classmethod
    def begin(cls, config: ManagedConfig, *, num_rows: int, num_blocks: int) -> Trained:
        blocks = [even_blocks(num_rows, num_blocks=num_blocks, rank=rank) for rank in range(num_blocks)]
        return cls([BoundedMap(config, one, device=CPU) for one in blocks], np.full(num_rows, FIRST))

    def step(self, keys: list[int]) -> tuple[list[int], list[float]]:
        key_N = torch.tensor(keys, dtype=torch.int64)
        owner_N = even_blocks(len(self.weight_R), num_blocks=len(self.maps)).owner(key_N)
        row_N = torch.zeros_like(key_N)
        for rank, one in enumerate(self.maps):
            row_N[owner_N == rank] = one.rows(key_N[owner_N == rank], training=True)
        self.renew()
        found = self.weight_R[row_N.numpy()].tolist()
        self.weight_R[row_N[row_N > 0].numpy()] += 1.0
        return row_N.tolist(), found

    def renew(self) -> None:
        self.resets = [int(row) for one in self.maps for row in one.drain_resets()]
        self.weight_R[self.resets] = ANEW

    def state(self) -> MapState:
        return join_states([one.state() for one in self.maps])

    def lines(self) -> dict[int, Line]:
        state = self.state()
        columns = (state.key_N, state.row_N, state.count_N, state.last_N)
        return {
            key: (row, count, last, self.weight_R[row])
            for key, row, count, last in zip(*(column.tolist() for column in columns), strict=True)
        }

    def gone(self) -> list[int]:
        return [int(key) for one in self.maps for key in one.drain_gone()]

    def put_back(self, keys: list[int]) -> None:
        key_G = torch.tensor(keys, dtype=torch.int64)
        owner_G = even_blocks(len(self.weight_R), num_blocks=len(self.maps)).owner(key_G)
        for rank, one in enumerate(self.maps):
            one.put_back_gone(key_G[owner_G == rank])


def restarted(config: ManagedConfig, state: MapState, lines: dict[int, Line], like: Trained) -> Trained:
    """From files alone: the maps' state, and a line for each key."""
    new = Trained.begin(config, num_rows=len(like.weight_R), num_blocks=len(like.maps))
    whole = MapState.of_tensors({name: value.clone() for name, value in state.tensors().items()})
    for one in new.maps:
        moved = one.load(whole)
        assert torch.equal(moved.from_row_N, moved.to_row_N)
    for row, _, _, weight in lines.values():
        new.weight_R[row] = weight
    new.renew()
    assert sorted(new.resets) == state.freed_F.tolist()
    assert new.gone() == []
    return new


def same(one: MapState, other: MapState) -> bool:
    pairs = zip(one.tensors().values(), other.tensors().values(), strict=True)
    return all(torch.equal(mine, its) for mine, its in pairs)


@settings(max_examples=150, deadline=None)
@given(
    _ACTIONS, st.sampled_from(Policy), st.integers(1, 2), st.sampled_from([0, 3, 12]), st.integers(4, 14),
    st.sampled_from([1, 3]),
)  # fmt: skip
def test_each_state_is_the_one_before_with_what_changed_and_without_what_is_gone(
    actions: list[list[int] | str], policy: Policy, admit_after: int, age: int, num_rows: int, num_blocks: int
) -> None:
    """And who restarts from one goes on as if nothing had been."""
    config = ManagedConfig(policy=policy, admit_after=admit_after, max_age_steps=age, waiting_per_row=100.0)
    live = Trained.begin(config, num_rows=num_rows, num_blocks=num_blocks)
    twin: Trained | None = None
    kept: dict[int, Line] = {}
    clock = 0
    for action in [*actions, "save"]:
        if isinstance(action, list):
            found = live.step(action)
            if twin is not None:
                assert twin.step(action) == found
                assert twin.resets == live.resets
            continue
        state, now, gone = live.state(), live.lines(), live.gone()
        if twin is not None:
            assert same(twin.state(), state)
            assert twin.gone() == gone
        assert len(set(gone)) == len(gone)
        assert not set(gone) & set(now)
        if action == "save fails":
            for one in (live, twin):
                if one is not None:
                    one.put_back(gone)
            continue
        assert sorted(gone) == sorted(set(kept) - set(now)) or "save fails" in actions
        kept |= {key: line for key, line in now.items() if line[2] > clock}
        kept = {key: line for key, line in kept.items() if key not in gone}
        assert kept == now
        clock = state.clock
        if action == "restart":
            twin = restarted(config, state, kept, live)


def test_rows_freed_at_the_end_of_the_used_ones_are_not_taken_for_new_ones() -> None:
    config = ManagedConfig(policy=Policy.lru, admit_after=1, max_age_steps=2)
    live = Trained.begin(config, num_rows=10, num_blocks=1)
    live.step([1, 2, 3])
    for _ in range(4):
        live.step([1])
    state = live.state()
    assert (state.row_N.tolist(), state.freed_F.tolist()) == ([1], [2, 3])
    again = restarted(config, state, live.lines(), live)
    assert again.weight_R.tolist() == [FIRST, 4.0, ANEW, ANEW, *[FIRST] * 6]
    assert again.step([1, 7, 8, 9]) == live.step([1, 7, 8, 9]) == ([1, 2, 3, 4], [4.0, ANEW, ANEW, FIRST])


def test_free_rows_of_other_blocks_begin_anew_once_and_for_all() -> None:
    """Whether a row between those in use ever had a key is not told after a change of blocks."""
    config = ManagedConfig(policy=Policy.lru, admit_after=1, max_age_steps=4)
    one = Trained.begin(config, num_rows=40, num_blocks=1)
    one.step([*range(1, 20)])
    for _ in range(6):
        one.step([2, 5, 11, 13])
    state = one.state()
    two = Trained.begin(config, num_rows=40, num_blocks=2)
    for block in two.maps:
        block.load(state)
    two.renew()
    later = two.state()
    assert later.freed_F.tolist() == sorted(two.resets)
    assert set(state.freed_F.tolist()) - set(later.row_N.tolist()) <= set(two.resets)
    restarted(config, later, two.lines(), two)


def test_keys_that_a_smaller_table_has_no_row_for_are_gone() -> None:
    config = ManagedConfig(policy=Policy.lru, admit_after=1)
    large, small = (Trained.begin(config, num_rows=rows, num_blocks=1) for rows in (10, 4))
    for last in range(1, 8):
        large.step([last])
    small.maps[0].load(large.state())
    assert small.gone() == [1, 2, 3, 4]
    assert small.gone() == []


def test_each_key_is_gone_once_however_often_it_came_and_went() -> None:
    config = ManagedConfig(policy=Policy.lru, admit_after=1)
    live = Trained.begin(config, num_rows=4, num_blocks=1)
    live.step([1, 2, 3])
    assert live.gone() == []
    for _ in range(300):
        for keys in ([4, 5, 6], [1, 2, 3], [7, 8, 9]):
            live.step(keys)
    assert sum(len(part) for part in live.maps[0]._gone) == 3
    assert live.gone() == [1, 2, 3], "the others came and went in between"


def maps_of(*implementations: Implementation) -> IdMaps:
    return IdMaps(
        IdSpec(
            name=one.value, mode=IdMode.managed, num_rows=4, hash=HashVariant.modulo,
            managed=ManagedConfig(implementation=one, policy=Policy.lru, admit_after=1, interval_steps=1),
        )
        for one in implementations
    )  # fmt: skip


def test_maps_tell_of_each_table_what_is_gone_but_for_torchrecs() -> None:
    maps = maps_of(Implementation.bounded, Implementation.torchrec)
    assert [maps.tracks_changes(name) for name in ("bounded", "torchrec")] == [True, False]

    def listed(gone: dict[str, Tensor]) -> dict[str, list[int]]:
        return {name: keys.tolist() for name, keys in gone.items()}

    for keys in ([1, 2, 3], [7, 8]):
        assert listed(maps.drain_gone()) == {"bounded": []}
        for name in maps.managed_names:
            maps(name, torch.tensor(keys))
    gone = maps.drain_gone()
    assert listed(gone) == {"bounded": [1, 2]}
    maps("bounded", torch.tensor([2]))
    maps.put_back_gone(gone)
    assert listed(maps.drain_gone()) == {"bounded": [1, 3]}, "2 has a row again"
