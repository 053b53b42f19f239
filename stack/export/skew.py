"""Requests as a server recorded them, replayed on prepared data: is what was served what training would have seen?

A recorded request (`stack.export.skew_log`) is joined by user and moment with the timelines of the dataset. Its
features are compared with those of the timeline, one by one; then the moment is scored from prepared data, by the
package that answered and by the trained model, and compared with the answer. Where all features are equal the package
must say the same to `tolerance`; the trained model too, where rows are kept exactly (what rounding costs is in
`quality.json`).

Legend: M moments, E examples, B users.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import msgspec
import numpy as np
from numpy.typing import NDArray

from stack.audits.skew_config import SkewConfig
from stack.data.batch import Batch
from stack.data.dataset import Dataset
from stack.data.loader import Loader
from stack.export.answers import linked
from stack.export.engines import Array, open_engine
from stack.export.export import Trained
from stack.export.moments import by_moment, candidates_of, users_of
from stack.export.package import USER_VECTOR, PackageManifest, open_package, scorers_of
from stack.export.parity import Answers, trained_answers
from stack.export.quantize import RowType
from stack.export.runner import Runner, Users
from stack.export.skew_features import Coder, Compared, compare_candidates, compare_user
from stack.export.skew_log import Logged, read_log
from stack.export.stores import open_stores
from stack.export.tables import exported_tables
from stack.model import USER_FEATURE
from stack.telemetry.progress import progress

_TIMELINES_PER_BATCH = 32
UNREADABLE, OF_A_VECTOR, NOBODY = "line that cannot be read", "vector kept or given", "names no user"
NO_USER, NO_MOMENT = "user that the data do not have", "moment that the data do not have"


class FeatureSkew(msgspec.Struct, frozen=True, kw_only=True):
    """One feature, named by its place in a request. `num_first`: requests of which it is the first that differs;
    `kinds`: values that differ, by the way in which they do; `shift_seconds`: of times, the median shift."""

    name: str
    num_values: int
    num_different: int
    num_requests: int
    num_first: int
    kinds: dict[str, int]
    shift_seconds: float | None


class ScoreSkew(msgspec.Struct, frozen=True, kw_only=True):
    """One output of requests that the package answered. `from_package`, `from_trained`: the largest difference of what
    was served from what they say of prepared data, over answers whose features are all equal (null: there is none);
    `all_from_package`: over all. `num_off`: of the equal ones, those off by more than is allowed."""

    name: str
    num_values: int
    num_equal: int
    num_off: int
    from_package: float | None
    from_trained: float | None
    all_from_package: float | None


class SkewReport(msgspec.Struct, frozen=True, kw_only=True):
    """`skipped`: recorded requests that could not be compared, by the reason. `num_other_package`: requests whose
    scores were not compared, since another package or newer rows had answered; `num_cut`: those whose timelines are
    longer than a request may be, so that no trained answer is theirs. `exact_rows`: whether the package keeps rows
    exactly."""

    package: str
    days: tuple[str, ...]
    num_recorded: int
    num_compared: int
    num_equal: int
    skipped: dict[str, int]
    num_other_package: int
    num_cut: int
    exact_rows: bool
    tolerance: float
    features: tuple[FeatureSkew, ...]
    scores: tuple[ScoreSkew, ...]


def skew(trained: Trained, *, package: Path, log: Path, config: SkewConfig) -> SkewReport:
    """Replays the log. `trained`: the run that the package was exported from.

    Raises: `DataError` where there is no log, `PackageError` where the package is not whole.
    """
    manifest = open_package(package)
    replay = _Replay(trained, package=package, manifest=manifest, config=config)
    wanted = _Wanted(log, replay.coder, manifest, config)
    days = wanted.days(trained.dataset)
    if days:
        loader = Loader(
            trained.dataset, days=days, global_batch_size=_TIMELINES_PER_BATCH, shuffle=False, num_prefetch=0
        )
        for batch in progress(loader, total=loader.num_steps, description="skew"):
            found = list(wanted.of(batch))
            if found:
                replay.add(batch, found)
    return replay.report(wanted, days)


class _Wanted:
    """Recorded requests that can be replayed, by user."""

    def __init__(self, log: Path, coder: Coder, manifest: PackageManifest, config: SkewConfig) -> None:
        self.num_recorded = 0
        self.skipped: Counter[str] = Counter()
        self._within = config.within_seconds
        self._by_user: dict[int, list[Logged]] = defaultdict(list)
        for one in read_log(log):
            if self.num_recorded == config.requests:
                break
            self.num_recorded += 1
            reason = UNREADABLE if one is None else self._take(one, coder)
            if reason is not None:
                self.skipped[reason] += 1

    def _take(self, one: Logged, coder: Coder) -> str | None:
        body = one.body
        if body.now is None or body.events is None:
            return OF_A_VECTOR
        if not all(type(second) is int for second in body.events.get("time") or ()):
            return UNREADABLE
        name = body.profile.get(USER_FEATURE.name, body.user)
        if name is None:
            return NOBODY
        user = coder.user(name)
        if not user:
            return NO_USER
        self._by_user[user].append(one)
        return None

    def days(self, dataset: Dataset) -> tuple[str, ...]:
        """Those of the dataset that the requests are of."""
        moments = {one.body.now or 0 for several in self._by_user.values() for one in several}
        asked = {
            datetime.fromtimestamp(now + offset, UTC).date().isoformat()
            for now in moments
            for offset in (-self._within, 0, self._within)
        }
        return tuple(day for day in dataset.days() if day in asked)

    def of(self, batch: Batch) -> Iterator[tuple[int, Logged]]:
        """The requests of a batch's moments; each is given once, with the nearest moment of its day."""
        moments: dict[int, list[int]] = defaultdict(list)
        for moment, user in enumerate(batch.user_B[batch.moment_row_M].tolist()):
            if user in self._by_user:
                moments[user].append(moment)
        for user, several in moments.items():
            left = []
            for one in self._by_user[user]:
                away, moment = min((abs(int(batch.moment_time_M[it]) - (one.body.now or 0)), it) for it in several)
                if away <= self._within:
                    yield moment, one
                else:
                    left.append(one)
            self._by_user[user] = left

    @property
    def num_left(self) -> int:
        return sum(map(len, self._by_user.values()))


@dataclass(kw_only=True)
class _Scores:
    """Of one output."""

    num_values: int = 0
    num_equal: int = 0
    num_off: int = 0
    worst: dict[str, float] = field(default_factory=dict)

    def add(
        self, served: Array, package: Array, trained: Array | None, *, equal: bool, limits: tuple[float, float]
    ) -> None:
        self.num_values += 1
        differences = {"all": _difference(served, package)}
        if equal:
            self.num_equal += 1
            differences["package"] = differences["all"]
            if trained is not None:
                differences["trained"] = _difference(served, trained)
            off = differences["package"] > limits[0] or differences.get("trained", 0.0) > limits[1]
            self.num_off += int(off)
        for name, value in differences.items():
            self.worst[name] = max(self.worst.get(name, 0.0), value)


def _answered(value: float | list[float] | dict[str, float] | None) -> Array:
    """Of one candidate: a number, one for each class, or one for each named column."""
    if value is None:
        return np.array(np.nan, dtype=np.float32)
    return np.asarray(list(value.values()) if isinstance(value, dict) else value, dtype=np.float32)


def _difference(ours: Array, theirs: Array) -> float:
    """Infinite where they are not of one shape, or a number is none."""
    if ours.shape != theirs.shape:
        return float("inf")
    return float(np.nan_to_num(np.abs(ours - theirs), nan=np.inf).max(initial=0.0))


class _Replay:
    """Compares requests with their moments, and adds up."""

    def __init__(self, trained: Trained, *, package: Path, manifest: PackageManifest, config: SkewConfig) -> None:
        self.coder = Coder(trained.dataset, manifest.ids)
        self._model, self._manifest, self._config = trained.model.eval(), manifest, config
        tables = exported_tables(
            trained.model.places.tables(), schema=manifest.schema, dataset=trained.dataset,
            checkpoint=trained.checkpoint, ids=trained.ids,
        )  # fmt: skip
        self._keys_of = {name: table.keys_of for name, table in tables.items()}
        engine = open_engine(package, manifest, manifest.formats[0])
        self._runner = Runner(manifest, engine=engine, tables=open_stores(package, manifest))
        self.exact_rows = all(table.row_type is RowType.fp32 for table in manifest.tables.values())
        self._compared: list[Compared] = []
        self._scores: dict[str, _Scores] = {}
        self._num_other = self._num_cut = 0

    def add(self, batch: Batch, found: Sequence[tuple[int, Logged]]) -> None:
        theirs, _ = trained_answers(self._model, batch)
        users = self._runner.user_half(
            cut(users_of(batch, self._manifest.schema, self._keys_of), self._manifest.max_events)
        )
        examples = {
            group.name: dict(by_moment(batch.groups[group.name])) for group in self._manifest.schema.groups
        }  # fmt: skip
        for moment, one in found:
            compared = Compared()
            compare_user(
                one.body, batch, moment, schema=self._manifest.schema, coder=self.coder,
                max_events=self._manifest.max_events, compared=compared,
            )  # fmt: skip
            places: list[tuple[int, int]] = []
            if one.body.group in examples:
                places = compare_candidates(
                    one.body, batch, examples[one.body.group].get(moment, np.empty(0, dtype=np.int64)),
                    schema=self._manifest.schema, coder=self.coder, dense_tolerance=self._config.dense_tolerance,
                    compared=compared,
                )  # fmt: skip
            self._compared.append(compared)
            user = {output: value[moment : moment + 1] for output, value in users.items()}
            self._score(one, batch, moment, places, user=user, theirs=theirs, equal=not compared.kinds)

    def _score(
        self, one: Logged, batch: Batch, moment: int, places: Sequence[tuple[int, int]], *, user: Mapping[str, Array],
        theirs: Answers, equal: bool,
    ) -> None:  # fmt: skip
        """What was served beside what the package and the trained model say of prepared data."""
        if one.package != self._manifest.digest or one.num_deltas:
            self._num_other += 1
            return
        cut = int(batch.moment_position_M[moment]) > self._manifest.max_events
        self._num_cut += int(cut)
        limits = (self._config.tolerance, self._config.tolerance if self.exact_rows else float("inf"))
        if one.answer.vector is not None:
            trained = None if cut else theirs[USER_VECTOR][moment]
            served = np.asarray(one.answer.vector, dtype=np.float32)
            self._of(USER_VECTOR).add(served, user[USER_VECTOR][0], trained, equal=equal, limits=limits)
        if not places or one.body.group is None:
            return
        example_E = np.array([example for _, example in places], dtype=np.int64)
        features = self._manifest.schema.group(one.body.group).candidate
        candidates = candidates_of(batch.groups[one.body.group], features, example_E, self._keys_of)
        names = scorers_of(self._manifest, one.body.group)
        outputs = self._runner.score(names, candidates, user)
        for task in self._manifest.tasks:
            if task.graph not in names or task.name not in one.answer.scores:
                continue
            values = one.answer.scores[task.name]
            ours = linked(outputs[task.output], task.link)
            trained_E = linked(theirs[task.output][example_E], task.link) if task.output in theirs and not cut else None
            for index, (place, _) in enumerate(places):
                served = _answered(values[place] if place < len(values) else None)
                trained = None if trained_E is None else trained_E[index]
                self._of(task.name).add(served, ours[index], trained, equal=equal, limits=limits)

    def _of(self, name: str) -> _Scores:
        return self._scores.setdefault(name, _Scores())

    def report(self, wanted: _Wanted, days: Sequence[str]) -> SkewReport:
        skipped = dict(wanted.skipped)
        if wanted.num_left:
            skipped[NO_MOMENT] = wanted.num_left
        return SkewReport(
            package=self._manifest.digest, days=tuple(days), num_recorded=wanted.num_recorded,
            num_compared=len(self._compared), num_equal=sum(not one.kinds for one in self._compared), skipped=skipped,
            num_other_package=self._num_other, num_cut=self._num_cut, exact_rows=self.exact_rows,
            tolerance=self._config.tolerance, features=tuple(self._features()),
            scores=tuple(
                ScoreSkew(
                    name=name, num_values=one.num_values, num_equal=one.num_equal, num_off=one.num_off,
                    from_package=one.worst.get("package"), from_trained=one.worst.get("trained"),
                    all_from_package=one.worst.get("all"),
                )
                for name, one in self._scores.items()
            ),
        )  # fmt: skip

    def _features(self) -> Iterator[FeatureSkew]:
        """All that were compared, or are missing in every request."""
        names = dict.fromkeys(name for one in self._compared for name in (*one.num, *one.kinds))
        for name in names:
            kinds: Counter[str] = Counter()
            for one in self._compared:
                kinds.update(one.kinds.get(name, {}))
            shifts = [shift for one in self._compared for shift in one.shifts.get(name, ())]
            yield FeatureSkew(
                name=name, num_values=sum(one.num[name] for one in self._compared),
                num_different=sum(kinds.values()), num_requests=sum(name in one.kinds for one in self._compared),
                num_first=sum(one.first == name for one in self._compared), kinds=dict(kinds),
                shift_seconds=float(median(shifts)) if shifts else None,
            )  # fmt: skip


def cut(users: Users, max_events: int) -> Users:
    """Each with the last events that a request may have."""
    assert users.event_index_BL is not None
    over_B = np.maximum(users.num_events_B - max_events, 0)
    if not over_B.any():
        return users
    place_BL = over_B[:, None] + np.arange(max_events)[None]
    padded = np.pad(users.event_index_BL, ((0, 0), (0, max_events)), constant_values=len(users.event_time_T))
    index_BL: NDArray[np.int64] = np.take_along_axis(padded, place_BL, axis=1)
    return replace(users, event_index_BL=index_BL, num_events_B=users.num_events_B - over_B)
