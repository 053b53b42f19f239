"""Batch norm: torch's own numbers, and what torch's own does not survive."""

import pytest
import torch
from torch import nn

from stack.layers.norm import (
    BatchNorm,
    Norm,
    Standardize,
    build_norm,
    freeze_statistics,
    refused_batches,
    set_sum_over_ranks,
)


def test_training_output_and_gradients_are_those_of_torch() -> None:
    torch.manual_seed(0)
    ours, torchs = BatchNorm(num_features=3), nn.BatchNorm1d(3)
    x = torch.randn(8, 3) * 5 + 100
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    weight = torch.randn(8, 3)
    (ours(a) * weight).sum().backward()
    (torchs(b) * weight).sum().backward()
    assert a.grad is not None
    torch.testing.assert_close(ours(a), torchs(b), atol=2e-3, rtol=1e-4)
    torch.testing.assert_close(a.grad, b.grad, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(ours.weight_D.grad, torchs.weight.grad, atol=1e-3, rtol=1e-3)


def test_first_batches_are_averaged_with_equal_weights() -> None:
    norm = BatchNorm(num_features=1, momentum=0.1)
    batches = [torch.randn(5, 1) + i for i in range(4)]
    for batch in batches:
        norm(batch)
    torch.testing.assert_close(norm.statistics.running_mean_D, torch.stack([b.mean(0) for b in batches]).mean(0))
    torch.testing.assert_close(norm.statistics.running_var_D, torch.stack([b.var(0) for b in batches]).mean(0))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_a_batch_that_is_not_finite_leaves_running_statistics_alone_and_is_counted(bad: float) -> None:
    torch.manual_seed(0)
    norm = BatchNorm(num_features=2)
    norm(torch.randn(6, 2))
    before = {name: value.clone() for name, value in norm.state_dict().items() if "running" in name}
    x = torch.randn(6, 2)
    x[2, 0] = bad
    y = norm(x)
    for name, value in before.items():
        assert torch.equal(norm.state_dict()[name], value), name
    assert refused_batches(norm) == {"statistics": 1}
    assert int(norm.statistics.num_batches) == 1
    good = torch.arange(6) != 2
    torch.testing.assert_close(y[good], norm.eval()(x)[good])


def test_no_rows_and_one_row_pass_with_finite_gradients_and_change_nothing() -> None:
    for rows in (0, 1):
        norm = BatchNorm(num_features=2)
        x = torch.ones(rows, 2, requires_grad=True)
        norm(x).sum().backward()
        assert norm.weight_D.grad is not None
        assert torch.isfinite(norm.weight_D.grad).all()
        assert torch.equal(norm.statistics.running_mean_D, torch.zeros(2))
        assert refused_batches(norm) == {"statistics": 0}


def test_two_halves_that_sum_their_statistics_equal_the_whole_batch() -> None:
    torch.manual_seed(0)
    x = torch.randn(7, 2) * 3 + 5
    whole = BatchNorm(num_features=2)
    expected = whole(x)
    mine, other = x[:3], x[3:]
    norm = BatchNorm(num_features=2)
    sums = torch.cat([other.sum(0), other.square().sum(0), torch.tensor([4.0])])
    set_sum_over_ranks(nn.Sequential(norm), lambda own: own + sums)
    torch.testing.assert_close(norm(mine), expected[:3])
    torch.testing.assert_close(norm.statistics.running_var_D, whole.statistics.running_var_D)


def test_standardize_is_the_same_function_in_training_as_in_evaluation() -> None:
    torch.manual_seed(0)
    layer = Standardize(num_features=2)
    layer(torch.randn(100, 2) * 3 + 7)
    x = torch.randn(50, 2) * 3 + 7
    trained = layer(x)
    torch.testing.assert_close(trained, layer.eval()(x))
    assert trained.mean(0).abs().max() < 0.3
    assert (trained.std(0) - 1).abs().max() < 0.2


@pytest.mark.parametrize("value", [0.0, 0.1, 3.0, -12_345.678])
def test_a_constant_feature_becomes_zero_and_so_does_a_value_it_never_had(value: float) -> None:
    torch.manual_seed(0)
    layer = Standardize(num_features=2)
    for num_rows in (1_000, 3, 777):
        varied = torch.randn(num_rows, 1)
        out = layer(torch.cat([torch.full((num_rows, 1), value), varied], dim=1))
        assert torch.equal(out[:, 0], torch.zeros(num_rows))
    assert out[:, 1].std() > 0.5
    layer.eval()
    assert torch.equal(layer(torch.tensor([[value + 1.0, 0.5]]))[:, 0], torch.zeros(1))


def test_a_feature_counts_from_the_first_batch_in_which_it_varies() -> None:
    layer = Standardize(num_features=1)
    layer(torch.full((4, 1), 3.0))
    out = layer(torch.tensor([[3.0], [4.0]]))
    assert out[1, 0] - out[0, 0] == pytest.approx(1 / (0.25 + 1e-5) ** 0.5)  # half of the batch's variance, 0.5


def test_a_rare_feature_is_not_taken_for_a_constant_one() -> None:
    layer = Standardize(num_features=1)
    x = torch.zeros(10_000, 1)
    x[17] = 1.0
    layer(x)
    assert layer.eval()(x)[17, 0] == pytest.approx(1 / (1e-4 + 1e-5) ** 0.5, rel=1e-3)


def test_norm_by_name() -> None:
    assert isinstance(build_norm(Norm.batch, num_features=2), BatchNorm)
    assert isinstance(build_norm(Norm.layer, num_features=2), nn.LayerNorm)
    assert isinstance(build_norm(Norm.none, num_features=2), nn.Identity)


@pytest.mark.parametrize("kind", [BatchNorm, Standardize])
def test_frozen_statistics_are_used_in_training_as_in_evaluation_and_stay(kind: type[BatchNorm | Standardize]) -> None:
    layer = kind(num_features=3)
    layer(torch.randn(50, 3) * 2 + 1)
    freeze_statistics(layer)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    x_ND = torch.randn(8, 3) - 4
    trained_ND = layer.train()(x_ND)
    torch.testing.assert_close(trained_ND, layer.eval()(x_ND))
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
