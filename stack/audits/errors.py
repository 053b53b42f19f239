"""Standard errors of what an audit measures, where the rows of a user are no independent draws.

All by linearisation: a figure that is a smooth function of sums over rows moves, to first order, by the sum of what
each row contributes; rows of one user are added up before they are squared ("the delta method" for clusters). For AUC
the contributions are those of DeLong et al. (1988), summed by cluster as Obuchowski (1997) has it: of a positive, the
share of negatives below it; of a negative, the share of positives above it. Differences of two scores on the same rows
are differences of contributions, so what the scores have in common cancels.

Sums of squares of U draws are taken U / (U - 1) times, as few of them lie too close to what is made of them all; one
user alone says nothing of how users differ, and the error is NaN.

Legend: E examples, U users.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stack.audits.moments import Floats
from stack.tasks.metrics import log_losses, sigmoid

Ints = NDArray[np.int64]


def clustered(contribution_E: Floats, user_E: Ints) -> float:
    """The error of a figure to which each example contributes so much; contributions add up to 0."""
    users, index_E = np.unique(user_E, return_inverse=True)
    return float(np.sqrt(np.square(np.bincount(index_E, contribution_E)).sum()) * _few(len(users)))


def auc_contributions(score_E: Floats, label_E: Floats, weight_E: Floats) -> Floats:
    """(E,): by how much each example moves the weighted AUC; NaN where there are labels of one kind alone."""
    positive_E = weight_E * (label_E > 0)
    negative_E = weight_E - positive_E
    below_E, above_E = _beaten(score_E, negative_E), _beaten(-score_E, positive_E)
    with np.errstate(invalid="ignore", divide="ignore"):
        of_positive_E, of_negative_E = below_E / negative_E.sum(), above_E / positive_E.sum()
        area = float(positive_E @ of_positive_E / positive_E.sum())
        return np.asarray(
            positive_E * (of_positive_E - area) / positive_E.sum()
            + negative_E * (of_negative_E - area) / negative_E.sum()
        )


def auc_difference_error(one_E: Floats, other_E: Floats, label_E: Floats, weight_E: Floats, user_E: Ints) -> float:
    """Of the AUC of one score less that of another on the same rows; NaN where the positives, or the negatives, are
    those of one user."""
    difference_E = auc_contributions(one_E, label_E, weight_E) - auc_contributions(other_E, label_E, weight_E)
    for of_label_E in (label_E > 0, label_E <= 0):
        difference_E[of_label_E] *= _few(len(np.unique(user_E[of_label_E & (weight_E > 0)])))
    return clustered(difference_E, user_E)


def log_loss_share_error(one_E: Floats, other_E: Floats, label_E: Floats, weight_E: Floats, user_E: Ints) -> float:
    """Of the log loss of one logit over that of another, less 1."""
    loss_E, base_E = log_losses(one_E, label_E), log_losses(other_E, label_E)
    base = float(weight_E @ base_E)
    return clustered(weight_E * (loss_E - float(weight_E @ loss_E) / base * base_E) / base, user_E)


def log_loss_error(logit_E: Floats, label_E: Floats, weight_E: Floats, user_E: Ints) -> float:
    """Of a log loss alone. Two models' differ by less than chance where they are told on the same rows."""
    loss_E = log_losses(logit_E, label_E)
    return clustered(weight_E * (loss_E - np.average(loss_E, weights=weight_E)) / weight_E.sum(), user_E)


def calibration_error(logit_E: Floats, label_E: Floats, weight_E: Floats, user_E: Ints) -> float:
    """Of predicted over observed; infinite where nothing positive was observed."""
    observed = float(weight_E @ label_E)
    if not observed > 0:
        return float("inf")
    predicted_E = sigmoid(logit_E)
    ratio = float(weight_E @ predicted_E) / observed
    return clustered(weight_E * (predicted_E - ratio * label_E) / observed, user_E)


def _few(num_draws: int) -> float:
    return float(np.sqrt(num_draws / (num_draws - 1))) if num_draws > 1 else float("nan")


def _beaten(score_E: Floats, weight_E: Floats) -> Floats:
    """(E,): the weight of what has a lower score, and half of what has the same."""
    values, index_E = np.unique(score_E, return_inverse=True)
    tied = np.bincount(index_E, weight_E, len(values))
    return np.asarray((np.cumsum(tied) - tied / 2)[index_E])
