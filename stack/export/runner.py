"""Runs a package's graphs on rows of its tables: the one path that serving, parity and quality share. Needs no torch.

Shape legend: T events of all users together, B users, L events of the longest user, E candidates, G owners of a
bag, N ids, K rows of an id, D width of a table, F dense features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stack.export.engines import Array, Engine
from stack.export.package import MIN_EVENTS, USER_HALF, Graph, Input, Kind, PackageManifest
from stack.export.runs import MISSING


class Rows(Protocol):
    """Vectors of a table by the keys of its rows, as `stack.export.runs.RowStore`."""

    def find(self, keys: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]: ...

    def means(
        self, keys: NDArray[np.int64], lengths_G: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]: ...


@dataclass(frozen=True, kw_only=True)
class Bags:
    """Keys of a multi-valued feature in one piece ((N,) or (N, K)), `lengths_G` for each owner."""

    keys_N: NDArray[np.int64]
    lengths_G: NDArray[np.int64]


Keys = NDArray[np.int64] | Bags
"""Keys of one feature in its table: one for each owner ((G, K) where an id has K rows, to be summed), or a bag."""


@dataclass(frozen=True, kw_only=True)
class Users:
    """What the user half is asked about. `event_index_BL` says which of the T events each user sees, oldest first,
    padded at the end with T; None: one user, who sees all of them. `event` holds keys of the item features; `property`
    rows of the properties."""

    event: Mapping[str, Keys]
    property: Mapping[str, NDArray[np.int64]]
    event_time_T: NDArray[np.int64]
    event_index_BL: NDArray[np.int64] | None
    num_events_B: NDArray[np.int64]
    profile: Mapping[str, Keys]
    query: Mapping[str, Keys]
    now_B: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Candidates of one group, all for one user."""

    ids: Mapping[str, Keys]
    dense_EF: NDArray[np.float32]


class Runner:
    """Graphs and tables, opened. `unknown` of a call counts, by place and feature, the given ids without a row."""

    def __init__(self, manifest: PackageManifest, *, engine: Engine, tables: Mapping[str, Rows]) -> None:
        self._manifest = manifest
        self._engine = engine
        self.tables = tables
        schema = manifest.schema
        self._tables_of: dict[tuple[Kind, str, str], str] = {
            (kind, "", feature.name): feature.table
            for kind, features in (
                (Kind.EVENT_VECTORS, schema.event),
                (Kind.PROFILE_VECTORS, schema.profile),
                (Kind.QUERY_VECTORS, schema.query),
            )
            for feature in features
        } | {
            (Kind.CANDIDATE_VECTORS, group.name, feature.name): feature.table
            for group in schema.groups
            for feature in group.candidate
        }

    def with_tables(self, tables: Mapping[str, Rows]) -> Runner:
        """The same graphs on other rows."""
        return Runner(self._manifest, engine=self._engine, tables=tables)

    def user_half(self, users: Users, unknown: dict[str, int] | None = None) -> dict[str, Array]:
        """Outputs of the user half by name, one line for each user."""
        graph = self._manifest.graphs[USER_HALF]
        inputs = [self._user_input(graph, entry, users, unknown) for entry in graph.inputs]
        return dict(zip(graph.outputs, self._engine.run(USER_HALF, inputs), strict=True))

    def score(
        self,
        names: Sequence[str],
        candidates: Candidates,
        user: Mapping[str, Array],
        unknown: dict[str, int] | None = None,
    ) -> dict[str, Array]:
        """Outputs of some scorers of one group by name, one line for each candidate, whose vectors are looked up once.
        `user`: what `user_half` gave for one user."""
        found: dict[str, Array] = {}
        inputs: dict[Input, Array] = {}
        for name in names:
            graph = self._manifest.graphs[name]
            for entry in graph.inputs:
                if entry not in inputs:
                    inputs[entry] = self._candidate_input(graph, entry, candidates, user, unknown)
            outputs = self._engine.run(name, [inputs[entry] for entry in graph.inputs])
            found |= zip(graph.outputs, outputs, strict=True)
        return found

    def _user_input(self, graph: Graph, entry: Input, users: Users, unknown: dict[str, int] | None) -> Array:
        match entry.kind:
            case Kind.EVENT_VECTORS:
                return _gather(self._vectors(graph, entry, users.event[entry.feature], "events", unknown), users)
            case Kind.EVENT_IDS:
                return _gather(users.property[entry.feature], users)
            case Kind.EVENT_TIME:
                return _gather(users.event_time_T, users)
            case Kind.NUM_EVENTS:
                return users.num_events_B
            case Kind.PROFILE_VECTORS:
                return self._vectors(graph, entry, users.profile[entry.feature], "profile", unknown)
            case Kind.QUERY_VECTORS:
                return self._vectors(graph, entry, users.query[entry.feature], "query", unknown)
            case Kind.NOW:
                return users.now_B
            case _:
                raise AssertionError(f"{entry.kind} is no input of the user half")

    def _candidate_input(
        self,
        graph: Graph,
        entry: Input,
        candidates: Candidates,
        user: Mapping[str, Array],
        unknown: dict[str, int] | None,
    ) -> Array:
        match entry.kind:
            case Kind.USER_OUTPUT:
                return user[entry.feature]
            case Kind.CANDIDATE_VECTORS:
                return self._vectors(graph, entry, candidates.ids[entry.feature], "candidates", unknown)
            case Kind.DENSE:
                return candidates.dense_EF
            case _:
                raise AssertionError(f"{entry.kind} is no input of a scorer")

    def _vectors(
        self, graph: Graph, entry: Input, keys: Keys, place: str, unknown: dict[str, int] | None
    ) -> NDArray[np.float32]:
        table = self.tables[self._tables_of[entry.kind, graph.group, entry.feature]]
        if isinstance(keys, Bags):
            vectors, known_N = table.means(keys.keys_N, keys.lengths_G)
            given_N = keys.keys_N
        else:
            vectors, known_N = table.find(keys)
            given_N = keys
        if unknown is not None and not known_N.all():
            count = int(np.count_nonzero(~known_N & given(given_N)))
            if count:
                unknown[f"{place}.{entry.feature}"] = unknown.get(f"{place}.{entry.feature}", 0) + count
        return vectors


def given(keys: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(N,): which keys stand for an id that somebody gave, known or not."""
    return np.not_equal(keys if keys.ndim == 1 else keys[:, 0], MISSING)


def _gather(values_T: Array, users: Users) -> Array:
    """(B, L, ...): each user's events; zeros behind the last one."""
    if users.event_index_BL is None:
        if len(values_T) >= MIN_EVENTS:
            return values_T[None]
        padded = np.zeros((1, MIN_EVENTS, *values_T.shape[1:]), dtype=values_T.dtype)
        padded[0, : len(values_T)] = values_T
        return padded
    padded = np.concatenate([values_T, np.zeros((1, *values_T.shape[1:]), dtype=values_T.dtype)])
    missing = max(0, MIN_EVENTS - users.event_index_BL.shape[1])
    index_BL = np.pad(users.event_index_BL, ((0, 0), (0, missing)), constant_values=len(values_T))
    return padded[index_BL]
