"""Running sums as of the start of a day, as one window and one equi-join, alike on every engine.

Facts are rows that add something from their day on; a key asks what had been added on strictly earlier days. A fact
counts as known on the day after its own; keys and facts are put in one table and added up by day, so that the running
sum up to a key's row holds exactly the facts of earlier days::

    fact on day 3: count 1         known  count  asked  running sum
    key of day 5                   4      1      0      1
    fact on day 5: count 2         5      0      1      1            <- the answer for day 5 does not know day 5
    key of day 6                   6      2      1      3

Sums are whole numbers: their value depends neither on the order of rows nor on how days were split in chunks.
(They are added as float64, which is exact up to 2^53 and much faster than DuckDB's 128-bit sums.)
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
    facts = facts.semi_join(keys.select(*by), list(by))
    known = facts.select(
        *by, *days, *(facts[name].cast("float64").name(name) for name in sums),
        known=(facts["day"] + 1).cast("int32"), asked=ibis.literal(0, "int8"),
    )  # fmt: skip
    nothing = {name: ibis.null("int32") for name in days} | {name: ibis.literal(0.0, "float64") for name in sums}
    asked = keys.select(*by, **nothing, known=keys["day"], asked=ibis.literal(1, "int8"))
    rows = ibis.union(known, asked.select(*known.columns))
    daily = rows.group_by(*by, "known").aggregate(
        asked=rows["asked"].max(),
        **{name: rows[name].sum() for name in sums},
        **{name: _extreme(rows, name) for name in days},
    )
    so_far = ibis.window(group_by=list(by), order_by="known", preceding=None, following=0)
    running = {name: daily[name].sum().over(so_far) for name in sums}
    running |= {name: _extreme(daily, name).over(so_far) for name in days}
    answers = daily.select(*by, "asked", day="known", **running).filter(lambda t: t["asked"] == 1)
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
