"""Which traffic examples stand for, by the weight of each.

A sampled negative stands for 1 / rate candidates that were not drawn, where `rate` is how often it is drawn (both
draws, `rate_uniform` + `rate_popularity`, as in `stack.tasks.sampling`). With such weights the sampled examples of a
moment are the whole shelf as it would be scored, each candidate once (importance weighting; Horvitz and Thompson 1952).

Legend: E examples, M moments.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stack.audits.config import Traffic
from stack.data.batch import Examples

WeightOf = Callable[[Examples], Tensor]
"""(E,) float64, 0 or more."""


def weight_of(traffic: Traffic) -> WeightOf:
    """The weights of examples for a kind of traffic."""
    return {Traffic.live: _live, Traffic.weighted: _weighted, Traffic.sampled: _ones}[traffic]


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
