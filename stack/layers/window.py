"""The history of a moment: a window of events of its row, by index, and plain pooling over it.

Legend: B rows, L positions of a row, M moments, S state features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Window:
    """`mask_ML`: which positions of its row a moment sees. `row_M`: its row, or None where moment i has row i
    (one moment a row, in order), so that nothing need be gathered."""

    mask_ML: Tensor
    row_M: Tensor | None

    def gather(self, values_BL: Tensor) -> Tensor:
        """(B, L, ...) of rows -> (M, L, ...) of moments."""
        return values_BL if self.row_M is None else values_BL.index_select(0, self.row_M)


def window_before(position_M: Tensor, *, num_positions: int, max_history: int, row_M: Tensor | None) -> Window:
    """The last `max_history` events strictly before each moment: places [max(0, position - max_history), position)."""
    place_1L = torch.arange(num_positions, device=position_M.device).unsqueeze(0)
    position_M1 = position_M.unsqueeze(1)
    mask_ML = (place_1L < position_M1) & (place_1L >= position_M1 - max_history)
    return Window(mask_ML=mask_ML, row_M=row_M)


def mean_over(window: Window, states_BLS: Tensor) -> Tensor:
    """(M, S): mean of the states in each window; zeros where the window is empty."""
    weight_ML = window.mask_ML.to(states_BLS.dtype)
    weight_ML = weight_ML / weight_ML.sum(1, keepdim=True).clamp(min=1)
    return torch.bmm(weight_ML.unsqueeze(1), window.gather(states_BLS)).squeeze(1)


def max_over(window: Window, states_BLS: Tensor) -> Tensor:
    """(M, S): maximum of the states in each window, feature by feature; zeros where the window is empty."""
    outside_ML1 = ~window.mask_ML.unsqueeze(2)
    lowest = torch.finfo(states_BLS.dtype).min
    most_MS = window.gather(states_BLS).masked_fill(outside_ML1, lowest).amax(1)
    return most_MS * window.mask_ML.any(1, keepdim=True)


def masked_softmax(logits_ML: Tensor, mask_ML: Tensor) -> Tensor:
    """Softmax over the last axis among the positions of the mask; zeros elsewhere, and everywhere if there is none."""
    lowest = torch.finfo(logits_ML.dtype).min
    return torch.softmax(logits_ML.masked_fill(~mask_ML, lowest), dim=-1) * mask_ML
