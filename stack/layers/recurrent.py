"""The property-gated LSTM of DUPN (KDD 2018, section 4.2, equations 2 to 6).

Legend: B rows, L positions, I item features, P property features, H hidden.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class PropertyGatedLSTM(nn.Module):
    """An LSTM whose input, forget and output gates see item and property, and whose candidate sees the item alone.

    i = sigmoid(W_ei e + W_pi p + W_hi h + b_i), f and o alike, and c = f c + i tanh(W_ec e + W_hc h + b_c). The
    candidate has no property weights at all, so neither value nor gradient can pass. The four blocks are assembled into
    the weights of one fused kernel (order i, f, c, o) with zeros in that place. One bias a gate: (4I + 3P + 4H + 4) H
    parameters.

    Causal: the state at a position is a function of the events up to it, so padding behind the last event is harmless.
    With `num_property=0` it is the plain LSTM.
    """

    no_bias_4H: Tensor

    def __init__(self, *, num_item: int, num_property: int, num_hidden: int = 128) -> None:
        super().__init__()
        self.num_states = num_hidden
        self.num_property = num_property
        bound = 1 / math.sqrt(num_hidden)

        def uniform(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))

        self.weight_item = uniform(4 * num_hidden, num_item)
        if num_property:
            self.weight_property = uniform(3 * num_hidden, num_property)
        self.weight_hidden = uniform(4 * num_hidden, num_hidden)
        self.bias = uniform(4 * num_hidden)
        self.register_buffer("no_bias_4H", torch.zeros(4 * num_hidden), persistent=False)

    def weight_input(self) -> Tensor:
        """(4H, I + P): the fused kernel's weights on [item ; property], zero where the candidate meets the property."""
        if not self.num_property:
            return self.weight_item
        input_forget, output = self.weight_property.tensor_split([2 * self.num_states])
        weight_property = torch.cat([input_forget, torch.zeros_like(output), output])
        return torch.cat([self.weight_item, weight_property], dim=1)

    def forward(self, item_BLI: Tensor, property_BLP: Tensor | None) -> Tensor:
        """(B, L, H): the state after each event."""
        input_BLD = item_BLI if property_BLP is None else torch.cat([item_BLI, property_BLP], dim=2)
        zero_1BH = input_BLD.new_zeros(1, input_BLD.shape[0], self.num_states)
        weights = [self.weight_input(), self.weight_hidden, self.bias, self.no_bias_4H]
        # Arguments: has_biases, num_layers, dropout, train, bidirectional, batch_first.
        states_BLH: Tensor
        states_BLH, _, _ = torch.lstm(
            input_BLD, (zero_1BH, zero_1BH), weights, True, 1, 0.0, self.training, False, True
        )
        return states_BLH
