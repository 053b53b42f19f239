"""Counts rows of a source's tables beside its events, and those that are not used, by reason.

Nothing here refuses a log: a missing user among visits is normal for shops with guests.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import ibis
from ibis.expr.types import Table

from stack.data.canonical import Canonical
from stack.data.days import SECONDS_PER_DAY
from stack.data.engine import Engine

TIMED = ("visits", "impressions", "follow")
"""Tables whose rows are of a day; a row without user or time is not used."""
KEYED = {"items": "item", "users": "user"}
"""Side information and its keys; a row without its key or its `since` is not used, of those of one key and `since`
one is."""


@dataclass(kw_only=True)
class SideCounts:
    """Rows by day and table, and unused rows by day and reason, such as "visits_without_user".

    Day None holds rows without a time, and all of side information.
    """

    num_rows: dict[int | None, Counter[str]] = field(default_factory=dict)
    dropped: dict[int | None, Counter[str]] = field(default_factory=dict)

    def _add(self, table: str, day: int | None, reason: str | None, count: int) -> None:
        self.num_rows.setdefault(day, Counter())[table] += count
        if reason is not None:
            self.dropped.setdefault(day, Counter())[f"{table}_{reason}"] += count


def count_sides(canonical: Canonical, *, engine: Engine, first: int, last: int) -> SideCounts:
    """Counts the tables' rows of the days `first`..`last`, those without a time, and side information."""
    counts = SideCounts()
    for name in TIMED:
        table = getattr(canonical, name)
        if table is not None:
            for row in engine.fetch(_by_day(table, first, last)).to_pylist():
                counts._add(name, row["day"], row["reason"], row["n"])
    for name, key in KEYED.items():
        table = getattr(canonical, name)
        if table is not None:
            _add_keyed(counts, name, engine.fetch(_by_version(table, key)).to_pylist())
    return counts


def _by_day(table: Table, first: int, last: int) -> Table:
    day = (table.time.cast("int64") // SECONDS_PER_DAY).cast("int32")
    reason = ibis.cases((table.time.isnull(), "without_time"), (table.user.isnull(), "without_user"))
    rows = table.select(day=day, reason=reason)
    asked = rows.filter(rows.day.isnull() | rows.day.between(first, last))
    return asked.group_by("day", "reason").agg(n=lambda t: t.count())


def _by_version(table: Table, key: str) -> Table:
    since = table.since if "since" in table.columns else ibis.literal(0, "int64")
    versions = table.select(key=table[key], since=since).group_by("key", "since").agg(n=lambda t: t.count())
    reason = ibis.cases((versions.key.isnull(), f"without_{key}"), (versions.since.isnull(), "without_since"))
    counted = versions.mutate(reason=reason).group_by("reason")
    return counted.agg(num_rows=lambda t: t.n.sum(), num_versions=lambda t: t.count())


def _add_keyed(counts: SideCounts, name: str, found: list[dict[str, Any]]) -> None:
    for row in found:
        alike = row["num_versions"] if row["reason"] is None else row["num_rows"]
        counts._add(name, None, row["reason"], alike)
        if row["num_rows"] > alike:
            counts._add(name, None, "repeated", row["num_rows"] - alike)
