"""Flat rows against a slow walk over the Parquet rows, and against the loader's batches."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

from stack.base.errors import DataError
from stack.data.dataset import Dataset
from stack.data.loader import Loader
from stack.data.schema import Group
from stack.evaluate.rows import concatenate, from_batch, read_day, read_days


@pytest.mark.parametrize("name", ["impression", "price", "follow", "shop"])
def test_flat_rows_equal_a_walk_over_the_timelines(dataset: Dataset, name: str) -> None:
    day, group = dataset.days()[1], dataset.schema.group(name)
    users, dense, labels = [], [], {label: [] for label in group.labels}
    for bucket in range(dataset.num_buckets):
        for row in pq.read_table(dataset.bucket_path(day, bucket)).to_pylist():
            for index in range(len(row[f"{name}_moment"])):
                users.append(row["user"])
                width = len(group.dense)
                dense.append(row[f"{name}_dense"][index * width : (index + 1) * width])
                for label in group.labels:
                    labels[label].append(row[f"{name}_{label}"][index])
    found = read_day(dataset, day, group)
    assert len(found) == dataset.day(day).num_examples[name] > 0
    assert found.user_E.tolist() == users
    assert found.dense_EF.tolist() == dense
    assert {label: value.tolist() for label, value in found.labels.items()} == labels
    assert set(found.ids) == {feature.name for feature in group.candidate if not feature.multi}


def test_rows_of_batches_equal_rows_of_files(dataset: Dataset) -> None:
    day, group = dataset.days()[2], dataset.schema.group("impression")
    loader = Loader(dataset, days=[day], global_batch_size=7, shuffle=False, num_prefetch=0)
    batches = concatenate([from_batch(batch, group) for batch in loader], group=group)
    file = read_day(dataset, day, group)

    def lines(rows: object) -> list[tuple[float, ...]]:
        columns = (rows.user_E, *rows.ids.values(), *rows.dense_EF.T, *rows.labels.values())  # type: ignore[attr-defined]
        return sorted(zip(*(column.tolist() for column in columns), strict=True))

    assert lines(batches) == lines(file)


def test_the_latest_days_are_read_whole_until_there_are_enough_rows(dataset: Dataset) -> None:
    group = dataset.schema.group("impression")
    sizes = [dataset.day(day).num_examples["impression"] for day in dataset.days()]
    found = read_days(dataset, dataset.days()[:5], group, max_rows=sizes[4] + 1)
    expected = concatenate([read_day(dataset, day, group) for day in dataset.days()[3:5]], group=group)
    assert np.array_equal(found.user_E, expected.user_E)
    assert np.array_equal(found.dense_EF, expected.dense_EF)
    assert len(read_days(dataset, [], group, max_rows=9)) == 0


def test_a_column_that_is_not_there_is_named(dataset: Dataset) -> None:
    group = Group(name="impression", labels=("shared",))
    with pytest.raises(DataError, match=r"lacks the column\(s\) \['impression_shared'\]: prepare the day again"):
        read_day(dataset, dataset.days()[0], group)
