"""The optimizer of the tables: fused into the backward pass, so a gradient of a whole table never exists.

With g the sum of a row's gradients in the step, D its width (of the block, for column-wise shards)::

    row-wise Adagrad   s += sum(g^2) / D        w -= learning_rate * g / (sqrt(s) + eps)       one number a row
    Adagrad            s += g^2                 w -= learning_rate * g / (sqrt(s) + eps)       one a weight
    SGD                                         w -= learning_rate * g                         none
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torchrec.optim import LAMB, Adam, PartialRowWiseAdam, RowWiseAdagrad
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

from stack.tables.config import TableOptimizer

_OPTIMIZERS: dict[TableOptimizer, type[torch.optim.Optimizer]] = {
    TableOptimizer.rowwise_adagrad: RowWiseAdagrad,
    TableOptimizer.adagrad: torch.optim.Adagrad,
    TableOptimizer.sgd: torch.optim.SGD,
    TableOptimizer.adam: Adam,
    TableOptimizer.partial_rowwise_adam: PartialRowWiseAdam,
    TableOptimizer.lamb: LAMB,
}


@dataclass(frozen=True, kw_only=True)
class FusedOptimizer:
    """Which optimizer, and its settings at the start."""

    optimizer: TableOptimizer
    learning_rate: float
    eps: float

    def mark(self, collection: nn.Module) -> None:
        """Marks weights for an update inside backward."""
        settings = {"lr": self.learning_rate}
        if self.optimizer is not TableOptimizer.sgd:
            settings["eps"] = self.eps
        apply_optimizer_in_backward(_OPTIMIZERS[self.optimizer], collection.parameters(), settings)
