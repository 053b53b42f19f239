"""What is computed for every candidate, as a module to be traced: the item half and the head of one task.

A graph for each task, so that a request pays for those that it asks for.

Legend: E candidates, L events, R representation, I looked-up features of a candidate, F ranking features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stack.data.schema import Group
from stack.export.package import USER_VECTOR, Input, Kind, Task
from stack.export.trace import inputs_of
from stack.export.user_half import STATES, link_of
from stack.model import UserModel
from stack.towers.user import UserState


class TaskScorer(nn.Module):
    """Tensors in the order of `inputs` (one user's outputs, one tensor for each candidate feature, ranking features)
    -> (E,) raw scores of the task."""

    def __init__(self, model: UserModel, group: Group, name: str) -> None:
        super().__init__()
        self.group = group
        self.name = name
        self.task = model.task(name)
        self.states = STATES if getattr(self.task, "target", None) is not None else ()
        self.reads_candidate = self.task.looks_up_candidates
        self.inputs: tuple[Input, ...] = (
            *(Input(kind=Kind.USER_OUTPUT, feature=name) for name in (USER_VECTOR, *self.states)),
            *(inputs_of(Kind.CANDIDATE_VECTORS, group.candidate) if self.reads_candidate else ()),
            Input(kind=Kind.DENSE),
        )
        self.outputs = (name,)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        num_user = 1 + len(self.states)
        rep_1R, *states = tensors[:num_user]
        *candidate, dense_EF = tensors[num_user:]
        nothing_E0 = dense_EF[:, :0]
        keys_1LK, values_1LV, mask_1L = states or (None, None, rep_1R[:, :0].bool())
        user = UserState(rep_MR=rep_1R, keys_MLK=keys_1LK, values_MLV=values_1LV, mask_ML=mask_1L)
        features_EI = torch.cat([nothing_E0, *candidate], dim=1)
        return (self.task.score(user, self.task.item_half(features_EI), dense_EF, None),)


def scorer_name(task: str) -> str:
    return f"score_{task}"


def scorer_answer(scorer: TaskScorer) -> Task:
    """How the scorer's output is answered."""
    return Task(name=scorer.name, graph=scorer_name(scorer.name), output=scorer.name, link=link_of(type(scorer.task)))
