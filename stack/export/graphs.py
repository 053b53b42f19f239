"""All graphs of a model: the user half, and a scorer for each task that scores candidates."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from stack.data.schema import Group, Schema
from stack.export.aoti import save_aoti
from stack.export.engines import input_name
from stack.export.onnx import save_onnx
from stack.export.package import USER_HALF, Graph, GraphFormat, Input, Kind, Task
from stack.export.scorer import TaskScorer, scorer_answer, scorer_name
from stack.export.trace import examples, inputs_of, trace
from stack.export.user_half import STATES, ExportedUserHalf, about_user, user_answers
from stack.model import UserModel


@dataclass(frozen=True, kw_only=True)
class Graphs:
    """Traced programs by name, the modules they were traced from, and what the manifest says of them. `schema` holds
    just the features they read."""

    schema: Schema
    programs: dict[str, ExportedProgram]
    modules: dict[str, nn.Module]
    described: dict[str, Graph]
    tasks: tuple[Task, ...]
    scorer_needs_states: bool

    def save(self, folder: Path, formats: Sequence[GraphFormat]) -> None:
        """Writes a file for each program and format, as `described` names them.

        Raises: `PackageError` where a normalisation would go on learning, or there is no C++ compiler for AOTInductor.
        """
        (folder / "graphs").mkdir(parents=True)
        for name, program in self.programs.items():
            graph = self.described[name]
            for graph_format in formats:
                file = folder / graph.files[graph_format.value]
                if graph_format is GraphFormat.onnx:
                    names = [input_name(entry) for entry in graph.inputs]
                    save_onnx(program, file, inputs=names, outputs=graph.outputs)
                else:
                    save_aoti(program, file)


def build_graphs(
    model: UserModel, schema: Schema, dims: Mapping[str, int], *, formats: Sequence[GraphFormat] = (GraphFormat.onnx,)
) -> Graphs:
    """Traces a copy of the model, on the CPU, in evaluation mode. `dims`: width by table."""
    half = copy.deepcopy(ExportedUserHalf(model, schema)).cpu().eval()
    widths = _user_widths(model, dims)
    tensors = examples(half.inputs, widths)
    with torch.no_grad():
        user = dict(zip(half.outputs, half(*tensors), strict=True))
    programs = {USER_HALF: trace(half, half.inputs, tensors)}
    modules: dict[str, nn.Module] = {USER_HALF: half}
    described = {USER_HALF: Graph(files=_files(USER_HALF, formats), inputs=half.inputs, outputs=half.outputs)}
    tasks = list(user_answers(half, schema))
    scorers = _scorers(model, schema)
    for scorer in scorers:
        name = scorer_name(scorer.name)
        programs[name] = trace(scorer, scorer.inputs, _scorer_examples(scorer, user, dims), states=STATES)
        modules[name] = scorer
        described[name] = Graph(
            files=_files(name, formats), inputs=scorer.inputs, outputs=scorer.outputs, group=scorer.group.name
        )
        tasks.append(scorer_answer(scorer))
    return Graphs(
        schema=Schema(
            event=model.places.event,
            property=model.places.property,
            profile=model.places.profile,
            query=model.places.query,
            groups=_groups(scorers),
            raw_ids=schema.raw_ids,
        ),
        programs=programs,
        modules=modules,
        described=described,
        tasks=tuple(tasks),
        scorer_needs_states=any(scorer.states for scorer in scorers),
    )


def _files(name: str, formats: Sequence[GraphFormat]) -> dict[str, str]:
    return {one.value: f"graphs/{name}{one.suffix}" for one in formats}


def _scorers(model: UserModel, schema: Schema) -> list[TaskScorer]:
    return [
        copy.deepcopy(TaskScorer(model, schema.group(model.task(name).group), name)).cpu().eval()
        for name in model.tasks
        if name not in about_user(model, schema)
    ]


def _groups(scorers: Sequence[TaskScorer]) -> tuple[Group, ...]:
    """The scored groups without labels, and without candidates where no task looks at them."""
    reads = {scorer.group.name for scorer in scorers if scorer.reads_candidate}
    groups = {scorer.group.name: scorer.group for scorer in scorers}
    return tuple(
        msgspec.structs.replace(group, candidate=group.candidate if name in reads else (), labels=())
        for name, group in groups.items()
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


def _scorer_examples(scorer: TaskScorer, user: Mapping[str, Tensor], dims: Mapping[str, int]) -> list[Tensor]:
    group = scorer.group
    widths = {
        entry: dims[feature.table]
        for entry, feature in zip(inputs_of(Kind.CANDIDATE_VECTORS, group.candidate), group.candidate, strict=True)
    }
    widths[Input(kind=Kind.DENSE)] = len(group.dense)
    own = [entry for entry in scorer.inputs if entry.kind is not Kind.USER_OUTPUT]
    first = [user[entry.feature][:1] for entry in scorer.inputs if entry.kind is Kind.USER_OUTPUT]
    return [*first, *examples(own, widths)]
