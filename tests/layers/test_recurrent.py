"""The property-gated LSTM against the paper's equations."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stack.layers.recurrent import PropertyGatedLSTM
from tests.reference.lstm import property_gated_lstm


def _parameters(lstm: PropertyGatedLSTM) -> dict[str, np.ndarray]:
    return {name: parameter.detach().double().numpy() for name, parameter in lstm.named_parameters()}


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**31))
def test_states_are_those_of_equations_2_to_6(
    num_rows: int, length: int, num_item: int, num_property: int, seed: int
) -> None:
    torch.manual_seed(seed)
    lstm = PropertyGatedLSTM(num_item=num_item, num_property=num_property, num_hidden=8)
    item, prop = torch.randn(num_rows, length, num_item), torch.randn(num_rows, length, num_property)
    states = lstm(item, prop)
    for row in range(num_rows):
        expected = property_gated_lstm(item[row].double().numpy(), prop[row].double().numpy(), **_parameters(lstm))
        np.testing.assert_allclose(states[row].detach().numpy(), expected, atol=2e-6)


def test_gradients_are_those_of_the_loop_written_in_torch() -> None:
    torch.manual_seed(0)
    lstm = PropertyGatedLSTM(num_item=3, num_property=2, num_hidden=4)
    item, prop = torch.randn(2, 5, 3), torch.randn(2, 5, 2)
    lstm(item, prop).square().sum().backward()
    fused = {name: parameter.grad for name, parameter in lstm.named_parameters()}
    lstm.zero_grad()
    h = c = torch.zeros(2, 4)
    total = torch.zeros(())
    pi, pf, po = lstm.weight_property.chunk(3)
    for t in range(5):
        gates = item[:, t] @ lstm.weight_item.T + h @ lstm.weight_hidden.T + lstm.bias
        i, f, g, o = gates.chunk(4, dim=1)
        i, f, o = (torch.sigmoid(x + prop[:, t] @ w.T) for x, w in ((i, pi), (f, pf), (o, po)))
        c = f * c + i * torch.tanh(g)
        h = o * torch.tanh(c)
        total = total + h.square().sum()
    total.backward()
    for name, parameter in lstm.named_parameters():
        torch.testing.assert_close(fused[name], parameter.grad, atol=1e-5, rtol=1e-4)


def test_the_candidate_sees_no_property_neither_in_value_nor_in_gradient() -> None:
    torch.manual_seed(0)
    lstm = PropertyGatedLSTM(num_item=3, num_property=2, num_hidden=4)
    weight = lstm.weight_input()
    weight.retain_grad()
    assert torch.equal(weight[8:12, 3:], torch.zeros(4, 2))
    assert int((weight[:, 3:] == 0).sum()) == 8
    # Open input gate, closed forget gate, open output gate: what is left of the state is the candidate alone.
    with torch.no_grad():
        lstm.bias[:4], lstm.bias[4:8], lstm.bias[12:] = 100.0, -100.0, 100.0
    prop = torch.randn(1, 1, 2, requires_grad=True)
    lstm(torch.randn(1, 1, 3), prop).sum().backward()
    assert prop.grad is not None
    assert torch.equal(prop.grad, torch.zeros(1, 1, 2))


def test_without_property_weights_it_is_the_lstm_of_torch() -> None:
    torch.manual_seed(0)
    lstm = PropertyGatedLSTM(num_item=5, num_property=3, num_hidden=8)
    plain = nn.LSTM(5, 8, batch_first=True)
    with torch.no_grad():
        lstm.weight_property.zero_()
        lstm.weight_item.copy_(plain.weight_ih_l0)
        lstm.weight_hidden.copy_(plain.weight_hh_l0)
        lstm.bias.copy_(plain.bias_ih_l0 + plain.bias_hh_l0)
    item = torch.randn(2, 6, 5)
    torch.testing.assert_close(lstm(item, torch.randn(2, 6, 3)), plain(item)[0])
    bare = PropertyGatedLSTM(num_item=5, num_property=0, num_hidden=8)
    bare.load_state_dict({name: value for name, value in lstm.state_dict().items() if name != "weight_property"})
    torch.testing.assert_close(bare(item, None), plain(item)[0])


def test_the_papers_sizes_give_147968_parameters() -> None:
    lstm = PropertyGatedLSTM(num_item=124, num_property=48, num_hidden=128)
    assert sum(parameter.numel() for parameter in lstm.parameters()) == 147_968
    assert not lstm.state_dict().keys() - {"weight_item", "weight_property", "weight_hidden", "bias"}
