"""Which traffic examples stand for, by the weight of each.

A sampled negative stands for 1 / rate candidates that were not drawn, where `rate` is how often it is drawn (both
draws, `rate_uniform` + `rate_popularity`, as in `stack.tasks.sampling`). With such weights the sampled examples of a
moment are the whole shelf as it would be scored, each candidate once (importance weighting; Horvitz and Thompson 1952).

Legend: E examples, M moments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from stack.audits.config import Traffic
from stack.data.batch import Examples
from stack.tasks.sampling import Sampling, sampling_shift, score_rate


@dataclass(frozen=True, kw_only=True)
class WeightOf:
    """What examples weigh on a kind of traffic, (E,) float64, 0 or more."""

    traffic: Traffic

    def __call__(self, examples: Examples) -> Tensor:
        return {Traffic.live: _live, Traffic.weighted: _weighted, Traffic.sampled: _ones}[self.traffic](examples)

    def offset(self, labels: Mapping[str, Tensor], sampling: Sampling) -> Tensor:
        """(E,): what a score that counts negatives like this lacks to be the log-odds on this traffic. On live traffic
        each candidate is seen once; on any other, drawn negatives are as frequent as they were drawn."""
        if self.traffic is Traffic.live:
            return torch.log(score_rate(labels, sampling)).double()
        return -sampling_shift(labels, sampling).double()


def weight_of(traffic: Traffic) -> WeightOf:
    """The weights of examples for a kind of traffic."""
    return WeightOf(traffic=traffic)


def _live(examples: Examples) -> Tensor:
    labels = examples.labels
    if "draw" not in labels:
        return _ones(examples)
    rate_E = (labels["rate_uniform"] + labels["rate_popularity"]).double()
    drawn_E = labels["draw"] > 0
    return torch.where(drawn_E & (rate_E > 0), 1 / rate_E.clamp(min=1e-300), 1.0)


def _weighted(examples: Examples) -> Tensor:
    return examples.labels["weight"].double() if "weight" in examples.labels else _ones(examples)


def _ones(examples: Examples) -> Tensor:
    return torch.ones(examples.num_examples, dtype=torch.float64)
