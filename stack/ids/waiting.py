"""Counts of ids that have no row yet, in bounded memory, never more than they were seen.

Legend: N keys of a call, W places.

Each key has one place, by its hash; a key that comes to another's place takes it, and the other's count is lost: it
begins again. So a count may be too low, which delays an id, and is never too high, which would admit one too early
(as a count-min sketch does). Of several keys of one step that want the same place the one seen most gets it. A key seen
again after x other new ids keeps its count with a chance of about exp(-x / W).
"""

from __future__ import annotations

import torch
from torch import Tensor

from stack.data.keys import UNKNOWN_KEY
from stack.ids.hashing import SALT_WAITING, hash64


class WaitingRoom:
    """`num_places` is rounded up to a power of two."""

    def __init__(self, num_places: int, *, device: torch.device) -> None:
        size = 16
        while size < num_places:
            size *= 2
        self._mask = size - 1
        self._key_W = torch.full((size,), UNKNOWN_KEY, dtype=torch.int64, device=device)
        self._count_W = torch.zeros(size, dtype=torch.int32, device=device)

    @property
    def num_bytes(self) -> int:
        return self._key_W.nbytes + self._count_W.nbytes

    def sight(self, key_N: Tensor) -> Tensor:
        """Counts each of these distinct keys once more; returns its count (N,) int32, this time included."""
        place_N = hash64(key_N, salt=SALT_WAITING) & self._mask
        same_N = self._key_W.index_select(0, place_N) == key_N
        count_N = torch.where(same_N, self._count_W.index_select(0, place_N), 0) + 1
        self._keep(key_N, count_N, place_N)
        return count_N

    def forget(self, key_N: Tensor) -> None:
        """Frees the places of keys that got a row."""
        place_N = hash64(key_N, salt=SALT_WAITING) & self._mask
        place_N = place_N[self._key_W.index_select(0, place_N) == key_N]
        self._key_W[place_N] = UNKNOWN_KEY
        self._count_W[place_N] = 0

    def held(self) -> tuple[Tensor, Tensor]:
        """All keys that wait, ascending, and their counts."""
        place = (self._key_W != UNKNOWN_KEY).nonzero().squeeze(1)
        key, order = torch.sort(self._key_W[place])
        return key, self._count_W[place][order]

    def load(self, key_N: Tensor, count_N: Tensor) -> None:
        """Replaces all by these distinct keys; where two want one place the one seen more stays."""
        self._key_W.fill_(UNKNOWN_KEY)
        self._count_W.zero_()
        self._keep(key_N, count_N, hash64(key_N, salt=SALT_WAITING) & self._mask)

    def _keep(self, key_N: Tensor, count_N: Tensor, place_N: Tensor) -> None:
        """Writes, at each place, the key with the highest count, of equals the smallest: whoever is not read back
        tries again if it is better than who is, so the end does not depend on the order of writing."""
        while key_N.numel():
            self._key_W[place_N] = key_N
            has_N = self._key_W.index_select(0, place_N) == key_N
            self._count_W[place_N[has_N]] = count_N[has_N]
            lost = (~has_N).nonzero().squeeze(1)
            key_N, count_N, place_N = key_N[lost], count_N[lost], place_N[lost]
            held_key, held_count = self._key_W[place_N], self._count_W[place_N]
            better = (count_N > held_count) | ((count_N == held_count) & (key_N < held_key))
            key_N, count_N, place_N = key_N[better], count_N[better], place_N[better]
