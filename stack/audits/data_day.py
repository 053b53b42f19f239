"""What a prepared day holds, column by column: the numbers that days are compared by, small enough to keep.

::

    user                   ids of users, one a timeline
    event.item ...         ids of the day's own events (what was carried over is left out), and `event.hour`
    query.shop ...         ids of moments
    profile.age ...        ids of timelines
    impression.item ...    ids of candidates; impression.price ... ranking features; impression.clicked ... labels

Files are read one after the other. Distinct ids are counted exactly, which takes some 16 bytes for each of them.

Legend: N values, K examples, F dense features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from stack.audits.data_columns import Facts, IdFacts, IdSums, LabelFacts, LabelSums, NumberFacts, NumberSums
from stack.base.files import make_folder, write_bytes
from stack.data.dataset import Dataset
from stack.data.days import SECONDS_PER_DAY
from stack.data.parquet import Block, Column, Level, Ragged, Values, read_block
from stack.data.schema import Feature, Schema

PROFILES = "profiles"
_FORMAT_VERSION = 1
SAMPLING = frozenset({"weight", "draw", "rate_uniform", "rate_popularity"})
"""Labels that say how an example was sampled, not what came of it."""


class DayProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`volume`: timelines, events, moments, and the examples of each group. `labels`: of what is learnt, by column."""

    day: str
    digest: str
    volume: dict[str, int]
    columns: dict[str, Facts]
    labels: dict[str, LabelFacts]

    @property
    def numbers(self) -> dict[str, NumberFacts]:
        return {name: one for name, one in self.columns.items() if isinstance(one, NumberFacts)}

    @property
    def ids(self) -> dict[str, IdFacts]:
        return {name: one for name, one in self.columns.items() if isinstance(one, IdFacts)}


def profile_of(dataset: Dataset, day: str, *, folder: Path | None) -> DayProfile:
    """The profile of a prepared day, out of `folder` where it was kept and is still of these files; then it is kept.

    Raises: `DataError` where the day is not prepared or cannot be read.
    """
    digest = _digest(dataset, day)
    path = None if folder is None else folder / PROFILES / f"{day}.json"
    kept = _kept(path) if path is not None else None
    if kept is not None and kept.digest == digest:
        return kept
    profile = _measured(dataset, day, digest=digest)
    if path is not None:
        make_folder(path.parent, option="the folder of profiles")
        write_bytes(path, msgspec.json.encode(profile))
    return profile


def _kept(path: Path) -> DayProfile | None:
    """None where there is none, or one that other code wrote or a kill cut short: it can be measured again."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=DayProfile)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _before(dataset: Dataset, day: str) -> str | None:
    return next((one for one in reversed(dataset.days()) if one < day), None)


def _digest(dataset: Dataset, day: str) -> str:
    before = _before(dataset, day)
    said = {
        "format": _FORMAT_VERSION,
        "buckets": [bucket.sha256 for bucket in dataset.day(day).buckets],
        "known": None if before is None else dataset.num_rows(before),
    }
    return hashlib.sha256(msgspec.json.encode(said, order="deterministic")).hexdigest()


def _measured(dataset: Dataset, day: str, *, digest: str) -> DayProfile:
    schema, before = dataset.schema, _before(dataset, day)
    known = {} if before is None else dataset.num_rows(before)
    volume = {"timelines": 0, "events": 0, "moments": 0} | {f"{group.name} examples": 0 for group in schema.groups}
    sums = _Sums(schema, known=known)
    for bucket in range(dataset.num_buckets):
        block = read_block(
            [dataset.bucket_path(day, bucket)], schema=schema, groups=schema.groups, num_rows=dataset.num_rows(day)
        )
        own_N = own_events(block)
        volume["timelines"] += block.num_timelines
        volume["events"] += int(own_N.sum())
        volume["moments"] += int(block.moment.offsets[-1])
        for name, level in block.groups.items():
            volume[f"{name} examples"] += int(level.offsets[-1])
        sums.add(block, own_N)
    return DayProfile(day=day, digest=digest, volume=volume, columns=sums.facts(), labels=sums.label_facts())


def own_events(block: Block) -> Values:
    """Which events are the day's own: each timeline begins with those that were carried over."""
    offsets, carried = block.event.offsets, block.timeline["num_carried"]
    assert isinstance(carried, np.ndarray)
    place_N = np.arange(offsets[-1]) - np.repeat(offsets[:-1], np.diff(offsets))
    return np.asarray(place_N >= np.repeat(carried, np.diff(offsets)))


class _Sums:
    """Adds up blocks of one day."""

    def __init__(self, schema: Schema, *, known: dict[str, int]) -> None:
        self._schema = schema
        self._ids: dict[str, IdSums] = {}
        self._numbers: dict[str, NumberSums] = {}
        self._labels: dict[str, LabelSums] = {}
        self._known = known

    def add(self, block: Block, own_N: Values) -> None:
        schema = self._schema
        self._add_ids("user", "user", block.timeline["user"])
        self._add_hours(block, own_N)
        for name, table, column in _id_columns(schema, block, own_N):
            self._add_ids(name, table, column)
        for group in schema.groups:
            columns = block.groups[group.name].columns
            dense_KF = columns["dense"]
            assert isinstance(dense_KF, np.ndarray)
            for place, name in enumerate(group.dense):
                self._add_numbers(f"{group.name}.{name}", dense_KF[:, place])
            weight_K = columns["weight"] if "weight" in group.labels else None
            for label in group.labels:
                label_K = columns[label]
                assert isinstance(label_K, np.ndarray)
                self._add_numbers(f"{group.name}.{label}", label_K)
                if label not in SAMPLING:
                    assert weight_K is None or isinstance(weight_K, np.ndarray)
                    sums = self._labels.setdefault(f"{group.name}.{label}", LabelSums(features=group.dense))
                    sums.add(label_K, dense_KF, weight_K)

    def facts(self) -> dict[str, Facts]:
        ids: dict[str, Facts] = {name: one.facts() for name, one in self._ids.items()}
        return ids | {name: one.facts() for name, one in self._numbers.items()}

    def label_facts(self) -> dict[str, LabelFacts]:
        return {name: one.facts() for name, one in self._labels.items()}

    def _add_ids(self, name: str, table: str, column: Column) -> None:
        value_N = column.values_N if isinstance(column, Ragged) else column
        if name not in self._ids:
            keys = self._schema.without_vocabulary(table) is not None
            self._ids[name] = IdSums(table=table, num_known=None if keys else self._known.get(table), keys=keys)
        self._ids[name].add(value_N)

    def _add_hours(self, block: Block, own_N: Values) -> None:
        time_N = block.event.columns["time"]
        assert isinstance(time_N, np.ndarray)
        if "event.hour" not in self._ids:
            self._ids["event.hour"] = IdSums(table="", num_known=None, keys=False, has_unknown=False)
        self._ids["event.hour"].add(time_N[own_N] % SECONDS_PER_DAY // 3600)

    def _add_numbers(self, name: str, value_N: Values) -> None:
        self._numbers.setdefault(name, NumberSums()).add(value_N)


def _id_columns(schema: Schema, block: Block, own_N: Values) -> Iterator[tuple[str, str, Column]]:
    """(name, table, ids) of all columns of ids but the users'."""
    events: Level = block.event
    for feature in (*schema.event, *schema.property):
        yield f"event.{feature.name}", feature.table, _where(events.columns[feature.name], own_N)
    yield from _of("query", schema.query, block.moment.columns)
    yield from _of("profile", schema.profile, block.timeline)
    for group in schema.groups:
        yield from _of(group.name, group.candidate, block.groups[group.name].columns)


def _of(prefix: str, features: Sequence[Feature], columns: dict[str, Column]) -> Iterator[tuple[str, str, Column]]:
    for feature in features:
        yield f"{prefix}.{feature.name}", feature.table, columns[feature.name]


def _where(column: Column, kept_N: Values) -> Column:
    """The values of some owners."""
    if isinstance(column, Ragged):
        values_N: Values = column.values_N[np.repeat(kept_N, np.diff(column.offsets))]
        return values_N
    kept: Values = column[kept_N]
    return kept
