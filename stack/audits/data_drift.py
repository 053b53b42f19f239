"""A day's profile against those of the days before: each measure of each column, with what is allowed.

What is allowed comes from the reference days themselves, mean and three deviations (as NannyML does with its chunks),
but is never narrower than a floor: with millions of values any difference is significant, and few of them matter.

A label that is turned round shows in what tells it. Its log-odds, and its correlations with the features, are the usual
ones times a factor: near 1 on an ordinary day, near -1 on a flipped one. The first is blind where half the labels are
positive, the second where features say nothing; AUC of the version before, the third, is in `stack.daily.gate`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from stack.audits.data_columns import IdFacts, LabelFacts, NumberFacts, share_unseen
from stack.audits.data_config import DataAuditConfig
from stack.audits.data_day import SAMPLING, DayProfile, profile_of
from stack.audits.data_report import ColumnReport, DataReport, Figure, Measure
from stack.audits.data_sketch import Counts, jensen_shannon, total, wasserstein
from stack.data.dataset import Dataset

_CHANCE = 1e-6
"""A column is stuck where it would be constant by chance less often than this."""
_TELLING_LOG_ODDS = math.log(1.5)
"""Nearer to even odds a rate does not tell a flip."""
_ERRORS = 4.0
"""Standard errors that there must be between ordinary days and what is called a flip."""
_STEADY = 0.4
"""A distribution that may move by more than this share of what is critical, by the reference days, stops nothing."""
_STRICT = ("events", "moments")
"""Volumes that stop a release; examples of small groups come and go."""

Trend = Sequence[float | None]


def data_report(
    dataset: Dataset, day: str, *, config: DataAuditConfig, folder: Path | None, learnt: Sequence[str] | None = None
) -> DataReport:
    """Holds a day against the latest days before it: those of `learnt`, or all that are prepared. Profiles are kept in
    `folder` where one is given.

    Raises: `DataError` where a day is not prepared or cannot be read.
    """
    usable = dataset.days() if learnt is None else sorted(set(learnt) & set(dataset.days()))
    earlier = [one for one in usable if one < day and not config.is_holiday(one)][-config.reference_days :]
    profile = profile_of(dataset, day, folder=folder)
    references = [profile_of(dataset, one, folder=folder) for one in earlier]
    return compared(profile, references, config=config, dataset=str(dataset.path))


def compared(
    profile: DayProfile, references: Sequence[DayProfile], *, config: DataAuditConfig, dataset: str = ""
) -> DataReport:
    """A profile against those of reference days, oldest first."""
    judge = _Judge(config, enough=len(references) >= config.min_reference_days)
    columns = [
        ColumnReport(
            name=name, kind="volume", count=count, num_distinct=0,
            figures=(judge.volume(name, count, [one.volume.get(name, 0) for one in references]),),
        )
        for name, count in profile.volume.items()
    ]  # fmt: skip
    for name, ids in profile.ids.items():
        earlier = [one.ids[name] for one in references if name in one.ids and one.ids[name].count]
        figures = tuple(judge.ids(name, ids, earlier, num_draws=_num_draws(name, profile)))
        columns.append(
            ColumnReport(name=name, kind="ids", count=ids.count, num_distinct=ids.num_distinct, figures=figures)
        )
    for name, numbers in profile.numbers.items():
        before = [one.numbers[name] for one in references if name in one.numbers and one.numbers[name].counts]
        label = profile.labels.get(name)
        drawn = list(judge.numbers(name, numbers, before, num_draws=_num_draws(name, profile)))
        if label is not None and label.count:
            drawn += judge.label(name, label, [one.labels[name] for one in references if name in one.labels])
        columns.append(
            ColumnReport(
                name=name, kind="number" if label is None else "label", count=numbers.count,
                num_distinct=numbers.num_distinct, figures=tuple(drawn), mean=numbers.mean,
                quantiles=tuple(numbers.quantiles),
            )
        )  # fmt: skip
    return DataReport(
        day=profile.day, dataset=dataset, holiday=config.is_holiday(profile.day),
        reference_days=tuple(one.day for one in references), columns=tuple(columns),
    )  # fmt: skip


def _num_draws(column: str, profile: DayProfile) -> int:
    """Values of a column that are independent of each other, to be careful: one for each moment, or timeline."""
    by_timeline = column == "user" or column.startswith(("event.", "profile."))
    return profile.volume["timelines" if by_timeline else "moments"]


class _Judge:
    """Measures columns, and says what is allowed. `enough`: reference days to judge by."""

    def __init__(self, config: DataAuditConfig, *, enough: bool) -> None:
        self._config = config
        self._enough = enough

    def volume(self, name: str, count: int, earlier: Sequence[int]) -> Figure:
        low, high = self._times([max(one, 1) for one in earlier], warn=self._config.warn_volume)
        stop_low, stop_high = self._times([max(one, 1) for one in earlier], warn=self._config.critical_volume)
        strict = name in _STRICT
        return Figure(
            column=name, measure=Measure.volume, value=count, trend=tuple(map(float, earlier)), usual=_mean(earlier),
            low=low, high=high, stop_low=stop_low if strict else None, stop_high=stop_high if strict else None,
        )  # fmt: skip

    def ids(self, name: str, ids: IdFacts, earlier: Sequence[IdFacts], *, num_draws: int) -> Iterator[Figure]:
        config = self._config
        if not ids.count:
            return
        yield self._share(
            name, Measure.missing, ids.num_unknown / ids.count, [one.num_unknown / one.count for one in earlier],
            warn=config.warn_missing, stop=config.critical_missing,
        )  # fmt: skip
        new = _share_new(ids, earlier)
        if new is not None:
            trend = [_share_new(one, earlier[:place]) for place, one in enumerate(earlier)]
            many = ids.num_distinct >= config.min_values  # a new name among few is news, no other kind of ids
            stop = config.critical_new if many else None
            yield self._share(name, Measure.new, new, trend, warn=config.warn_new, stop=stop)
        yield self._distinct(name, ids.num_distinct, [one.num_distinct for one in earlier])
        if ids.num_unknown < ids.count:
            tops = [one.top_share for one in earlier]
            stuck = ids.top_share == 1.0
            yield self._constant(
                name, ids.top_share, tops, stuck=stuck, num_draws=min(num_draws, ids.count), num_values=ids.count
            )
        if earlier:
            apart, trend = _apart([one.distribution for one in earlier], ids.distribution, numbers=False)
            yield self._distance(
                name, apart, trend, warn=config.warn_divergence, stop=config.critical_divergence, num_values=ids.count
            )

    def numbers(
        self, name: str, numbers: NumberFacts, earlier: Sequence[NumberFacts], *, num_draws: int
    ) -> Iterator[Figure]:
        config = self._config
        if not numbers.count:
            return
        yield Figure(
            column=name, measure=Measure.not_finite, value=numbers.num_not_finite,
            trend=tuple(float(one.num_not_finite) for one in earlier), usual=0.0, high=0.0, stop_high=0.0,
        )  # fmt: skip
        if not numbers.counts:
            return
        tops = [1.0 if one.least == one.most else one.top_share for one in earlier]
        stuck = numbers.least == numbers.most
        top_share = 1.0 if stuck else numbers.top_share
        yield self._constant(
            name, top_share, tops, stuck=stuck, num_draws=min(num_draws, numbers.count), num_values=numbers.count,
            stops=name.rpartition(".")[2] not in SAMPLING,
        )  # fmt: skip
        if earlier:
            apart, trend = _apart([one.distribution for one in earlier], numbers.distribution, numbers=True)
            yield self._distance(
                name, apart, trend, warn=config.warn_distance, stop=config.critical_distance, num_values=numbers.count
            )

    def label(self, name: str, label: LabelFacts, earlier: Sequence[LabelFacts]) -> Iterator[Figure]:
        if not label.binary:
            return
        earlier = [one for one in earlier if one.count]
        odds, trend = _log_odds(label), [_log_odds(one) for one in earlier]
        usual = _mean(trend)
        if usual is None:
            return
        error = self._config.sigmas / math.sqrt(max(label.count * label.rate * (1 - label.rate), 0.5))
        spread = max(self._spread(trend), error)
        warn, stop = max(spread, math.log(self._config.warn_rate)), spread + math.log(self._config.critical_rate)
        bounds = [_chance(usual + way) if self._enough else None for way in (-warn, warn, -stop, stop)]
        yield Figure(
            column=name, measure=Measure.rate, value=_chance(odds), trend=tuple(map(_chance, trend)),
            usual=_chance(usual),
            low=bounds[0], high=bounds[1], stop_low=bounds[2], stop_high=bounds[3],
        )  # fmt: skip
        if abs(usual) > max(_TELLING_LOG_ODDS, self._spread(trend), error):
            yield self._turned(name, Measure.turned_rate, odds / usual, [one / usual for one in trend])
        turned, certain = _turned_signs(label, earlier), _certain(label, earlier)
        if turned is not None and certain:
            ordinary = [
                _turned_signs(one, [*earlier[:place], *earlier[place + 1 :]]) for place, one in enumerate(earlier)
            ]
            yield self._turned(name, Measure.turned_signs, turned, ordinary)

    def _turned(self, name: str, measure: Measure, value: float, trend: Trend) -> Figure:
        """Judged only where the reference days all agree on which way is up."""
        known, usual = [one for one in trend if one is not None], _mean(trend)
        tells = self._enough and len(known) >= 2 and usual is not None and usual - self._spread(known) > 0
        limit = self._config.flipped if tells else None
        return Figure(
            column=name, measure=measure, value=value, trend=tuple(trend), usual=usual, low=limit, stop_low=limit
        )

    def _share(
        self, name: str, measure: Measure, value: float, trend: Trend, *, warn: float, stop: float | None
    ) -> Figure:
        usual = _mean(trend)
        high = stop_high = None
        if usual is not None and self._enough:
            high = usual + max(self._spread(trend), warn)
            stop_high = None if stop is None else max(high, min(usual + stop, (1 + usual) / 2))
        return Figure(
            column=name, measure=measure, value=value, trend=tuple(trend), usual=usual, high=high, stop_high=stop_high
        )

    def _distinct(self, name: str, value: int, earlier: Sequence[int]) -> Figure:
        low, high = self._times([max(one, 1) for one in earlier], warn=self._config.warn_volume)
        return Figure(
            column=name, measure=Measure.distinct, value=value, trend=tuple(map(float, earlier)), usual=_mean(earlier),
            low=low, high=high,
        )  # fmt: skip

    def _constant(
        self,
        name: str,
        value: float,
        tops: Sequence[float],
        *,
        stuck: bool,
        num_draws: int,
        num_values: int,
        stops: bool = True,
    ) -> Figure:
        """`value`: the share of the commonest value. It stops nothing where it swings so far by itself that it may come
        to 1, nor where values are few: all offers of a day may belong to one campaign; nor (not `stops`) where it tells
        how the log was sampled, and no model reads it."""
        usual = _mean(tops)
        high = stop_high = None
        if stuck and usual is not None and self._enough and max(tops) < 1 and max(tops) ** num_draws < _CHANCE:
            high = max(tops)
            few = num_values < self._config.min_values
            stop_high = None if few or not stops or usual + self._spread(tops) >= 1 else high
        return Figure(
            column=name, measure=Measure.constant, value=value, trend=tuple(tops), usual=usual, high=high,
            stop_high=stop_high,
        )  # fmt: skip

    def _distance(self, name: str, value: float, trend: Trend, *, warn: float, stop: float, num_values: int) -> Figure:
        usual = _mean(trend) or 0.0
        judged = self._enough and num_values >= self._config.min_values
        high = max(warn, usual + self._spread(trend)) if judged else None
        steady = high is not None and high <= max(warn, _STEADY * stop)
        return Figure(
            column=name, measure=Measure.distribution, value=value, trend=tuple(trend), usual=usual, high=high,
            stop_high=stop if steady else None,
        )  # fmt: skip

    def _spread(self, trend: Trend) -> float:
        """What the reference days allow on either side of their mean."""
        known = [one for one in trend if one is not None]
        return self._config.sigmas * float(np.std(known, ddof=1)) if len(known) > 1 else 0.0

    def _times(self, earlier: Sequence[float], *, warn: float) -> tuple[float | None, float | None]:
        """`warn` times more or fewer than usual, by logarithms, or what the reference days allow."""
        if not (earlier and self._enough):
            return None, None
        logs = [math.log(one) for one in earlier]
        middle, width = float(np.mean(logs)), max(self._spread(logs), math.log(warn))
        return math.exp(middle - width), math.exp(middle + width)


def _mean(values: Trend) -> float | None:
    known = [one for one in values if one is not None]
    return float(np.mean(known)) if known else None


def _share_new(ids: IdFacts, earlier: Sequence[IdFacts]) -> float | None:
    if ids.sample:
        return share_unseen(ids.sample, [one.sample for one in earlier])
    return None if ids.num_new is None or not ids.count else ids.num_new / ids.count


def _apart(earlier: Sequence[Counts], own: Counts, *, numbers: bool) -> tuple[float, list[float | None]]:
    """The distance of a day from the reference days, and of each of them from the others."""
    together = total(earlier)
    scale = _deviation(together) if numbers else 1.0

    def distance(one: Counts, other: Counts) -> float:
        return wasserstein(one, other) / scale if numbers else jensen_shannon(one, other)

    trend: list[float | None] = [distance(one, together - one) if len(earlier) > 1 else None for one in earlier]
    return distance(own, together), trend


def _deviation(counts: Counts) -> float:
    """Where nothing varies, of what is off by 1%."""
    share_B, value_B = counts.count_B / counts.num_values, counts.values()
    mean = float(share_B @ value_B)
    return max(float(np.sqrt(share_B @ (value_B - mean) ** 2)), abs(mean) / 100, 1e-9)


def _log_odds(label: LabelFacts) -> float:
    """With half an example more on either side, so that it is finite."""
    positives = label.weighted_rate * label.count
    return math.log((positives + 0.5) / (label.count - positives + 0.5))


def _chance(log_odds: float) -> float:
    return 1 / (1 + math.exp(-log_odds))


def _turned_signs(label: LabelFacts, earlier: Sequence[LabelFacts]) -> float | None:
    """The factor by which the correlations of features with the label are those of the reference days: the slope of the
    one over the other through the origin."""
    signs = _usual_signs(label, earlier)
    square = sum(usual * usual for usual in signs.values())
    product = sum((label.signs[feature] or 0.0) * usual for feature, usual in signs.items())
    return product / square if square > 0 else None


def _certain(label: LabelFacts, earlier: Sequence[LabelFacts]) -> bool:
    """Whether so many examples, were they independent, would tell a factor of 1 from one of -1."""
    square = sum(usual * usual for usual in _usual_signs(label, earlier).values())
    return label.count * square > _ERRORS**2


def _usual_signs(label: LabelFacts, earlier: Sequence[LabelFacts]) -> dict[str, float]:
    """Of the features that have one on the day."""
    usual = {
        name: _mean([one.signs.get(name) for one in earlier]) for name, sign in label.signs.items() if sign is not None
    }
    return {name: sign for name, sign in usual.items() if sign is not None}
