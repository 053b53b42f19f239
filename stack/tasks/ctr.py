"""Click-through: is the item shown at this moment clicked (here: bought)? DUPN section 4.4, equation 8.

Legend: E examples, R representation, I looked-up item features, O = encoded item, then its key for the attention by
candidate if there is one, V interest, F ranking features, C all of the candidate's inputs to the head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from stack.layers.attention import TargetAttention
from stack.layers.blocks import blocks_of
from stack.layers.mlp import JoinedMLP
from stack.layers.norm import Norm, Standardize
from stack.tasks.sampling import Sampling, sampling_shift
from stack.tasks.task import TASKS, Task, TaskConfig, TaskInputs
from stack.towers.item import ItemTower
from stack.towers.user import UserState


@dataclass(kw_only=True)
class CtrConfig(TaskConfig):
    """Options of the CTR task."""

    dense_features: bool = False
    # feed the standardised ranking features to the head, beside representation and item
    sampling: Sampling = Sampling.none
    # how the score counts sampled negatives: once each (logq), as often as the uniform draw alone (uniform), as sampled
    # (none)


@TASKS.register("ctr")
class CtrTask(Task):
    """[rep 256 ; item 128] -> 128 ReLU -> 128 ReLU -> logit, with the interest of the attention by candidate and the
    ranking features joined on request."""

    group: ClassVar[str] = "impression"
    looks_up_candidates: ClassVar[bool] = True

    def __init__(
        self,
        *,
        num_rep: int,
        num_candidate: int,
        num_dense: int,
        target: TargetAttention | None = None,
        sampling: Sampling = Sampling.none,
        norm: Norm = Norm.none,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.sampling = sampling
        self.item = ItemTower(num_inputs=num_candidate)
        self.target = target
        self.standardize = Standardize(num_features=num_dense) if num_dense else None
        num_interest = 0 if target is None else target.num_values
        self.head = JoinedMLP(
            num_user=num_rep, num_candidate=self.item.num_outputs + num_interest + num_dense, widths=(128, 128),
            num_outputs=1, norm=norm, dropout=dropout,
        )  # fmt: skip

    @classmethod
    def build(cls, config: TaskConfig, inputs: TaskInputs) -> CtrTask:
        assert isinstance(config, CtrConfig)
        return cls(
            num_rep=inputs.num_rep, num_candidate=inputs.num_candidate,
            num_dense=inputs.num_dense if config.dense_features else 0, target=inputs.target,
            sampling=config.sampling, norm=inputs.norm, dropout=inputs.dropout,
        )  # fmt: skip

    def item_half(self, features_EI: Tensor) -> Tensor:
        item_EO: Tensor = self.item(features_EI)
        return item_EO if self.target is None else torch.cat([item_EO, self.target.item(features_EI)], dim=1)

    def score(self, user: UserState, item_EO: Tensor, dense_EF: Tensor, moment_E: Tensor | None) -> Tensor:
        candidate_EC = item_EO
        if self.target is not None:
            encoded_EO, key_EK = item_EO.tensor_split([self.item.num_outputs], dim=1)
            candidate_EC = torch.cat([encoded_EO, _interest(self.target, user, key_EK, moment_E)], dim=1)
        if self.standardize is not None:
            candidate_EC = torch.cat([candidate_EC, self.standardize(dense_EF)], dim=1)
        logit_E1: Tensor = self.head(user.rep_MR, candidate_EC, moment_E)
        return logit_E1.squeeze(1)

    def ends(self) -> tuple[nn.Linear, ...]:
        return (self.head.last,)

    def loss(self, score_E: Tensor, labels: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        clicked_E = labels["clicked"]
        logit_E = score_E - sampling_shift(labels, self.sampling)
        loss_E = functional.binary_cross_entropy_with_logits(logit_E, clicked_E, reduction="none")
        return loss_E, torch.ones_like(loss_E), clicked_E


def _interest(target: nn.Module, user: UserState, key_EK: Tensor, moment_E: Tensor | None) -> Tensor:
    """(E, V): the attention of each candidate over the events of its moment."""
    assert user.keys_MLK is not None
    assert user.values_MLV is not None
    interest: Tensor
    if moment_E is None:
        interest = target(key_EK.unsqueeze(0), user.keys_MLK, user.values_MLV, user.mask_ML)
        return interest.squeeze(0)
    blocks = blocks_of(moment_E, num_moments=user.rep_MR.shape[0])
    rows = (values.index_select(0, blocks.moment_G) for values in (user.keys_MLK, user.values_MLV, user.mask_ML))
    interest = target(blocks.split(key_EK), *rows)
    return blocks.join(interest)
