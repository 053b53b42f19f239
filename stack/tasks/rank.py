"""Learning to rank (L2R): the user's own weights of the ranking features. DUPN section 4.4, equation 9.

Legend: M moments, E examples, F ranking features.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from stack.base.errors import ConfigError
from stack.layers.mlp import MLP
from stack.layers.norm import Norm, Standardize
from stack.tasks.sampling import Sampling, sampling_shift
from stack.tasks.task import TASKS, Task, TaskConfig, TaskInputs
from stack.towers.user import UserState


class WeightSign(Enum):
    """What keeps the weights of the ranking features in range."""

    relu = "relu"
    """As in the paper: never negative, and a weight that is 0 for every user no longer learns."""
    softplus = "softplus"
    """Never negative, always learning."""
    signed = "signed"
    """Free: for features of which less is better (price, recency)."""


@dataclass(kw_only=True)
class RankConfig(TaskConfig):
    """Options of the L2R task."""

    weight_sign: WeightSign = WeightSign.relu
    # range of the weights of the ranking features
    intercept: bool = False
    # add one learnt number to all scores. It changes no order; without it (the paper) equation 9 bends the weights to
    # say that most examples are not clicked
    sampling: Sampling = Sampling.none
    # how the score counts sampled negatives: once each (logq), as often as the uniform draw alone (uniform), as sampled
    # (none, the paper)


@TASKS.register("rank")
class RankTask(Task):
    """rep 256 -> 128 ReLU -> F = weights; score = weights . standardised ranking features (+ intercept)."""

    group: ClassVar[str] = "impression"
    looks_up_candidates: ClassVar[bool] = False
    per_moment: ClassVar[tuple[str, ...]] = ("head",)

    def __init__(
        self,
        *,
        num_rep: int,
        num_dense: int,
        weight_sign: WeightSign = WeightSign.relu,
        intercept: bool = False,
        sampling: Sampling = Sampling.none,
        norm: Norm = Norm.none,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.weight_sign = weight_sign
        self.sampling = sampling
        self.standardize = Standardize(num_features=num_dense)
        self.intercept = nn.Parameter(torch.zeros(1)) if intercept else None
        self.head = MLP(num_inputs=num_rep, widths=(128,), num_outputs=num_dense, norm=norm, dropout=dropout)

    @classmethod
    def build(cls, config: TaskConfig, inputs: TaskInputs) -> RankTask:
        assert isinstance(config, RankConfig)
        if not inputs.num_dense:
            raise ConfigError(
                f"task 'rank' needs ranking features, and the group {inputs.group.name!r} of this dataset has none: "
                "set tasks.rank.enabled=never"
            )
        return cls(
            num_rep=inputs.num_rep, num_dense=inputs.num_dense, weight_sign=config.weight_sign,
            intercept=config.intercept, sampling=config.sampling, norm=inputs.norm, dropout=inputs.dropout,
        )  # fmt: skip

    def item_half(self, features_EI: Tensor) -> Tensor:
        return features_EI

    def feature_weights(self, rep_MR: Tensor) -> Tensor:
        """(M, F): weights of the standardised ranking features."""
        weights_MF: Tensor = self.head(rep_MR)
        if self.weight_sign is WeightSign.relu:
            return torch.relu(weights_MF)
        return functional.softplus(weights_MF) if self.weight_sign is WeightSign.softplus else weights_MF

    def score(self, user: UserState, item_EO: Tensor, dense_EF: Tensor, moment_E: Tensor | None) -> Tensor:
        weights_MF = self.feature_weights(user.rep_MR)
        weights_EF = weights_MF if moment_E is None else weights_MF.index_select(0, moment_E)
        score_E: Tensor = (weights_EF * self.standardize(dense_EF)).sum(1)
        return score_E if self.intercept is None else score_E + self.intercept

    def loss(self, score_E: Tensor, labels: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        clicked_E, weight_E = labels["clicked"], labels["weight"]
        sign_E = 2 * clicked_E - 1
        logit_E = score_E - sampling_shift(labels, self.sampling)
        return weight_E * functional.softplus(-sign_E * logit_E), weight_E, clicked_E
