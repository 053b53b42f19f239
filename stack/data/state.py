"""What the next day needs: the state of the day before.

::

    state/2017-03-04/
      bucket-0000.parquet ...   the day's coded events, as `coding.event_schema`
      follow-0000.parquet ...   the day's offers, as `follow.OFFERS`, where the dataset has features of them
      full/                     at the end of a chunk only: everything up to the end of the day
        history.parquet         the last `max_history` events of every user
        <name>.parquet          each table of `features.STATE`, and of `follow.STATE` where it has

The state at the start of any day is the last full one before it and the events of the days between.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import ibis
from ibis.expr.types import Table

from stack.base.files import ASIDE
from stack.data import features, follow
from stack.data.days import day_name, day_number
from stack.data.engine import Engine
from stack.data.layout import day_folder


@dataclass(frozen=True, kw_only=True)
class State:
    """`history`: events before the chunk, at least the last `max_history` of each user.

    `tables`: those of `features.STATE`, and of `follow.STATE` where the dataset has features of offers.
    """

    history: Table
    tables: dict[str, Table]


class StateStore:
    """Reads and writes the states of a dataset. `events` is the schema of coded events; `with_follow`: whether offers
    have features (`follow.has_features`)."""

    def __init__(
        self, *, engine: Engine, dataset: Path, events: ibis.Schema, max_history: int, pool_days: int, with_follow: bool
    ) -> None:
        self._engine = engine
        self._dataset = dataset
        self._folder = dataset / "state"
        self._events = events
        self._max_history = max_history
        self._pool_days = pool_days
        self._with_follow = with_follow
        self._schemas = features.STATE | (follow.STATE if with_follow else {})

    def folder(self, day: int) -> Path:
        return self._folder / day_name(day)

    def load(self, before: int) -> State:
        """The state at the start of the day `before`; empty where the dataset has no earlier day."""
        days = [day for day in complete_days(self._dataset) if day < before]
        full = max((day for day in days if (self.folder(day) / "full").is_dir()), default=None)
        between = [day for day in days if full is None or day > full]
        events = self._between(between, "bucket", self._events)
        stored = None if full is None else self.folder(full) / "full"
        history = self._stored(stored, "history", self._events)
        tables = {name: self._stored(stored, name, schema) for name, schema in self._schemas.items()}
        if between:
            history = history.union(events)
            offers = self._between(between, "follow", follow.OFFERS) if self._with_follow else None
            tables = self._advance(tables, events=events, offers=offers, last_day=between[-1])
            tables = {name: self._engine.materialize(name, table) for name, table in tables.items()}
        return State(history=history, tables=tables)

    def write_full(self, folder: Path, *, state: State, events: Table, offers: Table | None, last_day: int) -> None:
        """Writes the state after the chunk's `events` and `offers` (examples of `follow`) into the new folder."""
        folder.mkdir()
        every = state.history.union(events.select(*state.history.columns))
        latest = ibis.row_number().over(group_by="user", order_by=[every.time.desc(), every.row_id.desc()])
        history = every.mutate(latest=latest).filter(lambda t: t.latest < self._max_history).drop("latest")
        self._engine.write(history.order_by("bucket", "user", "time", "row_id"), folder / "history.parquet")
        after = self._advance(state.tables, events=events, offers=offers, last_day=last_day)
        for name, schema in self._schemas.items():
            self._engine.write(after[name].order_by(*schema), folder / f"{name}.parquet")

    def _advance(
        self, tables: dict[str, Table], *, events: Table, offers: Table | None, last_day: int
    ) -> dict[str, Table]:
        after = features.advance(events=events, state=tables, last_day=last_day, pool_days=self._pool_days)
        if not self._with_follow:
            return after
        assert offers is not None, "features of offers need the examples of the group 'follow'"
        return after | follow.advance(offers=offers, state=tables, last_day=last_day)

    def _between(self, days: list[int], kind: str, schema: ibis.Schema) -> Table:
        files = [file for day in days for file in sorted(self.folder(day).glob(f"{kind}-*.parquet"))]
        return self._engine.read(f"days_{kind}", files, schema)

    def drop_full(self, *, after: int) -> None:
        """Forgets full states later than the day `after`, which was built anew; the days' own events stay."""
        for day in complete_days(self._dataset):
            if day > after and (self.folder(day) / "full").is_dir():
                self._forget(day)

    def keep_last(self, count: int) -> None:
        """Deletes all but the newest `count` full states."""
        full = [day for day in complete_days(self._dataset) if (self.folder(day) / "full").is_dir()]
        for day in full[:-count]:
            self._forget(day)

    def _forget(self, day: int) -> None:
        aside = self.folder(day) / f"{ASIDE}full"
        (self.folder(day) / "full").rename(aside)  # so that a kill leaves no half state that looks whole
        shutil.rmtree(aside)

    def _stored(self, folder: Path | None, name: str, schema: ibis.Schema) -> Table:
        return self._engine.read(f"state_{name}", [] if folder is None else [folder / f"{name}.parquet"], schema)


def complete_days(dataset: Path) -> list[int]:
    """The days of a dataset whose manifest is there, ascending."""
    folder = dataset / "days"
    if not folder.is_dir():
        return []
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    return [day_number(name) for name in names if (day_folder(dataset, name) / "manifest.json").is_file()]
