"""Between jagged and padded events.

Legend: B rows, L positions of a row, T events of all rows, N of them kept, M moments, D features.

Two rows of 2 and 3 events, whose last moments stand before events 1 and 3::

    row_T       [0 0 1 1 1]       keep_T  [1 0 1 1 1]       lengths_B [1, 3]    L = 3
    padded      [[t00  .   .  ]   slots   [0, 3, 4, 5]
                 [t10 t11 t12 ]]
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the kept events stand in a padded (B, L) block. `keep_T` marks them among all events."""

    keep_T: Tensor
    slot_N: Tensor
    lengths_B: Tensor
    num_positions: int

    def pad(self, values_ND: Tensor) -> Tensor:
        """(N, ...) values of the kept events -> (B, L, ...), zero where there is no event."""
        num_rows, rest = self.lengths_B.shape[0], values_ND.shape[1:]
        empty = values_ND.new_zeros(num_rows * self.num_positions, *rest)
        return empty.index_copy(0, self.slot_N, values_ND).view(num_rows, self.num_positions, *rest)


def events_before_moments(num_events_B: Tensor, moment_row_M: Tensor, moment_position_M: Tensor) -> Layout:
    """The layout of the events that some moment can see. Later events of a row are left out: no moment can tell."""
    num_rows, device = num_events_B.shape[0], num_events_B.device
    lengths_B = num_events_B.new_zeros(num_rows).scatter_reduce(0, moment_row_M, moment_position_M, reduce="amax")
    start_B = num_events_B.cumsum(0) - num_events_B
    row_T = torch.arange(num_rows, device=device).repeat_interleave(num_events_B)
    place_T = torch.arange(row_T.shape[0], device=device) - start_B[row_T]
    keep_T = place_T < lengths_B[row_T]
    # At least one position: kernels of recurrent layers and softmax refuse an empty axis.
    num_positions = max(1, int(lengths_B.max())) if num_rows else 1
    slot_N = (row_T * num_positions + place_T)[keep_T]
    return Layout(keep_T=keep_T, slot_N=slot_N, lengths_B=lengths_B, num_positions=num_positions)
