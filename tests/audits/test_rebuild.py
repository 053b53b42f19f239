"""The repair: calibration against scikit-learn's, statistics and scores of the model it leaves."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from stack.audits.config import Traffic
from stack.audits.effect import EVERYTHING, scored
from stack.audits.norm_stats import live_statistics, norm_layers
from stack.audits.rebuild import platt, rebuild
from stack.audits.traffic import weight_of
from stack.base.errors import DataError
from stack.model import UserModel
from stack.tasks import TasksConfig
from stack.tasks.metrics import log_loss
from tests.audits.test_effect import small_model_of
from tests.audits.test_norm_stats import batches

LIVE = weight_of(Traffic.live)


def learnt(*, dense_features: bool = True) -> UserModel:
    tasks = TasksConfig()
    tasks.ctr.dense_features = tasks.follow.dense_features = dense_features
    model = small_model_of(tasks).train()
    with torch.no_grad():
        for batch in batches(range(200, 220)):
            model(batch)
    return model.eval()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_calibration_is_that_of_scikit_learn_where_there_is_no_offset(seed: int) -> None:
    rng = np.random.default_rng(seed)
    score_E = rng.normal(-2, 1.5, 400)
    label_E = (rng.random(400) < 1 / (1 + np.exp(-0.6 * score_E - 0.5))).astype(float)
    weight_E = rng.choice([1.0, 10.0], 400)
    scale, shift = platt(score_E, np.zeros(400), label_E, weight_E)
    fitted = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(score_E[:, None], label_E, weight_E)
    assert (scale, shift) == pytest.approx((fitted.coef_[0, 0], fitted.intercept_[0]), abs=2e-4)


def test_calibration_finds_what_was_planted_under_an_offset() -> None:
    rng = np.random.default_rng(1)
    score_E, offset_E = rng.normal(-1, 2, 200_000), rng.normal(0, 1, 200_000)
    label_E = (rng.random(200_000) < 1 / (1 + np.exp(-(0.5 * score_E + 1.2 + offset_E)))).astype(float)
    assert platt(score_E, offset_E, label_E, np.ones(200_000)) == pytest.approx((0.5, 1.2), abs=0.03)


def test_scores_that_are_not_scaled_are_shifted_to_the_observed_rate() -> None:
    score_E, label_E = np.arange(4.0), np.array([1.0, 0.0, 0.0, 0.0])
    scale, shift = platt(score_E, np.zeros(4), label_E, np.ones(4), scaled=False)
    assert scale == 1.0
    assert (1 / (1 + np.exp(-score_E - shift))).mean() == pytest.approx(0.25)


def test_labels_that_scores_tell_perfectly_have_a_finite_calibration() -> None:
    scale, shift = platt(np.array([-1.0, -2.0, 1.0, 2.0]), np.zeros(4), np.array([0.0, 0.0, 1.0, 1.0]), np.ones(4))
    assert 1 < scale < 30
    assert abs(shift) < 1


def test_labels_of_one_kind_cannot_be_calibrated_on() -> None:
    with pytest.raises(ValueError, match="labels of one kind"):
        platt(np.arange(3.0), np.zeros(3), np.ones(3), np.ones(3))


@pytest.mark.parametrize("task", ["ctr", "follow"])
@pytest.mark.parametrize("dense_features", [True, False])
def test_a_rescaled_task_gives_scale_times_its_score_and_shift_more(task: str, dense_features: bool) -> None:
    model = learnt(dense_features=dense_features)
    (batch,) = batches(range(1))
    with torch.no_grad():
        before_E = model(batch)[task].score_E
        model.task(task).rescale(scale=0.7, shift=-1.5)
        after_E = model(batch)[task].score_E
    torch.testing.assert_close(after_E, 0.7 * before_E - 1.5)


def test_a_rebuilt_model_has_live_statistics_and_no_worse_log_loss() -> None:
    model, shown = learnt(), batches(range(40))
    before = copy.deepcopy(model)
    repairs = {one.task: one for one in rebuild(model, statistics_from=shown, calibrate_on=shown, weight_of=LIVE)}
    expected = live_statistics(before, shown, LIVE)
    for name, layer in norm_layers(model).items():
        np.testing.assert_allclose(layer.statistics.running_mean_D.numpy(), expected[name][0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(layer.statistics.running_var_D.numpy(), expected[name][1], rtol=1e-5)
    for task in ("ctr", "follow"):
        found = [scored(one, shown, LIVE, {EVERYTHING: {}})[EVERYTHING, task] for one in (before, model)]
        losses = [log_loss(rows.learnt_E, rows.label_E, rows.weight_E) for rows in found]
        assert losses[1] < losses[0] + 0.01
        assert repairs[task].scale is not None
        assert repairs[task].scale > 0
    assert (repairs["rank"].scale, repairs["rank"].log_loss_gain) == (None, None), "an order has no probabilities"


def test_a_repair_says_which_task_has_too_few_positives() -> None:
    with pytest.raises(DataError, match="task '(ctr|follow)' has 0 positives among"):
        rebuild(learnt(), statistics_from=batches(range(5)), calibrate_on=without_positives(), weight_of=LIVE)


def without_positives() -> list:
    shown = batches(range(3))
    for batch in shown:
        for group in batch.groups.values():
            for name in ("clicked", "responded"):
                if name in group.labels:
                    group.labels[name].zero_()
    return shown
