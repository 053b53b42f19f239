"""What the follow and the shop task have in common: one logit on [representation ; candidate].

Legend: E examples, I looked-up candidate features, O encoded candidate, C all of the candidate's inputs to the join.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from stack.layers.mlp import JoinedMLP
from stack.layers.norm import Norm
from stack.towers.item import ItemTower
from stack.towers.user import UserState


class PreferenceHead(nn.Module):
    """[rep ; candidate ; `num_dense` more inputs] -> ReLU layers of `widths` -> logit."""

    def __init__(
        self,
        *,
        num_rep: int,
        num_candidate: int,
        num_encoded: int,
        widths: Sequence[int],
        norm: Norm,
        dropout: float,
        num_dense: int = 0,
    ) -> None:
        super().__init__()
        self.item = ItemTower(num_inputs=num_candidate, num_outputs=num_encoded)
        self.join = JoinedMLP(
            num_user=num_rep, num_candidate=num_encoded + num_dense, widths=widths, num_outputs=1, norm=norm,
            dropout=dropout,
        )  # fmt: skip

    def forward(self, user: UserState, candidate_EC: Tensor, moment_E: Tensor | None) -> Tensor:
        logit_E1: Tensor = self.join(user.rep_MR, candidate_EC, moment_E)
        return logit_E1.squeeze(1)


def binary_loss(score_E: Tensor, label_E: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy of a logit, each example weighing 1."""
    loss_E = functional.binary_cross_entropy_with_logits(score_E, label_E, reduction="none")
    return loss_E, torch.ones_like(loss_E), label_E
