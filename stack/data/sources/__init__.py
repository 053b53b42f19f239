"""The sources by name: `data.source=<name>` picks one. Each module of this folder defines `SOURCE`."""

from __future__ import annotations

from typing import Any

from stack.data.canonical import Source
from stack.data.sources import complete_journey, events, movielens_1m, synthetic, user_behavior

_ALL: tuple[Source[Any], ...] = (
    complete_journey.SOURCE,
    events.SOURCE,
    movielens_1m.SOURCE,
    synthetic.SOURCE,
    user_behavior.SOURCE,
)

SOURCES: dict[str, Source[Any]] = {source.name: source for source in _ALL}
