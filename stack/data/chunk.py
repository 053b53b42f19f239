"""One chunk of days in rows or keys: events, moments, and the examples of every group, as flat tables.

Every table has `bucket`, `user`, `day` and `time`, so that `stack.data.timeline` can cut it into timelines.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import ibis
import pyarrow as pa
import pyarrow.parquet as pq
from ibis.expr.types import IntegerColumn, Table

from stack.data import coding, features, follow, groups, negatives
from stack.data.canonical import Canonical
from stack.data.days import SECONDS_PER_DAY, day_name
from stack.data.engine import Engine, key_of
from stack.data.keys import UNKNOWN_KEY
from stack.data.schema import Feature
from stack.data.vocabulary import USER, Vocabularies, encode

MOMENT_FACTOR = 2**32
"""moment_id = user row * 2^32 + time."""


@dataclass(frozen=True, kw_only=True)
class ChunkSettings:
    """What of the configuration shapes examples."""

    negatives: negatives.NegativesConfig
    price_edges: tuple[float, ...]
    num_buckets: int


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Materialised tables of the days `first`..`last`. `examples[group]` is sorted by nothing; see `timeline.ORDER`."""

    first: int
    last: int
    events: Table
    moments: Table
    profiles: Table
    examples: dict[str, Table]


@dataclass(frozen=True, kw_only=True)
class _Raw:
    """The chunk's rows before coding, ids as in the log, each with `day`."""

    events: Table
    moments: Table
    pools: Table | None
    impressions: Table | None
    follow: Table | None


class ChunkBuilder:
    """Builds chunks of one source. `words` grows with every chunk; `state` is passed in and not changed."""

    def __init__(
        self, *, canonical: Canonical, valid: Table, engine: Engine, words: Vocabularies, settings: ChunkSettings
    ) -> None:
        self._source = canonical
        self._valid = valid
        self._engine = engine
        self._words = words
        self._settings = settings
        self._sides = coding.sides(canonical)
        for name, kind in coding.id_types(canonical).items():
            if canonical.schema.without_vocabulary(name) is None:
                words.load(name, kind)

    def build(self, *, first: int, last: int, state: dict[str, Table]) -> Chunk:
        """The chunk `first`..`last`; call it inside `engine.scope()`. New ids are on disk when it returns."""
        raw = self._raw(first, last)
        self._extend_vocabularies(raw, state, last)
        items = self._side(self._source.items, "item", self._sides.of_candidate, "item")
        events = self._events(raw, items)
        moments = self._moments(raw)
        examples: dict[str, Table] = {}
        for group in self._source.schema.groups:
            if group.name == "impression":
                found = self._impressions(raw, events, moments, items, state)
            elif group.name == "price":
                found = groups.price(events=events, moments=moments, state=state, edges=self._settings.price_edges)
            elif group.name == "follow":
                found = self._follow(raw, events, moments, state)
            else:
                assert group.name == "shop", f"ingest makes no examples for the group {group.name!r}"
                found = groups.shop(moments=moments, num_shops=self._num_shops(first, last))
            examples[group.name] = self._engine.materialize(f"examples_{group.name}", found)
        profiles = self._profiles(events, moments)
        return Chunk(first=first, last=last, events=events, moments=moments, profiles=profiles, examples=examples)

    def _raw(self, first: int, last: int) -> _Raw:
        source, keep = self._source, self._engine.materialize
        valid = self._valid.filter(self._valid.day.between(first, last))
        events = keep("raw_events", valid)
        impressions = (
            None if source.impressions is None else keep("raw_shown", _of_days(source.impressions, first, last))
        )
        follow = None if source.follow is None else keep("raw_follow", _of_days(source.follow, first, last))
        query = [feature.name for feature in source.schema.query]
        found = []
        if source.visits is not None:
            visits = _of_days(source.visits, first, last)
            if "pool" not in visits.columns:
                visits = visits.mutate(pool=visits.day.cast("int64"))
            found.append(visits.mutate(priority=0))
        elif impressions is not None:
            found.append(impressions.mutate(priority=0, pool=impressions.day.cast("int64")))
        else:
            bought = events.filter(events.type.isin(source.positive_types))
            found.append(bought.mutate(priority=bought.row_id, pool=bought.day.cast("int64")))
        if follow is not None:
            found.append(follow.mutate(priority=ibis.literal(2**62, "int64"), pool=ibis.null("int64")))
        like = found[0]
        parts = [_query_columns(part, query, like) for part in found]
        every = parts[0] if len(parts) == 1 else parts[0].union(*parts[1:])
        order = ["priority", "pool", *query]
        rank = ibis.row_number().over(group_by=["user", "time"], order_by=order)
        moments = every.mutate(rank=rank).filter(lambda t: t.rank == 0).drop("rank", "priority")
        moments = keep("raw_moments", moments)
        pools = None if source.pools is None else keep("raw_pools", source.pools.semi_join(moments, "pool"))
        return _Raw(events=events, moments=moments, pools=pools, impressions=impressions, follow=follow)

    def _extend_vocabularies(self, raw: _Raw, state: dict[str, Table], last: int) -> None:
        found: dict[str, list[Table]] = {}

        def add(table: str, rows: Table, column: str) -> None:
            found.setdefault(table, []).append(rows.select(raw=rows[column], day=rows.day))

        add(USER, raw.events, "user")
        add(USER, raw.moments, "user")
        for feature in self._sides.own:
            add(feature.table, raw.events, feature.name)
        for feature in self._source.schema.query:
            add(feature.table, raw.moments, feature.name)
        if raw.pools is not None:
            days = raw.moments.group_by("pool").agg(day=lambda t: t.day.min())
            add("item", raw.pools.inner_join(days, "pool").group_by("item").agg(day=lambda t: t.day.min()), "item")
        if raw.impressions is not None:
            add("item", raw.impressions, "item")
        if raw.follow is not None:
            for feature in self._source.schema.group("follow").candidate:
                add(feature.table, raw.follow, feature.name)
        self._words.extend(found, chunk=day_name(last))
        found.clear()
        for side, key, table, parts in (
            (self._source.items, "item", "item", self._sides.of_candidate),
            (self._source.users, "user", USER, self._source.schema.profile),
        ):
            if side is not None and parts:
                versions, known = coding.versions(side, key), self._words.table(table)
                if known is None:
                    versions = versions.mutate(**{key: key_of(versions[key])})
                    at_hand = self._items_at_hand(raw, state, last)
                else:
                    at_hand = known.mutate(last_day=ibis.literal(last, "int32"))
                dated = coding.first_days(versions, key, at_hand)
                for feature in parts:
                    column = dated[feature.name].unnest() if feature.multi else dated[feature.name]
                    found.setdefault(feature.table, []).append(dated.select(raw=column, day=dated.day))
        self._words.extend(found, chunk=day_name(last))

    def _items_at_hand(self, raw: _Raw, state: dict[str, Table], last: int) -> Table:
        """(raw, first_day, last_day): keys of items, and the spans of days in which an example can meet them.

        What an item vocabulary would remember of all days, for as long as it matters: an event makes its item a
        candidate for `pool_days` days. The state remembers events as long, so spans do not depend on chunks.
        """
        pool_days = self._settings.negatives.pool_days
        met = raw.events.select(item=key_of(raw.events.item), day=raw.events.day)
        met = met.union(state["item_day"].select("item", "day"))
        spans = [met.mutate(last_day=(met.day + pool_days).cast("int32"))]
        shown = [] if raw.impressions is None else [raw.impressions]
        if raw.pools is not None:
            days = raw.moments.select("pool", "day").distinct()
            shown.append(raw.pools.select("pool", "item").inner_join(days, "pool"))
        spans += [rows.select(item=key_of(rows.item), day=rows.day, last_day=rows.day) for rows in shown]
        every = spans[0].union(*spans[1:], distinct=True) if len(spans) > 1 else spans[0].distinct()
        every = every.filter(every.item != UNKNOWN_KEY)
        last_day = ibis.least(every.last_day, ibis.literal(last, "int32"))
        return every.select(raw=every.item, first_day=every.day, last_day=last_day)

    def _side(self, side: Table | None, key: str, parts: tuple[Feature, ...], table: str) -> Table | None:
        if side is None or not parts:
            return None
        coded = coding.encode_side(coding.versions(side, key), key, parts, self._words, table)
        return self._engine.materialize(f"side_{key}", coded)

    def _events(self, raw: _Raw, items: Table | None) -> Table:
        source, sides = self._source, self._sides
        events = raw.events.mutate(
            bucket=_bucket(raw.events.user, self._settings.num_buckets),
            positive=raw.events.type.isin(source.positive_types),
        )
        own = {feature.name: self._words.table(feature.table) for feature in sides.own}
        events = encode(events, {USER: self._words.table(USER), **own})
        absent = [name for name in ("item", "shop", "scenario", "type") if name not in own]
        events = events.mutate(**{name: ibis.literal(0, "int64") for name in absent})
        if items is not None:
            events = self._with_side(events, items)
        if "discounted" not in events.columns:
            events = events.mutate(discounted=ibis.literal(0, "int64"))
        events = self._complete(events, sides.of_item)
        wanted = coding.event_schema(source)
        return self._engine.materialize("events", events.select(**{n: events[n].cast(t) for n, t in wanted.items()}))

    def _with_side(self, table: Table, items: Table) -> Table:
        """Side information of the item as of `time`; an unknown shop (row 0) becomes that of the item."""
        if "shop" not in items.columns:
            return coding.as_of(table, items, "item", dated=self._sides.dated_items)
        joined = coding.as_of(table, items.rename(shop_of_item="shop"), "item", dated=self._sides.dated_items)
        shop = joined.shop.nullif(0) if "shop" in table.columns else ibis.null("int64")
        return joined.mutate(shop=shop.fill_null(joined.shop_of_item).fill_null(0)).drop("shop_of_item")

    def _complete(self, table: Table, of_item: tuple[Feature, ...]) -> Table:
        """Features of the item that are null become unknown; `brand` and `category` are there in any case."""
        table = coding.fill_unknown(table, of_item)
        absent = [name for name in coding.ALWAYS if name not in table.columns]
        table = table.mutate(**{name: ibis.literal(0, "int64") for name in absent})
        if isinstance(table.user, IntegerColumn) and "bucket" in table.columns:
            table = table.mutate(bucket=table.bucket.fill_null(table.user % self._settings.num_buckets).cast("int32"))
        return table

    def _moments(self, raw: _Raw) -> Table:
        query = {feature.name: self._words.table(feature.table) for feature in self._source.schema.query}
        moments = raw.moments.mutate(bucket=_bucket(raw.moments.user, self._settings.num_buckets))
        moments = encode(moments, {USER: self._words.table(USER), **query})
        moments = self._complete(moments, ()).mutate(moment_id=moments.user * MOMENT_FACTOR + moments.time)
        kept = ["moment_id", "bucket", "user", "day", "time", "pool", *query]
        return self._engine.materialize("moments", moments.select(*kept))

    def _impressions(
        self, raw: _Raw, events: Table, moments: Table, items: Table | None, state: dict[str, Table]
    ) -> Table:
        group = self._source.schema.group("impression")
        keep = self._engine.materialize
        if raw.impressions is not None:
            shown = encode(raw.impressions, {USER: self._words.table(USER), "item": self._words.table("item")})
            drawn = groups.observed(shown, moments)
        else:
            drawn = self._drawn(raw, events, moments, state)
        columns = ["moment_id", "bucket", "user", "day", "time", *(f.name for f in self._source.schema.query)]
        examples = drawn.inner_join(moments.select(*columns), "moment_id")
        if items is not None:
            if (
                "shop" in items.columns and "shop" in examples.columns
            ):  # a candidate's own shop goes before the moment's
                examples = examples.drop("shop")
            examples = self._with_side(examples, items)
        parts = tuple(f for f in self._sides.of_candidate if f in group.candidate)
        examples = keep("candidates", self._complete(examples, parts))
        return features.ranking_features(examples=examples, events=events, state=state, names=group.dense, keep=keep)

    def _drawn(self, raw: _Raw, events: Table, moments: Table, state: dict[str, Table]) -> Table:
        settings = self._settings.negatives
        keep = self._engine.materialize
        asked = moments.filter(moments.pool.notnull())
        positives = keep("positives", groups.positives(events=events, moments=asked))
        days = asked.select("day").distinct()
        if raw.pools is None:
            item_days = features.item_days(events=events, state=state)
            pools = negatives.daily_pools(days=days, item_days=item_days, pool_days=settings.pool_days)
        else:
            pools = encode(raw.pools, {"item": self._words.table("item")}).mutate(day=raw.pools.day.cast("int32"))
        pools = keep("pools", pools)
        popularity = features.popularity(events=events, state=state, days=pools.select("day").distinct())
        drawn = negatives.draw(
            moments=asked,
            positives=positives,
            pools=pools,
            popularity=keep("popularity", popularity),
            settings=settings,
            keep=keep,
        )
        return keep("drawn", drawn)

    def _follow(self, raw: _Raw, events: Table, moments: Table, state: dict[str, Table]) -> Table:
        assert raw.follow is not None, "the schema has the group 'follow', the source no follow table"
        group = self._source.schema.group("follow")
        icons = {f.name: self._words.table(f.table) for f in group.candidate}
        coded = encode(raw.follow, {USER: self._words.table(USER), **icons})
        offers = self._engine.materialize("offers", groups.at_moments(coded.drop("day"), moments))
        if not group.dense:
            return offers
        return follow.follow_features(examples=offers, events=events, state=state, names=group.dense)

    def _profiles(self, events: Table, moments: Table) -> Table:
        """(user, since, until, features) of the chunk's users, in rows; for sources without profiles no rows."""
        parts = self._source.schema.profile
        side = self._side(self._source.users, "user", parts, USER)
        if side is None:
            return (
                events.select("bucket", "user", "time").limit(0).rename(since="time").mutate(until=ibis.null("int64"))
            )
        users = events.select("bucket", "user").union(moments.select("bucket", "user"), distinct=True)
        return self._engine.materialize("profiles", side.inner_join(users, "user"))

    def _num_shops(self, first: int, last: int) -> Table:
        """(day, num_shops): shops known at the start of each day."""
        table = self._source.schema.group("shop").candidate[0].table
        days = list(range(first, last + 1))
        sizes = [self._words.num_rows(day - 1)[table] - 1 for day in days]
        path = Path(self._engine.folder) / f"num_shops_{first}.parquet"
        pq.write_table(pa.table({"day": pa.array(days, pa.int32()), "num_shops": pa.array(sizes, pa.int64())}), path)
        return self._engine.read("num_shops", [path], ibis.schema({"day": "int32", "num_shops": "int64"}))


def _of_days(table: Table, first: int, last: int) -> Table:
    """Rows of the days, with `day`; rows without a user are no moments."""
    start, end = first * SECONDS_PER_DAY, (last + 1) * SECONDS_PER_DAY
    rows = table.filter(table.user.notnull() & (table.time >= start) & (table.time < end))
    return rows.mutate(time=rows.time.cast("int64"), day=(rows.time // SECONDS_PER_DAY).cast("int32"))


def _query_columns(part: Table, query: list[str], like: Table) -> Table:
    values = {
        name: part[name].cast(like[name].type()) if name in part.columns else ibis.null(like[name].type())
        for name in query
    }
    user = part.user.cast(like.user.type())
    return part.select(
        "time", "day", user=user, pool=part.pool.cast("int64"), priority=part.priority.cast("int64"), **values
    )


def _bucket(user: ibis.Column, num_buckets: int) -> ibis.Column:
    """Whole-number ids modulo the number of buckets; null for text, whose bucket comes from the vocabulary row."""
    if not isinstance(user, IntegerColumn):
        return ibis.null("int32")
    return (((user % num_buckets) + num_buckets) % num_buckets).cast("int32")
