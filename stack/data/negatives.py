"""Negative examples: candidates that a user could have seen at a moment and did not take.

All ids are vocabulary rows (int64). Draws are arithmetic on ids, so that every engine draws the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from ibis.expr.types import Table


@dataclass(kw_only=True)
class NegativesConfig:
    """How many negatives each positive gets."""

    # negatives drawn uniformly from the pool, per positive
    num_uniform: int = 4
    # negatives drawn in proportion to popularity, per positive
    num_popularity: int = 4
    # days before a moment's day whose items are its candidates, for sources without pools
    pool_days: int = 28


def daily_pools(*, days: Table, item_days: Table, pool_days: int) -> Table:
    """Candidate pools for sources that have none: (pool, item), pool = day number, the items with an event in
    [day - pool_days, day - 1].

    `days`: day int32. `item_days`: distinct (day, item), of the chunk and of the state.
    """
    raise NotImplementedError


def draw(*, moments: Table, positives: Table, pools: Table, popularity: Table, settings: NegativesConfig) -> Table:
    """Examples (moment_id, item, clicked, weight, draw, rate_uniform, rate_popularity, context columns of `pools`).

    `moments`: moment_id int64 (user * 2**32 + time, the same under any chunking), user, day int32, time, pool,
    query columns. `positives`: distinct (moment_id, item), weight float64. `pools`: pool, item, context columns.
    `popularity`: (day, item, count): positive events of the item on days strictly before `day`.
    One row for each (moment_id, item, draw). Positives outside their moment's pool are dropped.
    """
    raise NotImplementedError
