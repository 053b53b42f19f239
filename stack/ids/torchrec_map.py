"""The same interface over TorchRec's MCHManagedCollisionModule (torchrec 1.8, `torchrec/modules/mc_modules.py`).

What is done about its ways, and what cannot be:

- It admits and evicts every `interval_steps` steps alone, and by what its history holds then: until the first interval
  every key misses, and an id of the current batch can be evicted (under lfu and distance_lfu) though never under it:
  the module maps after evicting, so such an id has row 0 in that very step.
- Its history has a fixed length, set by the first batch, and drops what is beyond: here it grows before each batch.
- Its last slot is its own miss slot: here a slot that no row belongs to, and misses get row 0 as everywhere.
- 2^63 - 1 marks its free slots: that key is refused.
- Admission by count, eviction by age and the figures are ours, in front of and around the module.
- Rows change hands only through `evict()`, which reports free slots that are filled for the first time as well, and
  not which keys lost theirs: what changed since a state is not followed here.

Legend: N keys of a call, S slots with the miss slot.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    LFU_EvictionPolicy,
    LRU_EvictionPolicy,
    MCHEvictionPolicy,
    MCHManagedCollisionModule,
)
from torchrec.sparse.jagged_tensor import JaggedTensor

from stack.base.errors import DataError
from stack.data.schema import PADDING_ROW
from stack.ids.blocks import Blocks
from stack.ids.config import ManagedConfig, Policy
from stack.ids.managed import MapFigures, MapState, Moved, scores, settle
from stack.ids.waiting import WaitingRoom

_RESERVED_KEY = torch.iinfo(torch.int64).max
_FEATURE = "ids"
_SWEEPS_PER_AGE = 8


class TorchRecMap:
    """The keys of one block, in TorchRec's sorted map."""

    tracks_changes = False

    def __init__(self, config: ManagedConfig, blocks: Blocks, *, device: torch.device) -> None:
        self._config = config
        self._blocks = blocks
        self._device = device
        self._figures = MapFigures(capacity=blocks.capacity)
        self._clear()

    def _clear(self) -> None:
        self._num_slots = self._blocks.capacity + 1
        self._module = MCHManagedCollisionModule(
            zch_size=self._num_slots,
            device=self._device,
            eviction_policy=_policy(self._config),
            eviction_interval=self._config.interval_steps,
        )
        self._count_S = torch.zeros(self._num_slots, dtype=torch.int32, device=self._device)
        self._last_S = torch.zeros(self._num_slots, dtype=torch.int32, device=self._device)
        self._held_S = torch.zeros(self._num_slots, dtype=torch.bool, device=self._device)
        self._used_S = torch.zeros(self._num_slots, dtype=torch.bool, device=self._device)
        num_places = int(self._num_slots * self._config.waiting_per_row)
        self._waiting = WaitingRoom(num_places, device=self._device) if self._config.admit_after > 1 else None
        self._resets: list[Tensor] = []
        self._clock = 0

    def rows(self, key_N: Tensor, *, training: bool) -> Tensor:
        if bool((key_N == _RESERVED_KEY).any()):
            raise DataError(
                f"the key {_RESERVED_KEY} marks free slots in TorchRec's map: set ids.managed.implementation=bounded"
            )
        slot_N = self._learn(key_N) if training else self._find(key_N)
        row_N: Tensor = torch.where(slot_N < 0, PADDING_ROW, slot_N + self._blocks.first_usable)
        return row_N

    def drain_resets(self) -> Tensor:
        parts, self._resets = self._resets, []
        if not parts:
            return torch.empty(0, dtype=torch.int64, device=self._device)
        row_R: Tensor = torch.unique(torch.cat(parts)) + self._blocks.first_usable
        return row_R

    def drain_gone(self) -> Tensor:
        raise AssertionError("a torchrec map does not follow its changes: its table is written whole")

    def put_back_gone(self, key_G: Tensor) -> None:
        raise AssertionError("a torchrec map does not follow its changes: its table is written whole")

    def figures(self) -> MapFigures:
        self._figures.num_held = int(self._held_S.sum())
        return self._figures + MapFigures()

    def state(self) -> MapState:
        raw, slot = self._module._mch_sorted_raw_ids, self._module._mch_remapped_ids_mapping
        used = raw != _RESERVED_KEY
        key_N, slot_N = raw[used], slot[used]
        counts_S = self._module._mch_metadata.get("counts")  # as of its last interval: what is pending comes on top
        nothing = torch.empty(0, dtype=torch.int64, device=self._device)
        waiting, counts = self._waiting.held() if self._waiting else (nothing, nothing.int())
        pending, pending_step = self._history()
        return MapState(
            clock=self._clock,
            queue_clock=0,
            key_N=key_N.clone(),
            row_N=slot_N + self._blocks.first_usable,
            count_N=self._count_S[slot_N] if counts_S is None else counts_S[used].int(),
            last_N=self._last_S[slot_N],
            waiting_key_W=waiting,
            waiting_count_W=counts,
            queue_Q=nothing,
            freed_F=(self._used_S & ~self._held_S).nonzero().squeeze(1) + self._blocks.first_usable,
            pending_P=pending,
            pending_step_P=pending_step,
        )

    def load(self, state: MapState) -> Moved:
        self._clear()
        rank, first_row = self._blocks.rank, self._blocks.first_usable
        policy, decay = self._config.policy, self._config.decay
        score_N = scores(policy, count_N=state.count_N, last_N=state.last_N, clock=state.clock, decay=decay)
        settled = settle(
            state,
            owned_N=self._blocks.owner(state.key_N) == rank,
            first_row=first_row,
            capacity=self._blocks.capacity,
            score_N=score_N,
        )
        slot, index = settled.row_K - first_row, settled.index_K
        self._clock = state.clock
        self._count_S[slot], self._last_S[slot] = state.count_N[index], state.last_N[index]
        self._held_S[slot] = True
        freed = state.freed_F - first_row
        self._used_S[freed[(freed >= 0) & (freed < self._blocks.capacity)]] = True
        self._resets.append((self._used_S & ~self._held_S).nonzero().squeeze(1))
        self._used_S[slot] = True
        self._load_module(state, slot=slot, index=index)
        if self._waiting:
            waits = self._blocks.owner(state.waiting_key_W) == rank
            self._waiting.load(state.waiting_key_W[waits], state.waiting_count_W[waits])
        pending = self._blocks.owner(state.pending_P) == rank
        self._remember(state.pending_P[pending], state.pending_step_P[pending])
        return Moved(from_row_N=state.row_N[index], to_row_N=settled.row_K)

    def _learn(self, key_N: Tensor) -> Tensor:
        """One step: slots after admissions and evictions, -1 for keys without."""
        self._clock += 1
        counted = self._figures
        counted.num_sightings += int(key_N.shape[0])
        before_N = self._find(key_N)
        new = (before_N < 0).nonzero().squeeze(1)
        counted.num_hits += int(key_N.shape[0] - new.shape[0])
        ready_N = before_N >= 0
        if self._waiting:
            ready_N[new] = self._waiting.sight(key_N[new]) >= self._config.admit_after
        else:
            ready_N[new] = True
        self._step(key_N[ready_N])
        slot_N = self._find(key_N)
        self._count(key_N, before_N, slot_N, num_waiting=int((~ready_N).sum()))
        every = max(self._config.max_age_steps // _SWEEPS_PER_AGE, 1)
        if self._config.max_age_steps and self._clock % every == 0:
            self._sweep()
        return slot_N

    def _step(self, key_N: Tensor) -> None:
        """One step of the module with the keys that may have a row; takes over the slots that changed hands."""
        self._make_room(int(key_N.shape[0]))
        self._module.train()
        self._module.profile(_feature(key_N))
        changed = self._module.evict()
        if changed is None:
            return
        evicted = changed[self._held_S[changed]]
        self._resets.append(evicted)
        self._figures.num_evicted_for_others += int(evicted.shape[0])
        self._figures.num_admitted += int(changed.shape[0])
        self._held_S[changed] = self._used_S[changed] = True
        self._count_S[changed], self._last_S[changed] = 0, self._clock
        place = torch.isin(self._module._mch_remapped_ids_mapping, changed)
        if (last := self._module._mch_metadata.get("last_access_iter")) is not None:
            self._last_S[self._module._mch_remapped_ids_mapping[place]] = last[place].int()
        if self._waiting:
            self._waiting.forget(self._module._mch_sorted_raw_ids[place])

    def _count(self, key_N: Tensor, before_N: Tensor, slot_N: Tensor, *, num_waiting: int) -> None:
        slot = slot_N[slot_N >= 0]
        self._count_S[slot] += 1
        self._last_S[slot] = self._clock
        missed = int((slot_N < 0).sum())
        self._figures.num_waiting += min(num_waiting, missed)
        self._figures.num_refused += max(missed - num_waiting, 0)

    def _find(self, key_N: Tensor) -> Tensor:
        found = self._module.remap(_feature(key_N))
        slot_N: Tensor = found[_FEATURE].values()
        return slot_N.masked_fill(slot_N == self._num_slots - 1, -1)

    def _sweep(self) -> None:
        """Evicts by age: marks the slots as free in the module's own way, and sorts it as it does itself."""
        old_S = self._held_S & (self._last_S < self._clock - self._config.max_age_steps)
        place = old_S[self._module._mch_remapped_ids_mapping].nonzero().squeeze(1)
        if not place.numel():
            return
        self._module._mch_sorted_raw_ids[place] = _RESERVED_KEY
        for values in self._module._mch_metadata.values():
            values[place] = 0
        self._module._sort_mch_buffers()
        slot = old_S.nonzero().squeeze(1)
        self._held_S[slot] = False
        self._count_S[slot] = 0
        self._resets.append(slot)
        self._figures.num_evicted_by_age += int(slot.shape[0])

    def _load_module(self, state: MapState, *, slot: Tensor, index: Tensor) -> None:
        """Fills the module's tables: keys ascending at the front, then free slots, the miss slot last."""
        module, num = self._module, int(slot.shape[0])
        key, order = torch.sort(state.key_N[index])
        module._mch_sorted_raw_ids[:num] = key
        free = torch.ones(self._num_slots, dtype=torch.bool, device=self._device)
        free[slot] = False
        module._mch_remapped_ids_mapping.copy_(torch.cat([slot[order], free.nonzero().squeeze(1)]))
        kept = {"counts": state.count_N, "last_access_iter": state.last_N}
        for name, values in module._mch_metadata.items():
            values[:num] = kept[name][index][order].long()
        module._current_iter_tensor.fill_(state.clock)
        module._current_iter = state.clock
        module._last_eviction_iter = state.clock - state.clock % self._config.interval_steps

    def _make_room(self, num: int) -> None:
        """Lets the history take `num` more keys: the module would drop them."""
        module = self._module
        if module._input_history_buffer_size == -1:
            module._init_history_buffers(_feature(torch.empty(max(num, 1), dtype=torch.int64)))
        needed = module._current_history_buffer_offset + num
        if needed <= module._input_history_buffer_size:
            return
        size = max(needed, 2 * module._input_history_buffer_size)
        more = size - module._input_history_buffer_size
        module._history_accumulator = _longer(module._history_accumulator, more)
        for name, values in list(module._history_metadata.items()):
            grown = _longer(values, more)
            setattr(module, f"_history_{name}", grown)
            module._history_metadata[name] = grown
        module._input_history_buffer_size = size

    def _history(self) -> tuple[Tensor, Tensor]:
        """Keys that the module has not looked at yet, and their steps (0 under lfu, which does not ask)."""
        module = self._module
        if module._input_history_buffer_size == -1:
            nothing = torch.empty(0, dtype=torch.int64, device=self._device)
            return nothing, nothing
        end = module._current_history_buffer_offset
        keys = module._history_accumulator[:end].clone()
        steps = module._history_metadata.get("last_access_iter")
        return keys, torch.zeros_like(keys) if steps is None else steps[:end].clone()

    def _remember(self, key_P: Tensor, step_P: Tensor) -> None:
        num = int(key_P.shape[0])
        self._make_room(num)
        self._module._history_accumulator[:num] = key_P
        if "last_access_iter" in self._module._history_metadata:
            self._module._history_metadata["last_access_iter"][:num] = step_P
        self._module._current_history_buffer_offset = num


def _feature(key_N: Tensor) -> dict[str, JaggedTensor]:
    return {_FEATURE: JaggedTensor(values=key_N, lengths=torch.ones_like(key_N))}


def _policy(config: ManagedConfig) -> MCHEvictionPolicy:
    if config.policy is Policy.lru:
        return LRU_EvictionPolicy()
    if config.policy is Policy.lfu:
        return LFU_EvictionPolicy()
    return DistanceLFU_EvictionPolicy(decay_exponent=config.decay)


def _longer(values: Tensor, more: int) -> Tensor:
    return torch.cat([values, values.new_zeros(more)])
