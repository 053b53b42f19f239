"""From raw ids to vocabulary rows or keys: side information as of a time, and events, moments and pools of a chunk.

Side information is a list of versions: item, since (inclusive), until (exclusive, null for the newest), features.
Without a column `since` there is one version, valid always.
"""

from __future__ import annotations

from dataclasses import dataclass

import ibis
from ibis.expr.types import Table

from stack.data.canonical import Canonical
from stack.data.days import SECONDS_PER_DAY
from stack.data.schema import Feature
from stack.data.vocabulary import USER, Vocabularies, encode, raw_type

ALWAYS = ("item", "shop", "brand", "category", "scenario", "type")
"""Columns of coded events that are there for every schema: 0 where the source has no such feature."""


@dataclass(frozen=True, kw_only=True)
class Sides:
    """Which side-information features the source has, and where they come from."""

    own: tuple[Feature, ...]
    of_item: tuple[Feature, ...]
    of_candidate: tuple[Feature, ...]
    dated_items: bool
    dated_users: bool


def sides(canonical: Canonical) -> Sides:
    """Splits the schema's event features into those of the event itself and those of its item.

    A candidate takes from its item what events take, and the shop where `items` has one.
    """
    columns = set(canonical.events.columns)
    features = (*canonical.schema.event, *canonical.schema.property)
    own = tuple(feature for feature in features if feature.name in columns)
    of_item = tuple(feature for feature in features if feature.name not in columns)
    in_items = () if canonical.items is None else canonical.items.columns
    return Sides(
        own=own,
        of_item=of_item,
        of_candidate=tuple(f for f in features if f in of_item or (f.name == "shop" and "shop" in in_items)),
        dated_items="since" in in_items,
        dated_users=canonical.users is not None and "since" in canonical.users.columns,
    )


def id_types(canonical: Canonical) -> dict[str, str]:
    """Type of the raw ids of every table, "int64" or "string". Asserts that features of one table agree."""
    parts = sides(canonical)
    schema = canonical.schema
    found: dict[str, str] = {USER: raw_type(canonical.events.user.type())}
    tables: list[tuple[Table | None, tuple[Feature, ...]]] = [
        (canonical.events, parts.own),
        (canonical.items, parts.of_candidate),
        (canonical.users, schema.profile),
        (canonical.events if canonical.visits is None else canonical.visits, schema.query),
    ]
    if canonical.follow is not None:
        tables.append((canonical.follow, schema.group("follow").candidate))
    for table, features in tables:
        assert table is not None or not features, f"the source has no table for {[f.name for f in features]}"
        for feature in features:
            kind = raw_type(table[feature.name].type())  # type: ignore[index]
            assert found.setdefault(feature.table, kind) == kind, f"ids of {feature.table!r} are of two types"
    return found


def event_schema(canonical: Canonical) -> ibis.Schema:
    """Columns of coded events: in a chunk, in the history, and in the files that keep them."""
    columns = {"bucket": "int32", "user": "int64", "day": "int32", "time": "int64", "row_id": "int64"}
    columns |= dict.fromkeys(ALWAYS, "int64")
    features = (*canonical.schema.event, *canonical.schema.property)
    columns |= {f.name: "array<int64>" if f.multi else "int64" for f in features}
    columns |= {"price": "float64", "quantity": "float64", "positive": "boolean", "discounted": "int64"}
    return ibis.schema(columns)


def versions(side: Table, key: str) -> Table:
    """`side` with `since` and `until` (int64, `since` 0 where there is no such column); one row for each (key, since).

    Rows without key or `since` are left out (`stack.data.sidecount` counts them): of a row from an unknown time on
    nobody can say whether an example may see it.
    """
    if "since" not in side.columns:
        side = side.mutate(since=ibis.literal(0, "int64"))
    others = [name for name in side.columns if name not in (key, "since")]
    side = side.filter(side[key].notnull() & side.since.notnull()).mutate(since=side.since.cast("int64"))
    first = ibis.row_number().over(group_by=[key, "since"], order_by=others or [key])
    side = side.mutate(rank=first).filter(lambda t: t.rank == 0).drop("rank")
    return side.mutate(until=side.since.lead().over(group_by=key, order_by="since"))


def first_days(side: Table, key: str, at_hand: Table) -> Table:
    """Versions with a `day` from which an example can meet them: the later of the first day of a span and `since`.

    `at_hand`: spans of days (raw, first_day, last_day) in which an example can meet a key, any number for each.
    """
    lookup = at_hand.select(raw_=at_hand.raw, first_=at_hand.first_day, last_=at_hand.last_day)
    joined = side.inner_join(lookup, side[key] == lookup.raw_)
    day = ibis.greatest((joined.since // SECONDS_PER_DAY).cast("int32"), joined.first_)
    joined = joined.mutate(day=day)
    gone = joined.until.notnull() & (joined.until <= joined.day.cast("int64") * SECONDS_PER_DAY)
    return joined.filter((joined.day <= joined.last_) & ~gone).drop("raw_", "first_", "last_")


def encode_side(side: Table, key: str, features: tuple[Feature, ...], words: Vocabularies, table: str) -> Table:
    """Versions with rows (or keys) instead of raw ids; multi-valued features become sorted arrays without repeats."""
    single = {feature.name: words.table(feature.table) for feature in features if not feature.multi}
    coded = encode(side, {key: words.table(table), **single}).filter(lambda t: t[key] != 0)
    for feature in features:
        if feature.multi:
            coded = _encode_multi(coded, key, feature.name, words.table(feature.table))
    return coded.select(key, "since", "until", *(feature.name for feature in features))


def _encode_multi(side: Table, key: str, name: str, vocabulary: Table | None) -> Table:
    long = side.select(key, "since", id_=side[name].unnest())
    rows = encode(long, {"id_": vocabulary}).filter(lambda t: t.id_ != 0).distinct()
    lists = rows.group_by(key, "since").agg(rows_=lambda t: t.id_.collect().sort())
    lists = lists.select(key_=lists[key], since_=lists.since, rows_=lists.rows_)
    joined = side.left_join(lists, (side[key] == lists.key_) & (side.since == lists.since_))
    empty = ibis.literal([], "array<int64>")
    return joined.mutate(**{name: joined.rows_.fill_null(empty)}).drop("key_", "since_", "rows_")


def as_of(table: Table, side: Table, key: str, *, dated: bool) -> Table:
    """`table` (with `time`) and the features of the version of `key` that is valid at that time; null where none is."""
    names = [name for name in side.columns if name not in (key, "since", "until")]
    renamed = side.select(key_=side[key], since_=side.since, until_=side.until, **{name: side[name] for name in names})
    match = table[key] == renamed.key_
    if dated:
        open_ended = renamed.until_.isnull() | (table.time < renamed.until_)
        match = match & (renamed.since_ <= table.time) & open_ended
    joined = table.left_join(renamed, match)
    return joined.drop("key_", "since_", "until_")


def fill_unknown(table: Table, features: tuple[Feature, ...]) -> Table:
    """Nulls of the named feature columns become row 0, or no ids at all for multi-valued ones."""
    empty = ibis.literal([], "array<int64>")
    return table.mutate(
        **{f.name: table[f.name].fill_null(empty if f.multi else ibis.literal(0, "int64")) for f in features}
    )
