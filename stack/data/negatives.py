"""Negative examples: candidates that a user could have seen at a moment and did not take.

All ids are int64: vocabulary rows, or any keys. Draws are arithmetic on ids, so that every engine draws the same.

A pool is put in the order of its items; `slot` numbers them and `low` <= x < `high` is an item's piece of the pool's
total weight, one more than its popularity. A uniform draw is a slot, a draw by popularity is a point of the total::

    item    slot   weight   low  high
    7       0      3        0    3
    9       1      1        3    4        <- the point 3 draws item 9, with probability 1 / 6
    12      2      2        4    6

To find the piece of a point by an equi-join, the total is cut in buckets of equal width and a piece is listed under
every bucket that it touches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import ibis
from ibis.expr.types import FloatingValue, IntegerValue, Table

from stack.base.errors import ConfigError

UNIFORM, POPULARITY = 1, 2
"""Values of the label `draw` of negatives; positives have 0."""
Keep = Callable[[str, Table], Table]
"""Computes an expression once, under a name that people can read (`Engine.materialize`)."""
_PRIME, _FACTOR, _OFFSET, _SECOND = 2_147_483_647, 1_389_796, 1_013, 1_000_003
_BUCKET_ITEMS = 4
"""Mean number of pieces in a bucket: higher lists fewer pieces twice and compares more of them with each draw."""


@dataclass(kw_only=True)
class NegativesConfig:
    """How many negatives each positive gets."""

    # negatives drawn uniformly from the pool, per positive
    num_uniform: int = 4
    # negatives drawn in proportion to popularity, per positive
    num_popularity: int = 4
    # days before a moment's day whose items are its candidates, for sources without pools
    pool_days: int = 28
    # largest weight of a positive, whose weight is the quantity bought (fuel is sold in thousands of units)
    max_weight: float = 8.0
    # another seed draws other negatives; 0 to 2^31 - 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_uniform", "num_popularity"):
            if getattr(self, name) < 1:
                raise ConfigError(f"negatives.{name}={getattr(self, name)}: must be 1 or more")
        if self.pool_days < 1:
            raise ConfigError(f"negatives.pool_days={self.pool_days}: must be 1 or more days")
        if self.max_weight < 1.0:
            raise ConfigError(f"negatives.max_weight={self.max_weight}: must be 1 or more")
        if not 0 <= self.seed < 2**31:
            raise ConfigError(f"negatives.seed={self.seed}: must be 0 to 2147483647")


def daily_pools(*, days: Table, item_days: Table, pool_days: int) -> Table:
    """Candidate pools for sources that have none: (pool, item, day), pool = day number, the items with an event in
    [day - pool_days, day - 1].

    `days`: day int32. `item_days`: distinct (day, item), of the chunk and of the state.
    """
    asked = days.select(day="day").distinct()
    seen = item_days.select("item", seen="day")
    pairs = asked.join(seen, [seen["seen"] < asked["day"], seen["seen"] >= asked["day"] - pool_days])
    return pairs.select("item", "day").distinct().mutate(pool=lambda t: t["day"].cast("int64"))


def draw(
    *, moments: Table, positives: Table, pools: Table, popularity: Table, settings: NegativesConfig, keep: Keep
) -> Table:
    """Examples (moment_id, item, clicked, weight, draw, rate_uniform, rate_popularity, context columns of `pools`).

    `moments`: moment_id int64 (user * 2**32 + time, the same under any chunking), user, day int32, time, pool,
    query columns. `positives`: distinct (moment_id, item), weight float64. `pools`: pool, item, `day` (the pool's
    reference day, not after any of its moments), context columns; rows of one (pool, item) are merged, context columns
    by their maximum. `popularity`: (day, item, count): positive events of the item on days strictly before `day`.

    One row for each (moment_id, item, draw). Positives outside their moment's pool are dropped. What was taken at
    the moment is never a negative, and an item that the same draw gives twice counts once; so there may be fewer
    than asked for. `rate_*` is the probability that the draw gives the item at the moment, for positives as if they
    had not been taken: 1 - (1 - p)^n for n draws that give it with probability p each.
    """
    context = [column for column in pools.columns if column not in ("pool", "item", "day")]
    taken = positives.select("moment_id", "item", "weight").inner_join(moments.select("moment_id", "pool"), "moment_id")
    listed = pools.semi_join(taken, "pool").select("pool", "item", "day").distinct()
    numbered = keep("pool_numbered", _number(listed, popularity))
    found = taken.inner_join(numbered, ["pool", "item"])
    observed = found.select(
        "moment_id", "pool", "item", "low", "high",
        weight=ibis.least(found["weight"], settings.max_weight).cast("float64"),
        clicked=ibis.literal(1.0, "float64"),
        draw=ibis.literal(0, "int64"),
    )  # fmt: skip
    observed = keep("pool_positives", observed)
    sizes = numbered.group_by("pool").aggregate(size=lambda t: t["slot"].max() + 1, total=lambda t: t["high"].max())
    asked = observed.group_by("moment_id").aggregate(num_positives=lambda t: t.count())
    asked = moments.select("moment_id", "user", "time", "pool").inner_join(asked, "moment_id")
    asked = keep("pool_moments", asked.inner_join(sizes, "pool"))
    drawn = ibis.union(_uniform(asked, numbered, settings), _by_popularity(asked, numbered, settings))
    free = drawn.distinct().anti_join(positives, ["moment_id", "item"])
    examples = ibis.union(observed, free.select(*observed.columns))
    if context:
        examples = _with_context(keep("pool_examples", examples), pools, context)
    return _with_rates(examples, asked, context, settings)


def _number(pools: Table, popularity: Table) -> Table:
    """Distinct pool rows (pool, item, day) with their slot and their piece [low, high) of the pool's total weight."""
    weighted = pools.left_join(popularity, ["day", "item"])
    weighted = weighted.select("pool", "item", piece=weighted["count"].fill_null(0).cast("float64") + 1.0)
    # float64 is exact for whole numbers up to 2^53; both windows have one frame, so that they share one pass
    so_far = ibis.window(group_by="pool", order_by="item", preceding=None, following=0)
    summed = weighted.mutate(
        slot=ibis.row_number().over(ibis.window(group_by="pool", order_by="item")).cast("int64"),
        high=weighted["piece"].sum().over(so_far).cast("int64"),
    )
    return summed.mutate(low=summed["high"] - summed["piece"].cast("int64")).drop("piece")


def _with_context(examples: Table, pools: Table, context: list[str]) -> Table:
    """`examples` with the context columns of their (pool, item): the maximum over its rows."""
    near = pools.semi_join(examples, ["pool", "item"])
    merged = near.group_by("pool", "item").aggregate([near[column].max().name(column) for column in context])
    return examples.inner_join(merged, ["pool", "item"])


def _uniform(asked: Table, numbered: Table, settings: NegativesConfig) -> Table:
    points = _points(asked, settings.num_uniform, UNIFORM, settings.seed)
    slots = points.select("moment_id", "pool", slot=points["number"] % points["size"])
    return _negatives(slots.inner_join(numbered, ["pool", "slot"]), UNIFORM)


def _by_popularity(asked: Table, numbered: Table, settings: NegativesConfig) -> Table:
    points = _points(asked, settings.num_popularity, POPULARITY, settings.seed)
    points = points.mutate(point=points["number"] % points["total"])
    points = points.select("moment_id", "pool", "point", bucket=_bucket(points, points["point"]))
    pieces = numbered.inner_join(asked.select("pool", "size", "total").distinct(), "pool")
    pieces = pieces.select(
        "pool", "item", "low", "high",
        bucket=_bucket(pieces, pieces["low"]),
        last=_bucket(pieces, pieces["high"] - 1),
    )  # fmt: skip
    wide = pieces.filter(pieces["last"] > pieces["bucket"])
    rest = wide.mutate(bucket=ibis.range(wide["bucket"] + 1, wide["last"] + 1).unnest())
    listed = ibis.union(pieces, rest.select(*pieces.columns)).drop("last")
    near = points.inner_join(listed, ["pool", "bucket"])
    hit = near.filter((near["point"] >= near["low"]) & (near["point"] < near["high"]))
    return _negatives(hit, POPULARITY)


def _bucket(t: Table, point: IntegerValue) -> IntegerValue:
    """The bucket of a point of the pool's total, of a table with the pool's `size` and `total`."""
    width = (t["total"] * _BUCKET_ITEMS / t["size"]).floor() + 1
    return (point / width).floor().cast("int64")


def _negatives(hits: Table, kind: int) -> Table:
    return hits.select(
        "moment_id", "pool", "item", "low", "high",
        weight=ibis.literal(1.0, "float64"),
        clicked=ibis.literal(0.0, "float64"),
        draw=ibis.literal(kind, "int64"),
    )  # fmt: skip


def _points(asked: Table, num_per_positive: int, kind: int, seed: int) -> Table:
    """`num_per_positive` pseudo-random numbers (`number`, 0 to 2^62 - 1) for each positive of each moment."""
    t = mixed(asked.mutate(high_=asked["user"] + seed), "high_")
    t = mixed(t.mutate(high_=t["high_"] + t["time"] + kind), "high_")
    t = t.mutate(which_=ibis.range(0, t["num_positives"] * num_per_positive).unnest())
    t = mixed(t.mutate(high_=t["high_"] + t["which_"]), "high_")
    t = mixed(t.mutate(low_=t["high_"] + _SECOND), "low_")
    return t.mutate(number=t["high_"] * 2**31 + t["low_"]).drop("high_", "low_", "which_")


def mixed(t: Table, column: str) -> Table:
    """`t` with the whole numbers of `column` (0 or more) replaced by ones of 0 to 2^31 - 2 that look random.

    x -> (a x + c)^5 modulo the prime 2^31 - 1: a permutation, since 5 does not divide p - 1, and unlike a chain of
    linear congruential steps not linear. No product leaves int64. A step for each use of x keeps the SQL short.
    """
    t = t.mutate(**{column: (t[column] % _PRIME * _FACTOR + _OFFSET) % _PRIME})
    t = t.mutate(square_=t[column] * t[column] % _PRIME)
    t = t.mutate(square_=t["square_"] * t["square_"] % _PRIME)
    return t.mutate(**{column: t["square_"] * t[column] % _PRIME}).drop("square_")


def _with_rates(examples: Table, asked: Table, context: list[str], settings: NegativesConfig) -> Table:
    t = examples.inner_join(asked.select("moment_id", "size", "total", "num_positives"), "moment_id")

    def rate(chance: FloatingValue, num_per_positive: int) -> FloatingValue:
        missed = (1.0 - chance) ** (t["num_positives"] * num_per_positive)
        return (1.0 - missed).cast("float64")

    return t.select(
        "moment_id", "item", "clicked", "weight", "draw", *context,
        rate_uniform=rate(1.0 / t["size"], settings.num_uniform),
        rate_popularity=rate((t["high"] - t["low"]) / t["total"], settings.num_popularity),
    )  # fmt: skip
