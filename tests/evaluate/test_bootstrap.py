"""A replicate equals the metric on the examples written out as often as their users were drawn."""

from __future__ import annotations

import numpy as np
import pytest

from stack.evaluate import bootstrap
from stack.tasks import metrics


def sample(num_users: int = 40, num_examples: int = 900, seed: int = 1) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    users = rng.integers(0, num_users, num_examples)
    scores = (rng.normal(size=num_examples) + rng.normal(size=num_users)[users]).round(1)
    labels = (rng.random(num_examples) < metrics.sigmoid(scores)).astype(float)
    return users, scores, labels, rng.random(num_examples)


def statistics(users: np.ndarray, scores: np.ndarray, labels: np.ndarray, weights: np.ndarray, num_users: int) -> dict:
    losses = metrics.log_losses(scores, labels)
    by_user = [
        metrics.user_sums(users, weights * value, num_users=num_users) for value in (losses, labels, 1 + 0 * labels)
    ]
    return {
        "auc": bootstrap.Auc(users, scores, labels, weights),
        "gauc": bootstrap.grouped_auc(users, scores, labels, weights, num_users=num_users),
        "log_loss": bootstrap.mean(users, losses, weights, num_users=num_users),
        "normalised_entropy": bootstrap.NormalisedEntropy(*by_user),
        "predicted_over_observed": bootstrap.ratio(
            users, weights * metrics.sigmoid(scores), weights * labels, num_users=num_users
        ),
    }


def test_a_replicate_equals_the_metrics_on_repeated_examples() -> None:
    users, scores, labels, weights = sample()
    counts = np.random.default_rng(2).integers(0, 4, 40)
    repeat = counts[users]
    # copies of a user are users of their own: GAUC weighs each copy, and pairs form within a copy
    copy = np.concatenate([np.arange(times) for times in repeat])
    u, s, y, w = (np.repeat(column, repeat) for column in (users, scores, labels, weights))
    expected = {
        "auc": metrics.auc(s, y, w),
        "gauc": metrics.gauc(u * 10 + copy, s, y, w).value,
        "log_loss": metrics.log_loss(s, y, w),
        "normalised_entropy": metrics.normalised_entropy(s, y, w),
        "predicted_over_observed": metrics.predicted_over_observed(s, y, w),
    }
    for name, statistic in statistics(users, scores, labels, weights, 40).items():
        assert statistic(counts.astype(float)) == pytest.approx(expected[name], rel=1e-12), name


def test_the_interval_of_a_mean_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for trial in range(200):
        effects = rng.normal(size=60)
        users = np.repeat(np.arange(60), 5)
        values = effects[users] + 0.1 * rng.normal(size=300)
        found = bootstrap.replicate(
            {"mean": bootstrap.mean(users, values, num_users=60)}, num_users=60, num_replicates=200, seed=trial
        )
        low, high = bootstrap.interval(found["mean"])
        covered += low <= 0.0 <= high
    # 95% of 200 is 190; resampling examples instead of users would cover about half
    assert 178 <= covered <= 198


def test_differences_are_paired_and_the_seed_fixes_every_replicate() -> None:
    users, scores, labels, _ = sample()
    better = scores + 0.3 * labels
    named = {name: bootstrap.Auc(users, score, labels) for name, score in (("a", scores), ("b", better))}
    found = bootstrap.replicate(named, num_users=40, num_replicates=100, seed=5)
    again = bootstrap.replicate(named, num_users=40, num_replicates=100, seed=5)
    assert (found["a"] == again["a"]).all()
    spread = np.ptp(bootstrap.interval(found["b"] - found["a"]))
    assert spread < 0.5 * np.ptp(bootstrap.interval(found["a"]))
    assert bootstrap.interval(found["b"] - found["a"])[0] > 0


def test_replicates_where_a_metric_is_undefined_are_left_out() -> None:
    assert bootstrap.interval(np.array([np.nan, 2.0, 2.0])) == (2.0, 2.0)
    assert np.isnan(bootstrap.interval(np.array([np.nan, np.nan]))).all()
