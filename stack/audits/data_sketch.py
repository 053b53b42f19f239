"""Distributions of a column as counts that can be added up over files and days, and how far two of them are apart.

Legend: N values, B buckets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]

_GROWTH = np.log(1.02)
"""A bucket reaches 2% further than the one before: no value is off by more than 1% (DDSketch, arXiv 1908.10693)."""
_TINY = 1e-12
"""What is nearer to 0 counts as 0."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many values lie in each bucket that has any; `bucket_B` ascends, and values with it."""

    bucket_B: Whole
    count_B: Whole

    @classmethod
    def of(cls, value_N: NDArray[Any]) -> Counts:
        """Of finite numbers."""
        size_N = np.abs(value_N.astype(np.float64))
        place_N = np.floor(np.log(np.maximum(size_N, _TINY) / _TINY) / _GROWTH) + 1
        bucket_N = np.where(size_N < _TINY, 0, np.sign(value_N) * place_N).astype(np.int64)
        return cls.of_whole(bucket_N)

    @classmethod
    def of_whole(cls, bucket_N: Whole) -> Counts:
        """Of whole numbers that are buckets themselves."""
        bucket_B, count_B = np.unique(bucket_N, return_counts=True)
        return cls(bucket_B=bucket_B.astype(np.int64), count_B=count_B.astype(np.int64))

    @property
    def num_values(self) -> int:
        return int(self.count_B.sum())

    def values(self) -> Floats:
        """(B,): what stands for the values of each bucket."""
        size_B = _TINY * np.exp((np.abs(self.bucket_B) - 0.5) * _GROWTH)
        return np.where(self.bucket_B == 0, 0.0, np.sign(self.bucket_B) * size_B)

    def __add__(self, other: Counts) -> Counts:
        return total([self, other])

    def __sub__(self, other: Counts) -> Counts:
        """Without counts that are part of these."""
        count_B = self.count_B.copy()
        count_B[np.searchsorted(self.bucket_B, other.bucket_B)] -= other.count_B
        kept_B = count_B > 0
        return Counts(bucket_B=self.bucket_B[kept_B], count_B=count_B[kept_B])

    def quantiles(self, shares: Sequence[float]) -> list[float]:
        """The values below which these shares of all lie; there must be some."""
        reached_B = np.cumsum(self.count_B)
        places = np.searchsorted(reached_B, np.asarray(shares) * reached_B[-1])
        return [float(one) for one in self.values()[np.minimum(places, len(reached_B) - 1)]]


def total(counts: Sequence[Counts]) -> Counts:
    """All of them together."""
    bucket_B, place_N = np.unique(np.concatenate([one.bucket_B for one in counts]), return_inverse=True)
    count_B = np.bincount(place_N, weights=np.concatenate([one.count_B for one in counts]), minlength=len(bucket_B))
    return Counts(bucket_B=bucket_B, count_B=count_B.astype(np.int64))


def wasserstein(one: Counts, other: Counts) -> float:
    """The mean way that a value must go for one distribution to become the other: the integral of |F - G|."""
    both = one + other
    gaps = np.diff(both.values())
    apart_B = np.cumsum(_shares(one, both.bucket_B) - _shares(other, both.bucket_B))
    return float(np.abs(apart_B[:-1]) @ gaps)


def jensen_shannon(one: Counts, other: Counts) -> float:
    """The distance, base 2: 0 for the same shares, 1 where no bucket has values of both."""
    bucket_B = np.union1d(one.bucket_B, other.bucket_B)
    p_B, q_B = _shares(one, bucket_B), _shares(other, bucket_B)
    middle_B = (p_B + q_B) / 2
    return float(np.sqrt(max(0.0, (_divergence(p_B, middle_B) + _divergence(q_B, middle_B)) / 2)))


def _divergence(p_B: Floats, q_B: Floats) -> float:
    some_B = p_B > 0
    return float(np.sum(p_B[some_B] * np.log2(p_B[some_B] / q_B[some_B])))


def _shares(counts: Counts, bucket_B: Whole) -> Floats:
    share_B = np.zeros(len(bucket_B))
    share_B[np.searchsorted(bucket_B, counts.bucket_B)] = counts.count_B / max(counts.num_values, 1)
    return share_B
