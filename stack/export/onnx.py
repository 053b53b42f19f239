"""Traced programs as ONNX: data that any ONNX Runtime runs, without torch, a compiler or native code of ours.

The LSTM, which the traced program holds as one operation (`stack.export.lstm`), becomes ONNX's own.

Legend: B rows, L positions, D inputs, H hidden; 4H gates in torch's order input, forget, cell, output, which ONNX has
as input, output, forget, cell (onnx.ai/onnx/operators, LSTM).
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxscript import opset20
from torch.export import ExportedProgram

from stack.base.errors import PackageError
from stack.export import lstm as _operation  # noqa: F401  # registers it

OPSET = 20
op: Any = opset20  # its stubs know tensors alone, its operations numbers too
_TRAINING = "training_mode"


def save_onnx(program: ExportedProgram, file: Path, *, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Writes a program as one ONNX file, with these names of inputs and outputs.

    Raises: `PackageError` where a normalisation would go on learning in the graph.
    """
    with _quiet():
        made = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            custom_translation_table={torch.ops.stack.lstm.default: _lstm},
            verbose=False,
        )
    assert made is not None
    model = made.model_proto
    refuse_training(model, file.name)
    onnx.checker.check_model(model)
    onnx.save_model(model, file)


def refuse_training(model: onnx.ModelProto, name: str) -> None:
    """Raises `PackageError` where a node of the graph computes as in training (batch norm, dropout)."""
    for node in model.graph.node:
        if any(attribute.name == _TRAINING and attribute.i for attribute in node.attribute):
            raise PackageError(
                f"graph {name}: {node.op_type} {node.name!r} computes as in training: export a model in evaluation mode"
            )


def _lstm(input_BLD: Any, hidden_1BH: Any, cell_1BH: Any, weights: Sequence[Any]) -> Any:
    """`stack::lstm` in ONNX's operations."""
    weight_4HD, recurrent_4HH, bias_4H, recurrent_bias_4H = weights
    bias_8H = op.Concat(_gates(bias_4H), _gates(recurrent_bias_4H), axis=0)
    states_L1BH, _, _ = op.LSTM(
        op.Transpose(input_BLD, perm=[1, 0, 2]),
        op.Unsqueeze(_gates(weight_4HD), [0]),
        op.Unsqueeze(_gates(recurrent_4HH), [0]),
        op.Unsqueeze(bias_8H, [0]),
        None,
        hidden_1BH,
        cell_1BH,
        hidden_size=recurrent_4HH.shape[1],
    )
    return op.Transpose(op.Squeeze(states_L1BH, [1]), perm=[1, 0, 2])


def _gates(value_4H: Any) -> Any:
    into, forget, cell, out = op.Split(value_4H, num_outputs=4, axis=0)
    return op.Concat(into, out, forget, cell, axis=0)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells of its steps on every channel there is."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
