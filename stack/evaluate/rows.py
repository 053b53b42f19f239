"""Examples written out flat, one line each: what baselines and metrics read. No events, no encoder.

Training rows come from the prepared Parquet, held-out rows from the very batches that the model scored.
Shape legend: E examples, F dense features, M moments, B timelines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from stack.base.errors import DataError
from stack.data.batch import Batch
from stack.data.dataset import Dataset
from stack.data.schema import Group
from stack.tasks.metrics import Array, Ints


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Examples of one group: whose (vocabulary row of the user), candidate ids, dense features, labels by name.

    Multi-valued candidate features are left out: no baseline reads them.
    """

    group: Group
    user_E: Ints
    ids: dict[str, Ints]
    dense_EF: Array
    labels: dict[str, Array]

    def __len__(self) -> int:
        return len(self.user_E)

    def dense(self, name: str) -> Array:
        """(E,) the dense feature called `name`."""
        return np.asarray(self.dense_EF[:, self.group.dense.index(name)])

    def take(self, index: Array) -> Rows:
        """The examples at `index` (positions or a mask), in that order."""
        return Rows(
            group=self.group,
            user_E=self.user_E[index],
            ids={name: value[index] for name, value in self.ids.items()},
            dense_EF=self.dense_EF[index],
            labels={name: value[index] for name, value in self.labels.items()},
        )


def concatenate(parts: Sequence[Rows], *, group: Group) -> Rows:
    """All parts behind each other; no parts give no rows."""
    single = [feature.name for feature in group.candidate if not feature.multi]
    if not parts:
        return Rows(
            group=group,
            user_E=np.zeros(0, dtype=np.int64),
            ids={name: np.zeros(0, dtype=np.int64) for name in single},
            dense_EF=np.zeros((0, len(group.dense)), dtype=np.float32),
            labels={name: np.zeros(0, dtype=np.float32) for name in group.labels},
        )
    return Rows(
        group=group,
        user_E=np.concatenate([part.user_E for part in parts]),
        ids={name: np.concatenate([part.ids[name] for part in parts]) for name in single},
        dense_EF=np.concatenate([part.dense_EF for part in parts]),
        labels={name: np.concatenate([part.labels[name] for part in parts]) for name in group.labels},
    )


def from_batch(batch: Batch, group: Group) -> Rows:
    """The examples of `group` in a batch, in the batch's order."""
    examples = batch.groups[group.name]
    user_E = batch.user_B[batch.moment_row_M[examples.moment_E]]
    ids = {f.name: value for f in group.candidate if isinstance(value := examples.ids[f.name], Tensor)}
    return Rows(
        group=group,
        user_E=user_E.cpu().numpy(),
        ids={name: value.cpu().numpy() for name, value in ids.items()},
        dense_EF=examples.dense_EF.cpu().numpy(),
        labels={name: examples.labels[name].cpu().numpy() for name in group.labels},
    )


def read_day(dataset: Dataset, day: str, group: Group) -> Rows:
    """All examples of `group` on one prepared day; reads its label, candidate and dense columns only.

    Raises: `DataError` where the day's files lack a column of the group.
    """
    single = [feature.name for feature in group.candidate if not feature.multi]
    moment = f"{group.name}_moment"
    columns = ["user", moment, f"{group.name}_dense", *(f"{group.name}_{name}" for name in (*single, *group.labels))]
    parts = []
    for bucket in range(dataset.num_buckets):
        path = dataset.bucket_path(day, bucket)
        if missing := set(columns) - set(pq.read_schema(path).names):
            raise DataError(f"{path} lacks the column(s) {sorted(missing)}: prepare the day again with `stack ingest`")
        table = pq.read_table(path, columns=columns, partitioning=None)
        lengths = table[moment].combine_chunks()
        num_examples = np.diff(lengths.offsets.to_numpy())
        flat = {name: _flat(table[f"{group.name}_{name}"]) for name in ("dense", *single, *group.labels)}
        parts.append(
            Rows(
                group=group,
                user_E=np.repeat(table["user"].to_numpy().astype(np.int64), num_examples),
                ids={name: flat[name].astype(np.int64) for name in single},
                dense_EF=flat["dense"].reshape(int(num_examples.sum()), len(group.dense)),
                labels={name: flat[name] for name in group.labels},
            )
        )
    return concatenate(parts, group=group)


def read_days(dataset: Dataset, days: Sequence[str], group: Group, *, max_rows: int) -> Rows:
    """Examples of `group` on `days`, in time order; the latest days that together reach `max_rows`, whole days."""
    parts: list[Rows] = []
    for day in sorted(days, reverse=True):
        if sum(map(len, parts)) >= max_rows:
            break
        parts.append(read_day(dataset, day, group))
    return concatenate(parts[::-1], group=group)


def _flat(column: pa.ChunkedArray) -> Array:
    values = column.combine_chunks().flatten()
    return np.asarray(values.to_numpy(zero_copy_only=False))
