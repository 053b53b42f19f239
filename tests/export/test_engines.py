"""Engines run what the manifest says, or refuse in one line; native code gives the numbers of ONNX."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

from stack.base.errors import PackageError
from stack.export.aoti import save_aoti
from stack.export.engines import AotiEngine, Engine, OnnxEngine, input_name, open_engine
from stack.export.lstm import ForGraphs
from stack.export.onnx import save_onnx
from stack.export.package import USER_HALF, Graph, GraphFormat, Input, Kind, read_manifest
from stack.layers.recurrent import PropertyGatedLSTM
from tests.export.toy import MANIFEST_OF_TOY, VECTORS

LENGTH = 17


@pytest.fixture
def package(toy: Path, tmp_path: Path) -> Path:
    return shutil.copytree(toy, tmp_path / "package")


def test_a_graph_of_the_toy_gives_the_numbers_worked_out_by_hand(toy: Path) -> None:
    engine = open_engine(toy, MANIFEST_OF_TOY, GraphFormat.onnx)
    item_BLD = np.array([VECTORS["item"][1:3]], dtype=np.float32)
    age, shop = (np.array([VECTORS[table][1]], dtype=np.float32) for table in ("age", "shop"))
    vector, tiers, taste = engine.run(USER_HALF, [item_BLD, np.array([2]), age, shop])
    np.testing.assert_array_equal(vector, [[1 + 3 + 1 + 10 + 2, 2 + 4 + 0 + 20 + 2]])
    np.testing.assert_allclose(tiers, [[1.7, 2.8, 0]], rtol=1e-6)
    np.testing.assert_array_equal(taste, vector)


def test_inputs_are_named_by_their_kind_and_feature() -> None:
    assert input_name(Input(kind=Kind.EVENT_VECTORS, feature="item")) == "event_vectors.item"
    assert input_name(Input(kind=Kind.NOW)) == "now"


def test_a_graph_with_other_inputs_than_the_manifest_says_is_refused(package: Path) -> None:
    half = MANIFEST_OF_TOY.graphs[USER_HALF]
    for inputs in (half.inputs[:-1], half.inputs[::-1], (*half.inputs[:-1], Input(kind=Kind.NOW))):
        graphs = MANIFEST_OF_TOY.graphs | {USER_HALF: msgspec.structs.replace(half, inputs=inputs)}
        with pytest.raises(PackageError, match="graph 'user_half' has other inputs than its manifest says"):
            open_engine(package, msgspec.structs.replace(MANIFEST_OF_TOY, graphs=graphs), GraphFormat.onnx)


def test_a_format_that_a_package_does_not_have_is_refused_with_those_it_has(package: Path) -> None:
    text = r"package .* has no aoti graphs, it has: onnx: export it with 'export.formats=\[aoti\]'"
    with pytest.raises(PackageError, match=text):
        open_engine(package, read_manifest(package), GraphFormat.aoti)


DAMAGE = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "text": lambda data: b"no graph\n" * 99,
    "noise": lambda data: bytes(np.random.default_rng(0).integers(0, 256, len(data), dtype=np.uint8)),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_onnx_file_is_refused_in_one_line(how: str, package: Path) -> None:
    file = package / MANIFEST_OF_TOY.graphs[USER_HALF].files["onnx"]
    file.write_bytes(DAMAGE[how](file.read_bytes()))
    with pytest.raises(PackageError, match=r"user_half.onnx cannot be opened as an ONNX graph: ") as caught:
        open_engine(package, MANIFEST_OF_TOY, GraphFormat.onnx)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_missing_graph_is_refused_in_one_line(package: Path) -> None:
    (package / MANIFEST_OF_TOY.graphs[USER_HALF].files["onnx"]).unlink()
    with pytest.raises(PackageError, match=r"user_half.onnx cannot be opened as an ONNX graph: ") as caught:
        open_engine(package, MANIFEST_OF_TOY, GraphFormat.onnx)
    assert "\n" not in str(caught.value)


class Tiny(nn.Module):
    """Vectors of events and times -> the LSTM's states in another order of axes, and what a time is of the day."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = PropertyGatedLSTM(num_item=3, num_property=0, num_hidden=4)

    def forward(self, vector_BLD: Tensor, seconds_BL: Tensor) -> tuple[Tensor, Tensor]:
        states_BLH = self.lstm(vector_BLD, None)
        return states_BLH.transpose(1, 2) + vector_BLD.sum(2)[:, None], seconds_BL.remainder(86_400)


TINY = Graph(
    files={one.value: f"graphs/tiny{one.suffix}" for one in GraphFormat},
    inputs=(Input(kind=Kind.EVENT_VECTORS, feature="item"), Input(kind=Kind.EVENT_TIME)), outputs=("states", "of_day"),
)  # fmt: skip


def write_tiny(folder: Path, *formats: GraphFormat) -> Tiny:
    torch.manual_seed(0)
    tiny = Tiny().eval().requires_grad_(False)
    axes = {0: Dim("batch", min=1), 1: Dim("length", min=3)}
    with ForGraphs():
        program = export(
            tiny, (torch.zeros(3, 5, 3), torch.zeros(3, 5, dtype=torch.int64)), dynamic_shapes=(axes, axes)
        )
    (folder / "graphs").mkdir()
    if GraphFormat.onnx in formats:
        names = [input_name(entry) for entry in TINY.inputs]
        save_onnx(program, folder / TINY.files["onnx"], inputs=names, outputs=TINY.outputs)
    if GraphFormat.aoti in formats:
        save_aoti(program, folder / TINY.files["aoti"])
    return tiny


def assert_runs_as(module: Tiny, *engines: Engine) -> None:
    rng = np.random.default_rng(0)
    for num_rows, length in ((4, LENGTH), (1, 3), (2, LENGTH), (4, 4), (7, 64)):
        vector_BLD = rng.standard_normal((num_rows, length, 3), dtype=np.float32)
        seconds_BL = rng.integers(0, 2**40, (num_rows, length))
        theirs = module(torch.from_numpy(vector_BLD), torch.from_numpy(seconds_BL))
        for engine in engines:
            states, of_day = engine.run("tiny", [vector_BLD, seconds_BL])
            np.testing.assert_allclose(states, theirs[0].numpy(), rtol=0, atol=1e-6)
            np.testing.assert_array_equal(of_day, theirs[1].numpy())


def test_the_lstm_of_onnx_is_torchs_also_for_inputs_that_are_views(tmp_path: Path) -> None:
    module = write_tiny(tmp_path, GraphFormat.onnx)
    engine = OnnxEngine(tmp_path, {"tiny": TINY})
    assert_runs_as(module, engine)
    view_BLD = np.random.default_rng(1).standard_normal((LENGTH, 4, 3), dtype=np.float32).transpose(1, 0, 2)
    seconds_BL = np.zeros((LENGTH, 4), dtype=np.int64).T
    states, _ = engine.run("tiny", [view_BLD, seconds_BL])
    theirs, _ = module(torch.from_numpy(view_BLD), torch.from_numpy(seconds_BL))
    np.testing.assert_allclose(states, theirs.numpy(), rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="AOTInductor needs a C++ compiler")
def test_native_code_gives_the_numbers_of_onnx(tmp_path: Path) -> None:
    """Compiled for the other order of rows and positions, it once read the LSTM's states crosswise."""
    module = write_tiny(tmp_path, *GraphFormat)
    assert_runs_as(module, OnnxEngine(tmp_path, {"tiny": TINY}), AotiEngine(tmp_path, {"tiny": TINY}))
    file = tmp_path / TINY.files["aoti"]
    file.write_bytes(b"no graph")
    with pytest.raises(PackageError, match=r"tiny.pt2 cannot be opened as a graph of AOTInductor: ") as caught:
        AotiEngine(tmp_path, {"tiny": TINY})
    assert "\n" not in str(caught.value)


def test_native_code_without_a_compiler_is_refused_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    text = r"AOTInductor needs a C\+\+ compiler, and none of g\+\+, clang\+\+, c\+\+ is on PATH: "
    with pytest.raises(PackageError, match=text):
        write_tiny(tmp_path, GraphFormat.aoti)
    assert not (tmp_path / TINY.files["aoti"]).exists()
