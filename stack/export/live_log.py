"""Requests as a server recorded them, as batches that a trained model reads: live traffic for an audit.

Every `items:score` request that gives its user's events is a timeline with one moment at its end, and its candidates
are examples of its group. Ids are coded as ingest codes them (`stack.export.skew_features.Coder`), those that nobody
knows as row 0; what a request leaves out is unknown, dense features 0, as in serving. Nobody knows yet what came of the
candidates: labels are 0 and mean nothing, but `weight` is 1, and nothing was drawn.

Two requests, one of 2 events and 3 candidates, one of 1 event and 1 candidate::

    num_events_B  [2, 1]     moment_row_M  [0, 1]     moment_position_M  [2, 1]     moment_E  [0, 0, 0, 1]

Legend: B requests, E candidates, F dense features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain, pairwise
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import torch
from msgspec import Meta, Raw
from torch import Tensor

from stack.audits.live import LiveTraffic, LogReport
from stack.base.errors import DataError
from stack.data.batch import Batch, Examples, Ids, Jagged
from stack.data.dataset import Dataset
from stack.data.schema import Feature, Group, Schema
from stack.export.package import PackageManifest
from stack.export.skew_features import Coder
from stack.export.skew_log import files_of
from stack.model import USER_FEATURE
from stack.telemetry.progress import progress

ROUTE = "/v1/items:score"
UNREADABLE, NO_CANDIDATES = "line that cannot be read", "asks for no scores"
OF_A_VECTOR, OTHER_GROUP = "vector kept or given", "group that the data do not have"

_Number = Annotated[float, Meta(ge=-1e30, le=1e30)]
_Id = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | str | None
_Value = _Id | list[_Id]
_Column = list[_Value] | None
_Seconds = Annotated[int, Meta(ge=0, le=1 << 40)]
_DENSE = "dense"


class _Body(msgspec.Struct, frozen=True, kw_only=True):
    """The request, so far as it says anything of its features."""

    user: _Id = None
    now: _Seconds | None = None
    events: dict[str, Raw] | None = None
    profile: dict[str, _Value] = {}
    query: dict[str, _Value] = {}
    group: str | None = None
    candidates: dict[str, Raw] = {}


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    route: str
    body: Raw


class _Request(msgspec.Struct, frozen=True, kw_only=True):
    """A request that can be traffic: checked."""

    user: _Id
    now: int
    time: list[int]
    events: dict[str, _Column]
    profile: dict[str, _Value]
    query: dict[str, _Value]
    group: str
    candidates: dict[str, _Column]
    dense: dict[str, list[float] | None]
    num_candidates: int


_LINE, _BODY = msgspec.json.Decoder(_Line), msgspec.json.Decoder(_Body)
_TIMES, _COLUMN = msgspec.json.Decoder(list[_Seconds]), msgspec.json.Decoder(_Column)
_DENSE_COLUMNS = msgspec.json.Decoder(dict[str, list[_Number] | None] | None)


def live_traffic(
    dataset: Dataset, manifest: PackageManifest, log: Path, *, most: int, per_batch: int, seed: int
) -> LiveTraffic:
    """At most so many requests of a log, drawn at random. `manifest`: of the package that answered, for how it codes
    ids. Goes through the log once, and reads what it drew anew for each pass over the batches; what is appended
    meanwhile has no part. Memory: some 200 bytes for each request of the log.

    Raises: `DataError` where there is no log, or nothing in it can be traffic.
    """
    files = files_of(log)
    groups = {group.name for group in dataset.schema.groups}
    skipped: Counter[str] = Counter()
    places: list[tuple[int, int]] = []
    days: list[int] = []
    num_lines = 0
    for number, offset, line in _lines(files):
        num_lines += 1
        request = _read(line, groups)
        if isinstance(request, str):
            skipped[request] += 1
        else:
            places.append((number, offset))
            days.append(request.now // 86_400)
    if not places:
        told = ", ".join(f"{count:,} {reason}" for reason, count in skipped.most_common())
        raise DataError(
            f"none of the {num_lines:,} lines of audit.live_log={log} can be traffic ({told}): record {ROUTE} requests "
            "that give `now` and `events`"
        )
    drawn = np.sort(np.random.default_rng(seed).permutation(len(places))[:most]).tolist()
    drawn_days = {datetime.fromtimestamp(days[place] * 86_400, UTC).date().isoformat() for place in drawn}
    return LiveTraffic(
        report=LogReport(
            path=str(log), days=tuple(sorted(drawn_days)), num_lines=num_lines, num_requests=len(drawn),
            skipped=dict(skipped),
        ),
        batches=_Batches(
            files, [places[place] for place in drawn], groups=groups, per_batch=per_batch,
            maker=_Maker(dataset.schema, manifest, Coder(dataset, manifest.ids)),
        ),
    )  # fmt: skip


class _Batches:
    """The requests at some places (file, byte), read each time they are gone through."""

    def __init__(
        self, files: Sequence[Path], places: Sequence[tuple[int, int]], *, groups: set[str], per_batch: int,
        maker: _Maker,
    ) -> None:  # fmt: skip
        self._files, self._places, self._groups, self._per_batch = files, places, groups, per_batch
        self._maker = maker

    def __iter__(self) -> Iterator[Batch]:
        starts = range(0, len(self._places), self._per_batch)
        for start in progress(starts, description="audit"):
            yield self._maker.batch(list(self._requests(self._places[start : start + self._per_batch])))

    def _requests(self, places: Sequence[tuple[int, int]]) -> Iterator[_Request]:
        for number in sorted({number for number, _ in places}):
            with self._files[number].open("rb") as file:
                for _, offset in (place for place in places if place[0] == number):
                    file.seek(offset)
                    request = _read(file.readline(), self._groups)
                    if isinstance(request, str):
                        raise DataError(f"{self._files[number]} was changed while it was read: audit again")
                    yield request


class _Maker:
    """Makes batches of requests. `manifest` says which features the model reads of them; the others are unknown."""

    def __init__(self, schema: Schema, manifest: PackageManifest, coder: Coder) -> None:
        self._schema, self._coder = schema, coder
        self._tables = set(manifest.ids)
        self._reads_user = USER_FEATURE in manifest.schema.profile

    def batch(self, requests: Sequence[_Request]) -> Batch:
        schema, count = self._schema, len(requests)
        num_events = [len(one.time) for one in requests]
        events = [one.events for one in requests]
        position_B, row_B = torch.tensor(num_events), torch.arange(count)
        return Batch(
            user_B=torch.tensor([self._user(one) for one in requests]), num_events_B=position_B,
            num_carried_B=torch.zeros_like(position_B), event_time_T=_int64(chain(*(one.time for one in requests))),
            event=self._columns(schema.event, events, num_events),
            property=self._columns(schema.property, events, num_events),
            profile=self._columns(schema.profile, [_alone(one.profile) for one in requests], [1] * count),
            moment_row_M=row_B, moment_position_M=position_B,
            moment_time_M=torch.tensor([one.now for one in requests]),
            query=self._columns(schema.query, [_alone(one.query) for one in requests], [1] * count),
            groups={group.name: self._examples(group, requests) for group in schema.groups},
        )  # fmt: skip

    def _user(self, request: _Request) -> int:
        """A model that reads users' ids is given that of the profile, as in serving; else they tell users apart."""
        name = request.profile.get(USER_FEATURE.name) if self._reads_user else request.user
        if name is None or isinstance(name, list):
            return 0
        return int(self._coder.rows(USER_FEATURE.table, [name])[0]) if self._reads_user else self._coder.user(name)

    def _examples(self, group: Group, requests: Sequence[_Request]) -> Examples:
        """Candidates of those requests that ask about the group."""
        asked = [(row, one) for row, one in enumerate(requests) if one.group == group.name]
        counts = [one.num_candidates for _, one in asked]
        num_examples = sum(counts)
        dense_EF = np.zeros((num_examples, len(group.dense)), dtype=np.float32)
        for index, name in enumerate(group.dense):
            columns = (one.dense.get(name) or [0.0] * one.num_candidates for _, one in asked)
            dense_EF[:, index] = np.fromiter(chain(*columns), np.float32, count=num_examples)
        return Examples(
            moment_E=_int64(np.repeat([row for row, _ in asked], counts) if asked else ()),
            ids=self._columns(group.candidate, [one.candidates for _, one in asked], counts),
            dense_EF=torch.from_numpy(dense_EF),
            labels={name: torch.full((num_examples,), float(name == "weight")) for name in group.labels},
        )

    def _columns(
        self, features: Sequence[Feature], given: Sequence[Mapping[str, _Column]], counts: Sequence[int]
    ) -> dict[str, Ids]:
        """Of several requests, each with as many owners as `counts` says."""
        return {feature.name: self._ids(feature, given, counts) for feature in features}

    def _ids(self, feature: Feature, given: Sequence[Mapping[str, _Column]], counts: Sequence[int]) -> Ids:
        absent: list[Any] = [[] if feature.multi else None]
        column: list[Any] = []
        for one, count in zip(given, counts, strict=True):
            values = one.get(feature.name) if feature.table in self._tables else None
            column += absent * count if values is None else values
        codes, _ = self._coder.column(feature, column if feature.table in self._tables else None, len(column))
        if not feature.multi:
            return _int64(codes)
        bags = [code if isinstance(code, tuple) else () for code in codes]
        return Jagged(values_N=_int64(chain(*bags)), lengths=_int64(map(len, bags)))


def _int64(values: Iterable[Any]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.int64)


def _alone(singles: Mapping[str, _Value]) -> dict[str, _Column]:
    return {name: [value] for name, value in singles.items()}


def _lines(files: Sequence[Path]) -> Iterator[tuple[int, int, bytes]]:
    """Each line that is not empty, with its place."""
    for number, path in enumerate(progress(files, description="recorded requests")):
        offset = 0
        with path.open("rb") as file:
            for line in file:
                if line.strip():
                    yield number, offset, line
                offset += len(line)


def _read(line: bytes, groups: set[str]) -> _Request | str:
    """A request, or the reason why it cannot be traffic."""
    try:
        read = _LINE.decode(line)
        if read.route != ROUTE:
            return NO_CANDIDATES
        body = _BODY.decode(read.body)
        if body.now is None or body.events is None:
            return OF_A_VECTOR
        if body.group not in groups or body.group is None:
            return OTHER_GROUP
        return _checked(body, body.group, body.now, dict(body.events)) or UNREADABLE
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return UNREADABLE


def _checked(body: _Body, group: str, now: int, events: dict[str, Raw]) -> _Request | None:
    """None where columns do not belong together, or times are out of order."""
    time = _TIMES.decode(events.pop("time", Raw(b"[]")))
    dense = _DENSE_COLUMNS.decode(body.candidates.get(_DENSE, Raw(b"null"))) or {}
    candidates = {name: _COLUMN.decode(column) for name, column in body.candidates.items() if name != _DENSE}
    columns = {name: _COLUMN.decode(column) for name, column in events.items()}
    counts = {len(column) for column in (*candidates.values(), *dense.values()) if column is not None}
    in_order = all(earlier <= later for earlier, later in pairwise([*time, now - 1]))
    if len(counts) != 1 or 0 in counts or not in_order:
        return None
    if any(column is not None and len(column) != len(time) for column in columns.values()):
        return None
    return _Request(
        user=body.user, now=now, time=time, events=columns, profile=body.profile, query=body.query, group=group,
        candidates=candidates, dense=dense, num_candidates=counts.pop(),
    )  # fmt: skip
