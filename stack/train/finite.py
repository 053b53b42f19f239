"""Which columns of a batch hold numbers that are NaN or infinite. A loss can hide them: log(1 + exp(-inf)) is 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from stack.data.batch import Batch


def float_columns(batch: Batch, dense: Mapping[str, Sequence[str]]) -> list[str]:
    """Names of ranking features and labels, the same on every rank; `dense`: names of the features of each group."""
    return [name for group in sorted(batch.groups) for name in _of_group(batch, group, dense.get(group, ()))]


def num_not_finite(batch: Batch) -> Tensor:
    """How many numbers of each column are not finite, in the order of `float_columns`."""
    counts = [
        (~torch.isfinite(value)).sum(0).reshape(-1)
        for group in sorted(batch.groups)
        for value in (batch.groups[group].dense_EF, *_labels(batch, group).values())
    ]
    return torch.cat(counts).double() if counts else torch.zeros(0, dtype=torch.float64)


def _of_group(batch: Batch, group: str, dense: Sequence[str]) -> list[str]:
    num_dense = batch.groups[group].dense_EF.shape[1]
    features = dense if len(dense) == num_dense else [f"feature {number}" for number in range(num_dense)]
    return [f"{group}.{name}" for name in (*features, *_labels(batch, group))]


def _labels(batch: Batch, group: str) -> dict[str, Tensor]:
    return dict(sorted(batch.groups[group].labels.items()))
