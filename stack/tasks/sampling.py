"""What the score of a task on sampled impressions means, and how the loss is taken so that it does.

The loss is always taken of the log-odds of the examples as they were sampled, where a negative is `rate_uniform +
rate_popularity` (both draws) times as frequent as where every candidate is seen once. The score may count negatives
differently: where it counts them at the rate c, log-odds of the sample = score - log(both / c).

Legend: E examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

import torch
from torch import Tensor


class Sampling(Enum):
    """At which rate the score counts negatives."""

    logq = "logq"
    """Once each: the score is the log-odds on the whole shelf. As there are a few negatives for each positive, rates
    grow with how much the user took at that moment, which the score must then guess."""
    uniform = "uniform"
    """As often as the uniform draw alone would: the score is the log-odds among positives and uniform negatives, and
    popularity is corrected for. What is common to the candidates of a moment cancels."""
    none = "none"
    """As sampled: nothing is corrected."""


def score_rate(labels: Mapping[str, Tensor], sampling: Sampling) -> Tensor:
    """(E,): the rate at which a score of this kind counts negatives; 1 for what was not sampled (both rates 0)."""
    uniform_E, both_E = labels["rate_uniform"], _both(labels)
    if sampling is Sampling.logq:
        return torch.ones_like(both_E)
    if sampling is Sampling.uniform:
        return torch.where(uniform_E > 0, uniform_E, both_E)
    return both_E


def sampling_shift(labels: Mapping[str, Tensor], sampling: Sampling) -> Tensor:
    """(E,): by how much the score is above the log-odds of the sample."""
    return torch.log(_both(labels) / score_rate(labels, sampling))


def _both(labels: Mapping[str, Tensor]) -> Tensor:
    both_E = labels["rate_uniform"] + labels["rate_popularity"]
    return torch.where(both_E > 0, both_E, torch.ones_like(both_E))
