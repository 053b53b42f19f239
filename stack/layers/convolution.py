"""Convolutions over events that never look ahead: the text-CNN "CNN-max" of DUPN's table 2.

Legend: B rows, L positions, D inputs, S = windows x maps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class CausalConvolution(nn.Module):
    """(B, L, D) -> (B, L, S): for each width w = 1..num_widths, `num_maps` ReLU maps of the w events that end at the
    position (zeros before the first). CNN-max takes their maximum over the window (`max_over`)."""

    def __init__(self, *, num_inputs: int, num_widths: int = 10, num_maps: int = 64) -> None:
        super().__init__()
        self.num_states = num_widths * num_maps
        self.convolutions = nn.ModuleList(
            nn.Conv1d(num_inputs, num_maps, kernel_size=width) for width in range(1, num_widths + 1)
        )

    def forward(self, input_BLD: Tensor) -> Tensor:
        input_BDL = input_BLD.transpose(1, 2)
        maps = [conv(functional.pad(input_BDL, (conv.kernel_size[0] - 1, 0))) for conv in self.convolutions]  # type: ignore[index, arg-type]
        return torch.relu(torch.cat(maps, dim=1)).transpose(1, 2)
