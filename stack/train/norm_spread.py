"""By how much processes have learnt other statistics of normalisation: nothing, where sums are over all of them.

Each process normalises its rows by its own copy; TorchRec's wrapper leaves buffers alone. What keeps them equal is that
`BatchStatistics` sums over ranks; this proves it at every save.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from stack.layers.norm import BatchStatistics

RANK_SPREAD = "norm/rank_spread"
"""The metric of a version that holds it."""


def rank_spread(model: nn.Module) -> float | None:
    """The largest distance of two processes' running means, in deviations, or of the logarithms of their running
    variances; None for a model without such statistics. All processes ask together."""
    found = [module for module in model.modules() if isinstance(module, BatchStatistics)]
    if not found:
        return None
    deviations = [(one.running_var_D + 1e-5).sqrt() for one in found]
    numbers = torch.cat(
        [one.running_mean_D / deviation_D for one, deviation_D in zip(found, deviations, strict=True)]
        + [2 * deviation_D.log() for deviation_D in deviations]
    ).double()
    both = torch.cat([numbers, -numbers])
    dist.all_reduce(both, op=dist.ReduceOp.MAX)
    most, least = both.chunk(2)
    return float((most + least).max())
