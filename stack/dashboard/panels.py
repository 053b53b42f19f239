"""What a panel is: what it asks, how the answer is drawn, from where on a value is bad.

Boards of panels (`stack.dashboard.boards`) are the one source of the page of `stack dashboard` and of Grafana's files
(`tools/dashboards`). Queries are PromQL with the variables that Grafana knows, which the page puts in as well:
`$run` a regular expression of the runs chosen, `$__rate_interval` the window of a rate, `$__range` all that is shown.

Every query keeps the label `run` and leaves it out of its legend: it is put before the legend where there are several.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


class Kind(Enum):
    """How a panel is drawn."""

    line = "line"
    stat = "stat"  # the newest value, large, with its course
    table = "table"  # a row for each combination of `keys`, a column for each query
    heatmap = "heatmap"  # of a histogram's buckets: the query keeps `le` alone


class Unit(Enum):
    """What a value is of, which decides how it is written."""

    number = "number"
    per_second = "per_second"
    share = "share"  # 1 is 100%
    seconds = "seconds"
    bytes = "bytes"


class Level(Enum):
    """What a value means."""

    ok = "ok"
    warning = "warning"
    critical = "critical"


@dataclass(frozen=True, kw_only=True)
class Step:
    """From `value` on (None: from below all values) it means `level`."""

    value: float | None
    level: Level


Steps = tuple[Step, ...]


def above(*, warning: float | None = None, critical: float | None = None) -> Steps:
    """High values are bad."""
    steps = [Step(value=None, level=Level.ok)]
    if warning is not None:
        steps.append(Step(value=warning, level=Level.warning))
    if critical is not None:
        steps.append(Step(value=critical, level=Level.critical))
    return tuple(steps)


def within(*, critical_below: float, warning_below: float, warning: float, critical: float) -> Steps:
    """What is far from the middle is bad, to either side."""
    return (
        Step(value=None, level=Level.critical),
        Step(value=critical_below, level=Level.warning),
        Step(value=warning_below, level=Level.ok),
        Step(value=warning, level=Level.warning),
        Step(value=critical, level=Level.critical),
    )


@dataclass(frozen=True, kw_only=True)
class Query:
    """One question to Prometheus."""

    expr: str
    legend: str = ""
    """With `{{label}}` where a label's value goes; of a table, the title of the column."""
    unit: Unit | None = None
    """Of a table's column; None is the panel's."""
    steps: Steps = ()
    """Of a table's column."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A part of a board that answers one question."""

    title: str
    look: str
    """A sentence: what to look for."""
    kind: Kind = Kind.line
    unit: Unit = Unit.number
    queries: tuple[Query, ...]
    steps: Steps = ()
    keys: tuple[str, ...] = ()
    """Of a table: the labels that name a row, besides `run`."""
    words: Mapping[int, str] = field(default_factory=dict)
    """Values that are written as words."""
    empty: str = "No data in this range."
    """What it means that Prometheus has nothing."""
    logarithmic: bool = False

    def __post_init__(self) -> None:
        assert self.queries, self.title
        assert (self.kind is Kind.table) == bool(self.keys), self.title
        values = [step.value for step in self.steps if step.value is not None]
        assert values == sorted(values), self.title
        assert [step.value for step in self.steps[:1]] in ([], [None]), self.title


@dataclass(frozen=True, kw_only=True)
class Board:
    """The panels that somebody looks at together."""

    name: str
    title: str
    about: str
    range_seconds: int
    """Shown at first: losses move in minutes, a chain in days."""
    panels: tuple[Panel, ...]
