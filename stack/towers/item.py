"""The item half: a candidate's looked-up features to one vector.

Legend: E candidates, I concatenated features, O outputs.
"""

from __future__ import annotations

from torch import Tensor, nn


class ItemTower(nn.Module):
    """(E, I) -> (E, O): one linear map.

    DUPN joins "item embedding 128" to the representation while its five item tables add up to 124 and does not say how
    one becomes the other ("encoding"): here it is a linear map. The same goes for the icon (128) and the shop (64).
    """

    def __init__(self, *, num_inputs: int, num_outputs: int = 128) -> None:
        super().__init__()
        self.num_outputs = num_outputs
        self.encode = nn.Linear(num_inputs, num_outputs)

    def forward(self, features_EI: Tensor) -> Tensor:
        encoded_EO: Tensor = self.encode(features_EI)
        return encoded_EO
