"""A log written out by hand (or by hypothesis) as plain rows, and a source that reads it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from ibis.backends import BaseBackend
from ibis.expr.types import Table

from stack.data.canonical import ITEM_FEATURES, PROPERTIES, Canonical, DataConfig, Source
from stack.data.features import dense_names
from stack.data.follow import follow_names
from stack.data.schema import IMPRESSION_LABELS, Feature, Group, Schema
from stack.data.sources import SOURCES

SCHEMA = Schema(
    event=ITEM_FEATURES,
    property=PROPERTIES,
    profile=(Feature(name="age", table="age"),),
    query=(Feature(name="shop", table="shop"),),
    groups=(
        Group(
            name="impression",
            candidate=ITEM_FEATURES,
            dense=dense_names(price=True, shop=True, brand=True, category=True),
            labels=IMPRESSION_LABELS,
        ),
        Group(name="price", labels=("tier",)),
        Group(
            name="follow",
            candidate=(Feature(name="icon", table="icon"),),
            dense=follow_names(),
            labels=("responded",),
        ),
        Group(name="shop", candidate=(Feature(name="shop", table="shop"),), labels=("visited",)),
    ),
)
EVENTS = pa.schema(
    {
        "user": pa.int64(), "item": pa.string(), "time": pa.int64(), "shop": pa.string(), "type": pa.string(),
        "scenario": pa.string(), "price": pa.float64(), "quantity": pa.float64(), "row_id": pa.int64(),
    }
)  # fmt: skip
ITEMS = pa.schema(
    {
        "item": pa.string(), "since": pa.int64(), "brand": pa.string(), "category": pa.string(),
        "tags": pa.list_(pa.string()),
    }
)  # fmt: skip
USERS = pa.schema({"user": pa.int64(), "since": pa.int64(), "age": pa.string()})
VISITS = pa.schema({"user": pa.int64(), "time": pa.int64(), "shop": pa.string()})
IMPRESSIONS = pa.schema(
    {
        "user": pa.int64(), "item": pa.string(), "time": pa.int64(), "shop": pa.string(), "clicked": pa.float64(),
        "weight": pa.float64(),
    }
)  # fmt: skip
FOLLOW = pa.schema({"user": pa.int64(), "time": pa.int64(), "icon": pa.string(), "responded": pa.float64()})

Rows = list[dict[str, Any]]


@dataclass(kw_only=True)
class TinyConfig(DataConfig):
    source: str = "tiny"
    out: str = ""


def read(backend: BaseBackend, options: TinyConfig) -> Canonical:
    assert options.path is not None
    folder = Path(options.path)

    def optional(name: str) -> Table | None:
        file = folder / f"{name}.parquet"
        return backend.read_parquet(file) if file.exists() else None

    return Canonical(
        schema=SCHEMA,
        events=backend.read_parquet(folder / "events.parquet"),
        items=backend.read_parquet(folder / "items.parquet"),
        users=backend.read_parquet(folder / "users.parquet"),
        follow=backend.read_parquet(folder / "follow.parquet"),
        visits=optional("visits"),
        impressions=optional("impressions"),
        known_types=("view", "buy"),
        positive_types=("buy",),
    )


@contextmanager
def registered() -> Iterator[None]:
    """The source `tiny`, known for the block."""
    SOURCES["tiny"] = Source(name="tiny", options=TinyConfig, read=read)
    try:
        yield
    finally:
        del SOURCES["tiny"]


def write_log(
    folder: Path, *, events: Rows, items: Rows, users: Rows = [], follow: Rows = [],  # noqa: B006
    visits: Rows | None = None, impressions: Rows | None = None,
) -> Path:  # fmt: skip
    """Writes the log's tables; `row_id` of events is their place. Items have a column `shop` if the first one has."""
    folder.mkdir(parents=True, exist_ok=True)
    numbered = [{"quantity": 1.0, "row_id": place, **event} for place, event in enumerate(events)]
    with_shop = ITEMS.append(pa.field("shop", pa.string())) if "shop" in items[0] else ITEMS
    for name, rows, schema in (
        ("events", numbered, EVENTS), ("items", items, with_shop), ("users", users, USERS), ("follow", follow, FOLLOW),
        ("visits", visits, VISITS), ("impressions", impressions, IMPRESSIONS),
    ):  # fmt: skip
        if rows is not None:
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / f"{name}.parquet")
    return folder
