"""Which examples a set holds, and that the correction makes a true score calibrated on it."""

from __future__ import annotations

import numpy as np
import pytest

from stack.data.schema import IMPRESSION_LABELS, Group
from stack.evaluate.rows import Rows
from stack.evaluate.sets import evaluation_sets
from stack.tasks import metrics
from stack.tasks.sampling import Sampling

GROUP = Group(name="impression", labels=IMPRESSION_LABELS)


def rows(**labels: list[float] | np.ndarray) -> Rows:
    count = len(labels["draw"])
    return Rows(
        group=GROUP,
        user_E=np.arange(count),
        ids={},
        dense_EF=np.zeros((count, 0), dtype=np.float32),
        labels={name: np.asarray(value, dtype=np.float32) for name, value in labels.items()},
    )


def test_each_set_holds_what_was_observed_and_its_own_negatives() -> None:
    found = evaluation_sets(
        rows(draw=[0, 1, 2, 0, 2], rate_uniform=[0.5, 0.5, 1, 0, 1], rate_popularity=[0.1, 1, 0.2, 2, 4]), Sampling.logq
    )
    assert list(found) == ["uniform", "popularity"]
    assert found["uniform"].index_S.tolist() == [0, 1]
    assert found["uniform"].num_left_out == 1  # the observed example that could not have been drawn
    assert found["popularity"].index_S.tolist() == [0, 2, 3, 4]
    score = np.array([10.0, 20.0, 30.0, 40.0, 50.0])
    expected = np.array([10, 30, 40, 50]) - np.log([0.1, 0.2, 2, 4])
    assert found["popularity"].logits(score) == pytest.approx(expected, abs=1e-6)


def test_real_impressions_are_one_set_without_correction() -> None:
    found = evaluation_sets(rows(draw=[0, 0], rate_uniform=[0, 0], rate_popularity=[0, 0]))
    assert list(found) == ["shown"]
    assert found["shown"].logits(np.array([1.0, -2.0])).tolist() == [1.0, -2.0]


def test_the_true_log_odds_are_calibrated_on_every_sampled_set() -> None:
    # A million candidates with true log-odds f; negatives are drawn at rates that depend on the candidate.
    rng = np.random.default_rng(0)
    count = 1_000_000
    f = rng.normal(-3.0, 1.0, count)
    clicked = rng.random(count) < metrics.sigmoid(f)
    rate_uniform, rate_popularity = np.full(count, 0.05), 0.02 * np.exp(f / 2 + 1.5)
    draws = [np.flatnonzero(~clicked & (rng.random(count) < rate)) for rate in (rate_uniform, rate_popularity)]
    index = np.concatenate([np.flatnonzero(clicked), *draws])
    draw = np.repeat([0, 1, 2], [clicked.sum(), len(draws[0]), len(draws[1])])
    sampled = rows(draw=draw, rate_uniform=rate_uniform[index], rate_popularity=rate_popularity[index])
    # what a score trained on both draws without correction tends to
    mixed = f[index] - np.log(rate_uniform[index] + rate_popularity[index])
    scores = {Sampling.logq: f[index], Sampling.uniform: f[index] - np.log(rate_uniform[index]), Sampling.none: mixed}
    for sampling, score in scores.items():
        for selection in evaluation_sets(sampled, sampling).values():
            logit, label = selection.logits(score), (draw == 0)[selection.index_S]
            assert metrics.predicted_over_observed(logit, label) == pytest.approx(1.0, abs=0.01)
            shifted = metrics.log_loss(logit + 0.1, label), metrics.log_loss(logit - 0.1, label)
            assert metrics.log_loss(logit, label) < min(shifted)
