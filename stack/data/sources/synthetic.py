"""A marketplace with known truth (`stack.data.marketplace`): written to `data.path` first, then read like any log."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ibis.backends import BaseBackend

from stack.data.canonical import Canonical, DataConfig, Source
from stack.data.marketplace import Marketplace, write_log
from stack.data.sources.events import EventColumns, EventsConfig, ImpressionColumns, ItemColumns
from stack.data.sources.events import read as read_events


@dataclass(kw_only=True)
class SyntheticConfig(DataConfig):
    """`path`: folder of the log; null: beside `out`, with the ending `-log`."""

    market: Marketplace = field(default_factory=Marketplace)


def read(backend: BaseBackend, options: SyntheticConfig) -> Canonical:
    """Writes the log where it is not there yet, and maps it. Clicks are the positive examples, impressions are real."""
    folder = write_log(options.market, Path(options.path or f"{options.out}-log"))
    side = ("item", "shop", "brand", "category", "tags", "since")
    mapped = EventsConfig(
        source=options.source,
        out=options.out,
        path=str(folder / "events"),
        columns=EventColumns(type="type", price="price", quantity="quantity"),
        items_path=str(folder / "items"),
        items=ItemColumns(**{name: name for name in side}),
        impressions_path=str(folder / "impressions"),
        impressions=ImpressionColumns(weight="weight"),
        known_types=["click", "buy"],
        positive_types=["click"],
    )
    return read_events(backend, mapped)


SOURCE = Source(name="synthetic", options=SyntheticConfig, read=read)
