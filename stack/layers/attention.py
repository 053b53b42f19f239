"""Attention over a user's events: by the moment (DUPN) and by the candidate (DIN).

Legend: B rows, L positions, M moments, E examples, G blocks of X examples that share a moment, S state features,
P property features, C context features, W width of the first layer, J hidden units, K key features, V value features.
"""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor, nn
from torch.nn import functional

from stack.layers.window import Window, masked_softmax


class QueryAttention(nn.Module):
    """DUPN's attention (KDD 2018, equation 7 and figure 4b): weights softmax(att([p_t ; h_t ; q ; u])) over the window,
    att = linear W, ReLU, linear 64, ReLU, scalar. Returns the weighted sum of states, (M, S).

    The first layer is split by its inputs, so that [h_t ; p_t] is multiplied once for each event and [q ; u] once for
    each moment. The part of p_t that depends on the moment (the time from the event to it) comes as a small table and
    an index into it, (M, L), and is multiplied once for each table row. The scalar has no bias: softmax cancels it.
    """

    def __init__(
        self, *, num_states: int, num_property: int, num_context: int, widths: tuple[int, int] = (128, 64)
    ) -> None:
        super().__init__()
        self.num_states = num_states
        self.num_property = num_property
        self.first = nn.Linear(num_states + num_property + num_context, widths[0])
        self.second = nn.Linear(widths[0], widths[1])
        self.scalar = nn.Linear(widths[1], 1, bias=False)

    def weights(
        self,
        states_BLS: Tensor,
        context_MC: Tensor,
        window: Window,
        *,
        property_BLP: Tensor | None = None,
        gap_table_NP: Tensor | None = None,
        gap_ML: Tensor | None = None,
    ) -> Tensor:
        """(M, L): the attention weights, zero outside the window and summing to 1 inside (or to 0 if it is empty).

        `property_BLP` and `gap_table_NP[gap_ML]` are added up to p_t; both or neither, as `num_property` says.
        """
        ends = [self.num_states, self.num_states + self.num_property]
        weight_S, weight_P, weight_C = self.first.weight.tensor_split(ends, dim=1)
        # In place from here on: every pass over a (B, L, W) tensor costs more than the small products added to it.
        hidden_BLW = functional.linear(states_BLS, weight_S)
        if property_BLP is not None:
            hidden_BLW.flatten(0, 1).addmm_(property_BLP.flatten(0, 1), weight_P.t())
        hidden_MLW = window.gather(hidden_BLW)
        hidden_MLW += functional.linear(context_MC, weight_C, self.first.bias).unsqueeze(1)
        if gap_table_NP is not None and gap_ML is not None:
            hidden_MLW += functional.embedding(gap_ML, functional.linear(gap_table_NP, weight_P))
        logits_ML = self.scalar(self.second(hidden_MLW.relu_()).relu_()).squeeze(2)
        return masked_softmax(logits_ML, window.mask_ML)

    def forward(
        self,
        states_BLS: Tensor,
        context_MC: Tensor,
        window: Window,
        *,
        property_BLP: Tensor | None = None,
        gap_table_NP: Tensor | None = None,
        gap_ML: Tensor | None = None,
    ) -> Tensor:
        weights_ML = self.weights(
            states_BLS, context_MC, window, property_BLP=property_BLP, gap_table_NP=gap_table_NP, gap_ML=gap_ML
        )
        return torch.bmm(weights_ML.unsqueeze(1), window.gather(states_BLS)).squeeze(1)


class TargetWeights(Enum):
    """What becomes of the candidate's scores of the events."""

    softmax = "softmax"
    """Normalised over the window: DIN's published code."""
    sum = "sum"
    """Taken as they are, so that many matching events weigh more than one: DIN's equation 3."""


class TargetAttention(nn.Module):
    """DIN's attention of a candidate over the events of its moment (KDD 2018, equation 3), cheap for each pair.

    An event's key is the projection of its item plus one of its state; a candidate's is the projection of its item by
    the same map, so that a candidate matches its own earlier events from the first step on. The activation unit
    a(k, v) = w . relu(A k + B v + C (k * v) + b) is DIN's first layer on [v, k, v - k, v * k] with the difference
    folded into A and B. It is computed as w . relu((A + C * v) k + (B v + b)): one matrix for each candidate,
    multiplied with the keys of the moment, so that no (example, event) tensor of keys exists.
    """

    def __init__(
        self,
        *,
        num_item: int,
        num_states: int,
        num_gaps: int,
        num_keys: int = 32,
        num_values: int = 32,
        num_hidden: int = 8,
        weights: TargetWeights = TargetWeights.softmax,
    ) -> None:
        super().__init__()
        self.num_values = num_values
        self.num_hidden = num_hidden
        self.weights = weights
        self.item = nn.Linear(num_item, num_keys)
        self.state = nn.Linear(num_states, num_keys, bias=False)
        self.gap = nn.Embedding(num_gaps, num_keys)
        self.value = nn.Linear(num_states + num_item, num_values)
        self.unit_key = nn.Linear(num_keys, num_hidden, bias=False)
        self.unit_candidate = nn.Linear(num_keys, num_hidden)
        self.unit_product = nn.Parameter(torch.empty(num_hidden, num_keys).normal_(std=num_keys**-0.5))
        self.scalar = nn.Linear(num_hidden, 1, bias=weights is TargetWeights.sum)
        nn.init.normal_(self.gap.weight, std=0.1)

    def keys_and_values(
        self, item_BLI: Tensor, states_BLS: Tensor, gap_ML: Tensor, window: Window
    ) -> tuple[Tensor, Tensor]:
        """(M, L, K) and (M, L, V): what the user half hands to the scorer for the events of each moment."""
        keys_BLK = self.item(item_BLI) + self.state(states_BLS)
        weight_S, weight_I = self.value.weight.tensor_split([states_BLS.shape[2]], dim=1)
        values_BLV = functional.linear(states_BLS, weight_S, self.value.bias) + functional.linear(item_BLI, weight_I)
        return window.gather(keys_BLK) + self.gap(gap_ML), window.gather(values_BLV)

    def forward(self, candidate_GXK: Tensor, keys_GLK: Tensor, values_GLV: Tensor, mask_GL: Tensor) -> Tensor:
        """(G, X, V): each candidate's interest, from `item(features)` of the candidates and what `keys_and_values` gave
        for the moment of each block."""
        num_blocks, num_examples, _ = candidate_GXK.shape
        matrix_GXJK = self.unit_key.weight + self.unit_product * candidate_GXK.unsqueeze(2)
        shape = (num_blocks, num_examples * self.num_hidden)
        hidden_GYL = torch.baddbmm(
            self.unit_candidate(candidate_GXK).reshape(*shape, 1),
            matrix_GXJK.reshape(*shape, keys_GLK.shape[2]),
            keys_GLK.transpose(1, 2),
        )
        hidden_GXJL = hidden_GYL.relu_().view(num_blocks, num_examples, self.num_hidden, keys_GLK.shape[1])
        logits_GXL = torch.matmul(self.scalar.weight, hidden_GXJL).squeeze(2)
        if self.scalar.bias is not None:
            logits_GXL = logits_GXL + self.scalar.bias
        mask_G1L = mask_GL.unsqueeze(1)
        weights_GXL = (
            masked_softmax(logits_GXL, mask_G1L) if self.weights is TargetWeights.softmax else logits_GXL * mask_G1L
        )
        return torch.bmm(weights_GXL, values_GLV)
