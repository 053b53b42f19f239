"""Keys to slots by open addressing, in whole-array operations: the index of a bounded map.

Legend: N keys of a call, S slots, M entries (a power of two, at least three times the slots).

An entry is a slot's number, EMPTY, or GONE (its key was removed; a search goes on past it). A search starts at the
key's hash and steps 1, 2, 3, ... further (triangular probing visits every entry), all keys at once; those not settled
go on to the next round. Where two keys want the same entry, whoever is read back has it and the other goes on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stack.ids.hashing import SALT_INDEX, hash64

_EMPTY, _GONE = -1, -2
_MOST_FILLED = 0.6


class KeyIndex:
    """At most `num_slots` distinct keys, each at a slot of its own. `key_S` is only meaningful at slots in use."""

    def __init__(self, num_slots: int, *, device: torch.device) -> None:
        size = 16
        while size < 3 * num_slots:
            size *= 2
        self._mask = size - 1
        self._entry_M = torch.full((size,), _EMPTY, dtype=torch.int32, device=device)
        self._num_filled = 0
        self.key_S = torch.zeros(max(num_slots, 1), dtype=torch.int64, device=device)

    @property
    def num_bytes(self) -> int:
        return self._entry_M.nbytes + self.key_S.nbytes

    def find(self, key_N: Tensor) -> Tensor:
        """The slot of each key, -1 for keys that are not held."""
        return self._probe(key_N)[0]

    def insert(self, key_N: Tensor, slot_N: Tensor) -> None:
        """Adds distinct keys that are not held, at free slots."""
        self.key_S[slot_N] = key_N
        if self._num_filled + key_N.shape[0] > _MOST_FILLED * self._entry_M.shape[0]:
            self._rebuild()
        self._place(key_N, slot_N)

    def remove(self, slot_N: Tensor) -> None:
        """Forgets the keys at these slots."""
        _, position_N = self._probe(self.key_S[slot_N])
        self._entry_M[position_N] = _GONE

    def _place(self, key_N: Tensor, slot_N: Tensor) -> None:
        self._num_filled += int(key_N.shape[0])
        entry_N = slot_N.to(torch.int32)
        position_N = hash64(key_N, salt=SALT_INDEX) & self._mask
        distance = 0
        while position_N.numel():
            free_N = self._entry_M[position_N] < 0
            self._entry_M[position_N[free_N]] = entry_N[free_N]
            left = (self._entry_M[position_N] != entry_N).nonzero().squeeze(1)
            distance += 1
            entry_N, position_N = entry_N[left], (position_N[left] + distance) & self._mask

    def _probe(self, key_N: Tensor) -> tuple[Tensor, Tensor]:
        """For each key its slot (or EMPTY) and the position of the entry at which the search ended."""
        position_N = hash64(key_N, salt=SALT_INDEX) & self._mask
        entry_N = self._entry_M.index_select(0, position_N)
        left = self._unsettled(entry_N, key_N).nonzero().squeeze(1)
        distance = 0
        while left.numel():
            distance += 1
            position = (position_N[left] + distance) & self._mask
            entry = self._entry_M.index_select(0, position)
            position_N[left], entry_N[left] = position, entry
            left = left[self._unsettled(entry, key_N[left])]
        return entry_N.long(), position_N

    def _unsettled(self, entry: Tensor, key: Tensor) -> Tensor:
        """Whether each search has to go on: past a removed key, or past another one."""
        held = self.key_S.index_select(0, entry.clamp(min=0))
        return (entry != _EMPTY) & ((held != key) | (entry == _GONE))

    def _rebuild(self) -> None:
        """Drops the entries of removed keys."""
        slot_N = self._entry_M[self._entry_M >= 0].long()
        self._entry_M.fill_(_EMPTY)
        self._num_filled = 0
        self._place(self.key_S[slot_N], slot_N)
