"""Operations as graphs take them: the LSTM as one of its own, buckets as a count.

The tracer unrolls `torch.lstm` into one cell after the other, which fixes the number of events and is slow; as an
operation of its own (`stack::lstm`) it stays the fused kernel at any length. Whoever runs such a graph imports this
module first.

Legend: B rows, L positions, D inputs, H hidden, T any shape, N edges.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


@torch.library.custom_op("stack::lstm", mutates_args=())
def lstm(input_BLD: Tensor, hidden_1BH: Tensor, cell_1BH: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """(B, L, H) of a causal LSTM of one layer with biases; `weights` in torch's order.

    Contiguous, as compilers are told below: torch gives rows with positions outside, and code compiled for the other
    order reads the wrong numbers.
    """
    found = torch.lstm(input_BLD, (hidden_1BH, cell_1BH), list(weights), True, 1, 0.0, False, False, True)
    return found[0].contiguous()


@lstm.register_fake
def _(input_BLD: Tensor, hidden_1BH: Tensor, cell_1BH: Tensor, weights: Sequence[Tensor]) -> Tensor:
    return input_BLD.new_empty(input_BLD.shape[0], input_BLD.shape[1], hidden_1BH.shape[2])


class ForGraphs(TorchFunctionMode):
    """While it is entered, operations that tracers and compilers do not take well become others that give the same.

    `torch.lstm` becomes `stack::lstm`; only the form `stack.layers.recurrent` uses: one layer, one direction, biases,
    batch first, evaluation. `torch.bucketize` becomes a count of the edges at or below each value: ONNX's own is a
    bisection of eighty operations, each as long as the whole of the count.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.bucketize:
            return _counted(*args, **(kwargs or {}))
        if func is not torch.lstm:
            return func(*args, **(kwargs or {}))
        input_BLD, (hidden_1BH, cell_1BH), weights, *form = args
        assert tuple(form) == (True, 1, 0.0, False, False, True), f"an LSTM of another form: {form}"
        return lstm(input_BLD, hidden_1BH, cell_1BH, list(weights)), hidden_1BH, cell_1BH


def _counted(value_T: Tensor, edges_N: Tensor, *, right: bool = False) -> Tensor:
    """`torch.bucketize`: edges at or below each value (right), or below it."""
    of_each_T1 = value_T.unsqueeze(-1)
    return (of_each_T1 >= edges_N if right else of_each_T1 > edges_N).sum(-1)
