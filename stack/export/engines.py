"""Runs the graphs of a package: arrays in, arrays out, by whichever engine their format has.

Every engine uses one thread: a server has a process for each core.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from stack.base.errors import PackageError
from stack.export.package import Graph, GraphFormat, Input, PackageManifest

Array = NDArray[Any]
T = TypeVar("T")


class Engine(Protocol):
    """Graphs by name. `run` takes the inputs in the order of `Graph.inputs` and gives the outputs in their order."""

    def run(self, graph: str, inputs: Sequence[Array]) -> list[Array]: ...


def input_name(entry: Input) -> str:
    """As a graph's input is called: "event_vectors.item", "now"."""
    return f"{entry.kind.value}.{entry.feature}" if entry.feature else entry.kind.value


def open_engine(folder: Path, manifest: PackageManifest, graph_format: GraphFormat) -> Engine:
    """The graphs of a package in one format.

    Raises: `PackageError` where the package does not have the format, or a graph cannot be opened.
    """
    if graph_format not in manifest.formats:
        has = ", ".join(one.value for one in manifest.formats)
        raise PackageError(
            f"package {folder} has no {graph_format.value} graphs, it has: {has}: export it with "
            f"'export.formats=[{graph_format.value}]'"
        )
    return (OnnxEngine if graph_format is GraphFormat.onnx else AotiEngine)(folder, manifest.graphs)


class OnnxEngine:
    """ONNX Runtime on the CPU."""

    def __init__(self, folder: Path, graphs: dict[str, Graph]) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._sessions = {name: _session(folder / graph.files["onnx"], options) for name, graph in graphs.items()}
        self._inputs = {
            name: [input_name(entry) for entry in graph.inputs] for name, graph in graphs.items()
        }  # fmt: skip
        for name, session in self._sessions.items():
            if [entry.name for entry in session.get_inputs()] != self._inputs[name]:
                raise PackageError(f"package {folder}: graph {name!r} has other inputs than its manifest says")

    def run(self, graph: str, inputs: Sequence[Array]) -> list[Array]:
        feeds = dict(zip(self._inputs[graph], inputs, strict=True))
        outputs: list[Array] = self._sessions[graph].run(None, feeds)
        return outputs


class AotiEngine:
    """Native code compiled by AOTInductor. Opening a file runs it."""

    def __init__(self, folder: Path, graphs: dict[str, Graph]) -> None:
        import torch
        from torch._inductor import aoti_load_package

        from stack.export import lstm as _lstm  # noqa: F401  # graphs may hold its operation

        self._torch = torch
        self._graphs = {
            name: _opened(folder / graph.files["aoti"], "a graph of AOTInductor", aoti_load_package)
            for name, graph in graphs.items()
        }

    def run(self, graph: str, inputs: Sequence[Array]) -> list[Array]:
        torch = self._torch
        with torch.inference_mode():
            outputs = self._graphs[graph](*(torch.from_numpy(np.ascontiguousarray(one)) for one in inputs))
        return [output.numpy() for output in outputs]


def _session(file: Path, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    def opened(path: str) -> onnxruntime.InferenceSession:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    return _opened(file, "an ONNX graph", opened)


def _opened(file: Path, what: str, act: Callable[[str], T]) -> T:
    try:
        return act(str(file))
    except Exception as error:  # what engines raise has no common class
        reason = " ".join(str(error).split())[:200]
        raise PackageError(f"{file} cannot be opened as {what}: {reason}") from error
