"""What a task is: a head on the representation, a loss, and the group of examples it learns from.

Legend: M moments, E examples, R representation, I looked-up candidate features, O encoded candidate,
F dense (ranking) features, K classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import torch
from torch import Tensor, nn

from stack.base.errors import ConfigError
from stack.base.registry import Registry
from stack.data.batch import Examples
from stack.data.schema import Group
from stack.layers.attention import TargetAttention
from stack.layers.norm import Norm
from stack.tasks.sampling import Sampling
from stack.towers.user import UserState


class Enabled(Enum):
    """Whether a task is trained."""

    always = "always"
    if_present = "if_present"
    never = "never"


@dataclass(kw_only=True)
class TaskConfig:
    """What all tasks have in common."""

    enabled: Enabled = Enabled.if_present
    # always: refuse a dataset without the task's examples; if_present: leave the task out there; never
    weight: float = 1.0
    # share of the task's mean loss in the total
    dropout: float | None = None
    # in the task's head; null is model.dropout
    norm: Norm | None = None
    # in the task's head; null is model.norm. Batch norm wants many examples in every batch

    def __post_init__(self) -> None:
        if self.dropout is not None and not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"task dropout is {self.dropout}: it must be at least 0 and below 1, or null")
        if self.weight < 0:
            raise ConfigError(f"task weight is {self.weight}: it must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class TaskInputs:
    """What a task is built from. `num_candidate`: width of the candidate's looked-up features, 0 without candidates."""

    group: Group
    num_rep: int
    num_candidate: int
    norm: Norm
    dropout: float
    target: TargetAttention | None

    @property
    def num_dense(self) -> int:
        return len(self.group.dense)


@dataclass(frozen=True, kw_only=True)
class TaskOutput:
    """`score_E`: raw logits without sampling correction, (E,) or (E, K). `loss_E`: each example's loss x its weight.

    The task's mean loss is the sum of `loss_E` over the sum of `weight_E`, over all ranks. `label_E`: what the score
    should tell. All in the order of `batch.groups[group]`.
    """

    group: str
    score_E: Tensor
    loss_E: Tensor
    weight_E: Tensor
    label_E: Tensor


class Task(nn.Module, ABC):
    """A head, for any number of examples; with none its gradients are zeros."""

    group: ClassVar[str]
    looks_up_candidates: ClassVar[bool]
    per_moment: ClassVar[tuple[str, ...]] = ()
    """Modules that are given a row for each moment; all others a row for each example."""
    gives_log_odds: ClassVar[bool] = True
    """Whether a score says how likely its label is, and not an order or a class alone."""
    sampling: Sampling = Sampling.none

    @classmethod
    @abstractmethod
    def build(cls, config: TaskConfig, inputs: TaskInputs) -> Task:
        """The task for its own config class. Raises `ConfigError` where the dataset lacks what it needs."""

    @abstractmethod
    def item_half(self, features_EI: Tensor) -> Tensor:
        """(E, I) looked-up features of candidates -> (E, O), what `score` takes; computed once for each candidate."""

    @abstractmethod
    def score(self, user: UserState, item_EO: Tensor, dense_EF: Tensor, moment_E: Tensor | None) -> Tensor:
        """(E,) or (E, K) logits. `moment_E` None: all candidates belong to the one moment of `user` (a request)."""

    @abstractmethod
    def loss(self, score_E: Tensor, labels: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """(loss_E, weight_E, label_E) as `TaskOutput` has them."""

    def ends(self) -> tuple[nn.Linear, ...]:
        """The linear maps whose sum is the score, where that is one log-odds; else none."""
        return ()

    @torch.no_grad()
    def rescale(self, *, scale: float, shift: float) -> None:
        """From now on a score is `scale` times what it was, and `shift` more. Only where it has `ends`."""
        for end in self.ends():
            end.weight.mul_(scale)
            if end.bias is not None:
                end.bias.mul_(scale)
        first = self.ends()[0]
        assert first.bias is not None
        first.bias.add_(shift)

    def forward(self, user: UserState, features_EI: Tensor, examples: Examples) -> TaskOutput:
        score_E = self.score(user, self.item_half(features_EI), examples.dense_EF, examples.moment_E)
        loss_E, weight_E, label_E = self.loss(score_E, examples.labels)
        return TaskOutput(group=self.group, score_E=score_E, loss_E=loss_E, weight_E=weight_E, label_E=label_E)


TASKS: Registry[type[Task]] = Registry("task")


class Scorer(nn.Module):
    """`Task.score` for one request, tensors in and tensor out, to be exported: 1 moment, E candidates.

    `keys_1LK`, `values_1LV` and `mask_1L` are what the user half returned; a task without attention by the candidate
    ignores them. A task without candidates or dense features gets (E, 0) tensors.
    """

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task

    def forward(
        self,
        rep_1R: Tensor,
        item_EO: Tensor,
        dense_EF: Tensor,
        keys_1LK: Tensor | None = None,
        values_1LV: Tensor | None = None,
        mask_1L: Tensor | None = None,
    ) -> Tensor:
        if mask_1L is None:
            mask_1L = torch.zeros(1, 0, dtype=torch.bool, device=rep_1R.device)
        user = UserState(rep_MR=rep_1R, keys_MLK=keys_1LK, values_MLV=values_1LV, mask_ML=mask_1L)
        return self.task.score(user, item_EO, dense_EF, None)


class ItemHalf(nn.Module):
    """`Task.item_half` as a module, to be exported."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task

    def forward(self, features_EI: Tensor) -> Tensor:
        return self.task.item_half(features_EI)
