"""Writes the days of a chunk: all of a day or nothing of it, in the order of days.

Files are first written below `<dataset>/.aside-chunk`, bucket by bucket; when the chunk is whole, each day's
state and then each day's timelines are renamed into place, manifest included.
"""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from stack.base.files import ASIDE, folder_aside, sha256_of
from stack.base.version import code_version
from stack.data.days import day_name
from stack.data.layout import BucketFile, DayManifest, bucket_name, day_folder
from stack.data.schema import Schema
from stack.data.timeline import num_list_values


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
        pq.write_table(timelines, file, compression="zstd")
        pq.write_table(events, self._folder("state", day) / bucket_name(bucket), compression="zstd")
        if offers is not None:
            pq.write_table(offers, self._folder("state", day) / f"follow-{bucket:04d}.parquet", compression="zstd")
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
            name, fact = day_name(day), facts[day]
            with folder_aside(self._dataset / "state" / name) as folder:
                _move(self._folder("state", day), folder)
            counts = self._counts[day]
            manifest = DayManifest(
                day=name,
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
            with folder_aside(day_folder(self._dataset, name)) as folder:
                _move(self._folder("days", day), folder)
                if fact.bad_rows.num_rows:
                    pq.write_table(fact.bad_rows, folder / "bad_rows.parquet", compression="zstd")
                (folder / "manifest.json").write_bytes(msgspec.json.encode(manifest))
            parent = sha256_of(day_folder(self._dataset, name) / "manifest.json")
            written.append(manifest)
        shutil.rmtree(self._aside)
        return written

    def _folder(self, kind: str, day: int) -> Path:
        return self._aside / kind / day_name(day)


def _move(source: Path, target: Path) -> None:
    for entry in sorted(source.iterdir()):
        entry.rename(target / entry.name)
