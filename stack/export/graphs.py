"""All graphs of a model: the user half, and a scorer for each group of examples that has candidates."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from torch import Tensor
from torch.export import ExportedProgram

from stack.data.schema import Group, Schema
from stack.export.package import USER_HALF, Graph, Input, Kind, Task
from stack.export.scorer import GroupScorer, scorer_answers, scorer_name
from stack.export.trace import examples, inputs_of, trace
from stack.export.user_half import STATES, ExportedUserHalf, about_user, user_answers
from stack.model import UserModel


@dataclass(frozen=True, kw_only=True)
class Graphs:
    """Traced programs by name, and what the manifest says of them. `schema` holds just the features they read."""

    schema: Schema
    programs: dict[str, ExportedProgram]
    described: dict[str, Graph]
    tasks: tuple[Task, ...]
    scorer_needs_states: bool

    def save(self, folder: Path) -> None:
        """Writes one file for each program."""
        (folder / "graphs").mkdir(parents=True)
        for name, program in self.programs.items():
            torch.export.save(program, folder / self.described[name].file)


def build_graphs(model: UserModel, schema: Schema, dims: Mapping[str, int]) -> Graphs:
    """Traces a copy of the model, on the CPU, in evaluation mode. `dims`: width by table."""
    half = copy.deepcopy(ExportedUserHalf(model, schema)).cpu().eval()
    widths = _user_widths(model, dims)
    tensors = examples(half.inputs, widths)
    with torch.no_grad():
        user = dict(zip(half.outputs, half(*tensors), strict=True))
    programs = {USER_HALF: trace(half, half.inputs, tensors)}
    described = {USER_HALF: Graph(file=_file(USER_HALF), inputs=half.inputs, outputs=half.outputs)}
    tasks = list(user_answers(half, schema))
    scorers = _scorers(model, schema)
    for name, scorer in scorers.items():
        programs[name] = trace(scorer, scorer.inputs, _scorer_examples(scorer, user, dims), states=STATES)
        described[name] = Graph(file=_file(name), inputs=scorer.inputs, outputs=scorer.outputs, group=scorer.group.name)
        tasks += scorer_answers(scorer)
    return Graphs(
        schema=Schema(
            event=model.places.event,
            property=model.places.property,
            profile=model.places.profile,
            query=model.places.query,
            groups=tuple(_read(scorer) for scorer in scorers.values()),
            raw_ids=schema.raw_ids,
        ),
        programs=programs,
        described=described,
        tasks=tuple(tasks),
        scorer_needs_states=any(scorer.states for scorer in scorers.values()),
    )


def _file(name: str) -> str:
    return f"graphs/{name}.pt2"


def _scorers(model: UserModel, schema: Schema) -> dict[str, GroupScorer]:
    names: dict[str, list[str]] = {}
    for name in model.tasks:
        if name not in about_user(model, schema):
            names.setdefault(model.task(name).group, []).append(name)
    return {
        scorer_name(group): copy.deepcopy(GroupScorer(model, schema.group(group), tasks)).cpu().eval()
        for group, tasks in names.items()
    }


def _read(scorer: GroupScorer) -> Group:
    """The scorer's group without labels, and without candidates where no task looks at them."""
    return msgspec.structs.replace(
        scorer.group, candidate=scorer.group.candidate if scorer.reads_candidate else (), labels=()
    )


def _user_widths(model: UserModel, dims: Mapping[str, int]) -> dict[Input, int]:
    places = model.places
    kinds = {
        Kind.EVENT_VECTORS: places.event, Kind.PROFILE_VECTORS: places.profile, Kind.QUERY_VECTORS: places.query,
    }  # fmt: skip
    return {
        entry: dims[feature.table]
        for kind, features in kinds.items()
        for entry, feature in zip(inputs_of(kind, features), features, strict=True)
    }


def _scorer_examples(scorer: GroupScorer, user: Mapping[str, Tensor], dims: Mapping[str, int]) -> list[Tensor]:
    group = scorer.group
    widths = {
        entry: dims[feature.table]
        for entry, feature in zip(inputs_of(Kind.CANDIDATE_VECTORS, group.candidate), group.candidate, strict=True)
    }
    widths[Input(kind=Kind.DENSE)] = len(group.dense)
    own = [entry for entry in scorer.inputs if entry.kind is not Kind.USER_OUTPUT]
    first = [user[entry.feature][:1] for entry in scorer.inputs if entry.kind is Kind.USER_OUTPUT]
    return [*first, *examples(own, widths)]
