"""The optimizer of the tables: fused into the backward pass, so a gradient of a whole table never exists."""

from __future__ import annotations

import torch
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

from stack.tables.config import TableOptimizer

_OPTIMIZERS: dict[TableOptimizer, type[torch.optim.Optimizer]] = {
    TableOptimizer.rowwise_adagrad: RowWiseAdagrad,
    TableOptimizer.adagrad: torch.optim.Adagrad,
    TableOptimizer.sgd: torch.optim.SGD,
}


def fuse_optimizer(tables: nn.Module, *, optimizer: TableOptimizer, learning_rate: float, eps: float) -> None:
    """Marks the tables' weights for an update inside backward; call before sharding.

    Row-wise Adagrad keeps one number a row: s += mean(g^2), w -= learning_rate * g / (sqrt(s) + eps), with g the sum of
    the row's gradients in the step.
    """
    settings = {"lr": learning_rate}
    if optimizer is not TableOptimizer.sgd:
        settings["eps"] = eps
    apply_optimizer_in_backward(_OPTIMIZERS[optimizer], tables.parameters(), settings)


def set_table_learning_rate(model: DistributedModelParallel, learning_rate: float) -> None:
    """From the next backward pass on, tables move by `learning_rate`."""
    fused = model.fused_optimizer
    for group in fused.param_groups:
        group["lr"] = learning_rate
    fused.step()  # hands the rate to the kernels; rows only move in backward
