"""What a day's data was found to be against the days before it, as types for machines."""

from __future__ import annotations

from enum import Enum

import msgspec

from stack.audits.findings import Level


class Measure(Enum):
    """What is measured of a column. `how` it is told: see `stack.audits.data_page`."""

    volume = "volume"
    not_finite = "not finite"
    missing = "missing values"
    new = "new ids"
    distinct = "distinct"
    constant = "constant"
    distribution = "distribution"
    rate = "label rate"
    turned_rate = "label flip by its rate"
    turned_signs = "label flip by its features"


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One measure of one column on the day and on the reference days (null: not defined). `usual`: their mean. `low`
    to `high` is allowed, and what is beyond `stop_low` or `stop_high` stops a release (null: no limit)."""

    column: str
    measure: Measure
    value: float
    trend: tuple[float | None, ...]
    usual: float | None
    low: float | None = None
    high: float | None = None
    stop_low: float | None = None
    stop_high: float | None = None

    @property
    def level(self) -> Level:
        if _beyond(self.value, self.stop_low, self.stop_high):
            return Level.critical
        return Level.warning if _beyond(self.value, self.low, self.high) else Level.ok


class ColumnReport(msgspec.Struct, frozen=True, kw_only=True):
    """`kind`: volume, number, ids or label. `quantiles` (`data_columns.QUANTILES`) of numbers alone."""

    name: str
    kind: str
    count: int
    num_distinct: int
    figures: tuple[Figure, ...]
    mean: float | None = None
    quantiles: tuple[float, ...] = ()


class DataReport(msgspec.Struct, frozen=True, kw_only=True):
    """One day of one dataset. `holiday`: said to be one, so that what is unusual stops nothing."""

    day: str
    dataset: str
    holiday: bool
    reference_days: tuple[str, ...]
    columns: tuple[ColumnReport, ...]

    @property
    def figures(self) -> list[Figure]:
        return [figure for column in self.columns for figure in column.figures]


class DaysReport(msgspec.Struct, frozen=True, kw_only=True):
    """Several days, each against those before it."""

    days: tuple[DataReport, ...]


def _beyond(value: float, low: float | None, high: float | None) -> bool:
    return (low is not None and value < low) or (high is not None and value > high)
