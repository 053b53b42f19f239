"""Bootstrap intervals by resampling users, not examples: examples of one user are not independent.

Each metric is reduced once to what a replicate needs; a replicate is then a vector `counts_U` (how often each
user was drawn), the same for every score, so differences between scores are paired.

Shape legend: E examples, U users, R replicates. Users are dense indices 0..U-1.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from stack.tasks.metrics import Array, Floats, entropy, user_aucs, user_sums, weights_or_ones

CONFIDENCE = 0.95
Key = TypeVar("Key", bound=Hashable)


class Statistic(Protocol):
    """A metric as a function of how often each user occurs; all ones give the metric itself."""

    def __call__(self, counts_U: Floats) -> float: ...


@dataclass(frozen=True)
class Ratio:
    """sum(counts * numerator) / sum(counts * denominator); NaN if the denominator vanishes."""

    numerator_U: Floats
    denominator_U: Floats

    def __call__(self, counts_U: Floats) -> float:
        below = float(counts_U @ self.denominator_U)
        return float(counts_U @ self.numerator_U) / below if below > 0 else float("nan")


@dataclass(frozen=True)
class NormalisedEntropy:
    """Mean loss over the entropy of the replicate's own mean label."""

    loss_U: Floats
    label_U: Floats
    weight_U: Floats

    def __call__(self, counts_U: Floats) -> float:
        weight = float(counts_U @ self.weight_U)
        if weight <= 0:
            return float("nan")
        return float(counts_U @ self.loss_U) / weight / entropy(float(counts_U @ self.label_U) / weight)


class Auc:
    """AUC over all users. Negatives are sorted once, and each positive remembers its place among them, so a
    replicate costs one prefix sum over the negatives; ties count half."""

    def __init__(self, user_E: Array, score_E: Array, label_E: Array, weight_E: Array | None = None) -> None:
        weight_E = weights_or_ones(weight_E, len(score_E))
        is_positive_E = np.asarray(label_E) > 0
        positives, negatives = np.flatnonzero(is_positive_E), np.flatnonzero(~is_positive_E)
        negatives = negatives[np.argsort(score_E[negatives], kind="stable")]
        sorted_scores = score_E[negatives]
        self._positive_user, self._positive_weight = user_E[positives], weight_E[positives]
        self._negative_user, self._negative_weight = user_E[negatives], weight_E[negatives]
        self._below = np.searchsorted(sorted_scores, score_E[positives], side="left")
        self._upto = np.searchsorted(sorted_scores, score_E[positives], side="right")

    def __call__(self, counts_U: Floats) -> float:
        positive = counts_U[self._positive_user] * self._positive_weight
        prefix = np.empty(len(self._negative_user) + 1)
        prefix[0] = 0.0
        np.cumsum(counts_U[self._negative_user] * self._negative_weight, out=prefix[1:])
        pairs = float(positive.sum()) * float(prefix[-1])
        if pairs <= 0:
            return float("nan")
        return float(positive @ (prefix[self._below] + prefix[self._upto])) / 2 / pairs


def mean(user_E: Array, value_E: Array, weight_E: Array | None = None, *, num_users: int) -> Ratio:
    """The weighted mean of per-example values (log loss, accuracy) as a statistic of users."""
    weight_E = weights_or_ones(weight_E, len(value_E))
    return Ratio(
        user_sums(user_E, weight_E * value_E, num_users=num_users), user_sums(user_E, weight_E, num_users=num_users)
    )


def ratio(user_E: Array, above_E: Array, below_E: Array, *, num_users: int) -> Ratio:
    """Sum of one per-example value over the sum of another (predicted / observed)."""
    return Ratio(user_sums(user_E, above_E, num_users=num_users), user_sums(user_E, below_E, num_users=num_users))


def grouped_auc(
    user_E: Array, score_E: Array, label_E: Array, weight_E: Array | None = None, *, num_users: int
) -> Ratio:
    """GAUC: a user's AUC does not change with how often the user is drawn, so it is a weighted mean."""
    users = user_aucs(user_E, score_E, label_E, weight_E, num_users=num_users)
    impressions_U = np.where(users.defined(), users.impressions_U, 0.0)
    return Ratio(impressions_U * np.nan_to_num(users.auc_U), impressions_U)


def replicate(
    statistics: Mapping[Key, Statistic], *, num_users: int, num_replicates: int, seed: int
) -> dict[Key, Floats]:
    """Each statistic on each replicate, (R,); replicate r draws the same users for every statistic."""
    rng = np.random.default_rng(seed)
    values = {name: np.empty(num_replicates) for name in statistics}
    for index in range(num_replicates):
        counts_U = np.bincount(rng.integers(0, num_users, num_users), minlength=num_users).astype(np.float64)
        for name, statistic in statistics.items():
            values[name][index] = statistic(counts_U)
    return values


def interval(value_R: Floats) -> tuple[float, float]:
    """Percentile interval at 95%; replicates where the metric is undefined are left out, NaN if none is left."""
    defined = value_R[~np.isnan(value_R)]
    if len(defined) == 0:
        return float("nan"), float("nan")
    tail = (1.0 - CONFIDENCE) / 2
    low, high = np.quantile(defined, [tail, 1.0 - tail])
    return float(low), float(high)
