"""Model and baselines on the same examples: figures, the best rival, and the verdict."""

from __future__ import annotations

import numpy as np
import pytest

from stack.evaluate.score import BASELINE, MODEL, Entry, reliability, score_set, target
from stack.tasks import metrics


def entry(name: str, score: np.ndarray, *, calibrated: bool = True) -> Entry:
    return Entry(name=name, kind=MODEL if name == "model" else BASELINE, score=score, calibrated=calibrated)


@pytest.fixture(scope="module")
def sample() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    users, truth = rng.integers(0, 100, 3000) * 3, rng.normal(size=3000)
    return users, truth, (rng.random(3000) < metrics.sigmoid(truth)).astype(float)


def test_figures_equal_the_metrics_and_uncalibrated_baselines_have_order_only(
    sample: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    users, truth, label = sample
    weight = np.linspace(0.5, 2, 3000)
    entries = [entry("model", truth), entry("counts", 9 * truth.round(), calibrated=False)]
    found = score_set("uniform", entries, target(users, label, weight), num_replicates=50, seed=0)
    model = {name: estimate.value for name, estimate in found.scores[0].metrics.items()}
    assert model == pytest.approx(
        {
            "gauc": metrics.gauc(users, truth, label).value,
            "auc": metrics.auc(truth, label),
            "log_loss": metrics.log_loss(truth, label, weight),
            "normalised_entropy": metrics.normalised_entropy(truth, label, weight),
            "predicted_over_observed": metrics.predicted_over_observed(truth, label, weight),
        }
    )
    assert set(found.scores[1].metrics) == {"gauc", "auc"}
    for estimate in found.scores[0].metrics.values():
        assert estimate.low < estimate.value < estimate.high
    assert (found.num_examples, found.num_positives, found.num_users) == (3000, int(label.sum()), 100)


def test_the_model_is_held_against_the_best_baseline_and_the_verdict_names_who_wins(
    sample: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    users, truth, label = sample
    noise = np.random.default_rng(1).normal(size=(3, 3000))
    scorers = {"poor": truth + 3 * noise[0], "fair": truth + noise[1], "good": truth + 0.2 * noise[2]}

    def verdict(model: str, rivals: list[str]) -> tuple[str, str]:
        entries = [entry("model", scorers[model]), *(entry(name, scorers[name]) for name in rivals)]
        found = score_set("all", entries, target(users, label), num_replicates=100, seed=0)
        comparison = next(one for one in found.comparisons if one.metric == "gauc")
        return comparison.baseline, comparison.verdict

    assert verdict("good", ["poor", "fair"]) == ("fair", "ahead")
    assert verdict("poor", ["fair", "good"]) == ("good", "behind")
    assert verdict("good", ["good"]) == ("good", "undecided")


def test_lower_log_loss_counts_as_ahead() -> None:
    users, label = np.repeat(np.arange(30), 4), np.tile([1.0, 0.0, 1.0, 0.0], 30)
    right, vague = np.where(label > 0, 2.0, -2.0), np.where(label > 0, 0.1, -0.1)
    entries = [entry("model", right), entry("vague", vague)]
    found = score_set("all", entries, target(users, label), num_replicates=20, seed=0)
    verdicts = {one.metric: one.verdict for one in found.comparisons}
    assert verdicts == {"auc": "undecided", "gauc": "undecided", "log_loss": "ahead", "normalised_entropy": "ahead"}


def test_class_scores_have_accuracies_and_no_auc() -> None:
    users, label = np.arange(10), np.arange(10) % 7
    held = target(users, label)
    perfect, second = np.eye(7)[label] * 3, np.eye(7)[label] + 2 * np.eye(7)[(label + 1) % 7]
    entries = [entry("model", second), entry("other", perfect)]
    found = score_set("all", entries, held, num_replicates=20, seed=0)
    assert found.scores[0].metrics["accuracy"].value == 0.0
    assert found.scores[0].metrics["top_2_accuracy"].value == 1.0
    assert found.scores[1].metrics["accuracy"].value == 1.0
    assert {one.metric: one.verdict for one in found.comparisons}["accuracy"] == "behind"


def test_reliability_bins_hold_a_tenth_of_the_examples_each_in_order() -> None:
    logit = np.random.default_rng(0).normal(size=1000)
    label = (np.random.default_rng(1).random(1000) < metrics.sigmoid(logit)).astype(float)
    bins = reliability(logit, label)
    assert [one.num_examples for one in bins] == [100] * 10
    assert sorted(one.predicted for one in bins) == [one.predicted for one in bins]
    assert sum(one.observed * one.num_examples for one in bins) == pytest.approx(label.sum())
    assert len(reliability(logit[:3], label[:3])) == 3
