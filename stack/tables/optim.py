"""The optimizer of a model's tables: chosen before sharding, its learning rate set in every step."""

from __future__ import annotations

from torchrec.distributed.model_parallel import DistributedModelParallel

from stack.tables.collection import Tables
from stack.tables.config import TableOptimizer
from stack.tables.fused import FusedOptimizer


def fuse_optimizer(tables: Tables, *, optimizer: TableOptimizer, learning_rate: float, eps: float) -> None:
    """Has the tables' weights updated inside backward, by the rules of `stack.tables.fused`; call before sharding."""
    tables.fused = FusedOptimizer(optimizer=optimizer, learning_rate=learning_rate, eps=eps)
    tables.fused.mark(tables.collection)


def set_table_learning_rate(model: DistributedModelParallel, learning_rate: float) -> None:
    """From the next backward pass on, tables move by `learning_rate`."""
    fused = model.fused_optimizer
    for group in fused.param_groups:
        group["lr"] = learning_rate
    fused.step()  # hands the rate to the kernels; rows only move in backward
    for module in model.modules():
        if isinstance(module, Tables) and module.replicated is not None:
            module.replicated.learning_rate = learning_rate
