"""Follow preference (FIFP): does the user respond to this icon (a campaign it received)? DUPN section 4.4.

Legend: E examples, I looked-up features of the icon, O encoded icon.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from stack.layers.norm import Norm
from stack.tasks.preference import PreferenceHead, binary_loss
from stack.tasks.task import TASKS, Task, TaskConfig, TaskInputs
from stack.towers.user import UserState


@dataclass(kw_only=True)
class FollowConfig(TaskConfig):
    """Options of the FIFP task."""


@TASKS.register("follow")
class FollowTask(Task):
    """[rep 256 ; icon 128] -> ReLU layers (128, 128) -> logit."""

    group: ClassVar[str] = "follow"
    looks_up_candidates: ClassVar[bool] = True

    def __init__(self, *, num_rep: int, num_candidate: int, norm: Norm = Norm.none, dropout: float = 0.0) -> None:
        super().__init__()
        self.head = PreferenceHead(
            num_rep=num_rep, num_candidate=num_candidate, num_encoded=128, widths=(128, 128), norm=norm, dropout=dropout
        )

    @classmethod
    def build(cls, config: TaskConfig, inputs: TaskInputs) -> FollowTask:
        assert isinstance(config, FollowConfig)
        return cls(num_rep=inputs.num_rep, num_candidate=inputs.num_candidate, norm=inputs.norm, dropout=inputs.dropout)

    def item_half(self, features_EI: Tensor) -> Tensor:
        item_EO: Tensor = self.head.item(features_EI)
        return item_EO

    def score(self, user: UserState, item_EO: Tensor, dense_EF: Tensor, moment_E: Tensor | None) -> Tensor:
        logit_E: Tensor = self.head(user, item_EO, moment_E)
        return logit_E

    def loss(self, score_E: Tensor, labels: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        return binary_loss(score_E, labels["responded"])
