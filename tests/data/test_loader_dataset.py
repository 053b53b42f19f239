"""Opening prepared data, and what is said when it cannot be opened."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stack.base.errors import DataError
from stack.data.dataset import Dataset
from stack.data.layout import day_folder
from tests.prepared import NUM_ROWS, write_prepared

DAYS = ("2016-07-18", "2016-07-19", "2016-07-20", "2016-07-21")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_prepared(tmp_path / "data")


def test_a_dataset_tells_its_days_and_sizes(path: Path) -> None:
    dataset = Dataset(path)
    assert dataset.days() == DAYS
    assert dataset.num_rows(DAYS[0]) == NUM_ROWS
    assert dataset.num_buckets == len(dataset.num_timelines(DAYS[0])) == 2
    rows = [pq.read_table(dataset.bucket_path(DAYS[0], bucket)).num_rows for bucket in range(2)]
    assert dataset.num_timelines(DAYS[0]) == tuple(rows)
    dataset.verify(DAYS)


def test_a_day_without_manifest_does_not_count(path: Path) -> None:
    (day_folder(path, DAYS[1]) / "manifest.json").unlink()
    dataset = Dataset(path)
    assert dataset.days() == (DAYS[0], *DAYS[2:])
    with pytest.raises(DataError, match=f"no complete day '{DAYS[1]}': it has 3 from {DAYS[0]} to {DAYS[3]}"):
        dataset.day(DAYS[1])


def test_vocabularies_translate_both_ways_over_all_their_files(path: Path) -> None:
    more = pa.table({"raw": ["item-new"], "row": pa.array([200], pa.int32()), "first_day": ["2016-07-19"]})
    pq.write_table(more, path / "vocab" / "item" / "2016-07-19.parquet")
    items = Dataset(path).vocabulary("item")
    assert items.num_rows == 201
    assert items.rows(["item-1", "item-new", "never seen", "item-199"]) == [1, 200, 0, 199]
    assert items.raw_ids([200, 0, 1, 201]) == ["item-new", None, "item-1", None]
    with pytest.raises(DataError, match="vocabulary 'item' has ids of type string"):
        items.rows([1])


def test_number_ids_stay_numbers(path: Path) -> None:
    file = path / "vocab" / "brand" / "2016-07-18.parquet"
    pq.write_table(pa.table({"raw": [70, 50], "row": pa.array([2, 1], pa.int32())}), file)
    brands = Dataset(path).vocabulary("brand")
    assert brands.rows([50, 70, 60]) == [1, 2, 0]
    assert brands.raw_ids([1, 2]) == [50, 70]


def test_a_vocabulary_with_a_gap_or_of_an_unknown_table_is_refused(path: Path) -> None:
    file = path / "vocab" / "brand" / "2016-07-18.parquet"
    pq.write_table(pa.table({"raw": [70, 50], "row": pa.array([3, 1], pa.int32())}), file)
    with pytest.raises(DataError, match="vocabulary 'brand' .* does not have the rows 1 to 2 once each"):
        Dataset(path).vocabulary("brand")
    with pytest.raises(DataError, match="no vocabulary 'colour'; it has: age, brand"):
        Dataset(path).vocabulary("colour")


def test_a_missing_dataset_is_one_line_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"there is no prepared dataset at .*absent \(no dataset.json\): run `stack ingest`"
    ):
        Dataset(tmp_path / "absent")


def test_a_dataset_without_complete_days_is_refused(path: Path) -> None:
    for day in DAYS:
        (day_folder(path, day) / "manifest.json").unlink()
    with pytest.raises(DataError, match="has no complete day: run `stack ingest`"):
        Dataset(path)


def test_another_format_version_is_refused_before_its_fields_are_read(path: Path) -> None:
    (path / "dataset.json").write_text('{"format_version": 99, "unheard_of": true}')
    with pytest.raises(DataError, match=r"dataset.json has format version 99; this code reads version 1"):
        Dataset(path)


def test_manifests_that_cannot_be_read_or_belong_elsewhere_are_named(path: Path) -> None:
    manifest = day_folder(path, DAYS[2]) / "manifest.json"
    whole = manifest.read_bytes()
    manifest.write_bytes((day_folder(path, DAYS[1]) / "manifest.json").read_bytes())
    with pytest.raises(DataError, match=f"manifest of day {DAYS[2]} in .* is of day {DAYS[1]}"):
        Dataset(path)
    manifest.write_bytes(whole[:40])
    with pytest.raises(DataError, match=rf"{DAYS[2]}/manifest.json cannot be read as a DayManifest"):
        Dataset(path)


def test_verify_names_the_file_that_changed_or_is_gone(path: Path) -> None:
    dataset = Dataset(path)
    file = dataset.bucket_path(DAYS[1], 1)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    dataset.verify(DAYS[:1])
    with pytest.raises(DataError, match=rf"{DAYS[1]}/bucket-0001.parquet is damaged .*: ingest day {DAYS[1]} again"):
        dataset.verify(DAYS)
    file.unlink()
    with pytest.raises(DataError, match=rf"{DAYS[1]}/bucket-0001.parquet is missing"):
        dataset.verify(DAYS)
