"""Follow preference (FIFP): does the user respond to this icon (a campaign it received)? DUPN section 4.4.

Legend: E examples, I looked-up features of the icon, O encoded icon, F ranking features, C encoded icon and ranking
features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from stack.base.errors import ConfigError
from stack.layers.norm import Norm, Standardize
from stack.tasks.preference import PreferenceHead, binary_loss
from stack.tasks.task import TASKS, Task, TaskConfig, TaskInputs
from stack.towers.user import UserState


@dataclass(kw_only=True)
class FollowConfig(TaskConfig):
    """Options of the FIFP task."""

    dense_features: bool = False
    # feed the group's standardised ranking features (past offers and responses) to the head, beside representation
    # and icon; the paper has none
    prior: float = 0.5
    # the share of positives to start from; where it is small, half of a short training goes into finding it out

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.prior < 1.0:
            raise ConfigError(f"tasks.follow.prior is {self.prior}: it must be above 0 and below 1")


@TASKS.register("follow")
class FollowTask(Task):
    """[rep 256 ; icon 128] -> ReLU layers (128, 128) -> logit.

    Its bias starts from the log-odds of `prior` (Lin et al. 2017, section 3.3). With the ranking features, these join
    the input and also have a linear path of their own to the logit (Cheng et al. 2016, Wide & Deep): responses are
    rare, and what a few counts tell must not wait for 90,000 weights to learn it. Both paths then start from weights of
    0, so that `prior` is the first score of all.
    """

    group: ClassVar[str] = "follow"
    looks_up_candidates: ClassVar[bool] = True

    def __init__(
        self,
        *,
        num_rep: int,
        num_candidate: int,
        num_dense: int = 0,
        prior: float = 0.5,
        norm: Norm = Norm.none,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.standardize = Standardize(num_features=num_dense) if num_dense else None
        self.head = PreferenceHead(
            num_rep=num_rep, num_candidate=num_candidate, num_encoded=128, widths=(128, 128), norm=norm,
            dropout=dropout, num_dense=num_dense,
        )  # fmt: skip
        self.wide = nn.Linear(num_dense, 1, bias=False) if num_dense else None
        last = self.head.join.last
        nn.init.constant_(last.bias, math.log(prior / (1 - prior)))
        if self.wide is not None:
            nn.init.zeros_(self.wide.weight)
            nn.init.zeros_(last.weight)

    @classmethod
    def build(cls, config: TaskConfig, inputs: TaskInputs) -> FollowTask:
        assert isinstance(config, FollowConfig)
        if config.dense_features and not inputs.num_dense:
            raise ConfigError(
                f"tasks.follow.dense_features=true, and the group {inputs.group.name!r} of this dataset has no ranking "
                "features: prepare it again with `stack ingest`, or set tasks.follow.dense_features=false"
            )
        return cls(
            num_rep=inputs.num_rep, num_candidate=inputs.num_candidate,
            num_dense=inputs.num_dense if config.dense_features else 0, prior=config.prior, norm=inputs.norm,
            dropout=inputs.dropout,
        )  # fmt: skip

    def item_half(self, features_EI: Tensor) -> Tensor:
        item_EO: Tensor = self.head.item(features_EI)
        return item_EO

    def score(self, user: UserState, item_EO: Tensor, dense_EF: Tensor, moment_E: Tensor | None) -> Tensor:
        if self.standardize is None or self.wide is None:
            logit_E: Tensor = self.head(user, item_EO, moment_E)
            return logit_E
        standard_EF = self.standardize(dense_EF)
        deep_E: Tensor = self.head(user, torch.cat([item_EO, standard_EF], dim=1), moment_E)
        wide_E1: Tensor = self.wide(standard_EF)
        return deep_E + wide_E1.squeeze(1)

    def ends(self) -> tuple[nn.Linear, ...]:
        return (self.head.join.last,) if self.wide is None else (self.head.join.last, self.wide)

    def loss(self, score_E: Tensor, labels: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        return binary_loss(score_E, labels["responded"])
