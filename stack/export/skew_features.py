"""One request's features beside those that training sees at the same moment: which differ, and in which way.

Both sides are brought to what training reads, rows of the vocabulary or keys: the request's raw ids as ingest would
code them, prepared data as they are. Events are brought side by side by their time; those left over are *shifted* where
the other side has one with the same features at another time, else *missing* in the request, or *extra*.

Legend: N ids, L events, E examples.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stack.data.batch import Batch, Ids
from stack.data.dataset import Dataset
from stack.data.keys import UNKNOWN_KEY
from stack.data.schema import Feature, Schema
from stack.export.lookup import number_keys, text_keys
from stack.export.moments import taken
from stack.export.package import Ids as PackageIds
from stack.export.runs import MISSING
from stack.export.skew_log import Body
from stack.ids.frozen import FrozenMap
from stack.model import USER_FEATURE

Code = int | tuple[int, ...]
"""What training reads of one owner: a row or key, or, ascending, those of a bag, whose order means nothing."""

MISSING_EVENT, OLDER_EVENT, EXTRA_EVENT, SHIFTED = "missing", "older missing", "extra", "shifted"
OTHER, UNKNOWN, NOT_SENT, NOT_IN_DATA = "other value", "unknown id", "not sent", "not in the data"
EVENTS, TIME, NOW = "events", "events.time", "now"


@dataclass(kw_only=True)
class Compared:
    """Of one request: values compared by feature, of those that differ how often in which way, and by how many seconds
    times do."""

    num: Counter[str] = field(default_factory=Counter)
    kinds: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    shifts: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))

    @property
    def first(self) -> str | None:
        """The first feature that differs."""
        return next(iter(self.kinds), None)

    def values(self, feature: str, ours: Sequence[Code], theirs: Sequence[Code], sent: Sequence[bool]) -> None:
        """`ours` of the request, `theirs` of the data; `sent`: whether the request gives the value."""
        self.num[feature] += len(ours)
        for own, their, is_sent in zip(ours, theirs, sent, strict=True):
            if own != their:
                self.kinds[feature][_kind(own, their, is_sent)] += 1


def _kind(own: Code, their: Code, is_sent: bool) -> str:
    if not is_sent:
        return NOT_SENT
    if own == UNKNOWN_KEY or (isinstance(own, tuple) and UNKNOWN_KEY in own):
        return UNKNOWN
    return NOT_IN_DATA if their in (UNKNOWN_KEY, ()) else OTHER


class Coder:
    """Raw ids as ingest codes them, from the vocabularies of a dataset. `package_ids`: those of the package, by table.
    What is of another kind than the package takes (a log that another one answered) is unknown, as nothing is.

    Memory: 12 bytes for each id of the vocabularies.
    """

    def __init__(self, dataset: Dataset, package_ids: Mapping[str, PackageIds]) -> None:
        self._dataset, self._package_ids = dataset, package_ids
        self._maps: dict[str, FrozenMap | None] = {}

    def rows(self, table: str, raw: Sequence[Any]) -> NDArray[np.int64]:
        """Of whole numbers or texts; 0 for None and for what the vocabulary lacks."""
        text = self._package_ids[table].text
        kind = str if text else int
        usable = [value if type(value) is kind else None for value in raw]
        return self._coded(table, text_keys(usable) if text else number_keys(usable))

    def user(self, name: int | str) -> int:
        """The row of a user, by number or name; 0 where the data do not have one."""
        keys = text_keys([name]) if isinstance(name, str) else np.array([name], dtype=np.int64)
        return int(self._coded(USER_FEATURE.table, keys)[0])

    def column(self, feature: Feature, raw: Sequence[Any] | None, count: int) -> tuple[list[Code], list[bool]]:
        """Of `count` owners, and which of them the request gives a value; None: the request leaves the feature out."""
        if raw is None:
            return [() if feature.multi else UNKNOWN_KEY] * count, [False] * count
        raw = [*raw[:count], *[None] * (count - len(raw))]
        if not feature.multi:
            return self.rows(feature.table, raw).tolist(), [value is not None for value in raw]
        bags = [value if isinstance(value, list) else [] for value in raw]
        flat = self.rows(feature.table, [value for bag in bags for value in bag]).tolist()
        ends = np.cumsum([len(bag) for bag in bags]).tolist()
        coded: list[Code] = [tuple(sorted(flat[end - len(bag) : end])) for bag, end in zip(bags, ends, strict=True)]
        return coded, [len(bag) > 0 for bag in bags]

    def _coded(self, table: str, key_N: NDArray[np.int64]) -> NDArray[np.int64]:
        key_N = np.where(key_N == MISSING, UNKNOWN_KEY, key_N)
        if table not in self._maps:
            self._maps[table] = self._map(table)
        found = self._maps[table]
        return key_N if found is None else np.where(key_N == UNKNOWN_KEY, 0, found.rows(key_N))

    def _map(self, table: str) -> FrozenMap | None:
        """None where ids have no vocabulary: their keys are what training reads."""
        if self._dataset.schema.without_vocabulary(table) is not None:
            return None
        key_R = self._dataset.keys(table)
        order_R = np.argsort(key_R, kind="stable")
        return FrozenMap(key_N=key_R[order_R], row_N=order_R.astype(np.int32))


def codes_of(ids: Ids, owners: NDArray[np.int64]) -> list[Code]:
    """What prepared data have of some owners. An id of a bag that is missing cannot be said in a request."""
    some = taken(ids, owners)
    if not isinstance(some, tuple):
        return list(some.tolist())
    bags = np.split(some[0], np.cumsum(some[1])[:-1]) if len(some[1]) else []
    return [tuple(sorted(bag[bag != UNKNOWN_KEY].tolist())) for bag in bags]


def compare_user(
    body: Body, batch: Batch, moment: int, *, schema: Schema, coder: Coder, max_events: int, compared: Compared
) -> None:
    """The request's user at its moment, and that of prepared data."""
    row = int(batch.moment_row_M[moment])
    now = int(batch.moment_time_M[moment])
    compared.num[NOW] += 1
    if body.now != now:
        compared.kinds[NOW][SHIFTED] += 1
        compared.shifts[NOW].append((body.now or 0) - now)
    _compare_events(body, batch, moment, schema=schema, coder=coder, max_events=max_events, compared=compared)
    profile = {**batch.profile, USER_FEATURE.name: batch.user_B}
    for place, features, columns, owner, given in (
        ("profile", schema.profile, profile, row, body.profile),
        ("query", schema.query, batch.query, moment, body.query),
    ):
        for feature in features:
            value = given.get(feature.name)
            ours, sent = coder.column(feature, None if value is None else [value], 1)
            compared.values(f"{place}.{feature.name}", ours, codes_of(columns[feature.name], np.array([owner])), sent)


def _compare_events(
    body: Body, batch: Batch, moment: int, *, schema: Schema, coder: Coder, max_events: int, compared: Compared
) -> None:
    row = int(batch.moment_row_M[moment])
    first = int(batch.num_events_B[:row].sum())
    end = first + int(batch.moment_position_M[moment])
    event_L = np.arange(max(first, end - max_events), end)
    features = (*schema.event, *schema.property)
    columns = {**batch.event, **batch.property}
    theirs = {feature.name: codes_of(columns[feature.name], event_L) for feature in features}
    events = body.events or {}
    time = [int(one) for one in events.get("time") or ()]
    ours = {feature.name: coder.column(feature, events.get(feature.name), len(time)) for feature in features}
    pairs = side_by_side(
        time, list(zip(*(ours[feature.name][0] for feature in features), strict=True)),
        batch.event_time_T[event_L].tolist(), list(zip(*(theirs[feature.name] for feature in features), strict=True)),
    )  # fmt: skip
    compared.num[EVENTS] += len(event_L)
    for kind, number in (
        (MISSING_EVENT, pairs.num_missing),
        (OLDER_EVENT, pairs.num_older),
        (EXTRA_EVENT, pairs.num_extra),
    ):
        if number:
            compared.kinds[EVENTS][kind] += number
    compared.num[TIME] += len(pairs.places)
    if pairs.shifts:
        compared.kinds[TIME][SHIFTED] += len(pairs.shifts)
        compared.shifts[TIME] += pairs.shifts
    for feature in features:
        own, sent = ours[feature.name]
        compared.values(
            f"events.{feature.name}", [own[place] for place, _ in pairs.places],
            [theirs[feature.name][place] for _, place in pairs.places], [sent[place] for place, _ in pairs.places],
        )  # fmt: skip


@dataclass(kw_only=True)
class Pairs:
    """`places`: of events that belong together, in the request and in the data. `num_older`: missing ones before the
    request's first."""

    places: list[tuple[int, int]] = field(default_factory=list)
    shifts: list[int] = field(default_factory=list)
    num_missing: int = 0
    num_older: int = 0
    num_extra: int = 0


def side_by_side(
    time: Sequence[int], codes: Sequence[tuple[Code, ...]], their_time: Sequence[int],
    their_codes: Sequence[tuple[Code, ...]],
) -> Pairs:  # fmt: skip
    """Events of a request and of the data, both in order of time."""
    pairs = Pairs()
    ours, theirs = _by_time(time), _by_time(their_time)
    left: list[int] = []
    their_left: list[int] = []
    for second in sorted(ours.keys() | theirs.keys()):
        own, their = ours.get(second, []), theirs.get(second, [])
        if len(own) != len(their):  # whichever are the same belong together
            same = list(_same(own, their, codes, their_codes))
            pairs.places += same
            own, their = _without(own, [one for one, _ in same]), _without(their, [one for _, one in same])
        number = min(len(own), len(their))
        pairs.places += zip(own[:number], their[:number], strict=True)
        left += own[number:]
        their_left += their[number:]
    moved = list(_same(left, their_left, codes, their_codes))
    pairs.places += moved
    pairs.shifts = [time[own] - their_time[their] for own, their in moved]
    begin = min((time[place] for place in range(len(time))), default=None)
    lost = [their_time[place] for place in _without(their_left, [their for _, their in moved])]
    pairs.num_older = 0 if begin is None else sum(second < begin for second in lost)
    pairs.num_missing = len(lost) - pairs.num_older
    pairs.num_extra = len(left) - len(moved)
    return pairs


def _by_time(time: Sequence[int]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for place, second in enumerate(time):
        found.setdefault(second, []).append(place)
    return found


def _same(
    own: Sequence[int], their: Sequence[int], codes: Sequence[tuple[Code, ...]], their_codes: Sequence[tuple[Code, ...]]
) -> Iterator[tuple[int, int]]:
    """Events with the same features, the first with the first."""
    waiting: dict[tuple[Code, ...], list[int]] = {}
    for place in their:
        waiting.setdefault(their_codes[place], []).append(place)
    for place in own:
        found = waiting.get(codes[place])
        if found:
            yield place, found.pop(0)


def _without(places: Sequence[int], gone: Sequence[int]) -> list[int]:
    return [place for place in places if place not in set(gone)]


def compare_candidates(
    body: Body, batch: Batch, example_E: NDArray[np.int64], *, schema: Schema, coder: Coder, dense_tolerance: float,
    compared: Compared,
) -> list[tuple[int, int]]:  # fmt: skip
    """Candidates of a request and the examples of its moment. Returns places in the request with their examples.

    They belong together by the first feature. Of the examples those that were shown must be among the candidates;
    negatives that training drew need not be."""
    assert body.group is not None
    group, examples = schema.group(body.group), batch.groups[body.group]
    by = next((feature for feature in group.candidate if not feature.multi), None)
    given = body.candidates
    if by is None or not isinstance(given.get(by.name), list):
        return []
    count = len(given[by.name])
    ours, _ = coder.column(by, given[by.name], count)
    waiting: dict[Code, list[int]] = {}
    for place, code in enumerate(ours):
        waiting.setdefault(code, []).append(place)
    drawn_E = examples.labels["draw"][example_E].numpy() > 0 if "draw" in examples.labels else np.zeros(len(example_E))
    places: list[tuple[int, int]] = []
    where = f"candidates.{group.name}"
    for example, code, drawn in zip(
        example_E.tolist(), codes_of(examples.ids[by.name], example_E), drawn_E, strict=True
    ):
        if found := waiting.get(code):
            places.append((found.pop(0), example))
        elif not drawn:
            compared.kinds[f"{where}.{by.name}"][MISSING_EVENT] += 1
    compared.num[f"{where}.{by.name}"] += len(places)
    _compare_columns(body, batch, places, schema=schema, coder=coder, by=by, count=count, compared=compared)
    _compare_dense(body, batch, places, schema=schema, tolerance=dense_tolerance, compared=compared)
    return places


def _compare_columns(
    body: Body, batch: Batch, places: Sequence[tuple[int, int]], *, schema: Schema, coder: Coder, by: Feature,
    count: int, compared: Compared,
) -> None:  # fmt: skip
    assert body.group is not None
    group, examples = schema.group(body.group), batch.groups[body.group]
    chosen_E = np.array([example for _, example in places], dtype=np.int64)
    for feature in group.candidate:
        if feature is not by:
            own, sent = coder.column(feature, body.candidates.get(feature.name), count)
            compared.values(
                f"candidates.{group.name}.{feature.name}", [own[place] for place, _ in places],
                codes_of(examples.ids[feature.name], chosen_E), [sent[place] for place, _ in places],
            )  # fmt: skip


def _compare_dense(
    body: Body, batch: Batch, places: Sequence[tuple[int, int]], *, schema: Schema, tolerance: float, compared: Compared
) -> None:
    """Numbers are the same up to what fp32 rounds; a column that is not sent is 0."""
    assert body.group is not None
    group, examples = schema.group(body.group), batch.groups[body.group]
    sent: Mapping[str, Sequence[object] | None] = body.candidates.get("dense") or {}
    dense_EF = examples.dense_EF.numpy()
    for index, name in enumerate(group.dense):
        feature = f"candidates.{group.name}.dense.{name}"
        column = sent.get(name)
        for place, example in places:
            their = float(dense_EF[example, index])
            own = 0.0 if column is None or place >= len(column) else _fp32(column[place])
            compared.num[feature] += 1
            if not abs(own - their) <= tolerance * max(1.0, abs(their)):
                compared.kinds[feature][NOT_SENT if column is None else OTHER] += 1


def _fp32(value: object) -> float:
    return float(np.float32(value)) if isinstance(value, int | float) else float("nan")
