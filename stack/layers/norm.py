"""Normalisation whose running statistics survive bad batches, empty batches and several ranks.

Legend: N rows of the batch on this rank, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

import torch
from torch import Tensor, nn


class Norm(Enum):
    """Normalisation between a linear map and its activation."""

    batch = "batch"
    layer = "layer"
    none = "none"


_ROUNDING = 1e-6
"""Variance over squared mean up to which a feature counts as constant: its first batch gives as much in float32."""


def _identity(sums: Tensor) -> Tensor:
    return sums


class BatchStatistics(nn.Module):
    """Mean and variance of each feature: of a batch over all ranks, and running over batches.

    `sum_over_ranks` maps a vector of per-rank sums to their total over ranks; it must be differentiable (training
    sets an all-reduce, see `set_sum_over_ranks`). A rank may bring 0 rows; fewer than 2 rows in total leave the running
    statistics as they are. A batch with a NaN or an infinity never reaches them either: it is counted in `num_refused`.
    Where they are `frozen`, the running statistics are used in training as in evaluation, and stay as they are.
    The first batches are averaged with equal weights (1, 1/2, 1/3, ...) until `momentum` is the larger weight.
    """

    running_mean_D: Tensor
    running_var_D: Tensor
    num_batches: Tensor
    num_refused: Tensor

    def __init__(self, *, num_features: int, momentum: float = 0.05) -> None:
        super().__init__()
        self.momentum = momentum
        self.frozen = False
        self.sum_over_ranks: Callable[[Tensor], Tensor] = _identity
        self.register_buffer("running_mean_D", torch.zeros(num_features))
        self.register_buffer("running_var_D", torch.ones(num_features))
        self.register_buffer("num_batches", torch.zeros((), dtype=torch.int64))
        self.register_buffer("num_refused", torch.zeros((), dtype=torch.int64))

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Takes a training batch in and returns its mean and (biased) variance, each (D,), differentiable in x.

        Where the batch cannot be used (refused, or fewer than 2 rows) the running statistics are returned.
        """
        # Deviations from the running mean: sums of squares of raw values would cancel when the mean is large.
        shift_D = self.running_mean_D.clone()
        deviation_ND = x_ND - shift_D
        count_1 = x_ND.new_full((1,), float(x_ND.shape[0]))
        sums = self.sum_over_ranks(torch.cat([deviation_ND.sum(0), deviation_ND.square().sum(0), count_1]))
        count = sums[-1]
        mean_D, square_D = (sums[:-1] / count.clamp(min=1)).chunk(2)
        var_D = (square_D - mean_D.square()).clamp(min=0)
        finite = torch.isfinite(sums).all()
        usable = finite & (count >= 2)
        self._update(shift_D + mean_D.detach(), var_D.detach() * count / (count - 1).clamp(min=1), usable, finite)
        return (
            torch.where(usable, shift_D + mean_D, shift_D),
            torch.where(usable, var_D, self.running_var_D.clone()),
        )

    @torch.no_grad()
    def _update(self, mean_D: Tensor, var_D: Tensor, usable: Tensor, finite: Tensor) -> None:
        weight = (1.0 / (self.num_batches + 1)).clamp(min=self.momentum)
        self.running_mean_D.copy_(torch.where(usable, self.running_mean_D.lerp(mean_D, weight), self.running_mean_D))
        self.running_var_D.copy_(torch.where(usable, self.running_var_D.lerp(var_D, weight), self.running_var_D))
        self.num_batches += usable
        self.num_refused += ~finite


class BatchNorm(nn.Module):
    """(N, D) -> (N, D): by batch statistics over all ranks in training, by running ones in evaluation, then scaled."""

    def __init__(self, *, num_features: int, momentum: float = 0.05, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.statistics = BatchStatistics(num_features=num_features, momentum=momentum)
        self.weight_D = nn.Parameter(torch.ones(num_features))
        self.bias_D = nn.Parameter(torch.zeros(num_features))

    def forward(self, x_ND: Tensor) -> Tensor:
        if self.training and not self.statistics.frozen:
            mean_D, var_D = self.statistics(x_ND)
        else:
            mean_D, var_D = self.statistics.running_mean_D, self.statistics.running_var_D
        scale_D = self.weight_D * torch.rsqrt(var_D + self.eps)
        return torch.addcmul(self.bias_D - mean_D * scale_D, x_ND, scale_D)


class Standardize(nn.Module):
    """Raw input features (N, D) to mean 0 and variance 1 by running statistics, in training (after taking the batch in)
    as in evaluation, so that what is trained is what is served. A feature that never varied is 0 whatever its value:
    what stands behind it has learnt nothing of it, and any other value would come out hundreds of deviations away.

    Its memory is a thousand batches: what stands behind it learns with the same scale all along, also where batches are
    small (with 20 batches of 34 examples, the scale of a rare feature was more noise than measure).
    """

    def __init__(self, *, num_features: int, momentum: float = 0.001, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.statistics = BatchStatistics(num_features=num_features, momentum=momentum)

    def forward(self, x_ND: Tensor) -> Tensor:
        if self.training and not self.statistics.frozen:
            self.statistics(x_ND)
        mean_D, var_D = self.statistics.running_mean_D, self.statistics.running_var_D
        standard_ND = (x_ND - mean_D) * torch.rsqrt(var_D + self.eps)
        return torch.where(var_D > _ROUNDING * mean_D.square(), standard_ND, 0.0)


def build_norm(norm: Norm, *, num_features: int) -> nn.Module:
    """The module for `norm`; `Norm.none` is the identity."""
    if norm is Norm.batch:
        return BatchNorm(num_features=num_features)
    if norm is Norm.layer:
        return nn.LayerNorm(num_features)
    return nn.Identity()


def set_sum_over_ranks(model: nn.Module, sum_over_ranks: Callable[[Tensor], Tensor]) -> None:
    """Makes every `BatchStatistics` inside `model` sum over ranks with the given differentiable function."""
    for module in model.modules():
        if isinstance(module, BatchStatistics):
            module.sum_over_ranks = sum_over_ranks


def freeze_statistics(model: nn.Module) -> None:
    """From now on no `BatchStatistics` inside `model` learns, and all layers normalise by what they have learnt."""
    for module in model.modules():
        if isinstance(module, BatchStatistics):
            module.frozen = True


def refused_batches(model: nn.Module) -> dict[str, int]:
    """How many batches each `BatchStatistics` inside `model` refused as not finite, by module name."""
    return {
        name: int(module.num_refused) for name, module in model.named_modules() if isinstance(module, BatchStatistics)
    }
