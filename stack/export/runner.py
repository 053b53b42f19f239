"""Runs a package's graphs on rows of its tables: the one path that serving and the parity check share.

Shape legend: T events of all users together, B users, L events of the longest user, E candidates, G owners of a
bag, N ids, D width of a table, F dense features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stack.export import lstm as _lstm  # noqa: F401  # graphs may hold its operation
from stack.export.package import MIN_EVENTS, USER_HALF, Graph, Input, Kind, PackageManifest
from stack.export.rows import TableReader


@dataclass(frozen=True, kw_only=True)
class Bags:
    """Rows of a multi-valued feature: `rows_N` in one piece ((N, K) as in `Rows`), `lengths_G` for each owner."""

    rows_N: NDArray[np.int64]
    lengths_G: NDArray[np.int64]


Rows = NDArray[np.int64] | Bags
"""Rows of one feature in its table: one for each owner ((G, K) where an id has K, to be summed), or a bag of them."""


@dataclass(frozen=True, kw_only=True)
class Users:
    """What the user half is asked about. `event_index_BL` says which of the T events each user sees, oldest first,
    padded at the end with T; `event` holds the item features and the properties by name."""

    event: Mapping[str, Rows]
    event_time_T: NDArray[np.int64]
    event_index_BL: NDArray[np.int64]
    num_events_B: NDArray[np.int64]
    profile: Mapping[str, Rows]
    query: Mapping[str, Rows]
    now_B: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Candidates of one group, all for one user."""

    ids: Mapping[str, Rows]
    dense_EF: NDArray[np.float32]


_TensorOf = Callable[[Graph, Input], Tensor]


class Runner:
    """The graphs and tables of a package, opened; the files are expected to have been checked before."""

    def __init__(self, folder: Path, manifest: PackageManifest) -> None:
        self._manifest = manifest
        self._tables = {name: TableReader(folder / "tables" / f"{name}.npy") for name in manifest.tables}
        self._graphs = {
            name: torch.export.load(str(folder / graph.file)).module(check_guards=False)
            for name, graph in manifest.graphs.items()
        }
        schema = manifest.schema
        self._event_table = {feature.name: feature.table for feature in schema.event}
        self._profile_table = {feature.name: feature.table for feature in schema.profile}
        self._query_table = {feature.name: feature.table for feature in schema.query}
        self._candidate_table = {
            (group.name, feature.name): feature.table for group in schema.groups for feature in group.candidate
        }

    def user_half(self, users: Users) -> dict[str, Tensor]:
        """The user half's outputs by name, one line per user."""
        return self._run(USER_HALF, lambda _, entry: self._user_input(entry, users))

    def score(self, name: str, candidates: Candidates, user: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs of the scorer `name`, one line per candidate; `user` is what `user_half` returned for one user."""
        return self._run(name, lambda graph, entry: self._candidate_input(graph, entry, candidates, user))

    def _run(self, name: str, tensor_of: _TensorOf) -> dict[str, Tensor]:
        graph = self._manifest.graphs[name]
        with torch.inference_mode():
            outputs = self._graphs[name](*(tensor_of(graph, entry) for entry in graph.inputs))
        return dict(zip(graph.outputs, outputs, strict=True))

    def _user_input(self, entry: Input, users: Users) -> Tensor:
        match entry.kind:
            case Kind.EVENT_VECTORS:
                return _gather(self._vectors(self._event_table[entry.feature], users.event[entry.feature]), users)
            case Kind.EVENT_IDS:
                return _gather(_single(users.event[entry.feature]), users)
            case Kind.EVENT_TIME:
                return _gather(users.event_time_T, users)
            case Kind.NUM_EVENTS:
                return torch.from_numpy(users.num_events_B)
            case Kind.PROFILE_VECTORS:
                return torch.from_numpy(self._vectors(self._profile_table[entry.feature], users.profile[entry.feature]))
            case Kind.QUERY_VECTORS:
                return torch.from_numpy(self._vectors(self._query_table[entry.feature], users.query[entry.feature]))
            case Kind.NOW:
                return torch.from_numpy(users.now_B)
            case _:
                raise AssertionError(f"{entry.kind} is no input of the user half")

    def _candidate_input(
        self, graph: Graph, entry: Input, candidates: Candidates, user: Mapping[str, Tensor]
    ) -> Tensor:
        match entry.kind:
            case Kind.USER_OUTPUT:
                return user[entry.feature]
            case Kind.CANDIDATE_VECTORS:
                table = self._candidate_table[graph.group, entry.feature]
                return torch.from_numpy(self._vectors(table, candidates.ids[entry.feature]))
            case Kind.DENSE:
                return torch.from_numpy(candidates.dense_EF)
            case _:
                raise AssertionError(f"{entry.kind} is no input of a scorer")

    def _vectors(self, table: str, rows: Rows) -> NDArray[np.float32]:
        reader = self._tables[table]
        return reader.means(rows.rows_N, rows.lengths_G) if isinstance(rows, Bags) else reader.vectors(rows)


def _single(rows: Rows) -> NDArray[np.int64]:
    assert not isinstance(rows, Bags), "properties hold one id each"
    return rows


def _gather(values_T: NDArray[np.float32] | NDArray[np.int64], users: Users) -> Tensor:
    """(B, L, ...): each user's events; zeros behind the last one."""
    padded = np.concatenate([values_T, np.zeros((1, *values_T.shape[1:]), dtype=values_T.dtype)])
    missing = max(0, MIN_EVENTS - users.event_index_BL.shape[1])
    index_BL = np.pad(users.event_index_BL, ((0, 0), (0, missing)), constant_values=len(values_T))
    return torch.from_numpy(padded[index_BL])
