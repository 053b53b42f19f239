"""The profile of a day, against a slow count of its rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.audits.data_columns import SAMPLE, IdSums, LabelSums, mixed, share_unseen
from stack.audits.data_day import DayProfile, profile_of
from stack.data.dataset import Dataset
from tests.daily.days import change_day
from tests.prepared import write_prepared

DAYS = tuple(f"2016-07-{number}" for number in range(18, 21))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Dataset(write_prepared(tmp_path_factory.mktemp("day") / "data", num_days=3))


@pytest.fixture(scope="module")
def profile(dataset: Dataset) -> DayProfile:
    return profile_of(dataset, DAYS[1], folder=None)


def _rows(dataset: Dataset) -> Iterator[dict[str, list[float]]]:
    for bucket in range(dataset.num_buckets):
        yield from pq.read_table(dataset.bucket_path(DAYS[1], bucket), partitioning=None).to_pylist()


def test_volumes_are_those_of_the_manifest(dataset: Dataset, profile: DayProfile) -> None:
    manifest = dataset.day(DAYS[1])
    expected = {"events": manifest.num_events, "moments": manifest.num_moments}
    expected |= {f"{group} examples": num for group, num in manifest.num_examples.items()}
    assert profile.volume == expected | {"timelines": sum(dataset.num_timelines(DAYS[1]))}


def test_ids_are_those_of_the_day_without_what_was_carried_over(dataset: Dataset, profile: DayProfile) -> None:
    items, tags, hours = Counter[int](), Counter[int](), Counter[int]()
    for row in _rows(dataset):
        own = slice(row["num_carried"], None)  # type: ignore[misc]
        items.update(row["event_item"][own])  # type: ignore[arg-type]
        tags.update(tag for one in row["event_tags"][own] for tag in one)  # type: ignore[union-attr]
        hours.update(int(time) % 86_400 // 3600 for time in row["event_time"][own])
    for name, counter in (("event.item", items), ("event.tags", tags), ("event.hour", hours)):
        found = profile.ids[name]
        assert (found.count, found.num_of_top) == (counter.total(), max(counter.values()))
        assert found.num_distinct == len(counter)
        assert dict(zip(found.buckets, found.counts, strict=True)) == counter  # fewer ids than bins
    income = [row["profile_income"] for row in _rows(dataset)]
    assert profile.ids["profile.income"].num_unknown == income.count(0)  # type: ignore[arg-type]
    assert profile.ids["event.hour"].num_unknown == 0


def test_numbers_and_labels_are_those_of_the_examples(dataset: Dataset, profile: DayProfile) -> None:
    rows = list(_rows(dataset))
    dense_KF = np.concatenate([np.reshape(row["impression_dense"], (-1, 3)) for row in rows])
    clicked_K, weight_K = (
        np.concatenate([row[f"impression_{name}"] for row in rows]) for name in ("clicked", "weight")
    )
    for place, name in enumerate(dataset.schema.group("impression").dense):
        found, value_K = profile.numbers[f"impression.{name}"], dense_KF[:, place]
        assert (found.count, found.num_distinct) == (len(value_K), len(np.unique(value_K)))
        assert (found.mean, found.deviation) == pytest.approx((value_K.mean(), value_K.std()))
        assert (found.least, found.most) == (value_K.min(), value_K.max())
        assert found.top_share == np.unique(value_K, return_counts=True)[1].max() / len(value_K)
        sign = np.corrcoef(np.log1p(value_K), clicked_K)[0, 1]
        assert profile.labels["impression.clicked"].signs[name] == pytest.approx(sign, abs=1e-5)
    label = profile.labels["impression.clicked"]
    assert (label.count, label.binary) == (len(clicked_K), True)
    assert (label.rate, label.weighted_rate) == pytest.approx(
        (clicked_K.mean(), (weight_K * clicked_K).sum() / weight_K.sum())
    )
    assert set(profile.labels) == {"impression.clicked", "price.tier", "follow.responded", "shop.visited"}


def test_new_rows_are_those_beyond_the_vocabulary_of_the_day_before(dataset: Dataset) -> None:
    sums = IdSums(table="item", num_known=10, keys=False)
    sums.add(np.array([0, 3, 9, 10, 11, 11]))
    found = sums.facts()
    assert (found.num_new, found.num_unknown, found.num_distinct, found.num_of_top) == (3, 1, 4, 2)
    assert profile_of(dataset, DAYS[0], folder=None).ids["event.item"].num_new is None
    assert profile_of(dataset, DAYS[1], folder=None).ids["event.item"].num_new == 0


@given(st.integers(0, 3000), st.integers(0, 3000), st.integers(500, 1500))
@settings(max_examples=25, deadline=None)
def test_the_share_of_unseen_keys_is_told_by_samples(num_seen: int, num_new: int, num_both: int) -> None:
    key_N = np.arange(num_seen + num_new + num_both)
    earlier, own = IdSums(table="item", num_known=None, keys=True), IdSums(table="item", num_known=None, keys=True)
    earlier.add(key_N[: num_seen + num_both] + 1)
    own.add(key_N[num_seen:] + 1)
    share = share_unseen(own.facts().sample, [earlier.facts().sample])
    expected = num_new / (num_new + num_both)
    exact = max(num_seen + num_both, num_new + num_both) <= SAMPLE
    assert share == pytest.approx(expected, abs=1e-12 if exact else 0.25)


def test_hashes_are_those_of_splitmix64() -> None:
    found = mixed(np.array([0, 1, -1]))
    assert [hex(value) for value in found.tolist()] == [
        "0xe220a8397b1dcdaf",
        "0x910a2dec89025cc1",
        "0xe4d971771b652c20",
    ]


def test_blocks_may_lack_labels_that_are_finite_and_features_that_vary() -> None:
    sums = LabelSums(features=("a", "b"))
    sums.add(np.array([np.nan, 1.0, 0.0]), np.array([[1.0, 2], [3, 2], [np.nan, 2]]), None)
    sums.add(np.array([1.0, 0.0]), np.array([[3.0, 2], [0.0, 2]]), None)
    found = sums.facts()
    assert (found.count, found.rate) == (4, 0.5)
    assert found.signs == {"a": pytest.approx(1.0), "b": None}


def test_a_day_without_rows_has_a_profile(tmp_path: Path) -> None:
    path = write_prepared(tmp_path / "data", num_days=2)
    change_day(path, DAYS[1], lambda rows: rows.slice(0, 0))
    found = profile_of(Dataset(path), DAYS[1], folder=tmp_path)
    assert set(found.volume.values()) == {0}
    assert found.ids["event.item"].count == found.numbers["impression.price"].count == 0
    assert profile_of(Dataset(path), DAYS[1], folder=tmp_path) == found


def test_ids_without_a_vocabulary_are_sampled(tmp_path: Path) -> None:
    path = write_prepared(tmp_path / "data", num_days=2, raw_ids=True)
    found = profile_of(Dataset(path), DAYS[1], folder=None).ids["event.item"]
    assert (len(found.sample), found.num_new) == (found.num_distinct, None)
