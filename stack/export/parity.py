"""The package against the trained model, on moments of real data: the same examples must get the same numbers.

The trained model makes one pass over each timeline for all its moments; the package is asked moment by moment, from its
own rows, as a server would ask it. So the check covers rows, pooling, graphs and the sharing of the pass.

Legend: T events, B and M moments (one user each), L events of the longest, E examples, R representation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stack.base.errors import PackageError
from stack.data.batch import Batch, Examples, Ids, Jagged, to_device
from stack.data.schema import Feature, Schema
from stack.export.package import USER_VECTOR, PackageManifest, Parity
from stack.export.runner import Bags, Candidates, Rows, Runner, Users
from stack.model import USER_FEATURE, UserModel


class ParityCheck:
    """Collects the largest absolute difference of every output over the batches it is given."""

    def __init__(
        self, runner: Runner, manifest: PackageManifest, model: UserModel, *, rows_of: RowsOf | None = None
    ) -> None:
        """`rows_of(table, vocabulary rows or keys)`: rows of the package's table; without, they are the same."""
        self._runner, self._manifest, self._model = runner, manifest, model
        self._rows_of = rows_of or same_rows
        self._worst: dict[str, float] = {}
        self._num_examples: dict[str, int] = {}
        self._num_moments = 0

    def add(self, batch: Batch) -> None:
        """Compares all moments and examples of a batch."""
        moved = to_device(batch, next(self._model.user.parameters()).device)
        with torch.no_grad():  # in inference mode FBGEMM finds no kernel for its lookup
            vector_MR = self._model.representation(moved).rep_MR
            trained = {name: output.score_E.cpu() for name, output in self._model(moved).items()}
        output = self._runner.user_half(users_of(batch, self._manifest.schema, rows_of=self._rows_of))
        self._compare(USER_VECTOR, output[USER_VECTOR], vector_MR)
        self._num_moments += batch.num_moments
        for name, score_E in trained.items():
            examples = batch.groups[self._model.task(name).group]
            self._num_examples[name] = self._num_examples.get(name, 0) + examples.num_examples
            if name in output:
                self._compare(name, output[name][examples.moment_E.cpu()], score_E)
        for name, graph in self._manifest.graphs.items():
            if graph.group:
                self._score(name, batch.groups[graph.group], output, trained)

    def result(self, tolerance: float) -> Parity:
        """The findings.

        Raises: `PackageError` where an output differs by more than `tolerance`, or nothing was compared.
        """
        if not self._num_moments:
            raise PackageError("parity cannot be checked: the day after training holds no moment: ingest it again")
        name = max(self._worst, key=lambda name: np.nan_to_num(self._worst[name], nan=np.inf))
        if not self._worst[name] <= tolerance:
            raise PackageError(
                f"export refused: output {name!r} of the package differs from the trained model by "
                f"{self._worst[name]:.3g}, export.tolerance is {tolerance:.3g}; nothing was written"
            )
        return Parity(
            tolerance=tolerance,
            num_moments=self._num_moments,
            num_examples=self._num_examples,
            max_abs_difference=self._worst,
        )

    def _score(self, name: str, examples: Examples, user: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> None:
        """One request for each moment that has examples."""
        moment_E = examples.moment_E.cpu().numpy()
        for moment in np.unique(moment_E):
            example_E = np.flatnonzero(moment_E == moment)
            group = self._manifest.schema.group(self._manifest.graphs[name].group)
            candidates = candidates_of(examples, group.candidate, example_E, rows_of=self._rows_of)
            one = {output: value[moment : moment + 1] for output, value in user.items()}
            for task, score_E in self._runner.score(name, candidates, one).items():
                self._compare(task, score_E, trained[task][torch.from_numpy(example_E)])

    def _compare(self, name: str, exported: Tensor, trained: Tensor) -> None:
        assert exported.shape == trained.shape, f"{name}: {exported.shape} exported, {trained.shape} trained"
        if exported.numel():
            worst = float((exported - trained.cpu()).abs().max())
            # max() of floats would drop a NaN that comes second
            self._worst[name] = float(np.maximum(self._worst.get(name, 0.0), worst))


RowsOf = Callable[[str, NDArray[np.int64]], NDArray[np.int64]]


def same_rows(table: str, row_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where a table of the package has a row for each of its vocabulary."""
    return row_N


def users_of(batch: Batch, schema: Schema, *, rows_of: RowsOf = same_rows) -> Users:
    """The moments of a batch as users of their own: each sees the events of its row before it, profile and query."""
    row_M, position_M = batch.moment_row_M.cpu().numpy(), batch.moment_position_M.cpu().numpy()
    num_events_B = batch.num_events_B.cpu().numpy()
    num_events = int(num_events_B.sum())
    first_M = (np.cumsum(num_events_B) - num_events_B)[row_M]
    place_1L = np.arange(int(position_M.max(initial=0)))[None]
    index_ML = np.where(place_1L < position_M[:, None], first_M[:, None] + place_1L, num_events)
    profile = {**batch.profile, USER_FEATURE.name: batch.user_B}
    return Users(
        event=_rows(schema.event, batch.event, np.arange(num_events), rows_of)
        | _rows(schema.property, batch.property, np.arange(num_events), same_rows),
        event_time_T=batch.event_time_T.cpu().numpy(),
        event_index_BL=index_ML,
        num_events_B=position_M,
        profile=_rows(schema.profile, profile, row_M, rows_of),
        query=_rows(schema.query, batch.query, np.arange(batch.num_moments), rows_of),
        now_B=batch.moment_time_M.cpu().numpy(),
    )


def candidates_of(
    examples: Examples,
    features: Iterable[Feature],
    example_E: NDArray[np.int64],
    *,
    rows_of: RowsOf = same_rows,
) -> Candidates:
    """Some examples of a group as the candidates of one request."""
    return Candidates(
        ids=_rows(features, examples.ids, example_E, rows_of), dense_EF=examples.dense_EF.cpu().numpy()[example_E]
    )


def _rows(
    features: Iterable[Feature], ids: Mapping[str, Ids], owner_K: NDArray[np.int64], rows_of: RowsOf
) -> dict[str, Rows]:
    found: dict[str, Rows] = {}
    for feature in features:
        rows = _take(ids[feature.name], owner_K)
        found[feature.name] = (
            Bags(rows_N=rows_of(feature.table, rows.rows_N), lengths_G=rows.lengths_G)
            if isinstance(rows, Bags)
            else rows_of(feature.table, rows)
        )
    return found


def _take(ids: Ids, owner_K: NDArray[np.int64]) -> Rows:
    if not isinstance(ids, Jagged):
        return ids.cpu().numpy()[owner_K]
    lengths = ids.lengths.cpu().numpy()
    ends = np.cumsum(lengths)
    lengths_K = lengths[owner_K]
    start_K = (ends - lengths)[owner_K] - (np.cumsum(lengths_K) - lengths_K)
    index_N = np.arange(int(lengths_K.sum())) + np.repeat(start_K, lengths_K)
    return Bags(rows_N=ids.values_N.cpu().numpy()[index_N], lengths_G=lengths_K)
