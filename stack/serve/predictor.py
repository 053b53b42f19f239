"""Answers requests from one package: raw ids to keys, keys to vectors, vectors through the graphs. Needs no torch.

Shape legend: L events, E candidates, R the user vector's width, V that of the index, F dense features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from stack.base.errors import PackageError, UserError
from stack.data.schema import PADDING_ROW, Feature
from stack.export.answers import Recorded, linked
from stack.export.delta import DeltaManifest
from stack.export.engines import Array, open_engine
from stack.export.index import Index
from stack.export.lookup import ListLookup, lookups
from stack.export.package import (
    INDEX,
    REQUESTS,
    TEXTS,
    USER_HALF,
    USER_VECTOR,
    GraphFormat,
    PackageManifest,
    Task,
    scorers_of,
)
from stack.export.runner import Bags, Candidates, Keys, Runner, Users
from stack.export.stores import open_stores, with_deltas
from stack.serve.request import Column, RawId, RequestError, Single, User

Value = float | list[float] | dict[str, float]
"""A task's answer for one user or candidate: a number, one for each class, or one for each named column."""
SMOKE_TOLERANCE = 1e-4
"""Largest absolute difference of an answer from the recorded one."""


class NotFiniteAnswerError(RequestError):
    """Numbers of the package, or of the request, came to something that is no number."""

    def __init__(self) -> None:
        super().__init__(422, "the answer to this request is not finite, and is not given")


class Computed(Struct, frozen=True, kw_only=True):
    """A user computed: outputs of the user half by name, each with a first axis of 1, and what was unknown."""

    outputs: dict[str, Array]
    unknown: dict[str, int]


class Predictor:
    """A checked package, opened. `generation` names it and the rows laid over it: equal answers for equal requests.

    Raises: `PackageError` where a file cannot be opened.
    """

    def __init__(
        self,
        folder: Path,
        manifest: PackageManifest,
        *,
        graph_format: GraphFormat | None = None,
        deltas: Sequence[tuple[Path, DeltaManifest]] = (),
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self._deltas = list(deltas)
        self.graph_format = graph_format or manifest.formats[0]
        self._engine = open_engine(folder, manifest, self.graph_format)
        self._lookups = lookups(folder, manifest)
        stores = with_deltas(open_stores(folder, manifest), manifest, [place for place, _ in deltas])
        self._runner = Runner(manifest, engine=self._engine, tables=stores)
        self._index = Index(folder / INDEX, verify=False) if manifest.retrieval is not None else None
        self._texts = _texts(folder, manifest)
        self._user_tasks = self._tasks(USER_HALF)
        self._scorer_tasks = {
            group.name: {task.name: task for name in scorers_of(manifest, group.name) for task in self._tasks(name)}
            for group in manifest.schema.groups
        }
        self.generation = _generation(manifest, [one for _, one in deltas])

    def with_delta(self, folder: Path, delta: DeltaManifest) -> Predictor:
        """The same graphs on newer rows; this one stays as it is, for requests under way."""
        newer = object.__new__(Predictor)
        newer.__dict__.update(self.__dict__)
        newer._deltas = [*self._deltas, (folder, delta)]
        stores = with_deltas(self._runner.tables, self.manifest, [folder])  # type: ignore[arg-type]
        newer._runner = self._runner.with_tables(stores)
        newer.generation = _generation(self.manifest, [one for _, one in newer._deltas])
        return newer

    def compute(self, users: Sequence[User]) -> list[Computed]:
        """The user half of some users; of one, or of several in one pass."""
        if len(users) == 1:
            unknown: dict[str, int] = {}
            outputs = self._runner.user_half(self._users(users[0], unknown), unknown)
            for output in outputs.values():
                refuse_not_finite(output)
            return [Computed(outputs=outputs, unknown=unknown)]
        return [self.compute([user])[0] for user in users]

    def stored(self, vector: NDArray[np.float32]) -> Computed:
        """A user out of `vector_of`: what scoring and retrieval need where no states are."""
        width = self.manifest.vector_dim
        outputs = {USER_VECTOR: vector[None, :width]}
        if self.manifest.retrieval is not None:
            outputs[self.manifest.retrieval.output] = vector[None, width:]
        return Computed(outputs=outputs, unknown={})

    def vector_of(self, user: Computed) -> NDArray[np.float32]:
        """(R,), or (R + V,) where the package retrieves: what can be stored of a user."""
        parts = [user.outputs[USER_VECTOR][0]]
        if self.manifest.retrieval is not None:
            parts.append(user.outputs[self.manifest.retrieval.output][0])
        return np.concatenate(parts).astype(np.float32, copy=False)

    @property
    def num_deltas(self) -> int:
        """Row deltas that lie over the package."""
        return len(self._deltas)

    @property
    def num_stored(self) -> int:
        """Numbers that `vector_of` gives."""
        retrieval = self.manifest.retrieval
        return self.manifest.vector_dim + (0 if retrieval is None else retrieval.dim)

    def user_answers(self, user: Computed) -> dict[str, Value]:
        """The tasks about the user alone."""
        return {task.name: _answer(task, user.outputs)[0] for task in self._user_tasks}

    def score(
        self,
        user: Computed,
        group: str,
        columns: Mapping[str, Column],
        dense: NDArray[np.float32] | Mapping[str, list[float]],
        count: int,
        *,
        tasks: Sequence[str] | None = None,
    ) -> tuple[dict[str, list[Value]], dict[str, int]]:
        """By task (None: all of the group) a value for each candidate; and what was unknown, of user and candidates.
        `dense`: (E, F), or columns by name."""
        unknown = dict(user.unknown)
        known = self._scorer_tasks[group]
        chosen = [known[name] for name in (known if tasks is None else tasks)]
        described = self.manifest.schema.group(group)
        candidates = Candidates(
            ids=self._keys(described.candidate, columns, count), dense_EF=_dense(described.dense, dense, count)
        )
        names = list(dict.fromkeys(task.graph for task in chosen))
        outputs = self._runner.score(names, candidates, user.outputs, unknown)
        for output in outputs.values():
            refuse_not_finite(output)
        return {task.name: _answer(task, outputs) for task in chosen}, unknown

    def retrieve(self, user: Computed, k: int) -> tuple[list[RawId], list[float]]:
        """The `k` best items and their scores, best first. Raises: `RequestError` where the package has no index."""
        retrieval = self.manifest.retrieval
        if self._index is None or retrieval is None:
            raise RequestError(422, "this package retrieves nothing: train a run with tasks=joint_retrieval")
        vector_1V = user.outputs[retrieval.output]
        if vector_1V.shape[1] != retrieval.dim:
            raise RequestError(422, "retrieval needs `now` and `events`, or a `user` whose vector is kept")
        try:
            key_BK, score_BK = self._index.search(vector_1V, k)
        except UserError as error:
            raise RequestError(422, str(error)) from error
        found = np.isfinite(score_BK[0])
        return self._raw(key_BK[0][found]), score_BK[0][found].tolist()

    def vectors(self, table: str, raw: Sequence[RawId]) -> NDArray[np.float32]:
        """(N, D) rows of raw ids, for whoever wants to see what is served."""
        return self._runner.tables[table].find(self._lookups[table].keys(raw))[0]

    def recorded(self) -> list[Recorded]:
        """The package's requests and answers. Raises: `PackageError` where they cannot be read."""
        file = self.folder / REQUESTS
        try:
            return msgspec.json.decode(file.read_bytes(), type=list[Recorded])
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise PackageError(f"{file} cannot be read: {error}") from error

    def _raw(self, keys: NDArray[np.int64]) -> list[RawId]:
        if self._texts is None:
            return cast("list[RawId]", keys.tolist())
        return [self._texts[key] for key in keys.tolist()]

    def _users(self, user: User, unknown: dict[str, int]) -> Users:
        schema = self.manifest.schema
        num_events = len(user.time)
        return Users(
            event=self._keys(schema.event, user.events, num_events),
            property=self._properties(user, num_events, unknown),
            event_time_T=np.array(user.time, dtype=np.int64),
            event_index_BL=None,
            num_events_B=np.array([num_events], dtype=np.int64),
            profile=self._keys(schema.profile, _listed(user.profile), 1),
            query=self._keys(schema.query, _listed(user.query), 1),
            now_B=np.array([user.now], dtype=np.int64),
        )

    def _properties(self, user: User, num_events: int, unknown: dict[str, int]) -> dict[str, NDArray[np.int64]]:
        found = {}
        for feature in self.manifest.schema.property:
            column = user.events.get(feature.name)
            if column is None:
                found[feature.name] = np.full(num_events, PADDING_ROW, dtype=np.int64)
                continue
            lookup, raw = self._lookups[feature.table], cast("list[RawId]", column)
            assert isinstance(lookup, ListLookup), "properties are listed"
            found[feature.name] = row_N = lookup.rows(raw)
            missed = int(np.count_nonzero(row_N == PADDING_ROW)) - raw.count(None)
            if missed:
                unknown[f"events.{feature.name}"] = missed
        return found

    def _keys(self, features: Iterable[Feature], columns: Mapping[str, Column], num_owners: int) -> dict[str, Keys]:
        keys: dict[str, Keys] = {}
        for feature in features:
            lookup, column = self._lookups[feature.table], columns.get(feature.name)
            if feature.multi:
                bags = cast("list[list[RawId]]", column) if column is not None else [[]] * num_owners
                keys[feature.name] = Bags(
                    keys_N=lookup.keys([raw for bag in bags for raw in bag]),
                    lengths_G=np.array([len(bag) for bag in bags], dtype=np.int64),
                )
            else:
                raw = cast("list[RawId]", column) if column is not None else [None] * num_owners
                keys[feature.name] = lookup.keys(raw)
        return keys

    def _tasks(self, graph: str) -> list[Task]:
        return [task for task in self.manifest.tasks if task.graph == graph]


def refuse_not_finite(output: Array) -> None:
    """Raises: `NotFiniteAnswerError`, before anybody ranks by it."""
    if not np.isfinite(output).all():
        raise NotFiniteAnswerError


def _dense(
    names: Sequence[str], dense: NDArray[np.float32] | Mapping[str, list[float]], count: int
) -> NDArray[np.float32]:
    """(E, F); columns that are not given are 0."""
    if isinstance(dense, np.ndarray):
        return dense
    dense_EF = np.zeros((count, len(names)), dtype=np.float32)
    for index, name in enumerate(names):
        if name in dense:
            column = dense[name]
            dense_EF[:, index] = (
                column if isinstance(column, np.ndarray) else np.fromiter(column, np.float32, count=count)
            )
    return dense_EF


def _listed(columns: Mapping[str, Single]) -> dict[str, Column]:
    return {name: cast(Column, [value]) for name, value in columns.items() if value is not None}


def _answer(task: Task, output: Mapping[str, Array]) -> list[Value]:
    """One value (or one for each of the task's columns) for every line of the output."""
    lines: list[Value] = linked(output[task.output], task.link).tolist()
    return (
        [dict(zip(task.columns, cast("list[float]", line), strict=True)) for line in lines] if task.columns else lines
    )


def _generation(manifest: PackageManifest, deltas: Sequence[DeltaManifest]) -> str:
    return hashlib.sha256(" ".join([manifest.digest, *(delta.digest for delta in deltas)]).encode()).hexdigest()


def _texts(folder: Path, manifest: PackageManifest) -> dict[int, str] | None:
    """Raw ids by key of the items that can be retrieved, where those are texts."""
    file = folder / INDEX / TEXTS
    if manifest.retrieval is None or not file.exists():
        return None
    texts = np.load(file, allow_pickle=False)
    keys = np.load(folder / INDEX / "keys.npy", allow_pickle=False)
    return {int(key): text.decode() for key, text in zip(keys, texts, strict=True)}
