"""Prepared days as something went wrong with them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import count
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from stack.data.layout import BucketFile, DayManifest, day_folder


def change_day(dataset: Path, day: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Rewrites every bucket of a day, and what its manifest says of them."""
    folder = day_folder(dataset, day)
    manifest = msgspec.json.decode((folder / "manifest.json").read_bytes(), type=DayManifest)
    buckets, num_examples = [], dict.fromkeys(manifest.num_examples, 0)
    for bucket in manifest.buckets:
        rows = change(pq.read_table(folder / bucket.name, partitioning=None))
        pq.write_table(rows, folder / bucket.name, compression="zstd")
        data = (folder / bucket.name).read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        buckets.append(BucketFile(name=bucket.name, num_timelines=rows.num_rows, num_bytes=len(data), sha256=digest))
        for group in num_examples:
            num_examples[group] += sum(map(len, rows[f"{group}_moment"].to_pylist()))
    told = msgspec.structs.replace(manifest, buckets=tuple(buckets), num_examples=num_examples)
    (folder / "manifest.json").write_bytes(msgspec.json.encode(told))


def without_the_last_timeline(rows: pa.Table) -> pa.Table:
    return rows.slice(0, rows.num_rows - 1)


def empty(rows: pa.Table) -> pa.Table:
    return rows.slice(0, 0)


def tiny(rows: pa.Table) -> pa.Table:
    return rows.slice(0, 1)


def with_nan_labels(rows: pa.Table) -> pa.Table:
    return _labels(rows, lambda value: float("nan"))


def with_flipped_labels(rows: pa.Table) -> pa.Table:
    return _labels(rows, lambda value: 1.0 - value)


def with_one_nan(rows: pa.Table) -> pa.Table:
    """In the first feature of the first example, of the users in the first of two buckets."""
    if rows["user"][0].as_py() % 2:
        return rows
    return _dense(rows, lambda place: None if place else float("nan"))


def with_a_constant_price(rows: pa.Table) -> pa.Table:
    """The third of three features, stuck."""
    return _dense(rows, lambda place: 2.5 if place % 3 == 2 else None)


def tenfold(rows: pa.Table) -> pa.Table:
    return pa.concat_tables([rows] * 10)


def _dense(rows: pa.Table, change: Callable[[int], float | None]) -> pa.Table:
    """`change` gives a new value by its place in the column, or None."""
    name, place = "impression_dense", count()
    changed = [
        [value if (new := change(next(place))) is None else new for value in one] for one in rows[name].to_pylist()
    ]
    column = pa.array(changed, rows.schema.field(name).type)
    return rows.set_column(rows.schema.get_field_index(name), name, column)


def _labels(rows: pa.Table, change: Callable[[float], float]) -> pa.Table:
    name = "impression_clicked"
    values = [[change(value) for value in one] for one in rows[name].to_pylist()]
    column = pa.array(values, rows.schema.field(name).type)
    return rows.set_column(rows.schema.get_field_index(name), name, column)
