"""The sources by name: `data.source=<name>` picks one. Each module of this folder defines `SOURCE`."""

from __future__ import annotations

from typing import Any

from stack.data.canonical import Source

_ALL: tuple[Source[Any], ...] = ()

SOURCES: dict[str, Source[Any]] = {source.name: source for source in _ALL}
