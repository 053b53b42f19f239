"""From a module to a graph for any number of users, events and candidates.

Legend: B users, L events, E candidates, D width of a feature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import Node

from stack.base.errors import PackageError
from stack.data.schema import Feature
from stack.export.lstm import ForGraphs
from stack.export.package import MIN_EVENTS, Input, Kind

_SIZES = {"batch": 3, "length": 5, "candidates": 4}
"""Axes that stay open, and their sizes in the tensors traced with; above 1, which the tracer would fix."""
_AXES: dict[Kind, tuple[str, ...]] = {
    Kind.EVENT_VECTORS: ("batch", "length"),
    Kind.EVENT_IDS: ("batch", "length"),
    Kind.EVENT_TIME: ("batch", "length"),
    Kind.NUM_EVENTS: ("batch",),
    Kind.PROFILE_VECTORS: ("batch",),
    Kind.QUERY_VECTORS: ("batch",),
    Kind.NOW: ("batch",),
    Kind.CANDIDATE_VECTORS: ("candidates",),
    Kind.DENSE: ("candidates",),
}
_INTEGERS = (Kind.EVENT_IDS, Kind.EVENT_TIME, Kind.NUM_EVENTS, Kind.NOW)


def inputs_of(kind: Kind, features: Sequence[Feature]) -> list[Input]:
    """One input of a kind for each feature."""
    return [Input(kind=kind, feature=feature.name) for feature in features]


def examples(inputs: Sequence[Input], widths: Mapping[Input, int]) -> list[Tensor]:
    """Zeros of the right shapes and types; `widths` has the last axis of inputs that hold vectors."""
    return [
        torch.zeros(
            *(_SIZES[axis] for axis in _AXES[entry.kind]),
            *((widths[entry],) if entry in widths else ()),
            dtype=torch.int64 if entry.kind in _INTEGERS else torch.float32,
        )
        for entry in inputs
    ]


def trace(
    module: nn.Module, inputs: Sequence[Input], tensors: Sequence[Tensor], *, states: Sequence[str] = ()
) -> ExportedProgram:
    """Exports `module(*tensors)`. User outputs named in `states` have events as their second axis.

    Raises: `PackageError` where something would go on learning in the graph.
    """
    if any(part.training for part in module.modules()):
        raise PackageError(f"{type(module).__name__} is in training mode: export a model in evaluation mode")
    open_axes = {name: Dim(name, min=MIN_EVENTS if name == "length" else 1) for name in _SIZES}
    shapes = []
    for entry in inputs:
        if entry.kind is Kind.USER_OUTPUT:
            shapes.append({1: open_axes["length"]} if entry.feature in states else {})
        else:
            shapes.append({axis: open_axes[name] for axis, name in enumerate(_AXES[entry.kind])})
    with ForGraphs():
        program = torch.export.export(module, tuple(tensors), dynamic_shapes=(tuple(shapes),))
    for node in program.graph.nodes:
        if learning := _learning(node, program.graph_signature.inputs_to_buffers):
            raise PackageError(f"the graph would {learning} as in training: export a model in evaluation mode")
    return program


def _learning(node: Node, buffers: Mapping[str, str]) -> str | None:
    """What an operation does that belongs to training: writes to a buffer, or is told that it trains. The program's own
    list of changed buffers is filled by later passes alone."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    arguments = node.target._schema.arguments
    given = {argument.name: value for argument, value in zip(arguments, node.args, strict=False)} | node.kwargs
    for argument in arguments:
        value = given.get(argument.name)
        if argument.name in ("train", "training") and value is True:
            return f"compute {node.name!r}"
        written = argument.alias_info is not None and argument.alias_info.is_write
        if written and isinstance(value, Node) and (origin := _origin(value).name) in buffers:
            return f"change {buffers[origin]!r}"
    return None


def _origin(node: Node) -> Node:
    """Of a view, what it looks at."""
    while isinstance(node.target, torch._ops.OpOverload) and node.target.is_view:
        (node, *_) = node.all_input_nodes
    return node
