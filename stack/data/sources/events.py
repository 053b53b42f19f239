"""Any log: CSV or Parquet with a mapping of columns. A user, an item and a time are enough; the rest is optional.

Items' brand, category, shop and tags come from `items_path`, or, where that is null, from columns of the events
themselves (then an item has the values of its latest event, from that event on, so that nothing comes from the future).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import ibis
from ibis.backends import BaseBackend
from ibis.expr.types import Column, Table

from stack.base.errors import ConfigError, DataError
from stack.data import features
from stack.data.canonical import ITEM_FEATURES, Canonical, DataConfig, Source
from stack.data.schema import IMPRESSION_LABELS, Feature, Group, Schema
from stack.data.sources.tabular import (
    TimeFormat,
    fetch,
    ids,
    numbered,
    numbers,
    open_table,
    require,
    seconds,
    split,
    unread,
)

SIDE_COLUMNS = ("shop", "brand", "category", "tags")
DEFAULT_TYPE = "event"
MAX_TYPES = 1_000
"""Above this a column is taken for something other than kinds of behaviour."""


@dataclass(kw_only=True)
class EventColumns:
    """Names of the events' columns; null where the log has none."""

    # who
    user: str = "user"
    # what
    item: str = "item"
    # when
    time: str = "time"
    # kind of behaviour (view, cart, buy, ...)
    type: str | None = None
    # where in the product it happened (search, recommender, ...)
    scenario: str | None = None
    # paid per unit
    price: str | None = None
    # units
    quantity: str | None = None
    # of the item; read from the events only where items_path is null
    shop: str | None = None
    brand: str | None = None
    category: str | None = None
    tags: str | None = None


@dataclass(kw_only=True)
class ItemColumns:
    """Names of the columns of `items_path`; null where it has none."""

    item: str = "item"
    shop: str | None = None
    brand: str | None = None
    category: str | None = None
    # text of several tags, split at tag_separator, or an array
    tags: str | None = None
    # the row holds from this time on, and is not used where that cannot be read; null: all rows hold always
    since: str | None = None


@dataclass(kw_only=True)
class UserColumns:
    """Names of the columns of `users_path`."""

    user: str = "user"
    # categorical columns that describe a user
    profile: list[str] = field(default_factory=list)
    # the row holds from this time on, and is not used where that cannot be read; null: all rows hold always
    since: str | None = None


@dataclass(kw_only=True)
class ImpressionColumns:
    """Names of the columns of `impressions_path`."""

    user: str = "user"
    item: str = "item"
    time: str = "time"
    # 1 where the user took the item, else 0
    clicked: str = "clicked"
    # importance of the row; null: 1
    weight: str | None = None


@dataclass(kw_only=True)
class EventsConfig(DataConfig):
    """A log by its columns. `path` holds the events."""

    columns: EventColumns = field(default_factory=EventColumns)
    items_path: str | None = None
    items: ItemColumns = field(default_factory=ItemColumns)
    users_path: str | None = None
    users: UserColumns = field(default_factory=UserColumns)
    # what users were shown, with labels; null: negatives are drawn from items of the days before
    impressions_path: str | None = None
    impressions: ImpressionColumns = field(default_factory=ImpressionColumns)
    # how times are written; auto looks at the first rows
    time_format: TimeFormat = TimeFormat.auto
    # between the fields of CSV files
    delimiter: str = ","
    # between the tags of one item
    tag_separator: str = "|"
    # types whose item is a positive example; empty: all types
    positive_types: list[str] = field(default_factory=list)
    # types that may occur, others are bad rows; empty: those that the log holds
    known_types: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._refuse_unread_options()
        if self.delimiter == "\\t":
            self.delimiter = "\t"
        if len(self.delimiter) != 1:
            raise ConfigError(f"data.delimiter={self.delimiter!r} must be one character, or \\t for the tabulator")
        if self.known_types and not set(self.positive_types) <= set(self.known_types):
            unknown = sorted(set(self.positive_types) - set(self.known_types))
            raise ConfigError(f"data.positive_types has {unknown}, which data.known_types={self.known_types} lacks")
        if self.positive_types and self.columns.type is None:
            raise ConfigError("data.positive_types needs data.columns.type: name the column that holds the type")

    def _refuse_unread_options(self) -> None:
        """What would have no effect is a mistake."""
        for option, path, group, plain in (
            ("items", self.items_path, self.items, ItemColumns()),
            ("users", self.users_path, self.users, UserColumns()),
            ("impressions", self.impressions_path, self.impressions, ImpressionColumns()),
        ):
            changed = [name for name, value in vars(group).items() if value != getattr(plain, name)]
            if path is None and changed:
                raise ConfigError(f"data.{option}.{changed[0]} needs data.{option}_path: give the file that holds it")
        both = [name for name in SIDE_COLUMNS if getattr(self.columns, name) is not None]
        if self.items_path is not None and both:
            raise ConfigError(
                f"data.columns.{both[0]} is of no use beside data.items_path: name it as data.items.{both[0]}, "
                f"or leave out data.items_path to read it from the events"
            )


def read(backend: BaseBackend, options: EventsConfig) -> Canonical:
    """The canonical tables of a mapped log. Raises `DataError` for a missing file, column or type, by its option."""
    log = open_table(backend, options.path, option="data.path", delimiter=options.delimiter)
    events = _events(log, options)
    items = _items(backend, log, options, like=events.item)
    if items is not None and "shop" in items.columns and options.columns.shop is None:
        events = events.mutate(shop=ibis.null(items.shop.type()))
    present = {"item"} | set(items.columns if items is not None else ())
    known, positive = _types(events, options)
    users = _users(backend, options, like=events.user)
    profile = tuple(options.users.profile) if users is not None else ()
    has_price = options.columns.price is not None
    return Canonical(
        schema=schema(
            present=present, profile=profile, has_price=has_price, has_scenario=options.columns.scenario is not None
        ),
        events=events,
        items=items,
        users=users,
        impressions=_impressions(backend, options, like=events),
        known_types=known,
        positive_types=positive,
    )


SOURCE = Source(name="events", options=EventsConfig, read=read)


def schema(*, present: set[str], profile: tuple[str, ...], has_price: bool, has_scenario: bool) -> Schema:
    """The schema of a log that has the item features `present`; a price group needs prices and categories."""
    event = tuple(feature for feature in ITEM_FEATURES if feature.name in present)
    dense = features.dense_names(
        price=has_price, shop="shop" in present, brand="brand" in present, category="category" in present
    )
    groups = [Group(name="impression", candidate=event, dense=dense, labels=IMPRESSION_LABELS)]
    if has_price and "category" in present:
        groups.append(Group(name="price", labels=("tier",)))
    properties = (*(("scenario",) if has_scenario else ()), "type")
    return Schema(
        event=event,
        property=tuple(Feature(name=name, table=name) for name in properties),
        profile=tuple(Feature(name=name, table=f"profile_{name}") for name in profile),
        groups=tuple(groups),
    )


def _events(log: Table, options: EventsConfig) -> Table:
    columns = options.columns

    def column(name: str) -> Column:
        return require(log, getattr(columns, name), option=f"data.columns.{name}", path=options.path)

    def optional(name: str, kind: str) -> Column:
        return ibis.null(kind) if getattr(columns, name) is None else column(name)

    shop = ibis.null("string") if columns.shop is None else ids(log, column("shop"))
    written = {name: column(name) for name in ("user", "item", "time")}
    parsed = {
        "user": ids(log, written["user"]),
        "item": ids(log, written["item"]),
        "time": seconds(log, written["time"], options.time_format),
    }
    mapped = log.select(
        **parsed,
        unread=unread(written, parsed),
        shop=shop,
        type=ibis.literal(DEFAULT_TYPE) if columns.type is None else column("type").cast("string"),
        scenario=optional("scenario", "string").cast("string"),
        price=numbers(optional("price", "float64")),
        quantity=ibis.literal(1.0) if columns.quantity is None else numbers(column("quantity")),
    )
    return numbered(mapped, order_by=["time", "user", "item", "type", "shop", "scenario", "price", "quantity"])


def _items(backend: BaseBackend, log: Table, options: EventsConfig, *, like: Column) -> Table | None:
    """Side information: item, the columns there are, and `since` where it changes."""
    if options.items_path is not None:
        path, names, prefix = options.items_path, options.items, "data.items"
        table = open_table(backend, path, option="data.items_path", delimiter=options.delimiter)
        since = names.since
    else:
        path, names, prefix, table = options.path, options.columns, "data.columns", log  # type: ignore[assignment]
        since = options.columns.time
    mapped = {name: getattr(names, name) for name in SIDE_COLUMNS if getattr(names, name) is not None}
    if not mapped:
        return None
    item = require(table, names.item, option=f"{prefix}.item", path=path)
    selected: dict[str, Column] = {"item": ids(table, item, like=like)}
    for name, source in mapped.items():
        column = require(table, source, option=f"{prefix}.{name}", path=path)
        selected[name] = _tags(column, options.tag_separator) if name == "tags" else ids(table, column)
    if since is not None:
        column = require(table, since, option=f"{prefix}.since", path=path)
        selected["since"] = seconds(table, column, options.time_format)
    rows = table.select(**selected)
    return rows if options.items_path is not None else changes(rows, tuple(mapped))


def _tags(column: Column, separator: str) -> Column:
    return column if column.type().is_array() else split(column, separator)


def changes(rows: Table, names: tuple[str, ...]) -> Table:
    """Of rows in time, the first of each item and those that differ from the one before: what holds from when on.

    Rows without item or time are bad events, and counted as such.
    """
    rows = rows.filter(rows.item.notnull() & rows.since.notnull())
    rows = rows.group_by(["item", "since"]).agg(**{name: rows[name].max() for name in names})
    window = ibis.window(group_by="item", order_by="since")
    first = rows.since.lag(1).over(window).isnull()
    differs = [~rows[name].identical_to(rows[name].lag(1).over(window)) for name in names]
    marked = rows.mutate(changed=ibis.or_(first, *differs))
    return marked.filter(marked.changed).drop("changed")


def _users(backend: BaseBackend, options: EventsConfig, *, like: Column) -> Table | None:
    if options.users_path is None:
        return None
    names, path = options.users, options.users_path
    table = open_table(backend, path, option="data.users_path", delimiter=options.delimiter)
    user = require(table, names.user, option="data.users.user", path=path)
    selected: dict[str, Column] = {"user": ids(table, user, like=like)}
    for name in names.profile:
        selected[name] = require(table, name, option="data.users.profile", path=path).cast("string")
    if names.since is not None:
        since = require(table, names.since, option="data.users.since", path=path)
        selected["since"] = seconds(table, since, options.time_format)
    return table.select(**selected)


def _impressions(backend: BaseBackend, options: EventsConfig, *, like: Table) -> Table | None:
    if options.impressions_path is None:
        return None
    names, path = options.impressions, options.impressions_path
    table = open_table(backend, path, option="data.impressions_path", delimiter=options.delimiter)

    def column(name: str) -> Column:
        return require(table, getattr(names, name), option=f"data.impressions.{name}", path=path)

    rows = table.select(
        user=ids(table, column("user"), like=like.user),
        item=ids(table, column("item"), like=like.item),
        time=seconds(table, column("time"), options.time_format),
        clicked=numbers(column("clicked")),
        weight=ibis.literal(1.0) if names.weight is None else numbers(column("weight")),
    )
    _refuse_unreadable(rows, options)
    return rows


def _refuse_unreadable(rows: Table, options: EventsConfig) -> None:
    """Impressions are labels: one that cannot be read is refused, not dropped."""
    counts = {name: rows[name].isnull().sum().fill_null(0) for name in rows.columns}
    outside = (~rows.clicked.isin([0.0, 1.0])).sum().fill_null(0)
    counted = rows.aggregate(**counts, outside=outside, rows=rows.count())
    found = fetch(counted).to_pylist()[0]
    for name in rows.columns:
        if found[name]:
            raise DataError(
                f"{found[name]:,} of {found['rows']:,} rows of {options.impressions_path} cannot be used: column "
                f"{getattr(options.impressions, name)!r} (data.impressions.{name}) is missing or malformed there; "
                f"mend or delete them"
            )
    if found["outside"]:
        raise DataError(
            f"{found['outside']:,} of {found['rows']:,} rows of {options.impressions_path} cannot be used: column "
            f"{options.impressions.clicked!r} (data.impressions.clicked) is neither 0 nor 1 there; mend them"
        )


def _types(events: Table, options: EventsConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(known, positive) types; asks the log where the options leave them open."""
    known = tuple(options.known_types)
    if not known:
        found = events.filter(events.type.notnull()).select("type").distinct().limit(MAX_TYPES + 1)
        known = tuple(sorted(fetch(found)["type"].to_pylist()))
    if len(known) > MAX_TYPES:
        raise DataError(
            f"data.columns.type={options.columns.type} has more than {MAX_TYPES} values: a type is a kind of behaviour "
            f"(view, buy, ...); name another column, or leave data.columns.type out"
        )
    positive = tuple(options.positive_types) or known
    missing = sorted(set(positive) - set(known))
    if missing:
        raise DataError(f"data.positive_types has {missing}; {options.path} holds the types {list(known)}")
    return known, positive
