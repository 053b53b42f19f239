"""Examples that need no sampling from a pool: what was bought or shown at a moment, price tiers, follows, shops.

Ids are vocabulary rows, or keys, which may be negative; shops of the group `shop` are rows. Money is summed in whole
units of 1/10000, so that no sum depends on the order of its terms.
"""

from __future__ import annotations

from functools import reduce

import ibis
from ibis.expr.types import Table

from stack.data.features import level_as_of
from stack.data.negatives import mixed

PRICE_UNITS = 10_000
MAX_PRICED_ITEMS = 4
NUM_OTHER_SHOPS = 4
_PRIME = 2_147_483_647


def at_moments(rows: Table, moments: Table) -> Table:
    """`rows` (user, time, ...) of moments, with moment_id, bucket and day."""
    keys = moments.select("moment_id", "bucket", "day", user_=moments.user, time_=moments.time)
    joined = rows.inner_join(keys, (rows.user == keys.user_) & (rows.time == keys.time_))
    return joined.drop("user_", "time_")


def positives(*, events: Table, moments: Table) -> Table:
    """(moment_id, item, weight): items of positive events at a moment, weighted by quantity (at least 1 / 1000)."""
    bought = events.filter(events.positive & (events.item != 0))
    found = at_moments(bought.select("user", "time", "item", "quantity"), moments)
    units = (found.quantity.fill_null(1.0) * 1000).round().cast("int64")
    sums = found.mutate(units=units).group_by("moment_id", "item").agg(units=lambda t: t.units.sum())
    return sums.select("moment_id", "item", weight=ibis.greatest(sums.units, 1) / 1000.0)


def observed(shown: Table, moments: Table) -> Table:
    """Real impressions as examples: (moment_id, item, clicked, weight, draw 0, rates 0: nothing was sampled)."""
    columns = ["user", "time", "item", "clicked", "weight"]
    found = at_moments(shown.filter(shown.item != 0).select(*columns), moments)
    one = found.group_by("moment_id", "item").agg(clicked=lambda t: t.clicked.max(), weight=lambda t: t.weight.max())
    return one.select(
        "moment_id",
        "item",
        clicked=one.clicked.cast("float64"),
        weight=one.weight.cast("float64"),
        draw=ibis.literal(0, "int64"),
        rate_uniform=ibis.literal(0.0),
        rate_popularity=ibis.literal(0.0),
    )


def price(*, events: Table, moments: Table, state: dict[str, Table], edges: tuple[float, ...]) -> Table:
    """Price tiers of up to four items bought at a moment.

    The tier is the number of `edges` that the item's mean unit price, divided by the mean unit price of its category on
    earlier days, reaches. Items of a category without a price so far have none.
    """
    sold = events.filter(events.positive & (events.category != 0) & (events.item != 0) & (events.price > 0))
    sold = sold.mutate(units=(sold.price * PRICE_UNITS).round().cast("int64"))
    found = at_moments(sold.select("user", "time", "item", "category", "units"), moments)
    bought = found.group_by("moment_id", "bucket", "user", "day", "time", "item", "category").agg(
        units=lambda t: t.units.sum(), n=lambda t: t.count()
    )
    bought = _mix(bought, "user", "time", "item")
    order = ibis.row_number().over(group_by="moment_id", order_by=["mixed", "item", "category"])
    bought = bought.mutate(place=order).filter(lambda t: t.place < MAX_PRICED_ITEMS)
    keys = bought.select("category", "day").distinct()
    prior = level_as_of("category", keys=keys, events=events, state=state).filter(lambda t: t.priced > 0)
    joined = bought.inner_join(prior.select("category", "day", "spent", "priced"), ["category", "day"])
    ratio = (joined.units / joined.n) / (joined.spent / joined.priced)
    tier = reduce(lambda sum_, edge: sum_ + (ratio >= edge).cast("int64"), edges, ibis.literal(0, "int64"))
    return joined.select("moment_id", "bucket", "user", "day", "time", "place", tier=tier.cast("float64"))


def shop(*, moments: Table, num_shops: Table) -> Table:
    """The moment's shop (visited 1) and others among those known at the start of its day (visited 0)."""
    known = moments.filter(moments.shop > 0)
    visited = known.select("moment_id", "bucket", "user", "day", "time", "shop", visited=ibis.literal(1.0))
    drawn = known.inner_join(num_shops, "day").filter(lambda t: t.num_shops > 0)
    others = drawn.mutate(k=ibis.array(list(range(NUM_OTHER_SHOPS))).unnest())
    others = _mix(others, "user", "time", "k")
    others = others.mutate(pick=others.mixed % others.num_shops + 1).filter(lambda t: t["pick"] != t.shop)
    others = others.select("moment_id", "bucket", "user", "day", "time", shop=others["pick"]).distinct()
    return visited.union(others.mutate(visited=ibis.literal(0.0)))


def _mix(table: Table, *columns: str) -> Table:
    """`table` with `mixed`: a number below 2^31 - 1 that depends on all of the columns and looks random."""
    table = table.mutate(mixed=ibis.literal(0, "int64"))
    for column in columns:
        rest = (table[column].cast("int64") % _PRIME + _PRIME) % _PRIME  # of a negative key too from 0 up
        table = mixed(table.mutate(mixed=table.mixed + rest), "mixed")
    return table
