"""Learning rates and the optimizer of the dense part; the tables' optimizer is in `stack.tables.optim`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor, nn

from stack.base.errors import CheckpointError, ConfigError
from stack.tables.config import TableOptimizer


class DenseOptimizer(Enum):
    adam = "adam"
    adagrad = "adagrad"


class Decay(Enum):
    """How learning rates go on after the warm-up."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"


@dataclass(kw_only=True)
class OptimConfig:
    """The `optim` group of the configuration."""

    dense: DenseOptimizer = DenseOptimizer.adam
    # optimizer of everything but the tables; DUPN used Adagrad
    dense_learning_rate: float = 1e-3
    dense_eps: float = 1e-8
    # added to the root of the second moment (adam) or of the sum of squares (adagrad)
    dense_weight_decay: float = 0.0
    # per step, times the learning rate (decoupled) for adam; added to the gradient for adagrad
    tables: TableOptimizer = TableOptimizer.rowwise_adagrad
    # optimizer of the tables, fused into the backward pass
    tables_learning_rate: float = 0.02
    tables_eps: float = 1e-8
    # added to the root of the row's sum of squares
    clip_norm: float = 10.0
    # largest norm of the dense gradient, over all parameters; table gradients are not clipped
    warmup_steps: int = 0
    # steps in which both learning rates grow linearly to their full value
    decay: Decay = Decay.constant
    final_share: float = 0.1
    # what linear and cosine decay leave of the learning rates at the last step

    def __post_init__(self) -> None:
        for name in ("dense_learning_rate", "dense_eps", "tables_learning_rate", "tables_eps", "clip_norm"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"optim.{name}={value} must be above 0 and finite")
        if not self.dense_weight_decay >= 0:
            raise ConfigError(f"optim.dense_weight_decay={self.dense_weight_decay} must be 0 or more")
        if self.warmup_steps < 0:
            raise ConfigError(f"optim.warmup_steps={self.warmup_steps} must be 0 or more")
        if not 0 <= self.final_share <= 1:
            raise ConfigError(f"optim.final_share={self.final_share} must be from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The share of the full learning rate at each step, counted from 0; `peak` is the largest."""

    num_steps: int
    warmup_steps: int
    decay: Decay
    final_share: float
    peak: float = 1.0

    def __call__(self, step: int) -> float:
        return self.peak * self._share(step)

    def _share(self, step: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(self.num_steps - 1 - self.warmup_steps, 1)
        done = min(done, 1.0)
        if self.decay is Decay.linear:
            left = 1.0 - done
        elif self.decay is Decay.cosine:
            left = 0.5 * (1.0 + math.cos(math.pi * done))
        else:
            return 1.0
        return self.final_share + (1.0 - self.final_share) * left


def build_schedule(config: OptimConfig, *, num_steps: int) -> Schedule:
    """The configured schedule over all steps of the run."""
    return Schedule(
        num_steps=num_steps, warmup_steps=config.warmup_steps, decay=config.decay, final_share=config.final_share
    )


def build_dense_optimizer(parameters: Mapping[str, nn.Parameter], config: OptimConfig) -> torch.optim.Optimizer:
    """Adam (with decoupled weight decay) or Adagrad, in the order of `parameters`."""
    kind = torch.optim.AdamW if config.dense is DenseOptimizer.adam else torch.optim.Adagrad
    return kind(
        list(parameters.values()),
        lr=config.dense_learning_rate,
        eps=config.dense_eps,
        weight_decay=config.dense_weight_decay,
        foreach=True,
    )


def optimizer_state(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimizer's tensors as "<parameter>/<state>", e.g. "heads.ctr.0.weight/exp_avg"."""
    return {
        f"{name}/{key}": value
        for name, weight in parameters.items()
        for key, value in optimizer.state.get(weight, {}).items()
    }


def restore_optimizer_state(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], saved: Mapping[str, Tensor]
) -> None:
    """The inverse of `optimizer_state`. Rows that a parameter has got since begin with zeros.

    Raises:
        CheckpointError: `saved` has state for a parameter that the model has not.
    """
    for key, value in saved.items():
        name, _, state = key.rpartition("/")
        if name not in parameters:
            raise CheckpointError(f"the checkpoint has optimizer state for {name!r}, which the model has not")
        weight = parameters[name]
        device = torch.device("cpu") if state == "step" else weight.device
        kept = value.to(device).clone()
        if value.dim() == weight.dim() > 1 and len(value) < len(weight):
            kept = torch.cat([kept, kept.new_zeros(len(weight) - len(value), *value.shape[1:])])
        optimizer.state[weight][state] = kept
