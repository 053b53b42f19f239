"""Timelines from flat tables: one row for each (user, day), its lists cut out of sorted columns by offsets.

All rows of one bucket of users lie in memory for one chunk; the lists of a timeline are ranges of them, so that
nothing is joined or sorted per row. Columns are those of `stack.data.schema`.

    user      7  7  7  7  9          events of a bucket, sorted by user, time, row_id
    day       3  4  4  6  6
    rows      (7, 4) -> events 0..3, one carried     (7, 6) -> 0..4, three carried     (9, 6) -> 4..5
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stack.data.parquet import id_type
from stack.data.schema import Feature, Group, Schema

Numbers = NDArray[np.int64]

EVENT_ORDER = ("user", "time", "row_id")
MOMENT_ORDER = ("user", "time")
_DAY_FACTOR = 1 << 20
_TIME_FACTOR = 1 << 32


@dataclass(frozen=True, kw_only=True)
class Flat:
    """What timelines are cut from: tables of one bucket.

    `events`, history before the chunk included, is sorted by `EVENT_ORDER`, `moments` by `MOMENT_ORDER`,
    `examples[group]` by `order_of(group)`, `profiles` by user and since.
    """

    events: pa.Table
    moments: pa.Table
    profiles: pa.Table
    examples: dict[str, pa.Table]


def order_of(group: Group, columns: tuple[str, ...]) -> tuple[str, ...]:
    """The order of a group's examples in a timeline: by moment, then by what tells its examples apart."""
    apart = ("draw", "place", *(feature.name for feature in group.candidate if not feature.multi))
    return ("user", "time", *(name for name in apart if name in columns))


class Cutter:
    """Cuts the timelines of one bucket, day by day."""

    def __init__(self, *, flat: Flat, schema: Schema, max_history: int) -> None:
        self._flat = flat
        self._schema = schema
        self._max_history = max_history
        names = [feature.name for feature in (*schema.event, *schema.property)]
        self._event_columns = flat.events.select(["time", *names]).combine_chunks()
        self._example_columns = {
            group.name: flat.examples[group.name]
            .select([*(feature.name for feature in group.candidate), *group.labels])
            .combine_chunks()
            for group in schema.groups
        }
        self._event_user, self._event_day = _ints(flat.events, "user"), _ints(flat.events, "day")
        self._event_time = self._event_user * _TIME_FACTOR + _ints(flat.events, "time")
        self._event_day_key = self._event_user * _DAY_FACTOR + self._event_day
        self._moment_day = _ints(flat.moments, "user") * _DAY_FACTOR + _ints(flat.moments, "day")
        self._moment_time = _ints(flat.moments, "user") * _TIME_FACTOR + _ints(flat.moments, "time")
        self._example_time = {
            name: _ints(rows, "user") * _TIME_FACTOR + _ints(rows, "time") for name, rows in flat.examples.items()
        }
        self._dense = {
            group.name: _dense(flat.examples[group.name], group.dense) for group in schema.groups if group.dense
        }

    def cut(self, day: int) -> pa.Table:
        """The timelines of `day`, sorted by user; users without an event or moment on it have none."""
        users = np.unique(
            np.concatenate(
                [key // _DAY_FACTOR for key in (self._on(self._event_day_key, day), self._on(self._moment_day, day))]
            )
        )
        today = users * _DAY_FACTOR + day
        day_start = np.searchsorted(self._event_day_key, today, "left")
        end = np.searchsorted(self._event_day_key, today, "right")
        user_start = np.searchsorted(self._event_user, users, "left")
        start = np.maximum(user_start, day_start - self._max_history)
        moments = np.searchsorted(self._moment_day, today, "left"), np.searchsorted(self._moment_day, today, "right")
        columns: dict[str, pa.Array] = {
            "user": pa.array(users, pa.int32()),
            "num_carried": pa.array(day_start - start, pa.int32()),
        }
        columns |= self._events(start, end)
        columns |= self._profiles(users, day)
        columns |= self._moments(moments, start)
        for group in self._schema.groups:
            columns |= self._examples(group, moments)
        return pa.table(columns)

    def _on(self, keys: Numbers, day: int) -> Numbers:
        found: Numbers = keys[keys % _DAY_FACTOR == day]
        return found

    def _events(self, start: Numbers, end: Numbers) -> dict[str, pa.Array]:
        index, offsets = _ranges(start, end)
        rows = self._event_columns.take(index)
        columns = {"event_time": _lists(offsets, rows["time"], pa.int64())}
        for feature in (*self._schema.event, *self._schema.property):
            columns[f"event_{feature.name}"] = self._ids(offsets, rows, feature)
        return columns

    def _profiles(self, users: Numbers, day: int) -> dict[str, pa.Array]:
        """The version of each user's profile that was valid when the day began."""
        side = self._flat.profiles
        columns: dict[str, pa.Array] = {}
        if not self._schema.profile:
            return columns
        keys = _ints(side, "user") * _TIME_FACTOR + _ints(side, "since")
        place = np.searchsorted(keys, users * _TIME_FACTOR + day * 86_400, "right") - 1
        owners = np.append(_ints(side, "user"), -1)
        found = owners[place] == users
        for feature in self._schema.profile:
            values = np.append(_ints(side, feature.name), 0)
            kind = id_type(self._schema, feature)
            columns[f"profile_{feature.name}"] = pa.array(np.where(found, values[place], 0), kind)
        return columns

    def _moments(self, moments: tuple[Numbers, Numbers], event_start: Numbers) -> dict[str, pa.Array]:
        index, offsets = _ranges(*moments)
        rows = self._flat.moments.take(index)
        row = np.repeat(np.arange(len(event_start)), np.diff(offsets))
        position = np.searchsorted(self._event_time, self._moment_time[index], "left") - event_start[row]
        columns = {
            "moment_time": _lists(offsets, rows["time"], pa.int64()),
            "moment_position": _lists(offsets, pa.array(position), pa.int32()),
        }
        for feature in self._schema.query:
            columns[f"query_{feature.name}"] = self._ids(offsets, rows, feature)
        return columns

    def _examples(self, group: Group, moments: tuple[Numbers, Numbers]) -> dict[str, pa.Array]:
        first, last = moments
        keys, times = self._example_time[group.name], self._moment_time
        # a row's examples are those from its first moment's time to its last one's; a row without moments has none
        some = last > first
        start, end = np.zeros_like(first), np.zeros_like(first)
        start[some] = np.searchsorted(keys, times[first[some]], "left")
        end[some] = np.searchsorted(keys, times[last[some] - 1], "right")
        index, offsets = _ranges(start, end)
        rows = self._example_columns[group.name].take(index)
        row = np.repeat(np.arange(len(first)), np.diff(offsets))
        moment = np.searchsorted(times, keys[index], "left") - first[row]
        name = group.name
        columns = {f"{name}_moment": _lists(offsets, pa.array(moment), pa.int32())}
        for feature in group.candidate:
            columns[f"{name}_{feature.name}"] = self._ids(offsets, rows, feature)
        dense = self._dense[name][index].ravel() if group.dense else np.zeros(0, np.float32)
        columns[f"{name}_dense"] = _lists(offsets * len(group.dense), pa.array(dense), pa.float32())
        for label in group.labels:
            columns[f"{name}_{label}"] = _lists(offsets, rows[label], pa.float32())
        return columns

    def _ids(self, offsets: Numbers, rows: pa.Table, feature: Feature) -> pa.Array:
        return _lists(offsets, rows[feature.name], id_type(self._schema, feature))


def _ints(table: pa.Table, column: str) -> Numbers:
    return np.asarray(table[column].to_numpy(), dtype=np.int64)


def _dense(rows: pa.Table, names: tuple[str, ...]) -> NDArray[np.float32]:
    """(examples, features)."""
    values = np.empty((rows.num_rows, len(names)), np.float32)
    for place, name in enumerate(names):
        values[:, place] = rows[name].to_numpy()
    return values


def _ranges(start: Numbers, end: Numbers) -> tuple[Numbers, Numbers]:
    """The indices of all ranges in a row, and the offsets at which each begins: [2..4), [7..8) -> 2 3 7, 0 2 3."""
    lengths = end - start
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    index = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - start, lengths)
    return index, offsets


def _lists(offsets: Numbers, values: pa.Array | pa.ChunkedArray, dtype: pa.DataType) -> pa.Array:
    flat = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat.cast(dtype))


def num_list_values(table: pa.Table, column: str) -> int:
    """How many values the lists of a column hold together."""
    return int(pc.sum(pc.list_value_length(table[column])).as_py() or 0)
