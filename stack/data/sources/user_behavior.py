"""Taobao's UserBehavior: one CSV without header, lines of user, item, category, pv/cart/fav/buy, epoch seconds."""

from __future__ import annotations

from dataclasses import dataclass, field

from ibis.backends import BaseBackend

from stack.data.canonical import Canonical, DataConfig, Source
from stack.data.sources.events import changes, schema
from stack.data.sources.tabular import TimeFormat, ids, numbered, open_table, seconds, unread

TYPES = ("pv", "cart", "fav", "buy")
SECONDS_OF_BEIJING = 8 * 3600
"""The file's times are UTC and its users Chinese: hours and days are those of Beijing."""


@dataclass(kw_only=True)
class UserBehaviorConfig(DataConfig):
    """`path`: UserBehavior.csv, or a folder with it in parts."""

    # behaviours whose item is a positive example, of pv, cart, fav, buy
    positive_types: list[str] = field(default_factory=lambda: ["pv"])


def read(backend: BaseBackend, options: UserBehaviorConfig) -> Canonical:
    """The canonical tables; categories hold from an item's first event on."""
    names = ("user", "item", "category", "type", "time")
    log = open_table(backend, options.path, option="data.path", names=names)
    parsed = {
        "user": ids(log, log.user),
        "item": ids(log, log.item),
        "time": seconds(log, log.time, TimeFormat.seconds) + SECONDS_OF_BEIJING,
    }
    rows = log.select(
        **parsed, category=ids(log, log.category), type=log.type, unread=unread({n: log[n] for n in parsed}, parsed)
    )
    side = rows.filter(rows.item.notnull() & rows.time.notnull()).select("item", "category", since=rows.time)
    events = rows.drop("category").mutate(shop=None, scenario=None, price=None, quantity=1.0)
    events = events.cast({"shop": "string", "scenario": "string", "price": "float64"})
    return Canonical(
        schema=schema(present={"item", "category"}, profile=(), has_price=False, has_scenario=False),
        events=numbered(events, order_by=["time", "user", "item", "type"]),
        items=changes(side, ("category",)),
        known_types=TYPES,
        positive_types=tuple(options.positive_types),
    )


SOURCE = Source(name="user_behavior", options=UserBehaviorConfig, read=read)
