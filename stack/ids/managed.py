"""What managing rows means: the interface of both implementations, its state, its figures, and what it guarantees.

Guaranteed by `stack.ids.bounded`, each by a test; `stack.ids.torchrec_map` says where TorchRec's is less:

- rows are bounded: a key has a row of this process's block, or row 0, shared by all that have none;
- no row before the key was seen in `admit_after` steps;
- an evicted row is reported by `drain_resets` before anybody looks it up again, so weights and optimizer state begin
  anew; an id that was evicted and returns is a new one;
- no id of the current batch is evicted;
- outside of training nothing changes;
- the state is by key: it loads into any number of processes and rows. Keys keep their rows where those lie in the
  block of their owner; into fewer rows the best by policy are kept.

Legend: N keys of a call or of a state, W keys waiting, Q keys in the queue of those to be evicted next, F freed rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol

import torch
from torch import Tensor

from stack.ids.config import Policy


@dataclass(kw_only=True)
class MapFigures:
    """What happened in this process since it started (sightings and below), and what is now.

    A sighting is a distinct key of a training step. `num_waiting`: sightings of keys not seen often enough;
    `num_refused`: of keys that no evictable row was worth giving up for. Both, and nothing else, are misses.
    """

    capacity: int = 0
    num_held: int = 0
    num_sightings: int = 0
    num_hits: int = 0
    num_admitted: int = 0
    num_waiting: int = 0
    num_refused: int = 0
    num_evicted_for_others: int = 0
    num_evicted_by_age: int = 0

    @property
    def num_evicted(self) -> int:
        return self.num_evicted_for_others + self.num_evicted_by_age

    @property
    def occupancy(self) -> float:
        return self.num_held / max(self.capacity, 1)

    @property
    def hit_share(self) -> float:
        """Share of sightings whose key had a row before; with the admitted ones, and `miss_share`, they are all."""
        return self.num_hits / max(self.num_sightings, 1)

    @property
    def miss_share(self) -> float:
        return (self.num_waiting + self.num_refused) / max(self.num_sightings, 1)

    def __add__(self, other: MapFigures) -> MapFigures:
        """Those of two processes together."""
        return MapFigures(
            **{field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(MapFigures)}
        )

    def __sub__(self, earlier: MapFigures) -> MapFigures:
        """What happened since the earlier ones."""
        return MapFigures(
            **{field.name: getattr(self, field.name) - getattr(earlier, field.name) for field in fields(MapFigures)}
        )


@dataclass(frozen=True, kw_only=True)
class MapState:
    """The state of a managed map, or of one block of it. Keys ascend; rows are those of the whole table.

    `count_N`: steps in which a key was seen; `last_N`: the last of them; `clock`: steps so far. `queue_Q`: keys that
    were the worst at step `queue_clock` and go first. `freed_F`: rows that had a key once and have none now, ascending.
    `pending_P`, `pending_step_P`: sightings that TorchRec's module has not looked at yet; empty for `bounded`.

    The keys whose row or statistics changed since the state of clock c are those with `last_N` > c, as long as no state
    was loaded since: that may give keys other rows (`Moved`).
    """

    clock: int
    queue_clock: int
    key_N: Tensor
    row_N: Tensor
    count_N: Tensor
    last_N: Tensor
    waiting_key_W: Tensor
    waiting_count_W: Tensor
    queue_Q: Tensor
    freed_F: Tensor
    pending_P: Tensor
    pending_step_P: Tensor

    def to(self, device: torch.device) -> MapState:
        """The same on another device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in _TENSORS})

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, as a file keeps it."""
        clocks = torch.tensor([self.clock, self.queue_clock])
        return {"clocks": clocks} | {name: getattr(self, name) for name in _TENSORS}

    @classmethod
    def of_tensors(cls, tensors: dict[str, Tensor]) -> MapState:
        """The inverse of `tensors`."""
        clock, queue_clock = tensors["clocks"].tolist()
        return cls(clock=clock, queue_clock=queue_clock, **{name: tensors[name] for name in _TENSORS})


_TENSORS = tuple(field.name for field in fields(MapState) if field.name not in ("clock", "queue_clock"))


def join_states(parts: Sequence[MapState]) -> MapState:
    """The state of a whole table from those of its blocks."""
    whole = {name: torch.cat([getattr(part, name) for part in parts]) for name in _TENSORS}
    for key, others in (("key_N", ("row_N", "count_N", "last_N")), ("waiting_key_W", ("waiting_count_W",))):
        order = torch.argsort(whole[key])
        whole |= {name: whole[name][order] for name in (key, *others)}
    whole["freed_F"] = whole["freed_F"].sort().values
    first = parts[0]
    assert all(part.clock == first.clock for part in parts), "blocks of one table count the same steps"
    return MapState(clock=first.clock, queue_clock=max(part.queue_clock for part in parts), **whole)


@dataclass(frozen=True, kw_only=True)
class Moved:
    """Which rows of a saved table became which rows of this process's block: all that have a key here."""

    from_row_N: Tensor
    to_row_N: Tensor


class ManagedMap(Protocol):
    """The rows of one block and the keys that have them."""

    tracks_changes: bool
    """Whether `drain_gone` and `last_N` tell all that changed since a state."""

    def rows(self, key_N: Tensor, *, training: bool) -> Tensor:
        """Rows of distinct keys that this block owns, never `UNKNOWN_KEY`. In training this is one step."""
        ...

    def drain_resets(self) -> Tensor:
        """Rows evicted since the last call, ascending, once each. After `load` those are free rows that are not to be
        taken for rows that never had a key: they begin anew, as they did when their keys were evicted."""
        ...

    def drain_gone(self) -> Tensor:
        """Keys that had a row at the last call (or in the state loaded since) and have none now, ascending: with
        each call belongs a state that is kept. Keys that a loaded state had and this block has no row for are gone too.
        """
        ...

    def put_back_gone(self, key_G: Tensor) -> None:
        """Has the next `drain_gone` give these too, but for those that have a row by then: the state they belong with
        was not kept."""
        ...

    def figures(self) -> MapFigures: ...

    def state(self) -> MapState: ...

    def load(self, state: MapState) -> Moved:
        """Takes over the keys of a state (of the whole table) that this block owns; all it had before is dropped."""
        ...


def scores(policy: Policy, *, count_N: Tensor, last_N: Tensor, clock: int, decay: float) -> Tensor:
    """How much each key is worth its row; the lowest goes first."""
    if policy is Policy.lru:
        return last_N
    if policy is Policy.lfu:
        return count_N
    return count_N / (clock - last_N + 1).float().pow(decay)


@dataclass(frozen=True, kw_only=True)
class Settled:
    """Where the keys of a state go in a block: indices into the state, and their rows, ascending."""

    index_K: Tensor
    row_K: Tensor


def settle(state: MapState, *, owned_N: Tensor, first_row: int, capacity: int, score_N: Tensor) -> Settled:
    """Gives the owned keys rows of a block: the best by `score_N` (of equals the smaller key) if they are too many,
    each its old row where that lies in the block, and the lowest free ones to the others, in order of keys."""
    index_K = owned_N.nonzero().squeeze(1)
    if index_K.shape[0] > capacity:
        best = torch.sort(score_N[index_K], descending=True, stable=True).indices[:capacity]
        index_K = index_K[best].sort().values
    row_K = state.row_N[index_K].clone()
    stays_K = (row_K >= first_row) & (row_K < first_row + capacity)
    free = torch.ones(capacity, dtype=torch.bool, device=row_K.device)
    free[row_K[stays_K] - first_row] = False
    homeless = (~stays_K).nonzero().squeeze(1)
    row_K[homeless] = free.nonzero().squeeze(1)[: homeless.shape[0]] + first_row
    order = torch.argsort(row_K)
    return Settled(index_K=index_K[order], row_K=row_K[order])
