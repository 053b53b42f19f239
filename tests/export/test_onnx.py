"""Graphs as ONNX give the numbers of the modules they were traced from, at any size and at any time of the calendar.

Legend: B rows, L positions, E candidates.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export
from torch.nn import functional

from stack.base.errors import PackageError
from stack.export.engines import OnnxEngine, input_name
from stack.export.onnx import refuse_training, save_onnx
from stack.export.package import Graph, Input, Kind
from stack.export.scorer import TaskScorer
from stack.export.trace import examples, trace
from stack.export.user_half import STATES, ExportedUserHalf
from stack.layers.norm import Norm
from stack.model import UserModel
from stack.tasks import TasksConfig
from stack.towers.behavior import Behavior, PropertyUse
from stack.towers.config import Attention, ModelConfig
from stack.towers.time import NUM_GAPS, SECONDS_PER_DAY
from tests.batches import random_batch, small_model
from tests.export.trained import ctr_alone
from tests.plain_tables import DIMS
from tests.prepared import SCHEMA
from tests.test_model_export import CONFIGS

ALL = CONFIGS | {
    "cnn_max": ModelConfig(
        behavior=Behavior.cnn_max, attention=Attention.target, query=False, property=PropertyUse.lstm
    ),
}
SIZES = ((1, 3), (2, 4), (5, 17), (3, 40))
TOLERANCE = 2e-6
SATURDAY = 17_004 * SECONDS_PER_DAY
"""A midnight (1970-01-01 was a Thursday)."""


def moments(rng: np.random.Generator, count: int) -> np.ndarray:
    """Just before, at and after midnights, weekends and the three-hour buckets of a day."""
    day = (
        SATURDAY
        + rng.integers(-3, 5, count) * SECONDS_PER_DAY
        + rng.integers(0, 2, count) * rng.integers(0, 8, count) * 10_800
    )
    return np.asarray(day + rng.integers(-1, 2, count))


def times(rng: np.random.Generator, num_rows: int, length: int) -> tuple[Tensor, Tensor]:
    """(B, L) event times and (B,) moments whose gaps, to each other and to the moment, lie around powers of two."""
    now_B = moments(rng, num_rows)
    exponent = rng.integers(0, NUM_GAPS, (num_rows, length))
    gap_BL = np.maximum(2**exponent - 1 + rng.integers(-1, 2, exponent.shape), 0)
    gap_BL[exponent > 20] //= rng.integers(1, 3)  # not all of them years
    ages_BL = gap_BL.copy() if rng.random() < 0.5 else gap_BL.cumsum(axis=1)
    seconds_BL = np.sort(np.maximum(now_B[:, None] - ages_BL, 0), axis=1)
    return torch.from_numpy(seconds_BL), torch.from_numpy(now_B)


def user_inputs(
    inputs: tuple[Input, ...], widths: dict[Input, int], rng: np.random.Generator, size: tuple[int, int]
) -> list[Tensor]:
    num_rows, length = size
    seconds_BL, now_B = times(rng, num_rows, length)
    own = {
        Kind.EVENT_TIME: seconds_BL, Kind.NOW: now_B,
        Kind.NUM_EVENTS: torch.from_numpy(rng.integers(0, length + 1, num_rows)),
    }  # fmt: skip
    found = []
    for entry in inputs:
        shape = (num_rows, length) if entry.kind.value.startswith("event") else (num_rows,)
        if entry.kind in own:
            found.append(own[entry.kind])
        elif entry.kind is Kind.EVENT_IDS:
            found.append(torch.from_numpy(rng.integers(0, 9, shape)))  # also some that no row is of
        else:
            found.append(numbers(rng, *shape, widths[entry]))
    return found


def numbers(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


def trained(config: ModelConfig, tasks: TasksConfig | None = None) -> UserModel:
    """After a forward pass in training mode, so that running statistics are not the first ones."""
    model = small_model(config, tasks=tasks)
    model(random_batch(torch.Generator().manual_seed(0)))
    return model.eval().requires_grad_(False)


@cache
def half_of(name: str) -> tuple[ExportedUserHalf, dict[Input, int]]:
    return half_with(ALL[name])


def half_with(config: ModelConfig) -> tuple[ExportedUserHalf, dict[Input, int]]:
    half = ExportedUserHalf(trained(config, ctr_alone()), SCHEMA).eval()
    features = {feature.name: feature.table for feature in (*SCHEMA.event, *SCHEMA.profile, *SCHEMA.query)}
    vectors = [entry for entry in half.inputs if entry.kind.value.endswith("_vectors")]
    return half, {entry: DIMS[features[entry.feature]] for entry in vectors}


@pytest.mark.parametrize("name", ALL)
def test_every_user_half_as_onnx_is_its_module_at_every_size_and_time(name: str, tmp_path: Path) -> None:
    half, widths = half_of(name)
    names = [input_name(entry) for entry in half.inputs]
    file = tmp_path / "half.onnx"
    save_onnx(trace(half, half.inputs, examples(half.inputs, widths)), file, inputs=names, outputs=half.outputs)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    assert [entry.name for entry in session.get_inputs()] == names
    assert [entry.name for entry in session.get_outputs()] == list(half.outputs)
    rng = np.random.default_rng(0)
    for size in SIZES:
        for _ in range(3):
            tensors = user_inputs(half.inputs, widths, rng, size)
            found = session.run(None, {name: one.numpy() for name, one in zip(names, tensors, strict=True)})
            for output, ours, theirs in zip(half.outputs, found, half(*tensors), strict=True):
                np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6, atol=TOLERANCE, err_msg=f"{output}, {size}")
    assert_nothing_learns(file)


def assert_nothing_learns(file: Path) -> None:
    model = onnx.load(file)
    learning = [
        node.name
        for node in model.graph.node
        for attribute in node.attribute
        if attribute.name == "training_mode" and attribute.i
    ]
    assert learning == []
    assert not {node.op_type for node in model.graph.node} & {"Dropout", "RandomUniformLike", "Bernoulli"}


def test_a_scorer_with_states_as_onnx_is_its_module_for_any_number_of_candidates(tmp_path: Path) -> None:
    tasks = ctr_alone()
    tasks.ctr.dense_features = True
    scorer = TaskScorer(trained(CONFIGS["both"], tasks), SCHEMA.group("impression"), "ctr").eval()
    half, widths = half_of("both")
    widths_E = {"dense": 3} | {feature.name: DIMS[feature.table] for feature in SCHEMA.group("impression").candidate}

    def asked(length: int, num_candidates: int) -> list[Tensor]:
        user = dict(zip(half.outputs, half(*user_inputs(half.inputs, widths, rng, (1, length))), strict=True))
        return [
            user[entry.feature]
            if entry.kind is Kind.USER_OUTPUT
            else numbers(rng, num_candidates, widths_E[entry.feature or entry.kind.value])
            for entry in scorer.inputs
        ]

    rng = np.random.default_rng(1)
    graph = Graph(files={"onnx": "score.onnx"}, inputs=scorer.inputs, outputs=scorer.outputs, group="impression")
    program = trace(scorer, scorer.inputs, asked(5, 4), states=STATES)
    names = [input_name(entry) for entry in scorer.inputs]
    save_onnx(program, tmp_path / "score.onnx", inputs=names, outputs=scorer.outputs)
    engine = OnnxEngine(tmp_path, {"score": graph})
    for length, num_candidates in ((3, 1), (5, 2), (40, 33)):
        tensors = asked(length, num_candidates)
        (ours,) = engine.run("score", [one.numpy() for one in tensors])
        (theirs,) = scorer(*tensors)
        assert ours.shape == (num_candidates,)
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6, atol=TOLERANCE)
    assert_nothing_learns(tmp_path / "score.onnx")


class Bucketize(nn.Module):
    def __init__(self, *, right: bool) -> None:
        super().__init__()
        self.right = right
        self.register_buffer("edges", 2 ** torch.arange(1, NUM_GAPS - 1) - 1)

    def forward(self, value_BL: Tensor) -> Tensor:
        return torch.bucketize(value_BL, self.edges, right=self.right)  # type: ignore[arg-type]


@pytest.mark.parametrize("right", [False, True])
def test_bucketize_counts_edges_as_torch_does_at_and_around_every_edge(right: bool, tmp_path: Path) -> None:
    module = Bucketize(right=right).eval()
    program = export(module, (torch.zeros(2, 3, dtype=torch.int64),), dynamic_shapes=({1: Dim("length", min=1)},))
    save_onnx(program, tmp_path / "b.onnx", inputs=["value"], outputs=["bucket"])
    edges = module.edges.numpy()
    value = np.concatenate([edges - 1, edges, edges + 1, [-(2**62), -1, 0, 2**53 + 1, 2**62, 2**63 - 1]]).reshape(2, -1)
    session = onnxruntime.InferenceSession(str(tmp_path / "b.onnx"), providers=["CPUExecutionProvider"])
    (ours,) = session.run(None, {"value": value})
    np.testing.assert_array_equal(ours, np.searchsorted(edges, value, side="right" if right else "left"))
    np.testing.assert_array_equal(ours, module(torch.from_numpy(value)).numpy())


class Learning(nn.Module):
    """Does not heed that it is in evaluation mode."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.register_buffer("seen", torch.zeros(2, 2))

    def forward(self, *tensors: Tensor) -> Tensor:
        (now_B,) = tensors
        x_B2 = torch.stack([now_B, now_B], dim=1).float()
        assert isinstance(self.seen, Tensor)
        match self.what:
            case "batch norm":
                return functional.batch_norm(x_B2, self.seen[0], self.seen[1], training=True)
            case "dropout":
                return functional.dropout(x_B2)
            case "buffer":
                self.seen.copy_(x_B2.mean(0).expand(2, 2))
            case "view of a buffer":
                self.seen[0].view(2, 1)[0].add_(x_B2.mean())
        return x_B2 + self.seen[0]


LEARNING = {
    "batch norm": "the graph would compute 'batch_norm' as in training: export a model in evaluation mode",
    "dropout": "the graph would compute 'dropout' as in training: export a model in evaluation mode",
    "buffer": "the graph would change 'seen' as in training: export a model in evaluation mode",
    "view of a buffer": "the graph would change 'seen' as in training: export a model in evaluation mode",
}
NOW = [Input(kind=Kind.NOW)]


@pytest.mark.parametrize("what", LEARNING)
def test_a_graph_that_would_go_on_learning_is_refused_when_it_is_traced(what: str) -> None:
    assert trace(Learning("nothing").eval(), NOW, examples(NOW, {})) is not None
    with pytest.raises(PackageError, match=LEARNING[what]):
        trace(Learning(what).eval(), NOW, examples(NOW, {}))


def test_a_module_in_training_mode_is_refused_before_it_is_traced() -> None:
    half = half_with(ModelConfig(behavior=Behavior.mean, query=False, norm=Norm.batch))[0]
    half.user_half.train()
    with pytest.raises(PackageError, match="ExportedUserHalf is in training mode: export a model in evaluation mode"):
        trace(half, half.inputs, [])


@pytest.mark.parametrize(("kind", "inputs"), [("BatchNormalization", 5), ("Dropout", 1)])
def test_a_graph_whose_normalisation_or_dropout_trains_is_refused_when_it_is_written(kind: str, inputs: int) -> None:
    def graph(training: int) -> onnx.ModelProto:
        names = [f"x{number}" for number in range(inputs)]
        node = onnx.helper.make_node(kind, names, ["y"], name="here", training_mode=training)
        return onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], []))

    refuse_training(graph(0), "half.onnx")
    with pytest.raises(
        PackageError, match=f"graph half.onnx: {kind} 'here' computes as in training: export a model in"
    ):
        refuse_training(graph(1), "half.onnx")
