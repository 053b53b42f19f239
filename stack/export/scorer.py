"""What is computed for every candidate, as a module to be traced: the item half and the heads of one group's tasks.

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
from stack.tasks import Task as TrainedTask
from stack.towers.user import UserState


class GroupScorer(nn.Module):
    """Tensors in the order of `inputs` (one user's outputs, one tensor for each candidate feature, ranking features)
    -> (E,) raw scores of each task of the group, in the order of `outputs`."""

    def __init__(self, model: UserModel, group: Group, names: list[str]) -> None:
        super().__init__()
        self.group = group
        self.scored: dict[str, TrainedTask] = {name: model.task(name) for name in names}
        self.held = nn.ModuleList(self.scored.values())
        self.states = STATES if any(getattr(task, "target", None) is not None for task in self.scored.values()) else ()
        self.reads_candidate = any(task.looks_up_candidates for task in self.scored.values())
        self.inputs: tuple[Input, ...] = (
            *(Input(kind=Kind.USER_OUTPUT, feature=name) for name in (USER_VECTOR, *self.states)),
            *(inputs_of(Kind.CANDIDATE_VECTORS, group.candidate) if self.reads_candidate else ()),
            Input(kind=Kind.DENSE),
        )
        self.outputs = tuple(names)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        num_user = 1 + len(self.states)
        rep_1R, *states = tensors[:num_user]
        *candidate, dense_EF = tensors[num_user:]
        nothing_E0 = dense_EF[:, :0]
        keys_1LK, values_1LV, mask_1L = states or (None, None, rep_1R[:, :0].bool())
        user = UserState(rep_MR=rep_1R, keys_MLK=keys_1LK, values_MLV=values_1LV, mask_ML=mask_1L)
        features_EI = torch.cat([nothing_E0, *candidate], dim=1)
        return tuple(
            task.score(user, task.item_half(features_EI if task.looks_up_candidates else nothing_E0), dense_EF, None)
            for task in self.scored.values()
        )


def scorer_name(group: str) -> str:
    return f"scorer_{group}"


def scorer_answers(scorer: GroupScorer) -> tuple[Task, ...]:
    """How the scorer's outputs are answered."""
    return tuple(
        Task(name=name, graph=scorer_name(scorer.group.name), output=name, link=link_of(type(task)))
        for name, task in scorer.scored.items()
    )
