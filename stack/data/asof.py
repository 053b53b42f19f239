"""Running sums as of the start of a day, as one window and one equi-join, alike on every engine.

Facts are rows that add something from their day on; a key asks what had been added on strictly earlier days. Keys
and facts are put in one table in the order (day, keys before facts), so that the running sum up to a key's row holds
exactly the facts of earlier days::

    day  kind   count   running sum
    3    fact   1       1
    5    key    0       1            <- the answer for day 5 does not know day 5
    5    fact   2       3
    6    key    0       3

Sums are whole numbers: their value depends neither on the order of rows nor on how days were split in chunks.
(Windows add them as float64, which is exact up to 2^53 and much faster than DuckDB's 128-bit sums.)
"""

from __future__ import annotations

from collections.abc import Sequence

import ibis
from ibis.expr.types import IntegerValue, Table


def as_of(*, keys: Table, facts: Table, by: Sequence[str], sums: Sequence[str], days: Sequence[str] = ()) -> Table:
    """Distinct (*by, day) of `keys` with the sums of `facts` of strictly earlier days and their first and last day.

    `facts`: *by, day, *sums int64, *days int32 nullable; `days` is any of `first` (lowest) and `last` (highest). Keys
    without earlier facts have sums of 0 and null days.
    """
    asked = keys.select(*by, "day").distinct()
    facts = facts.semi_join(asked, list(by)).select(
        *by, "day", *days, *(facts[name].cast("float64").name(name) for name in sums), is_fact=ibis.literal(1, "int8")
    )
    nothing = {name: ibis.null("int32") for name in days} | {name: ibis.literal(0.0) for name in sums}
    rows = ibis.union(facts, asked.mutate(**nothing, is_fact=ibis.literal(0, "int8")).select(*facts.columns))
    so_far = ibis.window(group_by=list(by), order_by=["day", "is_fact"], preceding=None, following=0)
    running = {name: rows[name].sum().over(so_far) for name in sums}
    running |= {name: _extreme(rows, name).over(so_far) for name in days}
    counted = rows.select(*by, "day", "is_fact", **running)
    answers = counted.filter(counted["is_fact"] == 0)
    return answers.select(*by, "day", *(answers[name].cast("int64").name(name) for name in sums), *days)


def compact(*, facts: Table, by: Sequence[str], sums: Sequence[str], days: Sequence[str], last_day: int) -> Table:
    """The same facts for every key later than `last_day`, with one row for all days up to it.

    Rows of days after `last_day` (sums that expire) stay apart, added up by day.
    """
    merged = facts.mutate(day=ibis.greatest(facts["day"], ibis.literal(last_day, "int32")).cast("int32"))
    totals = {name: merged[name].sum().cast("int64") for name in sums}
    return merged.group_by([*by, "day"]).aggregate(**totals, **{name: _extreme(merged, name) for name in days})


def _extreme(rows: Table, name: str) -> IntegerValue:
    return rows[name].min() if name == "first" else rows[name].max()
