"""What is computed once for a request, as a module to be traced: the representation, and tasks about the user alone.

Legend: B users, L events, R representation, F ranking features, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from stack.data.schema import Schema
from stack.export.package import USER_HALF, USER_VECTOR, Input, Kind, Link, Task
from stack.export.trace import inputs_of
from stack.model import UserModel
from stack.tasks import CtrTask, FollowTask, NextItemTask, PowerTask, RankTask, ShopTask
from stack.tasks import Task as TrainedTask
from stack.towers.user import UserHalf, UserState

STATES = ("keys", "values", "mask")
"""Outputs beside the vector where candidates attend over the events: (B, L, ...)."""


class ExportedUserHalf(nn.Module):
    """Tensors in the order of `inputs`, one for each feature -> a tuple in the order of `outputs`: the vector (B, R),
    the states, (B, K) logits of each task about the user alone, (B, F) weights of each ranking task, (B, V) of each
    retrieving one."""

    def __init__(self, model: UserModel, schema: Schema) -> None:
        super().__init__()
        places = model.places
        self.user_half = UserHalf(model.user, model.target)
        self.user_tasks = {name: model.task(name) for name in about_user(model, schema)}
        self.rankers = {name: task for name in model.tasks if isinstance(task := model.task(name), RankTask)}
        self.retrievers = {
            name: task for name in model.tasks if isinstance(task := model.task(name), NextItemTask)
        }  # fmt: skip
        self.held = nn.ModuleList([*self.user_tasks.values(), *self.rankers.values(), *self.retrievers.values()])
        self.inputs: tuple[Input, ...] = (
            *inputs_of(Kind.EVENT_VECTORS, places.event),
            *inputs_of(Kind.EVENT_IDS, places.property),
            Input(kind=Kind.EVENT_TIME),
            Input(kind=Kind.NUM_EVENTS),
            *inputs_of(Kind.PROFILE_VECTORS, places.profile),
            *inputs_of(Kind.QUERY_VECTORS, places.query),
            Input(kind=Kind.NOW),
        )
        states = () if model.target is None else STATES
        self.outputs = (
            USER_VECTOR, *states, *self.user_tasks, *map(weights_of, self.rankers), *map(vector_of, self.retrievers),
        )  # fmt: skip

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        of: dict[Kind, list[Tensor]] = {kind: [] for kind in Kind}
        for entry, tensor in zip(self.inputs, tensors, strict=True):
            of[entry.kind].append(tensor)
        (seconds_BL,), (num_events_B,), (now_B,) = of[Kind.EVENT_TIME], of[Kind.NUM_EVENTS], of[Kind.NOW]
        nothing_B0 = torch.zeros(now_B.shape[0], 0)
        no_property_BL0 = torch.zeros(*seconds_BL.shape, 0, dtype=torch.int64)
        rep_BR, *states = self.user_half(
            torch.cat(of[Kind.EVENT_VECTORS], dim=2),
            torch.stack(of[Kind.EVENT_IDS], dim=2) if of[Kind.EVENT_IDS] else no_property_BL0,
            seconds_BL,
            num_events_B,
            torch.cat([nothing_B0, *of[Kind.PROFILE_VECTORS]], dim=1),
            torch.cat([nothing_B0, *of[Kind.QUERY_VECTORS]], dim=1),
            now_B,
        )
        return (rep_BR, *states, *self._answers(rep_BR, nothing_B0))

    def _answers(self, rep_BR: Tensor, nothing_B0: Tensor) -> Iterator[Tensor]:
        user = UserState(rep_MR=rep_BR, keys_MLK=None, values_MLV=None, mask_ML=nothing_B0.bool())
        for task in self.user_tasks.values():
            yield task.score(user, nothing_B0, nothing_B0, None)
        for ranker in self.rankers.values():
            yield ranker.feature_weights(rep_BR)
        for retriever in self.retrievers.values():
            yield retriever.user_vector(rep_BR)


def about_user(model: UserModel, schema: Schema) -> list[str]:
    """Tasks whose examples have neither a candidate nor ranking features."""
    groups = {name: schema.group(model.task(name).group) for name in model.tasks}
    return [name for name, group in groups.items() if not group.candidate and not group.dense]


def weights_of(ranker: str) -> str:
    """The output that holds a ranking task's weights: the answer `r . weights` of DUPN needs them once per request."""
    return f"{ranker}_weights"


def vector_of(retriever: str) -> str:
    """The output that an index of items is asked with."""
    return f"{retriever}_vector"


def user_answers(half: ExportedUserHalf, schema: Schema) -> tuple[Task, ...]:
    """How the user half's outputs are answered."""
    about = [
        Task(name=name, graph=USER_HALF, output=name, link=link_of(type(task)))
        for name, task in half.user_tasks.items()
    ]
    weights = [
        Task(
            name=weights_of(name),
            graph=USER_HALF,
            output=weights_of(name),
            link=Link.IDENTITY,
            columns=schema.group(task.group).dense,
        )
        for name, task in half.rankers.items()
    ]
    return (*about, *weights)


def link_of(task: type[TrainedTask]) -> Link:
    """Probabilities where the loss is of logits; a ranking score stays what it is."""
    return _LINKS[task]


_LINKS: dict[type[TrainedTask], Link] = {
    CtrTask: Link.SIGMOID,
    FollowTask: Link.SIGMOID,
    NextItemTask: Link.IDENTITY,
    PowerTask: Link.SOFTMAX,
    RankTask: Link.IDENTITY,
    ShopTask: Link.SIGMOID,
}
