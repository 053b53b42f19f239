"""The loader's order: the same for any number of ranks, every timeline once, resumable anywhere."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.base.errors import DataError
from stack.data.batch import Batch
from stack.data.dataset import Dataset
from stack.data.loader import Cursor, Loader
from tests.data.test_loader_collate import flatten
from tests.prepared import write_prepared


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Dataset(write_prepared(tmp_path_factory.mktemp("loader") / "data", num_days=3, num_buckets=4))


def keys(batch: Batch) -> list[tuple[int, int]]:
    """Names each timeline by its user and its last moment, which no two timelines share."""
    last_B = torch.zeros(batch.num_timelines, dtype=torch.int64)
    last_B.scatter_reduce_(0, batch.moment_row_M, batch.moment_time_M, reduce="amax")
    return list(zip(batch.user_B.tolist(), last_B.tolist(), strict=True))


def all_timelines(dataset: Dataset, days: tuple[str, ...]) -> Counter[tuple[int, int]]:
    files = [dataset.bucket_path(day, bucket) for day in days for bucket in range(dataset.num_buckets)]
    rows = [row for file in files for row in pq.read_table(file, columns=["user", "moment_time"]).to_pylist()]
    return Counter((row["user"], max(row["moment_time"])) for row in rows)


plans = st.fixed_dictionaries(
    {
        "global_batch_size": st.integers(1, 70),
        "days_per_block": st.integers(1, 4),
        "seed": st.integers(0, 5),
        "shuffle": st.booleans(),
        "num_epochs": st.integers(1, 2),
    }
)


@settings(max_examples=15, deadline=None)
@given(plan=plans, first=st.integers(0, 2))
def test_every_timeline_of_the_days_appears_once_an_epoch(dataset: Dataset, plan: dict[str, int], first: int) -> None:
    days = dataset.days()[first:]
    loader = Loader(dataset, days=days, num_prefetch=0, **plan)  # type: ignore[arg-type]
    batches = list(loader)
    assert len(batches) == loader.num_steps == loader.num_steps_done
    assert sum(batch.num_timelines for batch in batches) == loader.num_timelines * plan["num_epochs"]
    assert max(batch.num_timelines for batch in batches) < plan["global_batch_size"] + dataset.num_buckets
    per_epoch = loader.num_steps // plan["num_epochs"]
    for start in range(0, len(batches), per_epoch):
        seen = Counter(key for batch in batches[start : start + per_epoch] for key in keys(batch))
        assert seen == all_timelines(dataset, days)


@settings(max_examples=10, deadline=None)
@given(plan=plans, world_size=st.sampled_from([2, 4]))
def test_the_global_batch_of_a_step_is_the_same_for_any_number_of_ranks(
    dataset: Dataset, plan: dict[str, int], world_size: int
) -> None:
    alone = Loader(dataset, days=dataset.days(), num_prefetch=0, **plan)  # type: ignore[arg-type]
    ranks = [
        Loader(dataset, days=dataset.days(), num_prefetch=0, rank=rank, world_size=world_size, **plan)  # type: ignore[arg-type]
        for rank in range(world_size)
    ]
    for batch, parts in zip(alone, zip(*ranks, strict=True), strict=True):
        assert Counter(keys(batch)) == Counter(key for part in parts for key in keys(part))


@settings(max_examples=10, deadline=None)
@given(plan=plans, data=st.data())
def test_resuming_gives_exactly_the_batches_that_were_left(
    dataset: Dataset, plan: dict[str, int], data: st.DataObject
) -> None:
    loader = Loader(dataset, days=dataset.days(), num_prefetch=0, **plan)  # type: ignore[arg-type]
    stop = data.draw(st.integers(0, loader.num_steps))
    whole, cursor = [], loader.cursor
    for step, batch in enumerate(loader, start=1):
        whole.append(flatten_all(batch))
        if step == stop:
            cursor = loader.cursor
    saved = json.loads(json.dumps(dataclasses.asdict(cursor)))
    resumed = Loader(dataset, days=dataset.days(), num_prefetch=0, cursor=Cursor(**saved), **plan)  # type: ignore[arg-type]
    assert resumed.num_steps_done == stop
    assert [flatten_all(batch) for batch in resumed] == whole[stop:]


def test_resuming_in_the_first_epoch_starts_the_next_one_at_its_beginning(dataset: Dataset) -> None:
    def order(cursor: Cursor) -> list[list[tuple[int, int]]]:
        plan = {"global_batch_size": 12, "num_epochs": 2, "num_prefetch": 0}
        return [keys(batch) for batch in Loader(dataset, days=dataset.days()[:1], cursor=cursor, **plan)]  # type: ignore[arg-type]

    whole = order(Cursor())
    per_epoch = len(whole) // 2
    assert per_epoch > 1
    for done in range(len(whole)):
        assert order(Cursor(epoch=done // per_epoch, step=done % per_epoch)) == whole[done:]


def flatten_all(batch: Batch) -> dict[str, object]:
    """Every value of a batch of the test dataset."""
    groups = {name: dataclasses.replace(group, dense_EF=group.dense_EF[:, :0]) for name, group in batch.groups.items()}
    dense = {f"{name}.dense": group.dense_EF.tolist() for name, group in batch.groups.items()}
    return flatten(dataclasses.replace(batch, groups=groups)) | dense


def test_prefetching_changes_no_batch_and_no_cursor(dataset: Dataset) -> None:
    plain, ahead = (
        Loader(dataset, days=dataset.days(), global_batch_size=7, num_prefetch=num_prefetch) for num_prefetch in (0, 3)
    )
    for expected, batch in zip(plain, ahead, strict=True):
        assert flatten_all(batch) == flatten_all(expected)
        assert ahead.cursor == plain.cursor


def test_leaving_the_loop_early_ends_the_thread(dataset: Dataset) -> None:
    before = threading.active_count()
    for _ in Loader(dataset, days=dataset.days(), global_batch_size=3, num_prefetch=2):
        assert threading.active_count() == before + 1
        break
    assert threading.active_count() == before


def test_order_depends_on_seed_and_epoch_and_shuffle_alone(dataset: Dataset) -> None:
    def order(**plan: int) -> list[list[tuple[int, int]]]:
        loader = Loader(dataset, days=dataset.days(), global_batch_size=16, **plan)  # type: ignore[arg-type]
        return [keys(batch) for batch in loader]

    assert order(seed=1) == order(seed=1) != order(seed=2)
    two = order(seed=1, num_epochs=2)
    assert two[: len(two) // 2] != two[len(two) // 2 :]
    fixed = order(shuffle=False, num_epochs=2)
    assert fixed[: len(fixed) // 2] == fixed[len(fixed) // 2 :]


def test_blocks_follow_the_order_of_the_days(dataset: Dataset) -> None:
    loader = Loader(dataset, days=dataset.days(), global_batch_size=16, days_per_block=2)
    assert loader.blocks == (dataset.days()[:2], dataset.days()[2:])
    batches = Loader(dataset, days=dataset.days(), global_batch_size=16)
    days = [int(batch.moment_time_M.min()) // 86_400 for batch in batches]
    assert days == sorted(days)
    assert len(set(days)) == 3


def test_only_the_groups_asked_for_are_given(dataset: Dataset) -> None:
    loader = Loader(dataset, days=dataset.days(), global_batch_size=16, groups=["price", "follow"])
    assert set(next(iter(loader)).groups) == {"price", "follow"}


def test_a_rank_whose_buckets_are_empty_gets_empty_batches(tmp_path: Path) -> None:
    dataset = Dataset(write_prepared(tmp_path / "data", num_users=1, num_buckets=4))  # its only user is in bucket 1
    ranks = [Loader(dataset, days=dataset.days(), global_batch_size=1, rank=r, world_size=4) for r in range(4)]
    sizes = [[batch.num_timelines for batch in loader] for loader in ranks]
    assert sizes[1] == [1] * ranks[1].num_steps
    assert sizes[0] == sizes[2] == sizes[3] == [0] * ranks[1].num_steps
    empty = next(iter(Loader(dataset, days=dataset.days(), global_batch_size=1, rank=0, world_size=4)))
    assert empty.groups["impression"].dense_EF.shape == (0, 3)
    assert empty.groups["impression"].num_examples == empty.num_moments == 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"days": []}, r"no days to load from .*: choose some of 2016-07-18 \.\.\. 2016-07-20"),
        ({"days": ["2001-01-01"]}, "no complete day '2001-01-01': it has 3 from 2016-07-18 to 2016-07-20"),
        ({"world_size": 3}, "3 ranks do not divide the 4 buckets"),
        ({"groups": ["clicks"]}, "no example group clicks; it has: follow, impression, price, shop"),
        ({"global_batch_size": 0}, "global_batch_size 0, .* must be at least 1"),
        ({"cursor": Cursor(block=9)}, r"Cursor\(epoch=0, block=9, step=0\) is not in 1 epochs of 3 blocks"),
        ({"cursor": Cursor(step=10_000)}, "is not in 1 epochs of 3 blocks"),
    ],
)
def test_what_cannot_be_given_is_refused_in_one_line(dataset: Dataset, options: dict[str, object], text: str) -> None:
    with pytest.raises(DataError, match=text) as refusal:
        Loader(dataset, **({"days": dataset.days(), "global_batch_size": 8} | options))  # type: ignore[arg-type]
    assert "\n" not in str(refusal.value)


def test_a_damaged_file_is_reported_in_the_reading_loop(tmp_path: Path) -> None:
    dataset = Dataset(write_prepared(tmp_path / "data"))
    dataset.bucket_path(dataset.days()[1], 0).write_bytes(b"nothing")
    batches = iter(Loader(dataset, days=dataset.days(), global_batch_size=1_000))
    assert next(batches).num_timelines == sum(dataset.num_timelines(dataset.days()[0]))
    with pytest.raises(DataError, match=r"2016-07-19/bucket-0000.parquet cannot be read as Parquet"):
        next(batches)


def test_a_file_with_other_timelines_than_its_manifest_says_is_refused(tmp_path: Path) -> None:
    dataset = Dataset(write_prepared(tmp_path / "data"))
    file = dataset.bucket_path(dataset.days()[0], 0)
    pq.write_table(pq.read_table(file).slice(1), file)
    with pytest.raises(DataError, match=r"hold \d+ timelines in the buckets of rank 0, their manifests say \d+"):
        list(Loader(dataset, days=dataset.days(), global_batch_size=8))


@pytest.mark.parametrize("world_size", [1, 2])
def test_of_a_day_in_shares_each_epoch_takes_its_share_drawn_anew(dataset: Dataset, world_size: int) -> None:
    first, last = dataset.days()[0], dataset.days()[-1]
    taken: dict[int, Counter[tuple[int, int]]] = {0: Counter(), 1: Counter()}
    for rank in range(world_size):
        loader = Loader(
            dataset, days=[last, first], days_per_block=2, shares={first: 0.4}, num_epochs=2, global_batch_size=5,
            rank=rank, world_size=world_size, num_prefetch=0,
        )  # fmt: skip
        while loader.cursor.epoch < 2:
            epoch = loader.cursor.epoch
            taken[epoch].update(keys(next(iter(loader))))
    whole, shared = all_timelines(dataset, (last,)), all_timelines(dataset, (first,))
    for found in taken.values():
        assert set(found.values()) == {1}
        assert whole <= found <= whole + shared
        assert (found - whole).total() == sum(-(-size * 4 // 10) for size in dataset.num_timelines(first))
    assert taken[0] != taken[1]
