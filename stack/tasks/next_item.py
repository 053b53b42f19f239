"""The next item: which of all items does the user take at this moment? A two-tower head, made for retrieval.

Loss: sampled softmax with the logQ correction, off the positive's score too (Yi et al. 2019, "Sampling-bias-corrected
neural modeling for large corpus item recommendations"), here over the negatives that were sampled for the moment. Two
positives and three negatives; each positive is told from the negatives, never from the other positive::

    clicked_E          [  1     0     0     1     0  ]
    score - log rate   [ x0    x1    x2    x3    x4  ]
    loss_E             [ log(1 + N / exp(x0))  0  0  log(1 + N / exp(x3))  0 ]      N = exp(x1) + exp(x2) + exp(x4)

Legend: M moments, E examples, S moments that have examples, R representation, I looked-up item features, V the vectors
that are multiplied.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from stack.base.errors import ConfigError
from stack.data.batch import Examples
from stack.layers.mlp import MLP
from stack.layers.norm import Norm
from stack.tasks.sampling import Sampling, sampling_shift
from stack.tasks.task import TASKS, Task, TaskConfig, TaskInputs, TaskOutput
from stack.towers.user import UserState

MOMENT = "moment"
"""The examples' moments (int64), which the loss finds among the labels."""


@dataclass(kw_only=True)
class NextItemConfig(TaskConfig):
    """Options of the next-item task."""

    num_outputs: int = 64
    # width V of the vectors that an index holds
    temperature: float | None = 0.07
    # both vectors are brought to norm 1 and their inner product divided by this; null leaves them as they come: items
    # that were hardly seen then have the larger norms
    sampling: Sampling = Sampling.uniform
    # uniform, logq: sampled negatives are corrected for. The loss is the same, as within a moment the two differ by one
    # number; evaluation moves scores to its sets as it does for this kind of score. none: as sampled, so that the score
    # also has to say how rarely an item was drawn, and popular items come short

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_outputs < 1:
            raise ConfigError(f"tasks.next_item.num_outputs is {self.num_outputs}: at least 1 is needed")
        if self.temperature is not None and self.temperature <= 0:
            raise ConfigError(f"tasks.next_item.temperature is {self.temperature}: it must be above 0, or null")


@TASKS.register("next_item")
class NextItemTask(Task):
    """rep 256 -> linear -> V;  item features -> 128 ReLU -> V;  score = their inner product, and nothing else.

    So the best items by score are those of a maximum inner product search with `user_vector` among `item_half`. There
    is no bias coordinate: the constant c of the user's linear map already gives each item a score of its own, c . v.
    With a temperature both have norm 1 first (Yi et al. 2019), and the user's vector is divided by it.
    """

    group: ClassVar[str] = "impression"
    looks_up_candidates: ClassVar[bool] = True
    gives_log_odds: ClassVar[bool] = False

    def __init__(
        self,
        *,
        num_rep: int,
        num_candidate: int,
        num_outputs: int = 64,
        temperature: float | None = 0.07,
        sampling: Sampling = Sampling.uniform,
        norm: Norm = Norm.none,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_outputs = num_outputs
        self.temperature = temperature
        self.sampling = sampling
        self.user = nn.Linear(num_rep, num_outputs)
        self.item = MLP(num_inputs=num_candidate, widths=(128,), num_outputs=num_outputs, norm=norm, dropout=dropout)

    @classmethod
    def build(cls, config: TaskConfig, inputs: TaskInputs) -> NextItemTask:
        assert isinstance(config, NextItemConfig)
        return cls(
            num_rep=inputs.num_rep, num_candidate=inputs.num_candidate, num_outputs=config.num_outputs,
            temperature=config.temperature, sampling=config.sampling, norm=inputs.norm, dropout=inputs.dropout,
        )  # fmt: skip

    def user_vector(self, rep_MR: Tensor) -> Tensor:
        """(M, R) -> (M, V), what an index is asked with."""
        vector_MV: Tensor = self.user(rep_MR)
        return vector_MV if self.temperature is None else functional.normalize(vector_MV) / self.temperature

    def item_half(self, features_EI: Tensor) -> Tensor:
        """(E, I) -> (E, V), what an index holds."""
        vector_EV: Tensor = self.item(features_EI)
        return vector_EV if self.temperature is None else functional.normalize(vector_EV)

    def score(self, user: UserState, item_EO: Tensor, dense_EF: Tensor, moment_E: Tensor | None) -> Tensor:
        user_MV = self.user_vector(user.rep_MR)
        user_EV = user_MV if moment_E is None else user_MV.index_select(0, moment_E)
        return (user_EV * item_EO).sum(1)

    def forward(self, user: UserState, features_EI: Tensor, examples: Examples) -> TaskOutput:
        """As every task's, but for the moments, which no other task's loss has to know."""
        labels = examples.labels | {MOMENT: examples.moment_E}
        return super().forward(user, features_EI, replace(examples, labels=labels))

    def loss(self, score_E: Tensor, labels: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Each positive weighs 1, negatives and positives without a negative at their moment nothing."""
        clicked_E = labels["clicked"]
        logit_E = score_E - sampling_shift(labels, self.sampling)
        loss_E, weight_E = sampled_softmax(logit_E, clicked_E > 0, labels[MOMENT])
        return loss_E, weight_E, clicked_E


def sampled_softmax(logit_E: Tensor, positive_E: Tensor, moment_E: Tensor) -> tuple[Tensor, Tensor]:
    """(loss_E, weight_E): for a positive, minus the log of its share among itself and its moment's negatives, weight 1.

    `moment_E` in any order. Zero, with zero gradient, for negatives and for positives without any; their weight is 0.
    """
    moment_E = torch.unique(moment_E, return_inverse=True)[1]
    rivals_E = _log_sum_exp(logit_E, ~positive_E, moment_E).index_select(0, moment_E)
    counted_E = positive_E & (rivals_E != -torch.inf)
    loss_E = functional.softplus(torch.where(counted_E, rivals_E - logit_E, -torch.inf))
    return loss_E, counted_E.to(logit_E.dtype)


def _log_sum_exp(logit_E: Tensor, chosen_E: Tensor, moment_E: Tensor) -> Tensor:
    """(S,): log of the sum of exp over each moment's chosen examples; -inf, without a gradient, where there is none.

    What is not finite among the chosen comes out as NaN, so that the step is refused.
    """
    empty_S = torch.zeros_like(logit_E)  # no more moments than examples; the rest stay empty
    some_S = empty_S.index_add(0, moment_E, chosen_E.to(logit_E.dtype)) > 0
    chosen_logit_E = logit_E.detach().masked_fill(~chosen_E, -torch.inf)
    top_S = empty_S.scatter_reduce(0, moment_E, chosen_logit_E, reduce="amax", include_self=False)
    above_E = torch.where(chosen_E, logit_E - top_S.index_select(0, moment_E), -torch.inf)
    sum_S = torch.where(some_S, empty_S.index_add(0, moment_E, above_E.exp()), 1.0)
    return torch.where(some_S, top_S + sum_S.log(), -torch.inf)
