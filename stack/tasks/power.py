"""Purchasing power (PPP): the price tier of what the user buys next. DUPN section 4.4, equation 10.

Legend: M moments, E examples, K tiers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from stack.base.errors import ConfigError
from stack.layers.mlp import MLP
from stack.layers.norm import Norm
from stack.tasks.task import TASKS, Task, TaskConfig, TaskInputs
from stack.towers.user import UserState


@dataclass(kw_only=True)
class PowerConfig(TaskConfig):
    """Options of the PPP task."""

    num_tiers: int = 7
    # price tiers, labels 0 .. num_tiers - 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_tiers < 2:
            raise ConfigError(f"tasks.power.num_tiers is {self.num_tiers}: at least 2 tiers are needed")


@TASKS.register("power")
class PowerTask(Task):
    """rep 256 -> 128 ReLU -> K logits."""

    group: ClassVar[str] = "price"
    looks_up_candidates: ClassVar[bool] = False
    per_moment: ClassVar[tuple[str, ...]] = ("head",)
    gives_log_odds: ClassVar[bool] = False

    def __init__(self, *, num_rep: int, num_tiers: int = 7, norm: Norm = Norm.none, dropout: float = 0.0) -> None:
        super().__init__()
        self.head = MLP(num_inputs=num_rep, widths=(128,), num_outputs=num_tiers, norm=norm, dropout=dropout)

    @classmethod
    def build(cls, config: TaskConfig, inputs: TaskInputs) -> PowerTask:
        assert isinstance(config, PowerConfig)
        return cls(num_rep=inputs.num_rep, num_tiers=config.num_tiers, norm=inputs.norm, dropout=inputs.dropout)

    def item_half(self, features_EI: Tensor) -> Tensor:
        return features_EI

    def score(self, user: UserState, item_EO: Tensor, dense_EF: Tensor, moment_E: Tensor | None) -> Tensor:
        """(E, K), or (1, K) for a request."""
        logits_MK: Tensor = self.head(user.rep_MR)
        return logits_MK if moment_E is None else logits_MK.index_select(0, moment_E)

    def loss(self, score_E: Tensor, labels: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        tier_E = labels["tier"]
        loss_E = functional.cross_entropy(score_E, tier_E.long(), reduction="none")
        return loss_E, torch.ones_like(loss_E), tier_E
