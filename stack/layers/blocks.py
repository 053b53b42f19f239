"""Examples in blocks of equal size that share a moment, so that they can be multiplied with its events in one batch.

Legend: M moments, E examples, G blocks of X examples.

Five examples of moments 0, 0, 0, 2, 2 in blocks of two::

    moment_E  [0 0 0 2 2]     blocks  [[0 1] [2 .] [3 4]]     moment_G  [0 0 2]     slot_E  [0 1 2 4 5]
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """`moment_G`: the moment of each block; `slot_E`: the place of each example among the G x X places."""

    moment_G: Tensor
    slot_E: Tensor
    size: int

    def split(self, values_ED: Tensor) -> Tensor:
        """(E, D) -> (G, X, D), zeros in empty places."""
        empty = values_ED.new_zeros(self.moment_G.shape[0] * self.size, values_ED.shape[1])
        return empty.index_copy(0, self.slot_E, values_ED).view(self.moment_G.shape[0], self.size, values_ED.shape[1])

    def join(self, values_GXD: Tensor) -> Tensor:
        """(G, X, D) -> (E, D)."""
        return values_GXD.flatten(0, 1).index_select(0, self.slot_E)


def blocks_of(moment_E: Tensor, *, num_moments: int, size: int = 8) -> Blocks:
    """Blocks for examples in any order; none where there is no example."""
    order_E = torch.argsort(moment_E, stable=True)
    count_M = torch.bincount(moment_E, minlength=num_moments)
    blocks_M = (count_M + size - 1).div(size, rounding_mode="floor")
    sorted_E = moment_E[order_E]
    rank_E = torch.arange(moment_E.shape[0], device=moment_E.device) - (count_M.cumsum(0) - count_M)[sorted_E]
    slot_E = torch.empty_like(moment_E)
    slot_E[order_E] = (blocks_M.cumsum(0) - blocks_M)[sorted_E] * size + rank_E
    moment_G = torch.arange(num_moments, device=moment_E.device).repeat_interleave(blocks_M)
    return Blocks(moment_G=moment_G, slot_E=slot_E, size=size)
