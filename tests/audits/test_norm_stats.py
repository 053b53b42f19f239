"""Statistics of layers against those of traffic: what is planted is found, to the number, and no more."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from stack.audits.config import Traffic
from stack.audits.norm_stats import drift, live_statistics, norm_layers, replaced
from stack.audits.traffic import weight_of
from stack.data.batch import Batch, Examples
from stack.layers.norm import BatchNorm, Norm
from stack.model import UserModel
from stack.tasks import Enabled, ShopConfig, TasksConfig
from stack.tasks.next_item import NextItemConfig
from stack.towers.config import Attention, ModelConfig
from tests.batches import random_batch, small_model

LIVE = weight_of(Traffic.live)


def every_task() -> TasksConfig:
    tasks = TasksConfig(shop=ShopConfig(enabled=Enabled.always), next_item=NextItemConfig(enabled=Enabled.always))
    tasks.ctr.dense_features = tasks.follow.dense_features = True
    return tasks


@pytest.fixture(scope="module")
def model() -> UserModel:
    """With every task, and running statistics of some batches."""
    model = small_model(ModelConfig(norm=Norm.batch, query=False), tasks=every_task()).train()
    with torch.no_grad():
        for batch in batches(range(100, 140)):
            model(batch)
    return model.eval()


def batches(seeds: Sequence[int]) -> list[Batch]:
    return [random_batch(torch.Generator().manual_seed(seed)) for seed in seeds]


def examples_of(batch: Batch, model: UserModel, layer: str) -> Examples:
    return batch.groups[model.task(layer.partition(".")[0]).group]


def test_layers_are_those_with_running_statistics_in_all_tasks(model: UserModel) -> None:
    names = list(norm_layers(model))
    assert {name.partition(".")[0] for name in names} == {"ctr", "rank", "power", "follow", "shop", "next_item"}
    assert {"ctr.standardize", "rank.standardize", "follow.standardize", "power.head.1"} <= set(names)
    assert names.index("ctr.head.activate.0") < names.index("ctr.head.rest.1")


def test_live_weights_are_one_over_the_rate_of_what_was_drawn() -> None:
    (batch,) = batches([1])
    impressions = batch.groups["impression"]
    labels = impressions.labels | {
        "draw": torch.tensor([0.0, 1, 2, 1, 0, 0]),
        "rate_uniform": torch.tensor([0.5, 0.25, 0.1, 0.0, 0.5, 0.5]),
        "rate_popularity": torch.tensor([0.0, 0.25, 0.3, 0.0, 0.0, 0.0]),
    }
    examples = Examples(
        moment_E=impressions.moment_E, ids=impressions.ids, dense_EF=impressions.dense_EF, labels=labels
    )
    np.testing.assert_allclose(LIVE(examples).numpy(), [1, 2, 2.5, 1, 1, 1], rtol=1e-6)
    assert weight_of(Traffic.sampled)(examples).tolist() == [1.0] * 6
    weighted = weight_of(Traffic.weighted)
    assert torch.equal(weighted(examples), labels["weight"].double())
    assert weighted(batch.groups["follow"]).tolist() == [1.0] * batch.groups["follow"].num_examples
    assert LIVE(batch.groups["follow"]).tolist() == [1.0] * batch.groups["follow"].num_examples


def test_every_layer_is_compared_with_just_what_it_is_given(model: UserModel) -> None:
    """One layer after the other, its input caught by hand, weighted, in the layer's own units."""
    shown = batches(range(8))
    found = drift(model, shown, LIVE)
    assert set(found) == set(norm_layers(model))
    for name, layer in norm_layers(model).items():
        given: list[torch.Tensor] = []
        handle = layer.register_forward_pre_hook(lambda _, arguments, given=given: given.append(arguments[0]))
        with torch.no_grad():
            for batch in shown:
                model(batch)
        handle.remove()
        x_ND = torch.cat(given).double().numpy()
        per_moment = name.startswith(("rank.head", "power.head"))
        weight_N = (
            np.ones(len(x_ND)) if per_moment
            else np.concatenate([LIVE(examples_of(batch, model, name)).numpy() for batch in shown])
        )  # fmt: skip
        assert found[name].num_rows == len(x_ND) == len(weight_N)
        mean_D = np.average(x_ND, axis=0, weights=weight_N)
        variance_D = np.average((x_ND - mean_D) ** 2, axis=0, weights=weight_N)
        for ours, theirs in zip(found[name].live_statistics(), (mean_D, variance_D), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6, err_msg=name)
        deviation_D = np.sqrt(layer.statistics.running_var_D.numpy() + layer.eps)
        shift_D = (mean_D - layer.statistics.running_mean_D.numpy()) / deviation_D
        np.testing.assert_allclose(found[name].moments.shift_D, shift_D, rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_planted_shift_is_found_and_no_other(model: UserModel) -> None:
    shown = batches(range(6))
    before = drift(model, shown, LIVE)
    layer = norm_layers(model)["ctr.head.activate.0"]
    statistics = before["ctr.head.activate.0"]
    moved_D = statistics.mean_D + 0.25 * np.sqrt(statistics.variance_D + layer.eps)
    with replaced(norm_layers(model), {"ctr.head.activate.0": (moved_D, statistics.variance_D)}):
        after = drift(model, shown, LIVE)
    np.testing.assert_allclose(
        after["ctr.head.activate.0"].moments.shift_D, statistics.moments.shift_D - 0.25, atol=1e-5
    )
    np.testing.assert_allclose(after["ctr.head.activate.0"].moments.ratio_D, statistics.moments.ratio_D, rtol=1e-5)
    for name in set(before) - {"ctr.head.activate.0", "ctr.head.rest.1"}:
        np.testing.assert_array_equal(after[name].moments.shift_D, before[name].moments.shift_D)
    again = drift(model, shown, LIVE)
    np.testing.assert_array_equal(again["ctr.head.rest.1"].moments.shift_D, before["ctr.head.rest.1"].moments.shift_D)


def test_live_statistics_are_those_of_traffic_in_layers_that_stand_behind_others_too(model: UserModel) -> None:
    shown = batches(range(6))
    found = live_statistics(model, shown, LIVE)
    assert set(found) == set(norm_layers(model))
    with replaced(norm_layers(model), found):
        after = drift(model, shown, LIVE)
    for name, one in after.items():
        varies_D = ~one.dead
        np.testing.assert_allclose(one.moments.shift_D[varies_D], 0.0, atol=1e-4, err_msg=name)
        expected_D = one.variance_D / (one.variance_D + one.eps)
        np.testing.assert_allclose(one.moments.ratio_D[varies_D], expected_D[varies_D], rtol=1e-3, err_msg=name)


def test_statistics_come_back_whatever_happens(model: UserModel) -> None:
    layers = norm_layers(model)
    before = {name: layer.statistics.running_mean_D.clone() for name, layer in layers.items()}
    zeros = {name: (np.zeros(len(mean)), np.ones(len(mean))) for name, mean in before.items()}

    def interrupted() -> None:
        with replaced(layers, zeros):
            assert not norm_layers(model)["ctr.standardize"].statistics.running_mean_D.any()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    for name, layer in layers.items():
        assert torch.equal(layer.statistics.running_mean_D, before[name])


def poison_mean(layer: BatchNorm) -> None:
    layer.statistics.running_mean_D[1] = torch.nan


def poison_variance(layer: BatchNorm) -> None:
    layer.statistics.running_var_D[1] = torch.inf


@pytest.mark.parametrize("poison", [poison_mean, poison_variance])
def test_what_was_learnt_and_is_not_finite_is_broken(model: UserModel, poison: Callable[[BatchNorm], None]) -> None:
    layers = norm_layers(model)
    layer = layers["shop.head.join.activate.0"]
    assert isinstance(layer, BatchNorm)
    statistics = layer.statistics
    with replaced(
        layers,
        {
            "shop.head.join.activate.0": (
                statistics.running_mean_D.double().numpy().copy(),
                statistics.running_var_D.double().numpy().copy(),
            )
        },
    ):
        poison(layer)
        found = drift(model, batches([1, 2]), LIVE)["shop.head.join.activate.0"]
    assert found.broken.nonzero()[0].tolist() == [1]
    assert found.moments.not_finite_D[1] == (found.num_rows if poison is poison_mean else 0)


def test_a_channel_that_never_varies_is_dead(model: UserModel) -> None:
    shown = batches(range(4))
    for batch in shown:
        batch.groups["impression"].dense_EF[:, 0] = 3.0
    found = drift(model, shown, LIVE)
    assert found["ctr.standardize"].dead.tolist() == [True] + [False] * (len(found["ctr.standardize"].dead) - 1)


def test_a_model_that_would_learn_from_what_it_is_shown_is_refused(model: UserModel) -> None:
    layer = norm_layers(model)["ctr.head.activate.0"]
    layer.train()
    try:
        with pytest.raises(
            ValueError, match="layer 'ctr.head.activate.0' is in training mode: audit a model in evalua"
        ):
            drift(model, batches([1]), LIVE)
    finally:
        layer.eval()


@pytest.mark.parametrize("attention", [Attention.both, Attention.query])
def test_models_that_attend_by_candidate_are_compared_too(attention: Attention) -> None:
    model = small_model(ModelConfig(norm=Norm.batch, attention=attention), tasks=TasksConfig()).eval()
    assert all(one.num_rows for one in drift(model, batches([1, 2]), LIVE).values())
