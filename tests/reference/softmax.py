"""Sampled softmax one positive at a time, in float64 and without care for overflow."""

from __future__ import annotations

import numpy as np


def sampled_softmax(
    score_E: np.ndarray, clicked_E: np.ndarray, rate_E: np.ndarray, moment_E: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(loss_E, weight_E). Each positive against the negatives of its moment; `rate_E` is how often, in expectation,
    the candidate is drawn, and is divided out of all of them, the positive too (Yi et al. 2019)."""
    loss_E, weight_E = np.zeros(len(score_E)), np.zeros(len(score_E))
    for i in np.flatnonzero(clicked_E):
        own = np.exp(score_E[i]) / rate_E[i]
        rivals = [np.exp(score_E[j]) / rate_E[j] for j in range(len(score_E)) if moment_E[j] == moment_E[i]
                  and not clicked_E[j]]  # fmt: skip
        if rivals:
            loss_E[i], weight_E[i] = -np.log(own / (own + sum(rivals))), 1.0
    return loss_E, weight_E
