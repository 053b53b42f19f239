"""Transformer and convolutions against loops over positions; causality of both."""

import numpy as np
import pytest
import torch
from torch import nn

from stack.layers.convolution import CausalConvolution
from stack.layers.transformer import CausalTransformer
from tests.reference import encoders


def _parameters(module: nn.Module) -> encoders.Parameters:
    return {name: parameter.detach().double().numpy() for name, parameter in module.named_parameters()}


def test_transformer_states_are_those_of_the_loop() -> None:
    torch.manual_seed(0)
    module = CausalTransformer(num_inputs=5, num_states=8, num_layers=2, num_heads=2)
    input_BLD = torch.randn(3, 6, 5)
    states = module(input_BLD).detach().numpy()
    for row in range(3):
        expected = encoders.transformer(input_BLD[row].double().numpy(), _parameters(module), num_layers=2, num_heads=2)
        np.testing.assert_allclose(states[row], expected, atol=3e-6)


def test_convolution_maps_are_those_of_the_loop() -> None:
    torch.manual_seed(0)
    module = CausalConvolution(num_inputs=4, num_widths=5, num_maps=3)
    input_BLD = torch.randn(2, 7, 4)
    states = module(input_BLD).detach().numpy()
    for row in range(2):
        expected = encoders.convolutions(input_BLD[row].double().numpy(), _parameters(module), num_widths=5)
        np.testing.assert_allclose(states[row], expected, atol=2e-6)


@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("module", [CausalTransformer(num_inputs=4, num_states=8), CausalConvolution(num_inputs=4)])
def test_later_events_change_no_earlier_state(module: nn.Module, length: int) -> None:
    before = torch.randn(2, 6, 4)
    after = before.clone()
    after[:, length:] = 1e3
    torch.testing.assert_close(module(before)[:, :length], module(after)[:, :length], atol=1e-6, rtol=1e-6)


def test_heads_must_divide_states() -> None:
    with pytest.raises(ValueError, match=r"num_states = 10 cannot be split over num_heads = 4: choose a divisor"):
        CausalTransformer(num_inputs=4, num_states=10, num_heads=4)
