"""Where things lie in a prepared dataset, and the manifests that make a folder complete.

::

    <dataset>/
      dataset.json                       DatasetManifest: schema, number of buckets, ingest settings
      days/2017-03-04/
        manifest.json                    DayManifest; written last, so a folder without it does not count
        bucket-0000.parquet ...          timelines, one file per hash bucket of users
        bad_rows.parquet                 a sample of the rows that were refused, with reasons
      vocab/<table>/2017-03-04.parquet   ids first seen in that chunk: raw, row (1, 2, ...), first_day;
                                         none for the tables in the schema's `raw_ids`
      state/2017-03-04/                  what the next day needs (ingest alone reads it)
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from stack.data.schema import Schema

FORMAT_VERSION = 1


class DatasetManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Facts about all days of a dataset."""

    format_version: int
    source: str
    schema: Schema
    num_buckets: int
    max_history: int
    settings: dict[str, str | int | float | bool | None] = {}


class BucketFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One Parquet file of a day and the timelines in it."""

    name: str
    num_timelines: int
    num_bytes: int
    sha256: str


class DayManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One complete day: its files, its counts, and the size of every vocabulary that there is at its end.

    `num_rows[table]` counts row 0; `num_examples[group]`; `dropped[reason]` counts refused source rows.
    `parent` is the digest of the manifest of the day before that this day was built on (None for the first).
    """

    day: str
    parent: str | None
    buckets: tuple[BucketFile, ...]
    num_rows: dict[str, int]
    num_events: int
    num_moments: int
    num_examples: dict[str, int]
    num_source_rows: dict[str, int]
    dropped: dict[str, int]
    code_version: str


def day_folder(dataset: Path, day: str) -> Path:
    return dataset / "days" / day


def bucket_name(bucket: int) -> str:
    return f"bucket-{bucket:04d}.parquet"
