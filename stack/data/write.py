"""Writes the days of a chunk: all of a day or nothing of it, in the order of days.

Files are first written below `<dataset>/.aside-chunk`, bucket by bucket; when the chunk is whole all of it is
flushed to disk, and then each day's state and timelines are renamed into place, manifest included.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from stack.base import files
from stack.base.files import ASIDE, sha256_of, sync, sync_tree
from stack.base.version import code_version
from stack.data.days import day_name
from stack.data.layout import BucketFile, DayManifest, bucket_name
from stack.data.schema import Schema
from stack.data.timeline import num_list_values

KINDS = ("state", "days")
"""A dataset's folders of days, in the order in which a day is put in place."""


@dataclass(kw_only=True)
class _Counts:
    buckets: list[BucketFile] = field(default_factory=list)
    num_events: int = 0
    num_moments: int = 0
    num_examples: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, kw_only=True)
class DayFacts:
    """What a day's manifest says beside the counts of its timelines, and the sample of its bad rows."""

    num_rows: dict[str, int]
    num_source_rows: dict[str, int]
    dropped: dict[str, int]
    bad_rows: pa.Table


class ChunkWriter:
    """Collects a chunk's files and puts its days in place. Use one for each chunk."""

    def __init__(self, *, dataset: Path, schema: Schema, days: list[int]) -> None:
        self._dataset = dataset
        self._schema = schema
        self._days = days
        self._aside = dataset / f"{ASIDE}chunk"
        shutil.rmtree(self._aside, ignore_errors=True)
        self._counts = {day: _Counts() for day in days}
        for day in days:
            self._folder("days", day).mkdir(parents=True)
            self._folder("state", day).mkdir(parents=True)

    def add(
        self, *, day: int, bucket: int, timelines: pa.Table, events: pa.Table, offers: pa.Table | None = None
    ) -> None:
        """Writes one bucket of a day: its timelines, and for the state its coded events and, if given, its offers.

        Threads may write different days at once; the buckets of one day come in order.
        """
        file = self._folder("days", day) / bucket_name(bucket)
        write_rows(timelines, file)
        write_rows(events, self._folder("state", day) / bucket_name(bucket))
        if offers is not None:
            write_rows(offers, self._folder("state", day) / f"follow-{bucket:04d}.parquet")
        counts = self._counts[day]
        counts.buckets.append(
            BucketFile(
                name=file.name,
                num_timelines=timelines.num_rows,
                num_bytes=file.stat().st_size,
                sha256=sha256_of(file),
            )
        )
        counts.num_events += events.num_rows
        counts.num_moments += num_list_values(timelines, "moment_time")
        for group in self._schema.groups:
            counts.num_examples[group.name] += num_list_values(timelines, f"{group.name}_moment")

    def full_state(self) -> Path:
        """Where the full state at the end of the chunk's last day is to be written."""
        return self._folder("state", self._days[-1]) / "full"

    def commit(self, *, facts: dict[int, DayFacts], parent: str | None) -> list[DayManifest]:
        """Puts the days in place, oldest first. `parent` is the digest of the manifest before them."""
        written = []
        for day in self._days:
            manifest = self._manifest(day, facts[day], parent)
            content = msgspec.json.encode(manifest)
            (self._folder("days", day) / "manifest.json").write_bytes(content)
            if facts[day].bad_rows.num_rows:
                write_rows(facts[day].bad_rows, self._folder("days", day) / "bad_rows.parquet")
            parent = hashlib.sha256(content).hexdigest()
            written.append(manifest)
        sync_tree(self._aside)
        for day in self._days:
            for kind in KINDS:
                (self._dataset / kind).mkdir(exist_ok=True)
                files.replace_folder(self._folder(kind, day), self._dataset / kind / day_name(day), flush=False)
        for kind in KINDS:
            sync(self._dataset / kind)
        shutil.rmtree(self._aside)
        return written

    def _manifest(self, day: int, fact: DayFacts, parent: str | None) -> DayManifest:
        counts = self._counts[day]
        return DayManifest(
            day=day_name(day),
            parent=parent,
            buckets=tuple(counts.buckets),
            num_rows=fact.num_rows,
            num_events=counts.num_events,
            num_moments=counts.num_moments,
            num_examples={group.name: counts.num_examples[group.name] for group in self._schema.groups},
            num_source_rows=fact.num_source_rows,
            dropped=fact.dropped,
            code_version=code_version(),
        )

    def _folder(self, kind: str, day: int) -> Path:
        return self._aside / kind / day_name(day)


def write_rows(rows: pa.Table, path: Path) -> None:
    """Writes one Parquet file. Without dictionaries and statistics, which cost as much time again and no one reads."""
    pq.write_table(rows, path, compression="zstd", use_dictionary=False, write_statistics=False)
