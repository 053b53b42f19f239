"""Whether probabilities come true on live rows: predicted over observed by slice and by score, with error bars.

A part's rows weigh what they stand for. With A the predicted positives (the sum of weight times probability) and B the
observed ones, A / B is 1 where it is calibrated. The variance of B - A is taken twice, and the larger counts:

- *rows of a user are alike*: users are the independent draws, and their own differences tell the variance, whatever the
  weights are (cluster-robust). In a part with few positives they tell next to nothing;
- *positives are few, and negatives were drawn*: were it calibrated, and rows independent, the variance would be
  w sum(v p (1 - p)^2) + sum over negatives of (v p)^2, with v the weight of a row, p its probability, and w what a
  positive weighs (sum v^2 y / sum v y over the task). Where few of the negatives of a part were drawn the second sum is
  too small by chance, as A is; what the part's positives let expect of it, sum over positives of w n p (1 - p), counts
  where it is more, with n what a negative of about its score weighs (sum v^2 p / sum v p over those of its bucket;
  of the task where that has fewer than ten).

With u the variance over max(A, B), B / u is taken for a Poisson count of the mean A / u: exact tails for the test, and
Byar's approximation for the 95% limits (Rothman and Boice 1979). Of a task's parts Holm's procedure (1979) says which
are off, so that a false alarm on any of them is about as likely as `false_alarms` at most, however the parts overlap.

Legend: E rows, U users, P parts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from stack.audits.calibration_config import CalibrationConfig
from stack.tasks.metrics import sigmoid

Floats = NDArray[np.float64]
_Z95 = 1.959964
_ENOUGH = 10
"""Negatives of a part that tell what one weighs."""


@dataclass(frozen=True, kw_only=True)
class ScoredRows:
    """Of one task, line by line: log-odds on live traffic, label 0 or 1, what the row stands for, its user (any number)
    and which rows each slice has."""

    task: str
    logit_E: Floats
    label_E: Floats
    weight_E: Floats
    user_E: NDArray[np.int64]
    slices: Mapping[str, NDArray[np.bool_]]


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """Some rows of a task. `predicted` and `observed`: means over what the rows stand for. `ratio`: the first over the
    second, with its 95% limits; null where nothing was observed, or a limit is none. `p_value`: of a deviation as large
    where it is calibrated, for this part alone; `off`: found off, with regard to all parts."""

    name: str
    num_rows: int
    num_positives: int
    weight: float
    predicted: float
    observed: float
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    p_value: float
    off: bool


class TaskCalibration(msgspec.Struct, frozen=True, kw_only=True):
    """`error`: expected calibration error over the buckets, the mean of |predicted - observed| by weight; `relative`:
    the same over the mean observed (null without positives); `by_chance`: what `error` would come to were it
    calibrated. Rows with scores that are not finite are counted and left out."""

    task: str
    num_rows: int
    num_positives: int
    num_not_finite: int
    error: float
    relative: float | None
    by_chance: float
    buckets: tuple[Part, ...]
    slices: tuple[Part, ...]


class CalibrationReport(msgspec.Struct, frozen=True, kw_only=True):
    """Of all tasks whose scores are log-odds."""

    tasks: tuple[TaskCalibration, ...]


def calibration(tasks: Iterable[ScoredRows], config: CalibrationConfig) -> CalibrationReport:
    """Tasks without a row are left out."""
    return CalibrationReport(tasks=tuple(_task(rows, config) for rows in tasks if (rows.weight_E > 0).any()))


def _task(rows: ScoredRows, config: CalibrationConfig) -> TaskCalibration:
    measure = _Measure(rows, number=config.buckets)
    buckets = [measure.part(name, chosen_E) for name, chosen_E in measure.buckets]
    slices = [
        measure.part(name, chosen_E[measure.used_E])
        for name, chosen_E in rows.slices.items()
        if (rows.weight_E[chosen_E & measure.used_E] > 0).any()
    ]
    off = holm([part.p_value for part in (*buckets, *slices)], config.false_alarms)
    judged = [
        msgspec.structs.replace(part, off=is_off and _beyond(part, config.allowed_ratio))
        for part, is_off in zip((*buckets, *slices), off, strict=True)
    ]
    weight = sum(part.weight for part in buckets)
    differences = sum(part.weight * abs(part.predicted - part.observed) for part in buckets)
    observed = sum(part.weight * part.observed for part in buckets)
    by_chance = math.sqrt(2 / math.pi) * measure.deviation
    return TaskCalibration(
        task=rows.task, num_rows=len(measure.weight_E), num_positives=int((measure.label_E > 0).sum()),
        num_not_finite=int((~measure.used_E).sum()), error=differences / weight if weight else 0.0,
        relative=differences / observed if observed else None, by_chance=by_chance / weight if weight else 0.0,
        buckets=tuple(judged[: len(buckets)]), slices=tuple(judged[len(buckets) :]),
    )  # fmt: skip


class _Measure:
    """Sums of a task's rows that can be used, and its buckets, of which `number` are asked for. `deviation`: of the
    positives of all buckets, by chance."""

    def __init__(self, rows: ScoredRows, *, number: int) -> None:
        self.used_E = np.isfinite(rows.logit_E)
        self.label_E, self.weight_E = rows.label_E[self.used_E], rows.weight_E[self.used_E]
        self._logit_E = rows.logit_E[self.used_E]
        self._predicted_E = self.weight_E * sigmoid(self._logit_E)
        self._observed_E = self.weight_E * self.label_E
        _, self._user_E = np.unique(rows.user_E[self.used_E], return_inverse=True)
        predicted_E, observed_E = self._predicted_E, self._observed_E
        negative_E = np.where(self.label_E == 0, predicted_E, 0.0)
        # where there is no positive, what one would weigh on average: more, so rather too much
        self._weight = _mean(self.weight_E, observed_E if observed_E.any() else predicted_E)
        self._weight_negative_E = np.full(len(predicted_E), _mean(self.weight_E, negative_E))
        self._bucket_chosen = self._parted(number)
        for chosen_E in self._bucket_chosen:
            if np.count_nonzero(negative_E[chosen_E]) >= _ENOUGH:
                self._weight_negative_E[chosen_E] = _mean(self.weight_E[chosen_E], negative_E[chosen_E])

    @property
    def buckets(self) -> list[tuple[str, NDArray[np.bool_]]]:
        """Named by their places, from the lowest score."""
        return [(str(place), chosen_E) for place, chosen_E in enumerate(self._bucket_chosen, start=1)]

    @property
    def deviation(self) -> float:
        return sum(
            math.sqrt(self._predicted_E[chosen_E].sum() * self._unit_of(chosen_E)) for chosen_E in self._bucket_chosen
        )

    def _parted(self, number: int) -> list[NDArray[np.bool_]]:
        """By score, each part with as many predicted positives; rows with equal scores stay together."""
        if not self._predicted_E.any():
            return []
        order_E = np.argsort(self._logit_E, kind="stable")
        reached_E = np.cumsum(self._predicted_E[order_E])
        cuts = np.searchsorted(reached_E, reached_E[-1] * np.arange(1, number) / number * (1 - 1e-12))
        edges = np.unique(self._logit_E[order_E][np.minimum(cuts, len(order_E) - 1)])
        bucket_E = np.searchsorted(edges, self._logit_E)  # up to and with the edge
        parts = [bucket_E == bucket for bucket in range(len(edges) + 1)]
        return [chosen_E for chosen_E in parts if (self.weight_E[chosen_E] > 0).any()]

    def part(self, name: str, chosen_E: NDArray[np.bool_]) -> Part:
        predicted, observed = float(self._predicted_E[chosen_E].sum()), float(self._observed_E[chosen_E].sum())
        weight = float(self.weight_E[chosen_E].sum())
        unit = self._unit_of(chosen_E)
        low, high = _limits(observed / unit)
        return Part(
            name=name, num_rows=int(chosen_E.sum()), num_positives=int((self.label_E[chosen_E] > 0).sum()),
            weight=weight, predicted=predicted / weight, observed=observed / weight,
            ratio=predicted / observed if observed else None, ratio_low=predicted / (high * unit),
            ratio_high=predicted / (low * unit) if low else None,
            p_value=_p_value(observed / unit, predicted / unit), off=False,
        )  # fmt: skip

    def _unit_of(self, chosen_E: NDArray[np.bool_]) -> float:
        """u of above: what one of the positives that are taken for a Poisson count weighs."""
        predicted_E, observed_E = self._predicted_E[chosen_E], self._observed_E[chosen_E]
        _, user_E = np.unique(self._user_E[chosen_E], return_inverse=True)
        by_user_U = np.bincount(user_E, observed_E - predicted_E)
        num_users = len(by_user_U)
        between = num_users * float(by_user_U.var(ddof=1)) if num_users > 1 else 0.0
        missed_E = 1 - sigmoid(self._logit_E[chosen_E])
        probability_E = 1 - missed_E
        negative_E = np.where(self.label_E[chosen_E] == 0, predicted_E, 0.0)
        drawn = float((negative_E**2).sum())
        expected = float((observed_E * self._weight_negative_E[chosen_E]) @ (probability_E * missed_E))
        most = max(float(predicted_E.sum()), float(observed_E.sum()))
        variance = max(between, self._weight * float(predicted_E @ missed_E**2) + max(drawn, expected))
        return variance / most if variance > 0 else self._weight  # none where all is certain, and came true


def _mean(value_E: Floats, weight_E: Floats) -> float:
    total = float(weight_E.sum())
    return float(value_E @ weight_E) / total if total else 1.0


def _limits(count: float) -> tuple[float, float]:
    """95% limits of the mean of a Poisson count."""
    low = count * (1 - 1 / (9 * count) - _Z95 / (3 * math.sqrt(count))) ** 3 if count else 0.0
    above = count + 1
    return max(low, 0.0), above * (1 - 1 / (9 * above) + _Z95 / (3 * math.sqrt(above))) ** 3


def _p_value(count: float, mean: float) -> float:
    """Two-sided, of a count of this mean."""
    if mean <= 0:
        return 0.0 if count > 0 else 1.0

    def at_least(number: float) -> float:
        if number <= 0:
            return 1.0
        return float(torch.special.gammainc(torch.tensor(number, dtype=torch.float64), torch.tensor(mean).double()))

    return min(1.0, 2 * min(at_least(count), 1 - at_least(count + 1)))


def holm(p_values: Sequence[float], false_alarms: float) -> list[bool]:
    """Which of several hypotheses are rejected, so that any false one is with no more than this chance."""
    rejected = [False] * len(p_values)
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda one: p_values[one])):
        if p_values[index] > false_alarms / (len(p_values) - place):
            break
        rejected[index] = True
    return rejected


def _beyond(part: Part, allowed: float) -> bool:
    return part.ratio is None or abs(math.log(max(part.ratio, 1e-300))) > math.log(allowed)
