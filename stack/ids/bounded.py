"""A bounded map with every guarantee of `stack.ids.managed`: open addressing, lazy queue of those to evict.

Legend: N keys of a call, S slots (rows of this block), Q slots in the queue.

Eviction needs the worst keys, and to rank all slots at each step would cost as much as the table is long. So the worst
sixteenth is ranked once and taken from in that order, passing over slots that were seen again since; when it is used
up all are ranked anew. For `lru` this is exact (a slot not in the queue was seen later than all in it); for `lfu` and
`distance_lfu` the order is that of the last ranking, and keys admitted since are safe until the next.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stack.data.schema import PADDING_ROW
from stack.ids.blocks import Blocks
from stack.ids.config import ManagedConfig, Policy
from stack.ids.keyindex import KeyIndex
from stack.ids.managed import MapFigures, MapState, Moved, scores, settle
from stack.ids.waiting import WaitingRoom

_FREE = -1
_QUEUE_SHARE, _QUEUE_LEAST = 16, 1024
_SWEEPS_PER_AGE = 8
_MOST_PARTS = 256


class BoundedMap:
    """The keys of one block. Deterministic: rows depend on the keys of the steps so far alone."""

    tracks_changes = True

    def __init__(self, config: ManagedConfig, blocks: Blocks, *, device: torch.device) -> None:
        self._config = config
        self._blocks = blocks
        self._device = device
        self._clear()
        self._figures = MapFigures(capacity=blocks.capacity)

    def _clear(self) -> None:
        capacity, device = self._blocks.capacity, self._device
        self._index = KeyIndex(capacity, device=device)
        self._count_S = torch.zeros(capacity, dtype=torch.int32, device=device)
        self._last_S = torch.full((capacity,), _FREE, dtype=torch.int32, device=device)
        self._new_S = torch.zeros(capacity, dtype=torch.bool, device=device)  # given a key since `drain_gone`
        counts = self._config.admit_after > 1 or self._config.policy is not Policy.lru
        num_places = int(capacity * self._config.waiting_per_row) if counts and capacity else 0
        self._waiting = WaitingRoom(num_places, device=device) if num_places else None
        self._clock = 0
        self._freed = torch.empty(0, dtype=torch.int64, device=device)  # ascending, all below _num_touched
        self._num_touched = 0  # slots from here on were never used
        self._queue_Q = torch.empty(0, dtype=torch.int64, device=device)
        self._queue_clock = 0
        self._resets: list[Tensor] = []
        self._gone: list[Tensor] = []  # all together at most a key for each slot, and those put back

    @property
    def num_bytes(self) -> int:
        """Memory of the map beside the table."""
        waiting = self._waiting.num_bytes if self._waiting else 0
        return self._index.num_bytes + self._count_S.nbytes + self._last_S.nbytes + self._new_S.nbytes + waiting

    def rows(self, key_N: Tensor, *, training: bool) -> Tensor:
        slot_N = self._index.find(key_N)
        if training:
            slot_N = self._learn(key_N, slot_N)
        row_N: Tensor = torch.where(slot_N < 0, PADDING_ROW, slot_N + self._blocks.first_usable)
        return row_N

    def drain_resets(self) -> Tensor:
        parts, self._resets = self._resets, []
        if not parts:
            return torch.empty(0, dtype=torch.int64, device=self._device)
        row_R: Tensor = torch.unique(torch.cat(parts)) + self._blocks.first_usable
        return row_R

    def drain_gone(self) -> Tensor:
        parts, self._gone = self._gone, []
        self._new_S.zero_()
        key_G = torch.unique(torch.cat(parts)) if parts else torch.empty(0, dtype=torch.int64, device=self._device)
        return key_G[self._index.find(key_G) < 0]

    def put_back_gone(self, key_G: Tensor) -> None:
        self._gone.append(key_G.to(self._device))

    def figures(self) -> MapFigures:
        self._figures.num_held = self._num_touched - int(self._freed.shape[0])
        return self._figures + MapFigures()

    def state(self) -> MapState:
        slot = (self._last_S != _FREE).nonzero().squeeze(1)
        key_N, order = torch.sort(self._index.key_S[slot])
        slot = slot[order]
        nothing = torch.empty(0, dtype=torch.int64, device=self._device)
        waiting, counts = self._waiting.held() if self._waiting else (nothing, nothing.int())
        return MapState(
            clock=self._clock,
            queue_clock=self._queue_clock,
            key_N=key_N,
            row_N=slot + self._blocks.first_usable,
            count_N=self._count_S[slot],
            last_N=self._last_S[slot],
            waiting_key_W=waiting,
            waiting_count_W=counts,
            queue_Q=self._index.key_S[self._queue_Q[self._valid_places(max(int(self._queue_Q.shape[0]), 1))]],
            freed_F=self._freed + self._blocks.first_usable,
            pending_P=nothing,
            pending_step_P=nothing,
        )

    def load(self, state: MapState) -> Moved:
        self._clear()
        rank, first_row = self._blocks.rank, self._blocks.first_usable
        owned_N = self._blocks.owner(state.key_N) == rank
        settled = settle(
            state,
            owned_N=owned_N,
            first_row=first_row,
            capacity=self._blocks.capacity,
            score_N=self._score(state.count_N, state.last_N, state.clock),
        )
        slot = settled.row_K - first_row
        self._index.insert(state.key_N[settled.index_K], slot)
        self._count_S[slot] = state.count_N[settled.index_K]
        self._last_S[slot] = state.last_N[settled.index_K]
        self._clock, self._queue_clock = state.clock, state.queue_clock
        freed = state.freed_F - first_row
        used = torch.cat([slot, freed[(freed >= 0) & (freed < self._blocks.capacity)]])
        self._num_touched = int(used.max()) + 1 if used.numel() else 0
        self._freed = (self._last_S[: self._num_touched] == _FREE).nonzero().squeeze(1)
        # among them, in another block than before, are rows that never had a key: from now on they are like the others
        self._resets.append(self._freed)
        owned_N[settled.index_K] = False
        self._gone.append(state.key_N[owned_N])
        if self._waiting:
            waits = self._blocks.owner(state.waiting_key_W) == rank
            self._waiting.load(state.waiting_key_W[waits], state.waiting_count_W[waits])
        queued = self._index.find(state.queue_Q)
        self._queue_Q = queued[queued >= 0]
        return Moved(from_row_N=state.row_N[settled.index_K], to_row_N=settled.row_K)

    def _learn(self, key_N: Tensor, slot_N: Tensor) -> Tensor:
        """One step: slots of the keys after admissions and evictions, -1 for those without."""
        self._clock += 1
        known_N = slot_N >= 0
        hit = slot_N[known_N]
        self._last_S[hit] = self._clock
        self._count_S[hit] += 1
        if self._config.max_age_steps and self._clock % max(self._config.max_age_steps // _SWEEPS_PER_AGE, 1) == 0:
            self._sweep()
        new = (~known_N).nonzero().squeeze(1)
        counted = self._figures
        counted.num_sightings += int(key_N.shape[0])
        counted.num_hits += int(hit.shape[0])
        if not new.numel():
            return slot_N
        count = self._waiting.sight(key_N[new]) if self._waiting else torch.ones_like(new, dtype=torch.int32)
        ready = count >= self._config.admit_after
        wants = new[ready]
        counted.num_waiting += int(new.shape[0] - wants.shape[0])
        order = torch.sort(count[ready], descending=True, stable=True)
        wants = wants[order.indices]
        slots = self._slots_for(order.values)
        wants, refused = wants[: slots.shape[0]], wants[slots.shape[0] :]
        self._admit(key_N[wants], slots, order.values[: slots.shape[0]])
        counted.num_refused += int(refused.shape[0])
        slot_N[wants] = slots
        return slot_N

    def _admit(self, key: Tensor, slot: Tensor, count: Tensor) -> None:
        self._index.insert(key, slot)
        self._count_S[slot] = count
        self._last_S[slot] = self._clock
        self._new_S[slot] = True
        self._figures.num_admitted += int(key.shape[0])
        if self._waiting:
            self._waiting.forget(key)

    def _slots_for(self, count_W: Tensor) -> Tensor:
        """Slots for as many of the W keys, best first, as there are free ones or worse keys to evict."""
        wanted = int(count_W.shape[0])
        from_freed = min(wanted, int(self._freed.shape[0]))
        taken, self._freed = self._freed[:from_freed], self._freed[from_freed:]
        fresh = min(wanted - from_freed, self._blocks.capacity - self._num_touched)
        untouched = torch.arange(self._num_touched, self._num_touched + fresh, device=self._device)
        self._num_touched += fresh
        parts = [taken, untouched]
        if wanted > from_freed + fresh:
            parts.append(self._evict_for(count_W[from_freed + fresh :]))
        return torch.cat(parts)

    def _evict_for(self, count_W: Tensor) -> Tensor:
        """Evicts for each newcomer, best first, the worst key left, as long as that is worth less."""
        place = self._next_in_queue(int(count_W.shape[0]))
        victims = self._queue_Q[place]
        new_W = self._score(count_W, torch.full_like(count_W, self._clock), self._clock)
        old = self._score(self._count_S[victims], self._last_S[victims], self._clock)
        # Both are in order, so the first that is not worth it ends it.
        num = int((old < new_W[: victims.shape[0]]).cumprod(0).sum())
        if num:
            self._queue_Q = self._queue_Q[int(place[num - 1]) + 1 :]
        victims = victims[:num]
        self._figures.num_evicted_for_others += num
        self._forget(victims)
        return victims

    def _next_in_queue(self, num: int) -> Tensor:
        """Places in the queue of the next to be evicted, at most `num`, none of them of this step."""
        place = self._valid_places(num)
        if place.shape[0] < num:
            self._queue_Q, self._queue_clock = self._rank(num), self._clock
            place = self._valid_places(num)
        return place

    def _valid_places(self, num: int) -> Tensor:
        """The first `num` places whose slots were neither seen nor given to another key since the ranking."""
        parts: list[Tensor] = []
        found, start, length = 0, 0, int(self._queue_Q.shape[0])
        while found < num and start < length:
            last = self._last_S[self._queue_Q[start : start + 2 * num]]
            place = ((last != _FREE) & (last < self._queue_clock)).nonzero().squeeze(1) + start
            parts.append(place)
            found += int(place.shape[0])
            start += 2 * num
        return torch.cat(parts)[:num] if parts else self._queue_Q.new_empty(0)

    def _rank(self, num: int) -> Tensor:
        """The worst sixteenth of the slots that are not of this step, worst first, equals in order of slots."""
        slot = ((self._last_S != _FREE) & (self._last_S < self._clock)).nonzero().squeeze(1)
        most = max(num, self._blocks.capacity // _QUEUE_SHARE, _QUEUE_LEAST)
        score = self._score(self._count_S[slot], self._last_S[slot], self._clock)
        if most < slot.shape[0]:
            limit = score.kthvalue(most).values
            below = (score < limit).nonzero().squeeze(1)
            at = (score == limit).nonzero().squeeze(1)[: most - below.shape[0]]
            among = torch.cat([below, at]).sort().values
            slot, score = slot[among], score[among]
        return slot[torch.sort(score, stable=True).indices]

    def _sweep(self) -> None:
        """Evicts by age."""
        old = self._clock - self._config.max_age_steps
        slot = ((self._last_S != _FREE) & (self._last_S < old)).nonzero().squeeze(1)
        self._forget(slot)
        self._figures.num_evicted_by_age += int(slot.shape[0])
        self._freed = torch.cat([self._freed, slot]).sort().values

    def _forget(self, slot: Tensor) -> None:
        self._index.remove(slot)
        self._gone.append(self._index.key_S[slot[~self._new_S[slot]]])
        if len(self._gone) > _MOST_PARTS:
            self._gone = [torch.cat(self._gone)]
        self._last_S[slot] = _FREE
        self._count_S[slot] = 0
        self._resets.append(slot)

    def _score(self, count: Tensor, last: Tensor, clock: int) -> Tensor:
        return scores(self._config.policy, count_N=count, last_N=last, clock=clock, decay=self._config.decay)
