"""Vectorised metrics against double loops, scikit-learn, and values worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from stack.tasks import metrics
from tests.evaluate import slow

EXAMPLES = st.lists(
    st.tuples(
        st.integers(0, 4),  # user
        st.integers(-3, 3).map(lambda value: value / 2),  # score, often tied
        st.sampled_from([0.0, 1.0]),  # label
        st.sampled_from([0.0, 0.5, 1.0, 3.0]),  # weight
    ),
    min_size=1,
    max_size=30,
)


def columns(rows: list[tuple[int, float, float, float]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    users, scores, labels, weights = (np.array(column) for column in zip(*rows, strict=True))
    return users, scores, labels, weights


@settings(max_examples=150, deadline=None)
@given(EXAMPLES)
def test_auc_and_gauc_equal_the_double_loop_with_ties_and_weights(rows: list[tuple[int, float, float, float]]) -> None:
    users, scores, labels, weights = columns(rows)
    assert metrics.auc(scores, labels, weights) == pytest.approx(slow.auc(scores, labels, weights), nan_ok=True)
    expected, num_users = slow.gauc(users, scores, labels, weights)
    found = metrics.gauc(users * 7 + 3, scores, labels, weights)
    assert found.value == pytest.approx(expected, nan_ok=True)
    assert found.num_users == num_users


@settings(max_examples=50, deadline=None)
@given(EXAMPLES)
def test_log_loss_and_normalised_entropy_equal_the_loop(rows: list[tuple[int, float, float, float]]) -> None:
    _, scores, labels, weights = columns(rows)
    weights = weights + 0.25
    assert metrics.log_loss(scores, labels, weights) == pytest.approx(slow.log_loss(scores, labels, weights))
    rate = float(np.average(labels, weights=weights))
    if 0 < rate < 1:
        constant = np.full(len(labels), math.log(rate / (1 - rate)))
        assert metrics.normalised_entropy(constant, labels, weights) == pytest.approx(1.0)
        assert metrics.predicted_over_observed(constant, labels, weights) == pytest.approx(1.0)
    else:
        assert math.isnan(metrics.normalised_entropy(scores, labels, weights))


@pytest.mark.parametrize("tied", [False, True])
def test_two_class_metrics_equal_scikit_learn_on_five_thousand_examples(tied: bool) -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=5000).round(1 if tied else 12)
    labels = (rng.random(5000) < metrics.sigmoid(scores)).astype(float)
    weights = rng.random(5000)
    expected = sklearn_metrics.roc_auc_score(labels, scores, sample_weight=weights)
    assert metrics.auc(scores, labels, weights) == pytest.approx(expected, abs=1e-12)
    expected = sklearn_metrics.log_loss(labels, metrics.sigmoid(scores), sample_weight=weights)
    assert metrics.log_loss(scores, labels, weights) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(0, 10_000), st.integers(1, 7))
def test_accuracy_and_class_log_loss_equal_the_loop(num_examples: int, seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    scores, labels = rng.integers(-2, 3, (num_examples, 7)).astype(float), rng.integers(0, 7, num_examples)
    weights = rng.random(num_examples) + 0.1
    expected = slow.accuracy(scores.tolist(), labels.tolist(), weights.tolist(), k)
    assert metrics.accuracy(scores, labels, weights, k=k) == pytest.approx(expected)
    chances = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    expected_losses = -np.log(chances[np.arange(num_examples), labels])
    assert metrics.class_log_losses(scores, labels) == pytest.approx(expected_losses)


def test_gauc_weighs_users_by_impressions_and_leaves_out_users_with_one_label() -> None:
    users = np.array([5, 5, 5, 9, 9, 2, 2])
    labels = np.array([1, 0, 0, 1, 0, 1, 1])
    scores = np.array([2.0, 1.0, 3.0, 0.0, 1.0, 9.0, 9.0])
    # user 5: AUC 1/2 on 3 impressions; user 9: AUC 0 on 2; user 2 has positives only
    found = metrics.gauc(users, scores, labels)
    assert found == metrics.GroupedAuc(value=0.3, num_users=2, num_examples=5)


def test_a_score_per_user_tells_nothing_within_users_and_much_across_them() -> None:
    users = np.repeat([0, 1], 50)
    labels = np.concatenate([np.tile([1, 1, 1, 1, 0], 10), np.tile([1, 0, 0, 0, 0], 10)])
    assert metrics.gauc(users, -users.astype(float), labels).value == 0.5
    assert metrics.auc(-users.astype(float), labels) == pytest.approx(0.8)


def test_log_loss_of_extreme_logits_is_finite() -> None:
    found = metrics.log_losses(np.array([800.0, -800.0, 800.0]), np.array([1.0, 0.0, 0.0]))
    assert found.tolist() == [0.0, 0.0, 800.0]
    assert metrics.sigmoid(np.array([-800.0, 0.0, 800.0])).tolist() == [0.0, 0.5, 1.0]


def test_metrics_of_no_examples_are_undefined_not_errors() -> None:
    nothing = np.zeros(0)
    assert math.isnan(metrics.auc(nothing, nothing))
    assert math.isnan(metrics.log_loss(nothing, nothing))
    assert math.isnan(metrics.predicted_over_observed(nothing, nothing))
    assert metrics.gauc(nothing, nothing, nothing).num_users == 0
