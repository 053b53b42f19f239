"""What a source hands to ingest: its log as a few ibis tables with agreed columns, and what they mean.

A source only renames, casts and joins its files; checks, vocabularies, timelines, sampling and features are
the engine's and so the same for every log. Raw ids are int64 or string (one type for each vocabulary table);
times are int64 epoch seconds in the log's local time, so that day and hour are those of the shop.

``events``       one row for each behaviour
    user, item, shop, type, scenario    raw ids. A null `user` is a bad row; so is a null `item`, unless the
                                        type is in `types_without_item`. Null shop or scenario means unknown.
                                        The columns named by `Schema.property` must be there.
    time         int64, null where it could not be parsed
    price        float64, paid per unit; null where unknown
    quantity     float64, 1.0 where the log has none
    row_id       int64, unique: the row of the source file, for the sample of bad rows and to break ties in time
    unread       optional, string: of rows with a value that could not be read, that value as it was written; for the
                 sample of bad rows
    discounted   optional, whole number: 1 where the price was reduced
    excluded     optional, string: why the source leaves a row out on purpose; null for all others. Counted as dropped
                 for the reason "excluded_<text>", not among the bad rows
``items``        side information: item, then one column for each event feature that is not in `events`
                 (brand, category), tags array<string>. Optional `since` int64: valid from that second on; a row
                 where it is null is counted and not used.
``users``        user, one column for each profile feature of the schema, optional `since`.
``visits``       moments: user, time, pool (int64 key into `pools`), and one column for each query feature.
                 None: the distinct (user, time) of positive events, with the day number as pool, and query
                 columns taken from the event of the lowest row_id.
``pools``        candidates that could be seen at a moment: pool, item, day (int32, the pool's reference day: popularity
                 is taken as of its start, so it is not after any moment of the pool), and numeric context columns
                 for the ranking features. Rows of one (pool, item) are merged, context columns by their maximum.
                 None: the items with an event in the `pool_days` days before the moment's day.
``impressions``  user, time, item, clicked, weight: real impressions, used instead of sampling.
``follow``       user, time, icon, responded: offers, and whether the user responded by the end of the day of `time`;
                 the features of `stack.data.follow` count an offer and its response from the next day on.

`time` of visits, impressions and follow rows must be int64 and not null; a moment is a distinct (user, time).
Engine tables are the same with every id replaced by its vocabulary row, or by its key (int64, 0 unknown), plus `day`,
int32 days since 1970-01-01; see `stack.data.negatives` and `stack.data.features` for the two steps that work on them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from ibis.backends import BaseBackend
from ibis.expr.types import Table

from stack.data.schema import Feature, Schema

EVENT_COLUMNS = ("user", "item", "time", "shop", "type", "scenario", "price", "quantity", "row_id")


@dataclass(frozen=True, kw_only=True)
class Canonical:
    """A source's tables and their meaning; columns as the module's docstring says.

    `positive_types`: event types that make an item a positive example at their moment. `known_types`: all
    types the source may hold; others are bad rows ("unknown_type"). Derived columns that the source alone can know
    (first or repeat purchase) are computed by the source, from earlier rows only.
    """

    schema: Schema
    events: Table
    items: Table | None
    known_types: tuple[str | int, ...]
    positive_types: tuple[str | int, ...]
    types_without_item: tuple[str | int, ...] = ()
    users: Table | None = None
    visits: Table | None = None
    pools: Table | None = None
    impressions: Table | None = None
    follow: Table | None = None

    def __post_init__(self) -> None:
        assert set(EVENT_COLUMNS) <= set(self.events.columns), sorted(set(EVENT_COLUMNS) - set(self.events.columns))
        assert set(self.positive_types) <= set(self.known_types), (self.positive_types, self.known_types)
        assert self.pools is None or self.visits is not None, "pools need visits that name them"


@dataclass(kw_only=True)
class DataConfig:
    """Where the log is and where the prepared dataset goes; every source adds its own fields."""

    # name of the source, a key of stack.data.sources.SOURCES
    source: str
    # folder of the prepared dataset
    out: str
    # file or folder of the log; null for sources that bring their own
    path: str | None = None
    # first and last day to ingest, YYYY-MM-DD, both included; null: as far as the log goes
    from_day: str | None = None
    to_day: str | None = None


OptionsT = TypeVar("OptionsT", bound=DataConfig)


@dataclass(frozen=True, kw_only=True)
class Source(Generic[OptionsT]):
    """A registered source: `read` builds lazy tables on the given backend (DuckDB or Spark) and runs nothing heavy.

    Raises `UserError` for a missing file or column, naming it and the way out.
    """

    name: str
    options: type[OptionsT]
    read: Callable[[BaseBackend, OptionsT], Canonical]


ITEM_FEATURES = (
    Feature(name="item", table="item"),
    Feature(name="shop", table="shop"),
    Feature(name="brand", table="brand"),
    Feature(name="category", table="category"),
    Feature(name="tags", table="tags", multi=True),
)
"""The five features of an item (DUPN section 4.1). The shop of a candidate is that of `items` where it has the column,
else the shop of its moment where the query has one, else unknown."""

PROPERTIES = (Feature(name="scenario", table="scenario"), Feature(name="type", table="type"))
