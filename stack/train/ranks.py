"""What the processes of a job tell each other in a step, besides gradients and rows."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _SumOverRanks(torch.autograd.Function):
    """The total over ranks; every rank's loss depends on every rank's summand, so gradients are summed too."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def sum_over_ranks(values: Tensor) -> Tensor:
    """The differentiable total of `values` over ranks, for batch statistics that are the same everywhere.

    Its gradient is that of the *sum* of the ranks' losses.
    """
    if dist.get_world_size() == 1:
        return values
    total: Tensor = _SumOverRanks.apply(values)  # type: ignore[no-untyped-call]
    return total


def totals(values: Tensor) -> list[float]:
    """Plain sums over ranks, the same numbers on each of them; not a number on one is not a number on all."""
    summed = values.detach().clone()
    if dist.get_world_size() > 1:
        dist.all_reduce(summed)
    numbers: list[float] = summed.tolist()
    return numbers


def same_on_all_ranks(data: bytes) -> bool:
    """Whether every rank was given these bytes, by their digest."""
    if dist.get_world_size() == 1:
        return True
    digest = int.from_bytes(hashlib.sha256(data).digest()[:7])
    extremes = torch.tensor([digest, -digest])
    dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
    largest, smallest = extremes.tolist()
    return bool(largest == -smallest)


def from_first(data: bytes) -> bytes:
    """What rank 0 gave, on every rank; all must give as many bytes."""
    if dist.get_world_size() == 1:
        return data
    given = torch.tensor(list(data), dtype=torch.int64)
    if dist.get_rank() > 0:
        given.zero_()
    dist.all_reduce(given)
    return bytes(given.tolist())


def barrier() -> None:
    """Waits until every rank is here."""
    if dist.get_world_size() > 1:
        dist.barrier()
