"""What is kept of one column of a day, and the sums that it comes from.

Legend: N values, D distinct ids, K examples, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from stack.audits.data_sketch import Counts, Floats, total

NUM_BINS = 256
SAMPLE = 1024
"""Distinct keys that are kept of a table without a vocabulary: those whose hash is smallest, on all days alike, so that
the samples of two days tell how many keys they share."""
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_MAX_DISTINCT = 65_536
"""Distinct numbers are counted up to here."""


class NumberFacts(msgspec.Struct, frozen=True, kw_only=True, tag="number", forbid_unknown_fields=True):
    """Of `count` values; all but `num_not_finite` of them are in the figures. `buckets` and `counts`: `Counts`."""

    count: int
    num_not_finite: int
    mean: float
    deviation: float
    least: float
    most: float
    num_distinct: int
    buckets: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def distribution(self) -> Counts:
        return _counts(self.buckets, self.counts)

    @property
    def top_share(self) -> float:
        """Of the commonest value, to within 1% of its size."""
        return max(self.counts, default=0) / max(sum(self.counts), 1)

    @property
    def quantiles(self) -> list[float]:
        """At `QUANTILES`; none where nothing is finite."""
        return self.distribution.quantiles(QUANTILES) if self.counts else []


class IdFacts(msgspec.Struct, frozen=True, kw_only=True, tag="ids", forbid_unknown_fields=True):
    """Of `count` ids, `num_unknown` of them row or key 0. `num_new`: rows that the day before did not have; null for
    keys and for the first day. `buckets` and `counts`: ids in `NUM_BINS` bins. `sample`: of keys alone."""

    table: str
    count: int
    num_unknown: int
    num_distinct: int
    num_of_top: int
    num_new: int | None
    buckets: tuple[int, ...]
    counts: tuple[int, ...]
    sample: tuple[int, ...] = ()

    @property
    def distribution(self) -> Counts:
        return _counts(self.buckets, self.counts)

    @property
    def top_share(self) -> float:
        return self.num_of_top / max(self.count, 1)


Facts = NumberFacts | IdFacts


class LabelFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of `count` finite labels. `rate`: their mean, `weighted_rate` by the examples' weights. `binary`: all are 0 or 1.
    `signs`: correlation of each dense feature (by the logarithm of its size) with the label; null where either is
    constant."""

    count: int
    rate: float
    weighted_rate: float
    binary: bool
    signs: dict[str, float | None]


class NumberSums:
    """Adds up blocks of a column of numbers."""

    def __init__(self) -> None:
        self._count = self._num_not_finite = 0
        self._sum = self._squares = 0.0
        self._least, self._most = np.inf, -np.inf
        self._values: NDArray[Any] = np.empty(0)
        self._counts: list[Counts] = []

    def add(self, value_N: NDArray[Any]) -> None:
        finite_N = np.isfinite(value_N)
        used_N = value_N[finite_N].astype(np.float64)
        self._count += len(value_N)
        self._num_not_finite += len(value_N) - len(used_N)
        if not len(used_N):
            return
        self._sum += float(used_N.sum())
        self._squares += float(np.square(used_N).sum())
        self._least, self._most = min(self._least, float(used_N.min())), max(self._most, float(used_N.max()))
        if len(self._values) < _MAX_DISTINCT:
            self._values = np.union1d(self._values, used_N)[:_MAX_DISTINCT]
        self._counts.append(Counts.of(used_N))

    def facts(self) -> NumberFacts:
        num = self._count - self._num_not_finite
        mean = self._sum / max(num, 1)
        counts = total(self._counts) if self._counts else Counts.of(np.empty(0))
        return NumberFacts(
            count=self._count, num_not_finite=self._num_not_finite, mean=mean,
            deviation=float(np.sqrt(max(self._squares / max(num, 1) - mean**2, 0.0))),
            least=self._least if num else 0.0, most=self._most if num else 0.0, num_distinct=len(self._values),
            buckets=tuple(counts.bucket_B.tolist()), counts=tuple(counts.count_B.tolist()),
        )  # fmt: skip


class IdSums:
    """Adds up blocks of a column of ids. `num_known`: rows that the day before had. `keys`: there is no vocabulary."""

    def __init__(self, *, table: str, num_known: int | None, keys: bool, has_unknown: bool = True) -> None:
        self._table = table
        self._num_known = num_known
        self._keys = keys
        self._has_unknown = has_unknown
        self._ids: list[Counts] = []

    def add(self, id_N: NDArray[Any]) -> None:
        self._ids.append(Counts.of_whole(id_N.astype(np.int64)))
        if len(self._ids) > 8:
            self._ids = [total(self._ids)]

    def facts(self) -> IdFacts:
        ids = total(self._ids)
        id_D, count_D = ids.bucket_B, ids.count_B
        unknown_D = (id_D == 0) & self._has_unknown
        new_D = id_D >= (self._num_known or 0)
        bins = np.bincount(_bin(id_D, keys=self._keys), weights=count_D, minlength=NUM_BINS).astype(np.int64)
        used = np.flatnonzero(bins)
        return IdFacts(
            table=self._table, count=ids.num_values, num_unknown=int(count_D[unknown_D].sum()),
            num_distinct=int((~unknown_D).sum()), num_of_top=int(count_D.max(initial=0)),
            num_new=None if self._num_known is None else int(count_D[new_D].sum()),
            buckets=tuple(used.tolist()), counts=tuple(bins[used].tolist()),
            sample=_sample(id_D[~unknown_D]) if self._keys else (),
        )  # fmt: skip


class LabelSums:
    """Adds up blocks of one label of a group, beside the group's dense features."""

    def __init__(self, *, features: Sequence[str]) -> None:
        self._features = tuple(features)
        self._num = 0
        self._binary = True
        self._label = np.zeros(2)  # sums of y and y^2
        self._weights = np.zeros(2)  # sums of w and w y
        self._dense_3F = np.zeros((3, len(self._features)))  # sums of x, x^2 and x y
        self._label_3F = np.zeros((3, len(self._features)))  # number of these, and of y and y^2 beside them

    def add(self, label_K: NDArray[Any], dense_KF: NDArray[Any], weight_K: NDArray[Any] | None) -> None:
        usable_K = np.isfinite(label_K)
        if weight_K is not None:
            usable_K &= np.isfinite(weight_K)
        y_K = label_K[usable_K].astype(np.float64)
        w_K = np.ones_like(y_K) if weight_K is None else weight_K[usable_K].astype(np.float64)
        self._num += len(y_K)
        self._binary &= bool(np.all((y_K == 0) | (y_K == 1)))
        self._label += [y_K.sum(), np.square(y_K).sum()]
        self._weights += [w_K.sum(), w_K @ y_K]
        if not self._features:
            return
        dense_KF = dense_KF[usable_K].astype(np.float64)
        finite_KF = np.isfinite(dense_KF)
        x_KF = np.where(finite_KF, np.sign(dense_KF) * np.log1p(np.abs(np.where(finite_KF, dense_KF, 0.0))), 0.0)
        self._dense_3F += [x_KF.sum(0), np.square(x_KF).sum(0), y_K @ x_KF]
        self._label_3F += [finite_KF.sum(0), y_K @ finite_KF, np.square(y_K) @ finite_KF]

    def facts(self) -> LabelFacts:
        (x_F, xx_F, xy_F), (num_F, y_F, yy_F) = self._dense_3F, self._label_3F
        with np.errstate(invalid="ignore", divide="ignore"):
            spread_F = (xx_F / num_F - (x_F / num_F) ** 2) * (yy_F / num_F - (y_F / num_F) ** 2)
            sign_F = (xy_F / num_F - x_F * y_F / num_F**2) / np.sqrt(spread_F)
        signs = {
            name: round(float(sign), 6) if spread > 1e-12 and np.isfinite(sign) else None
            for name, sign, spread in zip(self._features, sign_F, spread_F, strict=True)
        }
        weight, weighted = self._weights
        return LabelFacts(
            count=self._num, rate=float(self._label[0]) / max(self._num, 1),
            weighted_rate=float(weighted / weight) if weight else 0.0, binary=self._binary, signs=signs,
        )  # fmt: skip


def mixed(key_N: NDArray[Any]) -> NDArray[np.uint64]:
    """Whole numbers as others that look random (splitmix64, Steele and others 2014)."""
    value_N = key_N.astype(np.int64).view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    value_N = (value_N ^ (value_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value_N = (value_N ^ (value_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value_N ^ (value_N >> np.uint64(31))


def share_unseen(sample: Sequence[int], earlier: Sequence[Sequence[int]]) -> float | None:
    """The share of distinct keys that no earlier day had, by the samples; null where there is nothing to tell it by."""
    highest = min((max(one) for one in (sample, *earlier) if len(one) >= SAMPLE), default=None)
    mine = {one for one in sample if highest is None or one <= highest}
    seen = {one for day in earlier for one in day}
    return len(mine - seen) / len(mine) if mine and earlier else None


def _sample(key_D: NDArray[Any]) -> tuple[int, ...]:
    hash_D = np.sort(mixed(key_D))[:SAMPLE]
    return tuple(hash_D.tolist())


def _bin(id_D: NDArray[Any], *, keys: bool) -> NDArray[np.int64]:
    """Rows by their number, so that a small vocabulary has a bin for each; keys by their hash."""
    whole_D = mixed(id_D) if keys else id_D.astype(np.uint64)
    return (whole_D % np.uint64(NUM_BINS)).astype(np.int64)


def _counts(buckets: Sequence[int], counts: Sequence[int]) -> Counts:
    return Counts(bucket_B=np.asarray(buckets, dtype=np.int64), count_B=np.asarray(counts, dtype=np.int64))


__all__ = ["Facts", "Floats", "IdFacts", "IdSums", "LabelFacts", "LabelSums", "NumberFacts", "NumberSums"]
