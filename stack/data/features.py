"""Ranking features of (moment, candidate) pairs, from events of strictly earlier days only.

All ids are vocabulary rows (int64). `events` here is the engine's coded log of a chunk of days:
user, day int32, time int64, item, shop, brand, category, type, scenario, price float64 (nullable), quantity float64,
positive bool. `state` holds one table for each name in `STATE`, as they stand at the start of the chunk.
"""

from __future__ import annotations

import ibis
from ibis.expr.types import Table

DENSE_NAMES: tuple[str, ...] = ()
"""Columns that `ranking_features` adds, in order (float64)."""

STATE: dict[str, ibis.Schema] = {}
"""Tables carried from chunk to chunk; ingest saves and loads them as they are, and starts with empty ones."""


def popularity(*, events: Table, state: dict[str, Table], days: Table) -> Table:
    """(day, item, count): positive events of each item on days strictly before `day`, for each of `days`.

    Items without any have no row.
    """
    raise NotImplementedError


def item_days(*, events: Table, state: dict[str, Table]) -> Table:
    """Distinct (day, item) with an event, of the chunk and of the last `pool_days` days before it (from the state)."""
    raise NotImplementedError


def ranking_features(*, examples: Table, events: Table, state: dict[str, Table]) -> Table:
    """`examples` with the columns `DENSE_NAMES` added.

    `examples`: what `negatives.draw` gives (or real impressions) plus user, day, time, and the candidate's shop,
    brand and category at its moment. Rows are unique in (moment_id, item, draw).
    """
    raise NotImplementedError


def advance(*, events: Table, state: dict[str, Table], last_day: int, pool_days: int) -> dict[str, Table]:
    """The state at the end of `last_day`, from the state at the chunk's start and the chunk's events."""
    raise NotImplementedError
