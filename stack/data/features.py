"""Ranking features of (moment, candidate) pairs, from events of strictly earlier days only.

All ids are int64: vocabulary rows, or any keys. `events` here is the engine's coded log of a chunk of days: user, day
int32, time int64, item, shop, brand, category, price float64 (nullable), positive bool, and optionally `discounted`
(int, 1 where the price was reduced). `state` holds one table for each name in `STATE`, as they stand at the start of
the chunk. Counts are numbers of positive events (purchases). Features, by what they need:

always      item_count, item_recent_count (last 28 days), item_freshness, item_age, user_item_count,
            user_item_freshness, user_count
price       price = ln(1 + mean unit price of the item), cheaper_than_category = ln(mean of the category / of the
            item), price_near_user = -|ln(mean of the item / mean of what the user pays)|; 0 while unknown
discounted  discount_share: share of the item's positive events at a reduced price
shop        shop_item_count, user_shop_share
brand       brand_count, user_brand_count, user_brand_share, user_brand_freshness
category    category_count, user_category_count, user_category_share, user_category_freshness, user_item_share (of
            the user's count in the category)
context     columns of the candidate pools, such as display and mailer, as they are

Every `*_count` is log1p of a number of events, so `expm1` gives the number back; shares divide by the user's count.
`*_freshness` = 28 / (27 + days since the last one), 0 if there was none: 1 yesterday, one half after 29 days.
`item_age` = ln(1 + days since the first sale).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ibis
from ibis.expr.types import NumericValue, Table

from stack.data.asof import as_of, compact
from stack.data.negatives import Keep

RECENT_DAYS = 28
PRICE_UNITS = 10_000
"""Prices are summed as integers of 1 / 10,000, so that no sum depends on the order of rows."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """What is summed for one kind of key; `days` is any of `first`, `last`: the first and last day with an event."""

    keys: tuple[str, ...]
    sums: tuple[str, ...] = ("count",)
    days: tuple[str, ...] = ()

    @property
    def schema(self) -> ibis.Schema:
        """Columns of the level's facts, as they are kept in the state."""
        sums, days = dict.fromkeys(self.sums, "int64"), dict.fromkeys(self.days, "int32")
        return ibis.schema(dict.fromkeys(self.keys, "int64") | {"day": "int32"} | sums | days)


LEVELS = {
    "item": Level(keys=("item",), sums=("count", "recent", "discounted", "priced", "spent"), days=("first", "last")),
    "brand": Level(keys=("brand",)),
    "category": Level(keys=("category",), sums=("count", "priced", "spent")),
    "shop_item": Level(keys=("shop", "item")),
    "user": Level(keys=("user",), sums=("count", "priced", "spent")),
    "user_item": Level(keys=("user", "item"), days=("last",)),
    "user_brand": Level(keys=("user", "brand"), days=("last",)),
    "user_category": Level(keys=("user", "category"), days=("last",)),
    "user_shop": Level(keys=("user", "shop")),
}
"""`recent` counts the last `RECENT_DAYS` days: a fact adds its count on its day and takes it back when it expires."""

STATE: dict[str, ibis.Schema] = {name: level.schema for name, level in LEVELS.items()} | {
    "item_day": ibis.schema({"day": "int32", "item": "int64"})
}
"""Tables carried from chunk to chunk; ingest saves and loads them as they are, and starts with empty ones."""

_ALWAYS = (
    "item_count", "item_recent_count", "item_freshness", "item_age",
    "user_item_count", "user_item_freshness", "user_count",
)  # fmt: skip
_PRICE = ("price", "cheaper_than_category", "price_near_user")
_SHOP = ("shop_item_count", "user_shop_share")
_BRAND = ("brand_count", "user_brand_count", "user_brand_share", "user_brand_freshness")
_CATEGORY = (
    "category_count", "user_category_count", "user_category_share", "user_category_freshness", "user_item_share",
)  # fmt: skip


def dense_names(
    *,
    price: bool = False,
    discounted: bool = False,
    shop: bool = False,
    brand: bool = False,
    category: bool = False,
    context: Sequence[str] = (),
) -> tuple[str, ...]:
    """Names of the ranking features of a source with these columns, for its schema's group `impression`."""
    names = list(_ALWAYS)
    for present, more in ((shop, _SHOP), (brand, _BRAND), (category, _CATEGORY)):
        names += more if present else ()
    if price:
        names += [name for name in _PRICE if category or name != "cheaper_than_category"]
    names += ["discount_share"] if discounted else []
    return (*names, *context)


def facts_of(level: str, *, events: Table, state: dict[str, Table]) -> Table:
    """The level's facts (for `stack.data.asof.as_of`): the state at the chunk's start and the chunk's events."""
    spec = LEVELS[level]
    positive = events.filter(events["positive"])
    columns = {
        "count": ibis.literal(1, "int64"),
        "recent": ibis.literal(1, "int64"),
        "discounted": positive["discounted"].fill_null(0).cast("int64")
        if "discounted" in positive.columns
        else ibis.literal(0, "int64"),
        "priced": positive["price"].notnull().cast("int64"),
        "spent": (positive["price"] * PRICE_UNITS + 0.5).floor().cast("int64").fill_null(0),
    }
    rows = positive.select(
        *spec.keys, "day", **{name: columns[name] for name in spec.sums}, **dict.fromkeys(spec.days, positive["day"])
    )
    parts = [state[level].select(*STATE[level]), rows]
    if "recent" in spec.sums:
        expired = {name: ibis.literal(-1 if name == "recent" else 0, "int64") for name in spec.sums}
        no_day = {name: ibis.null("int32") for name in spec.days}
        day = (positive["day"] + RECENT_DAYS).cast("int32")
        parts.append(positive.select(*spec.keys, day=day, **expired, **no_day))
    return ibis.union(*parts)


def level_as_of(level: str, *, keys: Table, events: Table, state: dict[str, Table]) -> Table:
    """Distinct (keys of the level, day) of `keys` with the level's sums and days over strictly earlier days."""
    spec = LEVELS[level]
    facts = facts_of(level, events=events, state=state)
    return as_of(keys=keys, facts=facts, by=spec.keys, sums=spec.sums, days=spec.days)


def popularity(*, events: Table, state: dict[str, Table], days: Table) -> Table:
    """(day, item, count): positive events of each item on days strictly before `day`, for each of `days`.

    Items without any have no row.
    """
    facts = facts_of("item", events=events, state=state).select("item", "count", earlier="day")
    asked = days.select("day").distinct()
    pairs = asked.join(facts, [facts["earlier"] < asked["day"], facts["count"] > 0])
    return pairs.group_by("day", "item").aggregate(count=lambda t: t["count"].sum().cast("int64"))


def item_days(*, events: Table, state: dict[str, Table]) -> Table:
    """Distinct (day, item) with an event, of the chunk and of the days before it that the state still holds."""
    seen = events.filter(events["item"] != 0).select("day", "item")
    return ibis.union(state["item_day"].select("day", "item"), seen).distinct()


def advance(*, events: Table, state: dict[str, Table], last_day: int, pool_days: int) -> dict[str, Table]:
    """The state at the end of `last_day`, from the state at the chunk's start and the chunk's events.

    `item_day` keeps the days that the pool of a later day can reach: `pool_days` back from the day after.
    """
    after = {}
    for name, level in LEVELS.items():
        facts = facts_of(name, events=events, state=state)
        merged = compact(facts=facts, by=level.keys, sums=level.sums, days=level.days, last_day=last_day)
        after[name] = merged.select(*STATE[name])
    days = item_days(events=events, state=state)
    return after | {"item_day": days.filter(days["day"] > last_day - pool_days)}


def ranking_features(
    *, examples: Table, events: Table, state: dict[str, Table], names: Sequence[str], keep: Keep
) -> Table:
    """`examples` with the columns `names` added (float64), of which context columns must be there already.

    `examples`: what `negatives.draw` gives (or real impressions) plus user, day, time, and the candidate's shop,
    brand and category at its moment. Rows are unique in (moment_id, item, draw).
    """
    columns = list(examples.columns)
    joined = examples
    for name in _levels(names):
        level = LEVELS[name]
        sums = keep(f"level_{name}", level_as_of(name, keys=examples, events=events, state=state))
        theirs = {column: f"{name}__{column}" for column in (*level.sums, *level.days)}
        keys = [*level.keys, "day"]
        found = sums.select(*keys, **{new: sums[old] for old, new in theirs.items()})
        joined = joined.left_join(found, keys).select(joined, *(found[new] for new in theirs.values()))
    formulas = _formulas(joined, names)
    dense = {name: formulas.get(name, joined[name] if name in columns else None) for name in names}
    missing = sorted(name for name, value in dense.items() if value is None)
    assert not missing, f"no formula and no context column for {missing}"
    kept = [column for column in columns if column not in dense]
    return joined.select(*kept, **{name: value.cast("float64") for name, value in dense.items() if value is not None})


def _levels(names: Sequence[str]) -> list[str]:
    """The levels that the named features read."""
    wanted = ["item", "user", "user_item"]
    reads = {
        "cheaper_than_category": ["category"],
        "shop_item_count": ["shop_item"],
        "user_shop_share": ["user_shop"],
        "brand_count": ["brand", "user_brand"],
        "category_count": ["category", "user_category"],
    }
    for name in names:
        wanted += [level for level in reads.get(name, []) if level not in wanted]
    return wanted


def _formulas(t: Table, names: Sequence[str]) -> dict[str, NumericValue]:
    """The computed features among `names`, over the joined sums `<level>__<column>`."""

    def number(level: str, column: str = "count") -> NumericValue:
        return t[f"{level}__{column}"].fill_null(0).cast("float64")

    def log1p(value: NumericValue) -> NumericValue:
        return (value + 1.0).ln()

    def share(part: NumericValue, whole: NumericValue) -> NumericValue:
        return ibis.ifelse(whole > 0, part / ibis.greatest(whole, 1.0), 0.0)

    def freshness(level: str) -> NumericValue:
        days = t["day"] - t[f"{level}__last"]
        return (RECENT_DAYS / (days + (RECENT_DAYS - 1)).cast("float64")).fill_null(0.0)

    def mean_price(level: str) -> NumericValue:
        """In whole units, null while unknown or zero."""
        return number(level, "spent").nullif(0) / number(level, "priced").nullif(0) / PRICE_UNITS

    def ratio(level: str, other: str) -> NumericValue:
        return (mean_price(level) / mean_price(other)).ln().fill_null(0.0)

    make = {
        "item_count": lambda: log1p(number("item")),
        "item_recent_count": lambda: log1p(number("item", "recent")),
        "item_freshness": lambda: freshness("item"),
        "item_age": lambda: log1p((t["day"] - t["item__first"]).cast("float64").fill_null(0.0)),
        "user_item_count": lambda: log1p(number("user_item")),
        "user_item_freshness": lambda: freshness("user_item"),
        "user_count": lambda: log1p(number("user")),
        "price": lambda: log1p(mean_price("item").fill_null(0.0)),
        "cheaper_than_category": lambda: ratio("category", "item"),
        "price_near_user": lambda: -(ratio("item", "user").abs()),
        "discount_share": lambda: share(number("item", "discounted"), number("item")),
        "shop_item_count": lambda: log1p(number("shop_item")),
        "user_shop_share": lambda: share(number("user_shop"), number("user")),
        "brand_count": lambda: log1p(number("brand")),
        "user_brand_count": lambda: log1p(number("user_brand")),
        "user_brand_share": lambda: share(number("user_brand"), number("user")),
        "user_brand_freshness": lambda: freshness("user_brand"),
        "category_count": lambda: log1p(number("category")),
        "user_category_count": lambda: log1p(number("user_category")),
        "user_category_share": lambda: share(number("user_category"), number("user")),
        "user_category_freshness": lambda: freshness("user_category"),
        "user_item_share": lambda: share(number("user_item"), number("user_category")),
    }
    return {name: make[name]() for name in names if name in make}
