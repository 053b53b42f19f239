"""Attention by query and by candidate against loops over pairs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stack.layers.attention import QueryAttention, TargetAttention, TargetWeights
from stack.layers.window import Window, window_before
from tests.reference.attention import query_attention, softmax, target_logits


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def _window(positions: list[int], rows: list[int] | None, *, length: int, max_history: int) -> Window:
    row_M = None if rows is None else torch.tensor(rows)
    return window_before(torch.tensor(positions), num_positions=length, max_history=max_history, row_M=row_M)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 6)), min_size=1, max_size=5), st.integers(1, 7))
def test_query_attention_is_equation_7_over_the_window(moments: list[tuple[int, int]], max_history: int) -> None:
    torch.manual_seed(0)
    attention = QueryAttention(num_states=5, num_property=4, num_context=3)
    states, prop, context = torch.randn(3, 6, 5), torch.randn(3, 6, 4), torch.randn(len(moments), 3)
    table, gap = torch.randn(7, 4), torch.randint(0, 7, (len(moments), 6))
    window = _window([p for _, p in moments], [r for r, _ in moments], length=6, max_history=max_history)
    pooled = attention(states, context, window, property_BLP=prop, gap_table_NP=table, gap_ML=gap)
    for m, (row, position) in enumerate(moments):
        seen = slice(max(0, position - max_history), position)
        expected = query_attention(
            _numpy(states[row, seen]), _numpy(prop[row, seen] + table[gap[m, seen]]), _numpy(context[m]),
            first=(_numpy(attention.first.weight), _numpy(attention.first.bias)),
            second=(_numpy(attention.second.weight), _numpy(attention.second.bias)),
            scalar=_numpy(attention.scalar.weight[0]),
        )  # fmt: skip
        np.testing.assert_allclose(pooled[m].detach().numpy(), expected, atol=2e-6)


def test_query_attention_weights_sum_to_one_inside_and_are_zero_outside() -> None:
    torch.manual_seed(0)
    attention = QueryAttention(num_states=5, num_property=0, num_context=3)
    window = _window([0, 2, 6], None, length=6, max_history=3)
    weights = attention.weights(torch.randn(3, 6, 5), torch.randn(3, 3), window)
    torch.testing.assert_close(weights.sum(1), torch.tensor([0.0, 1.0, 1.0]))
    assert torch.equal(weights > 0, torch.tensor([[0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1]]).bool())


def test_states_outside_the_window_change_neither_result_nor_gradient() -> None:
    torch.manual_seed(0)
    attention = QueryAttention(num_states=5, num_property=0, num_context=3)
    states, context = torch.randn(1, 6, 5), torch.randn(1, 3)
    window = _window([4], None, length=6, max_history=2)
    spoilt = states.clone()
    spoilt[:, [0, 1, 4, 5]] = 1e4
    spoilt.requires_grad_()
    pooled = attention(spoilt, context, window)
    assert torch.equal(pooled, attention(states, context, window))
    pooled.sum().backward()
    assert spoilt.grad is not None
    assert torch.equal(spoilt.grad[:, [0, 1, 4, 5]], torch.zeros(1, 4, 5))


@pytest.mark.parametrize("weights", list(TargetWeights))
def test_target_attention_is_the_activation_unit_of_each_pair(weights: TargetWeights) -> None:
    torch.manual_seed(0)
    target = TargetAttention(
        num_item=6, num_states=5, num_gaps=4, num_keys=3, num_values=2, num_hidden=4, weights=weights
    )
    items, states, gap = torch.randn(2, 7, 6), torch.randn(2, 7, 5), torch.randint(0, 4, (2, 7))
    window = _window([7, 3], None, length=7, max_history=5)
    keys, values = target.keys_and_values(items, states, gap, window)
    candidates = torch.randn(2, 4, 6)
    interest = target(target.item(candidates), keys, values, window.mask_ML)
    bias = 0.0 if target.scalar.bias is None else target.scalar.bias.item()
    for m, position in enumerate((7, 3)):
        seen = slice(max(0, position - 5), position)
        key = target.item(items[m, seen]) + target.state(states[m, seen]) + target.gap(gap[m, seen])
        value = target.value(torch.cat([states[m, seen], items[m, seen]], dim=1))
        for x in range(4):
            logits = target_logits(
                _numpy(target.item(candidates[m, x])), _numpy(key), unit_key=_numpy(target.unit_key.weight),
                unit_candidate=(_numpy(target.unit_candidate.weight), _numpy(target.unit_candidate.bias)),
                unit_product=_numpy(target.unit_product),
                scalar=(_numpy(target.scalar.weight[0]), bias),
            )  # fmt: skip
            weight = softmax(logits) if weights is TargetWeights.softmax else logits
            np.testing.assert_allclose(interest[m, x].detach().numpy(), weight @ _numpy(value), atol=3e-6)


@pytest.mark.parametrize("weights", list(TargetWeights))
def test_target_attention_over_no_events_is_zero(weights: TargetWeights) -> None:
    torch.manual_seed(0)
    target = TargetAttention(num_item=6, num_states=5, num_gaps=4, weights=weights)
    window = _window([0], None, length=3, max_history=5)
    keys, values = target.keys_and_values(torch.randn(1, 3, 6), torch.randn(1, 3, 5), torch.zeros(1, 3).long(), window)
    interest = target(target.item(torch.randn(1, 2, 6)), keys, values, window.mask_ML)
    assert torch.equal(interest, torch.zeros(1, 2, 32))
