"""Reading and laying out batches, against a slow construction out of Python rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stack.base.errors import DataError
from stack.data.batch import Batch, Ids, Jagged
from stack.data.collate import collate
from stack.data.parquet import _decode_array, column_types, read_block
from stack.data.schema import Feature, Group, Schema

MIXED = Schema(
    event=(Feature(name="item", table="item"), Feature(name="tags", table="tags", multi=True)),
    property=(Feature(name="type", table="type"),),
    profile=(Feature(name="age", table="age"), Feature(name="likes", table="tags", multi=True)),
    query=(Feature(name="shop", table="shop"), Feature(name="words", table="word", multi=True)),
    groups=(
        Group(
            name="impression",
            candidate=(Feature(name="item", table="item"), Feature(name="tags", table="tags", multi=True)),
            dense=("a", "b"),
            labels=("clicked", "weight"),
        ),
        Group(name="price", labels=("tier",)),
    ),
)
ROOM = dict.fromkeys((*MIXED.tables(), "user"), 1_000_000)
Row = dict[str, object]


@st.composite
def timelines(draw: st.DrawFn) -> list[Row]:
    """Rows of `MIXED`, with any list empty; numbers are a running count, so that any mix-up shows."""
    count = iter(range(1, 1_000_000))
    size = st.integers(0, 3)

    def many() -> list[int]:
        return [next(count) for _ in range(draw(size))]

    rows: list[Row] = []
    for _ in range(draw(st.integers(0, 5))):
        num_events, num_moments = draw(size), draw(size)
        examples = {name: draw(size) if num_moments else 0 for name in ("impression", "price")}
        row: Row = {"user": next(count), "num_carried": draw(st.integers(0, num_events))}
        row |= {f"event_{name}": [next(count) for _ in range(num_events)] for name in ("time", "item", "type")}
        row |= {"event_tags": [many() for _ in range(num_events)], "profile_age": next(count), "profile_likes": many()}
        row |= {f"{name}": [next(count) for _ in range(num_moments)] for name in ("moment_time", "query_shop")}
        row["moment_position"] = [draw(st.integers(0, num_events)) for _ in range(num_moments)]
        row["query_words"] = [many() for _ in range(num_moments)]
        for name, num_examples in examples.items():
            row[f"{name}_moment"] = [draw(st.integers(0, num_moments - 1)) for _ in range(num_examples)]
        impressions = range(examples["impression"])
        row |= {"impression_item": [next(count) for _ in impressions], "impression_tags": [many() for _ in impressions]}
        row["impression_dense"] = [next(count) / 2 for _ in range(2 * len(impressions))]
        row |= {f"impression_{label}": [next(count) / 4 for _ in impressions] for label in ("clicked", "weight")}
        row["price_tier"] = [float(next(count)) for _ in range(examples["price"])]
        rows.append(row)
    return rows


def write(file: Path, rows: list[Row], *, row_group_size: int = 2) -> Path:
    schema = pa.schema(list(column_types(MIXED, MIXED.groups).items()))
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), file, row_group_size=row_group_size)
    return file


def slow(rows: list[Row]) -> dict[str, object]:
    """The batch of `rows`, one value at a time."""
    flat: dict[str, list[object]] = {"moment_row": [], "impression.moment": [], "price.moment": []}
    flat["num_events"] = [len(row["event_time"]) for row in rows]  # type: ignore[arg-type]
    for name in ("user", "num_carried", "profile_age", "profile_likes"):
        flat[name] = [row[name] for row in rows]
    per_entry = [name for name in column_types(MIXED, MIXED.groups) if name not in flat and not name.endswith("dense")]
    for name in per_entry:
        if name not in ("impression_moment", "price_moment"):
            flat[name] = [value for row in rows for value in row[name]]  # type: ignore[attr-defined]
    flat["impression_dense"] = []
    num_moments = 0
    for number, row in enumerate(rows):
        flat["moment_row"] += [number] * len(row["moment_time"])  # type: ignore[arg-type]
        for group in ("impression", "price"):
            flat[f"{group}.moment"] += [num_moments + local for local in row[f"{group}_moment"]]  # type: ignore[attr-defined]
        values: list[float] = row["impression_dense"]  # type: ignore[assignment]
        flat["impression_dense"] += [values[at : at + 2] for at in range(0, len(values), 2)]
        num_moments += len(row["moment_time"])  # type: ignore[arg-type]
    return dict(flat)


def plain(ids: Ids) -> list[object]:
    if isinstance(ids, Jagged):
        assert ids.values_N.dtype == ids.lengths.dtype == torch.int64
        return [part.tolist() for part in torch.split(ids.values_N, ids.lengths.tolist())] if len(ids.lengths) else []
    assert ids.dtype == torch.int64
    return list(ids.tolist())


def flatten(batch: Batch) -> dict[str, object]:
    flat: dict[str, object] = {
        "user": plain(batch.user_B), "num_carried": plain(batch.num_carried_B), "num_events": plain(batch.num_events_B),
        "event_time": plain(batch.event_time_T), "moment_row": plain(batch.moment_row_M),
        "moment_position": plain(batch.moment_position_M), "moment_time": plain(batch.moment_time_M),
    }  # fmt: skip
    for prefix, columns in (
        ("event", {**batch.event, **batch.property}),
        ("profile", batch.profile),
        ("query", batch.query),
    ):
        flat |= {f"{prefix}_{name}": plain(ids) for name, ids in columns.items()}
    for group, examples in batch.groups.items():
        assert examples.dense_EF.dtype == torch.float32
        flat[f"{group}.moment"] = plain(examples.moment_E)
        flat |= {f"{group}_{name}": plain(ids) for name, ids in examples.ids.items()}
        flat |= {f"{group}_{name}": values.tolist() for name, values in examples.labels.items()}
        if group == "impression":
            flat["impression_dense"] = examples.dense_EF.tolist()
        else:
            assert examples.dense_EF.shape == (examples.num_examples, 0)
    return flat


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=st.lists(timelines(), min_size=1, max_size=3), data=st.data())
def test_a_batch_equals_a_slow_construction(tmp_path: Path, files: list[list[Row]], data: st.DataObject) -> None:
    paths = [write(tmp_path / f"{number}.parquet", rows) for number, rows in enumerate(files)]
    rows = [row for part in files for row in part]
    picked = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=8) if rows else st.just([]))
    block = read_block(paths, schema=MIXED, groups=MIXED.groups, num_rows=ROOM)
    batch = collate(block, np.asarray(picked, dtype=np.int64), schema=MIXED, groups=MIXED.groups)
    assert block.num_timelines == len(rows)
    assert flatten(batch) == slow([rows[index] for index in picked])


def test_slices_of_arrow_lists_are_decoded_from_their_own_start() -> None:
    array = pa.array([[[1], [2, 3]], [], [[4, 5], []], [[6]]], pa.list_(pa.list_(pa.int32()))).slice(1, 2)
    nested = _decode_array(array)
    assert nested.values_N.tolist() == [4, 5]
    assert [offsets.tolist() for offsets in nested.offsets] == [[0, 0, 2], [0, 2, 2]]
    assert [offsets.tolist() for offsets in _decode_array(array.slice(0, 0)).offsets] == [[0], [0]]


ONE: Row = {
    "user": 1, "num_carried": 0, "profile_age": 1, "profile_likes": [2],
    "event_time": [5, 6], "event_item": [1, 2], "event_tags": [[1], []], "event_type": [1, 1],
    "moment_time": [7], "moment_position": [2], "query_shop": [1], "query_words": [[]],
    "impression_moment": [0], "impression_item": [3], "impression_tags": [[4]], "impression_dense": [0.5, 1.5],
    "impression_clicked": [1.0], "impression_weight": [1.0], "price_moment": [], "price_tier": [],
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"event_item": [1]}, "column 'event_item' has 1 entries in row 0, where the first column of its kind has 2"),
        ({"impression_dense": [0.5]}, "column 'impression_dense' has 1 entries in row 0, where .* has 2"),
        ({"query_shop": [1, 2], "query_words": [[], []]}, "column 'query_shop' has 2 entries in row 0, where .* has 1"),
        ({"impression_moment": [1]}, "column 'impression_moment' points beyond the moments of its row"),
        ({"event_item": [1, None]}, r"bucket.parquet: column 'event_item' has nulls"),
        ({"event_tags": [[1, None], []]}, r"column 'event_tags' has nulls"),
        ({"event_tags": [None, []]}, r"column 'event_tags' has nulls"),
        ({"profile_age": None}, r"column 'profile_age' has nulls"),
    ],
)
def test_rows_that_contradict_the_layout_are_refused(tmp_path: Path, change: Row, text: str) -> None:
    file = write(tmp_path / "bucket.parquet", [ONE | change])
    with pytest.raises(DataError, match=text):
        read_block([file], schema=MIXED, groups=MIXED.groups, num_rows=ROOM)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"event_item": [1, 4]}, "column 'event_item' has the id 4, but the vocabulary 'item' had the rows 0 to 3 on "),
        ({"impression_item": [-1]}, "column 'impression_item' has the id -1, but the vocabulary 'item' "),
        ({"event_tags": [[1], [0, 5]]}, "column 'event_tags' has the id 5, but the vocabulary 'tags' had .* 0 to 4 "),
        ({"profile_likes": [-7]}, "column 'profile_likes' has the id -7, .*: ingest that day again"),
        ({"user": 2}, "bucket.parquet: column 'user' has the id 2, but the vocabulary 'user' had the rows 0 to 1 on "),
    ],
)  # fmt: skip
def test_ids_that_are_no_row_of_their_vocabulary_are_refused(tmp_path: Path, change: Row, text: str) -> None:
    room = {"item": 4, "tags": 5, "type": 2, "age": 2, "shop": 2, "word": 1, "user": 2}
    read_block([write(tmp_path / "good.parquet", [ONE])], schema=MIXED, groups=MIXED.groups, num_rows=room)
    file = write(tmp_path / "bucket.parquet", [ONE | change])
    with pytest.raises(DataError, match=text):
        read_block([file], schema=MIXED, groups=MIXED.groups, num_rows=room)


def test_a_file_without_a_column_or_with_another_type_is_refused(tmp_path: Path) -> None:
    table = pq.read_table(write(tmp_path / "good.parquet", [ONE]))
    pq.write_table(table.drop_columns(["event_item"]), tmp_path / "missing.parquet")
    with pytest.raises(DataError, match="missing.parquet has no column 'event_item'"):
        read_block([tmp_path / "missing.parquet"], schema=MIXED, groups=(), num_rows=ROOM)
    pq.write_table(table.set_column(0, "user", pa.array(["u"])), tmp_path / "text.parquet")
    with pytest.raises(DataError, match=r"text.parquet: column 'user' is string, not int32"):
        read_block([tmp_path / "text.parquet"], schema=MIXED, groups=(), num_rows=ROOM)


def test_a_file_that_is_no_parquet_or_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(DataError, match=r"broken.parquet cannot be read as Parquet"):
        read_block([tmp_path / "broken.parquet"], schema=MIXED, groups=(), num_rows=ROOM)
    with pytest.raises(DataError, match=r"absent.parquet is missing: ingest its day again"):
        read_block([tmp_path / "absent.parquet"], schema=MIXED, groups=(), num_rows=ROOM)


def test_columns_of_groups_not_asked_for_are_not_read(tmp_path: Path) -> None:
    table = pq.read_table(write(tmp_path / "all.parquet", [ONE]))
    kept = [name for name in table.column_names if not name.startswith("impression_")]
    pq.write_table(table.select(kept), tmp_path / "few.parquet")
    groups = (MIXED.group("price"),)
    block = read_block([tmp_path / "few.parquet"], schema=MIXED, groups=groups, num_rows=ROOM)
    assert set(collate(block, np.array([0]), schema=MIXED, groups=groups).groups) == {"price"}
