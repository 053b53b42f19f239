"""The figures that are reported, vectorised, each with optional example weights.

Shape legend: E examples, U users, C classes. Scores of two-class metrics are logits where they are read as
probabilities, and any increasing quantity where only their order counts. Undefined values (one label only, no
examples) are NaN: the caller decides what to print.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class GroupedAuc:
    """GAUC and what it rests on: only users with both labels have an AUC and count."""

    value: float
    num_users: int
    num_examples: int


@dataclass(frozen=True, kw_only=True)
class UserAucs:
    """Per user (in the order of the dense indices): AUC, NaN with one label only; summed example weight; examples."""

    auc_U: Floats
    impressions_U: Floats
    num_examples_U: Ints

    def defined(self) -> NDArray[np.bool_]:
        """(U,) which users have both labels, and so an AUC."""
        return ~np.isnan(self.auc_U)


def weights_or_ones(weight_E: Array | None, num_examples: int) -> Floats:
    """`weight_E` as float64, or ones."""
    return np.ones(num_examples) if weight_E is None else np.asarray(weight_E, dtype=np.float64)


def user_sums(user_E: Array, value_E: Array, *, num_users: int) -> Floats:
    """(U,) sum of a per-example value over each user's examples; `user_E` are dense indices."""
    return np.asarray(np.bincount(user_E, value_E, num_users), dtype=np.float64)


def auc(score_E: Array, label_E: Array, weight_E: Array | None = None) -> float:
    """P(score of a positive > score of a negative), ties half; pairs count by the product of their weights."""
    everyone_E = np.zeros(len(score_E), dtype=np.int64)
    return float(user_aucs(everyone_E, score_E, label_E, weight_E, num_users=1).auc_U[0])


def gauc(user_E: Array, score_E: Array, label_E: Array, weight_E: Array | None = None) -> GroupedAuc:
    """AUC within each user, averaged by impressions (DIN, eq. 10): sum_i imp_i AUC_i / sum_i imp_i.

    Users with one label only have no AUC and are left out; `num_users` says how many are left in.
    """
    _, index_E = np.unique(user_E, return_inverse=True)
    users = user_aucs(index_E, score_E, label_E, weight_E, num_users=int(index_E.max(initial=-1)) + 1)
    defined_U = users.defined()
    impressions = users.impressions_U[defined_U]
    value = float(impressions @ users.auc_U[defined_U] / impressions.sum()) if defined_U.any() else float("nan")
    return GroupedAuc(
        value=value, num_users=int(defined_U.sum()), num_examples=int(users.num_examples_U[defined_U].sum())
    )


def user_aucs(
    user_E: Array, score_E: Array, label_E: Array, weight_E: Array | None = None, *, num_users: int
) -> UserAucs:
    """AUC of every user at once; `user_E` are dense indices 0..num_users-1.

    One sort by (user, score): the weight of negatives below a positive is a difference of two prefix sums.
    """
    weight_E = weights_or_ones(weight_E, len(score_E))
    order_E = np.lexsort((score_E, user_E))
    user, score = np.asarray(user_E)[order_E], np.asarray(score_E)[order_E]
    positive = weight_E[order_E] * (np.asarray(label_E)[order_E] > 0)
    negative = weight_E[order_E] - positive
    below = np.concatenate(([0.0], np.cumsum(negative)))
    user_start = np.searchsorted(user, np.arange(num_users))
    tie_start, tie_end = _tied_runs(user, score)
    wins = positive * ((below[tie_start] + below[tie_end]) / 2 - below[user_start[user]])
    wins_U = user_sums(user, wins, num_users=num_users)
    positive_U = user_sums(user, positive, num_users=num_users)
    negative_U = user_sums(user, negative, num_users=num_users)
    pairs_U = positive_U * negative_U
    auc_U = np.divide(wins_U, pairs_U, out=np.full(num_users, np.nan), where=pairs_U > 0)
    num_examples_U = np.bincount(user, minlength=num_users)
    return UserAucs(auc_U=auc_U, impressions_U=positive_U + negative_U, num_examples_U=num_examples_U)


def _tied_runs(user_E: Array, score_E: Array) -> tuple[Ints, Ints]:
    """First and one-past-last position of the run of equal (user, score) that each sorted example belongs to."""
    num_examples = len(score_E)
    if num_examples == 0:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    changes_E = np.concatenate(([True], (user_E[1:] != user_E[:-1]) | (score_E[1:] != score_E[:-1])))
    starts = np.flatnonzero(changes_E)
    run_E = np.cumsum(changes_E) - 1
    return starts[run_E], np.append(starts[1:], num_examples)[run_E]


def sigmoid(logit_E: Array) -> Floats:
    """1 / (1 + exp(-x)) without overflow."""
    logit_E = np.asarray(logit_E, dtype=np.float64)
    return np.asarray(np.exp(-np.logaddexp(0.0, -logit_E)))


def log_losses(logit_E: Array, label_E: Array) -> Floats:
    """Cross-entropy in nats of each example, from logits."""
    logit_E = np.asarray(logit_E, dtype=np.float64)
    return np.asarray(np.logaddexp(0.0, logit_E) - logit_E * np.asarray(label_E, dtype=np.float64))


def log_loss(logit_E: Array, label_E: Array, weight_E: Array | None = None) -> float:
    """Weighted mean cross-entropy in nats."""
    return _mean(log_losses(logit_E, label_E), weight_E)


def entropy(rate: float) -> float:
    """Entropy in nats of a label that is 1 at `rate`; NaN at 0 and 1, where nothing is left to predict."""
    if not 0.0 < rate < 1.0:
        return float("nan")
    return float(-(rate * np.log(rate) + (1 - rate) * np.log1p(-rate)))


def normalised_entropy(logit_E: Array, label_E: Array, weight_E: Array | None = None) -> float:
    """Log loss over that of the constant prediction "mean label": below 1 is better than knowing the mean."""
    return log_loss(logit_E, label_E, weight_E) / entropy(_mean(np.asarray(label_E, dtype=np.float64), weight_E))


def predicted_over_observed(logit_E: Array, label_E: Array, weight_E: Array | None = None) -> float:
    """Sum of predicted probabilities over the sum of labels: 1 is calibrated on the whole."""
    weight_E = weights_or_ones(weight_E, len(logit_E))
    observed = float(weight_E @ np.asarray(label_E, dtype=np.float64))
    return float(weight_E @ sigmoid(logit_E)) / observed if observed > 0 else float("nan")


def hits(score_EC: Array, label_E: Array, *, k: int) -> NDArray[np.bool_]:
    """Whether the true class is among the `k` highest scores; of equal scores the lower class goes first."""
    label_E = np.asarray(label_E, dtype=np.int64)
    true_E1 = np.take_along_axis(score_EC, label_E[:, None], axis=1)
    earlier_EC = np.arange(score_EC.shape[1])[None, :] < label_E[:, None]
    ahead_EC = (score_EC > true_E1) | ((score_EC == true_E1) & earlier_EC)
    return np.asarray(ahead_EC.sum(axis=1) < k)


def accuracy(score_EC: Array, label_E: Array, weight_E: Array | None = None, *, k: int = 1) -> float:
    """Weighted share of examples whose true class is among the `k` highest scores."""
    return _mean(hits(score_EC, label_E, k=k).astype(np.float64), weight_E)


def class_log_losses(score_EC: Array, label_E: Array) -> Floats:
    """Cross-entropy in nats of each example, from unnormalised log-probabilities."""
    score_EC = np.asarray(score_EC, dtype=np.float64)
    true_E = np.take_along_axis(score_EC, np.asarray(label_E, dtype=np.int64)[:, None], axis=1)[:, 0]
    return np.asarray(np.logaddexp.reduce(score_EC, axis=1) - true_E)


def _mean(value_E: Floats, weight_E: Array | None) -> float:
    weight_E = weights_or_ones(weight_E, len(value_E))
    total = float(weight_E.sum())
    return float(weight_E @ value_E) / total if total > 0 else float("nan")
