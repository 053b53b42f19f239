"""One run of a package's user half under each engine, side by side: ONNX Runtime, AOTInductor, and PyTorch itself.

The graphs are made anew of the version that the package is of. Each engine has one thread; inputs are those of a
recorded user with 100 events, out of the package's rows.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import nn

from stack.export.engines import AotiEngine, Array, OnnxEngine
from stack.export.graphs import Graphs, build_graphs
from stack.export.package import USER_HALF, GraphFormat
from stack.job import CHOICES, Composer, Job, configs_folder
from stack.verbs import run_of_job
from tools.bench.bodies import recorded_bodies, sized, user_of
from tools.bench.harness import Figure, interleaved, seconds_of
from tools.bench.serving import GROUP
from tools.bench.stages import opened, user_inputs

_FORMATS = (GraphFormat.onnx, GraphFormat.aoti)
_NUM_CALLS = 300
_TOLERANCE = 1e-4

Engine = Callable[[Sequence[Array]], list[Array]]


def measure(run: Path, package: Path, *, num_rounds: int, num_calls: int = _NUM_CALLS) -> list[Figure]:
    """Milliseconds of a run, the median of `num_calls` in each round. Raises `AssertionError` where engines differ."""
    torch.set_num_threads(1)
    _, served = opened(package)
    inputs = user_inputs(served, msgspec.json.encode(user_of(sized(recorded_bodies(package, GROUP)[0]))))
    version = served.predictor.manifest.lineage.version
    with tempfile.TemporaryDirectory() as folder:
        engines = _engines(_user_half(run, version), Path(folder))
        (first, wanted), *others = ((name, engine(inputs)) for name, engine in engines.items())
        for name, found in others:
            for one, other in zip(wanted, found, strict=True):
                np.testing.assert_allclose(other, one, atol=_TOLERANCE, err_msg=f"{name} and {first} differ")
        times = interleaved(
            {name: partial(_milliseconds, engine, inputs, num_calls) for name, engine in engines.items()},
            num_rounds=num_rounds,
        )
    return [Figure(name=f"user half, 100 events: {name}", unit="ms", values=values) for name, values in times.items()]


def _user_half(run: Path, version: int) -> Graphs:
    """The graph alone, of a version of a run."""
    composer = Composer(root=Job, choices=CHOICES, folder=configs_folder())
    job = composer.compose([f"run.name={run.name}", f"run.dir={run.parent}"])
    with run_of_job(job, verb="export", version=str(version)) as (trained, _):
        dims = {name: table.dim for name, table in trained.checkpoint.manifest.tables.items()}
        graphs = build_graphs(trained.user_model.eval(), trained.dataset.schema, dims, formats=_FORMATS)
    return replace(graphs, programs={USER_HALF: graphs.programs[USER_HALF]})


def _engines(graphs: Graphs, folder: Path) -> Mapping[str, Engine]:
    graphs.save(folder, _FORMATS)
    described = {USER_HALF: graphs.described[USER_HALF]}
    return {
        "ONNX Runtime": partial(OnnxEngine(folder, described).run, USER_HALF),
        "AOTInductor": partial(AotiEngine(folder, described).run, USER_HALF),
        "PyTorch": partial(_eager, graphs.modules[USER_HALF]),
    }


def _eager(module: nn.Module, inputs: Sequence[Array]) -> list[Array]:
    with torch.inference_mode():
        return [output.numpy() for output in module(*map(torch.from_numpy, inputs))]


def _milliseconds(engine: Engine, inputs: Sequence[Array], num_calls: int) -> float:
    return 1e3 * statistics.median(seconds_of(partial(engine, inputs)) for _ in range(num_calls))
