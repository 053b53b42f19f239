"""The LSTM as one operation of a graph.

The tracer unrolls `torch.lstm` into one cell after the other, which fixes the number of events and is slow; as an
operation of its own (`stack::lstm`) it stays the fused kernel at any length. Whoever runs such a graph imports this
module first.

Legend: B rows, L positions, D inputs, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


@torch.library.custom_op("stack::lstm", mutates_args=())
def lstm(input_BLD: Tensor, hidden_1BH: Tensor, cell_1BH: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """(B, L, H) of a causal LSTM of one layer with biases; `weights` in torch's order."""
    states_BLH: Tensor = torch.lstm(input_BLD, (hidden_1BH, cell_1BH), list(weights), True, 1, 0.0, False, False, True)[
        0
    ]
    return states_BLH


@lstm.register_fake
def _(input_BLD: Tensor, hidden_1BH: Tensor, cell_1BH: Tensor, weights: Sequence[Tensor]) -> Tensor:
    return input_BLD.new_empty(input_BLD.shape[0], input_BLD.shape[1], hidden_1BH.shape[2])


class KeepLSTM(TorchFunctionMode):
    """While it is entered, calls of `torch.lstm` become `stack::lstm`.

    Only the form `stack.layers.recurrent` uses: one layer, one direction, biases, batch first, evaluation.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is not torch.lstm:
            return func(*args, **(kwargs or {}))
        input_BLD, (hidden_1BH, cell_1BH), weights, *form = args
        assert tuple(form) == (True, 1, 0.0, False, False, True), f"an LSTM of another form: {form}"
        return lstm(input_BLD, hidden_1BH, cell_1BH, list(weights)), hidden_1BH, cell_1BH
