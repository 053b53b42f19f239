"""Puts a model and its baselines on the same examples and the same bootstrap replicates.

Shape legend: E examples, U users, R replicates, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stack.evaluate import bootstrap
from stack.evaluate.report import Bin, Comparison, Estimate, Score, SetReport, estimate
from stack.tasks import metrics
from stack.tasks.metrics import Array, Floats, Ints

MODEL, BASELINE = "model", "baseline"
HIGHER_IS_BETTER = {
    "auc": True,
    "gauc": True,
    "accuracy": True,
    "top_2_accuracy": True,
    "log_loss": False,
    "normalised_entropy": False,
}
"""Metrics in which the model is compared with the best baseline; predicted/observed has no better direction."""
NUM_BINS = 10


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One scorer's (E,) logits, or (E, C) log-probabilities up to a constant; if not `calibrated`, an order only."""

    name: str
    kind: str
    score: Array
    calibrated: bool


@dataclass(frozen=True, kw_only=True)
class Target:
    """What all scorers of a set are held against.

    `user_E` are dense indices 0..num_users-1. `weight_E` applies to probabilities (log loss, normalised entropy,
    predicted / observed), not to AUC, GAUC and accuracy, which count impressions.
    """

    user_E: Ints
    label_E: Array
    weight_E: Floats
    num_users: int


def target(user_E: Ints, label_E: Array, weight_E: Array | None = None) -> Target:
    """Gives the users dense indices."""
    names, index_E = np.unique(user_E, return_inverse=True)
    weight_E = metrics.weights_or_ones(weight_E, len(label_E))
    return Target(user_E=index_E, label_E=label_E, weight_E=weight_E, num_users=len(names))


def score_set(
    name: str,
    entries: Sequence[Entry],
    held: Target,
    *,
    num_replicates: int,
    seed: int,
    num_left_out: int = 0,
    num_training_rows: int = 0,
) -> SetReport:
    """Every metric of every entry with its interval, and the first entry (the model) against the best baseline."""
    statistics = {
        (entry.name, metric): statistic
        for entry in entries
        for metric, statistic in (class_statistics if entry.score.ndim == 2 else binary_statistics)(entry, held).items()
    }
    everyone_U = np.ones(held.num_users)
    values = {key: statistic(everyone_U) for key, statistic in statistics.items()}
    replicates = bootstrap.replicate(statistics, num_users=held.num_users, num_replicates=num_replicates, seed=seed)
    by_class = entries[0].score.ndim == 2
    both_labels = 0 if by_class else metrics.gauc(held.user_E, held.label_E, held.label_E).num_users
    return SetReport(
        set=name,
        num_examples=len(held.label_E),
        num_positives=0 if by_class else int((held.label_E > 0).sum()),
        num_users=held.num_users,
        num_users_with_both_labels=both_labels,
        num_left_out=num_left_out,
        num_training_rows=num_training_rows,
        scores=tuple(_score(entry, held, values, replicates) for entry in entries),
        comparisons=tuple(_comparisons(entries, values, replicates)),
    )


def binary_statistics(entry: Entry, held: Target) -> dict[str, bootstrap.Statistic]:
    """AUC and GAUC of any score; log loss, normalised entropy and predicted / observed of logits."""
    user_E, label_E, num_users = held.user_E, held.label_E, held.num_users
    found: dict[str, bootstrap.Statistic] = {
        "gauc": bootstrap.grouped_auc(user_E, entry.score, label_E, num_users=num_users),
        "auc": bootstrap.Auc(user_E, entry.score, label_E),
    }
    if entry.calibrated:
        losses_E = metrics.log_losses(entry.score, label_E)
        positive_E, predicted_E = held.weight_E * label_E, held.weight_E * metrics.sigmoid(entry.score)
        log_loss = bootstrap.mean(user_E, losses_E, held.weight_E, num_users=num_users)
        positive_U = metrics.user_sums(user_E, positive_E, num_users=num_users)
        found["log_loss"] = log_loss
        found["normalised_entropy"] = bootstrap.NormalisedEntropy(
            log_loss.numerator_U, positive_U, log_loss.denominator_U
        )
        found["predicted_over_observed"] = bootstrap.ratio(user_E, predicted_E, positive_E, num_users=num_users)
    return found


def class_statistics(entry: Entry, held: Target) -> dict[str, bootstrap.Statistic]:
    """Accuracy, top-2 accuracy and log loss of class scores."""
    per_example = {
        "accuracy": metrics.hits(entry.score, held.label_E, k=1).astype(np.float64),
        "top_2_accuracy": metrics.hits(entry.score, held.label_E, k=2).astype(np.float64),
        "log_loss": metrics.class_log_losses(entry.score, held.label_E),
    }
    return {
        name: bootstrap.mean(held.user_E, value_E, num_users=held.num_users) for name, value_E in per_example.items()
    }


def reliability(logit_E: Array, label_E: Array) -> tuple[Bin, ...]:
    """Predicted and observed rates in tenths of the examples, in order of prediction."""
    chance_E = metrics.sigmoid(logit_E)
    bins = np.array_split(np.argsort(chance_E, kind="stable"), NUM_BINS)
    return tuple(
        Bin(
            num_examples=len(index),
            predicted=float(chance_E[index].mean()),
            observed=float(np.asarray(label_E)[index].mean()),
        )
        for index in bins
        if len(index)
    )


Key = tuple[str, str]


def _score(entry: Entry, held: Target, values: Mapping[Key, float], replicates: Mapping[Key, Floats]) -> Score:
    found = {
        metric: estimate(value, *bootstrap.interval(replicates[name, metric]))
        for (name, metric), value in values.items()
        if name == entry.name
    }
    bins = reliability(entry.score, held.label_E) if entry.calibrated and entry.score.ndim == 1 else ()
    return Score(name=entry.name, kind=entry.kind, metrics=found, reliability=bins)


def _comparisons(
    entries: Sequence[Entry], values: Mapping[Key, float], replicates: Mapping[Key, Floats]
) -> list[Comparison]:
    model = entries[0].name
    found = []
    for metric, higher in HIGHER_IS_BETTER.items():
        sign = 1.0 if higher else -1.0
        rivals = {
            entry.name: sign * values[entry.name, metric]
            for entry in entries[1:]
            if (entry.name, metric) in values and not np.isnan(values[entry.name, metric])
        }
        if not rivals or (model, metric) not in values:
            continue
        best = max(rivals, key=lambda name: rivals[name])
        low, high = bootstrap.interval(replicates[model, metric] - replicates[best, metric])
        difference = estimate(values[model, metric] - values[best, metric], low, high)
        verdict = _verdict(difference, higher_is_better=higher)
        found.append(Comparison(metric=metric, baseline=best, difference=difference, verdict=verdict))
    return found


def _verdict(difference: Estimate, *, higher_is_better: bool) -> str:
    if difference.low is not None and difference.low > 0:
        return "ahead" if higher_is_better else "behind"
    if difference.high is not None and difference.high < 0:
        return "behind" if higher_is_better else "ahead"
    return "undecided"
