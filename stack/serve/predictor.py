"""Answers requests from one package: raw ids to rows, rows to vectors, vectors through the graphs.

Shape legend: L events, E candidates, R the user vector's width, F dense features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import cast

import numpy as np
import torch
from msgspec import Struct
from numpy.typing import NDArray
from torch import Tensor

from stack.data.schema import PADDING_ROW, Feature
from stack.export.lookup import Lookup, lookups
from stack.export.package import USER_HALF, USER_VECTOR, Link, PackageManifest, Task, open_package
from stack.export.runner import Bags, Candidates, Rows, Runner, Users
from stack.serve.request import Column, RawId, RequestError, Score, Single, User

Value = float | list[float] | dict[str, float]
"""A task's answer for one user or candidate: a number, one for each class, or one for each named column."""


class Embedding(Struct, frozen=True, kw_only=True):
    """The answer of `users:embed`. `unknown` counts, by feature, the given ids that are unknown."""

    vector: list[float]
    tasks: dict[str, Value]
    unknown: dict[str, int]
    package: str


class Scores(Struct, frozen=True, kw_only=True):
    """The answer of `items:score`: by task, one value for each candidate in the order given."""

    scores: dict[str, list[Value]]
    unknown: dict[str, int]
    package: str


class Predictor:
    """A package, checked and opened.

    Raises: `PackageError` naming what is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.manifest: PackageManifest = open_package(folder)
        self._runner = Runner(folder, self.manifest)
        self._lookups = lookups(folder, self.manifest)
        self._scorers = {graph.group: name for name, graph in self.manifest.graphs.items() if graph.group}

    def warm_up(self) -> None:
        """Runs every graph once on a user without events, so that a package that cannot answer fails at the start."""
        nobody = User(now=0, time=[], events={}, profile={}, query={})
        self.embed(nobody)
        for group in self._scorers:
            self.score(Score(user=nobody, vector=None, group=group, num_candidates=1, candidates={}, dense={}))

    def embed(self, user: User) -> Embedding:
        """The user's vector and the tasks that need no candidate."""
        unknown: Counter[str] = Counter()
        output = self._runner.user_half(self._users(user, unknown))
        return Embedding(
            vector=output[USER_VECTOR][0].tolist(),
            tasks={task.name: _answer(task, output)[0] for task in self._tasks(USER_HALF)},
            unknown=dict(unknown),
            package=self.manifest.digest,
        )

    def score(self, request: Score) -> Scores:
        """Scores of the candidates; the user half runs once, or not at all where a vector was given."""
        unknown: Counter[str] = Counter()
        output = self._of_vector(request) if request.user is None else self._of_user(request.user, unknown)
        name = self._scorers[request.group]
        group = self.manifest.schema.group(request.group)
        num_candidates = request.num_candidates
        dense_EF = np.zeros((num_candidates, len(group.dense)), dtype=np.float32)
        for index, feature in enumerate(group.dense):
            if feature in request.dense:
                dense_EF[:, index] = request.dense[feature]
        candidates = Candidates(
            ids=self._rows("candidates", group.candidate, request.candidates, num_candidates, unknown),
            dense_EF=dense_EF,
        )
        output = self._runner.score(name, candidates, output)
        return Scores(
            scores={task.name: _answer(task, output) for task in self._tasks(name)},
            unknown=dict(unknown),
            package=self.manifest.digest,
        )

    def _of_user(self, user: User, unknown: Counter[str]) -> dict[str, Tensor]:
        return self._runner.user_half(self._users(user, unknown))

    def _of_vector(self, request: Score) -> dict[str, Tensor]:
        assert request.vector is not None, "the decoder gives a user or a vector"
        if self.manifest.scorer_needs_states:
            raise RequestError(
                422, "this package attends by candidate: give `now` and `events`, a `vector` is not enough"
            )
        if len(request.vector) != self.manifest.vector_dim:
            raise RequestError(
                422,
                f"`vector` has {len(request.vector)} numbers: vectors of this package have {self.manifest.vector_dim}",
            )
        return {USER_VECTOR: torch.tensor([request.vector], dtype=torch.float32)}

    def _users(self, user: User, unknown: Counter[str]) -> Users:
        schema = self.manifest.schema
        num_events = len(user.time)
        return Users(
            event=self._rows("events", (*schema.event, *schema.property), user.events, num_events, unknown),
            event_time_T=np.array(user.time, dtype=np.int64),
            event_index_BL=np.arange(num_events, dtype=np.int64)[None],
            num_events_B=np.array([num_events], dtype=np.int64),
            profile=self._rows("profile", schema.profile, _listed(user.profile), 1, unknown),
            query=self._rows("query", schema.query, _listed(user.query), 1, unknown),
            now_B=np.array([user.now], dtype=np.int64),
        )

    def _rows(
        self,
        where: str,
        features: Iterable[Feature],
        columns: Mapping[str, Column],
        num_owners: int,
        unknown: Counter[str],
    ) -> dict[str, Rows]:
        rows: dict[str, Rows] = {}
        for feature in features:
            column = columns.get(feature.name)
            if column is None:
                column = [[] if feature.multi else None] * num_owners  # type: ignore[assignment]
            rows[feature.name], missed = _look_up(self._lookups[feature.table], feature, column)
            if missed:
                unknown[f"{where}.{feature.name}"] += missed
        return rows

    def _tasks(self, graph: str) -> list[Task]:
        return [task for task in self.manifest.tasks if task.graph == graph]


def _listed(columns: Mapping[str, Single]) -> dict[str, Column]:
    return {name: cast(Column, [value]) for name, value in columns.items() if value is not None}


def _look_up(lookup: Lookup, feature: Feature, column: Column) -> tuple[Rows, int]:
    """Rows of a column and how many of its ids are unknown."""
    assert column is not None
    if not feature.multi:
        flat = cast(list[RawId], column)
        rows_N = lookup.rows(flat)
        return rows_N, _num_unknown(rows_N) - flat.count(None)
    bags = cast(list[list[RawId]], column)
    rows_N = lookup.rows([raw for bag in bags for raw in bag])
    lengths_G = np.array([len(bag) for bag in bags], dtype=np.int64)
    return Bags(rows_N=rows_N, lengths_G=lengths_G), _num_unknown(rows_N)


def _num_unknown(rows_N: NDArray[np.int64]) -> int:
    """Ids without a row; of several rows all are `PADDING_ROW` or none."""
    unknown = rows_N == PADDING_ROW
    return int((unknown if rows_N.ndim == 1 else unknown.all(axis=1)).sum())


def _answer(task: Task, output: Mapping[str, Tensor]) -> list[Value]:
    """One value (or one for each of the task's columns) for every line of the output."""
    value = output[task.output]
    match task.link:
        case Link.SIGMOID:
            value = value.sigmoid()
        case Link.SOFTMAX:
            value = value.softmax(dim=-1)
        case Link.IDENTITY:
            pass
    lines: list[Value] = value.tolist()
    return [dict(zip(task.columns, cast(list[float], line), strict=True)) for line in lines] if task.columns else lines
