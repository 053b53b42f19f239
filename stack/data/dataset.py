"""Opens a prepared dataset: which days are complete, what they hold, and the vocabularies behind their rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stack.base.errors import DataError
from stack.base.files import sha256_of
from stack.data.keys import UNKNOWN_KEY, keys_of
from stack.data.layout import FORMAT_VERSION, DatasetManifest, DayManifest, day_folder
from stack.data.schema import PADDING_ROW, Schema


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Raw ids of one table: `raw[row - 1]` has the row `row`; row 0 is "unknown" and has no raw id."""

    table: str
    raw: pa.Array

    @property
    def num_rows(self) -> int:
        """Rows of the embedding table, row 0 counted."""
        return len(self.raw) + 1

    def rows(self, raw: Sequence[str] | Sequence[int]) -> list[int]:
        """The rows of raw ids; 0 for those that the vocabulary does not have.

        Raises `DataError` if the ids are not of the vocabulary's type.
        """
        try:
            wanted = pa.array(raw, type=self.raw.type)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise DataError(f"vocabulary '{self.table}' has ids of type {self.raw.type}: {error}") from error
        found = pc.index_in(wanted, value_set=self.raw)
        return [PADDING_ROW if index is None else index + 1 for index in found.to_pylist()]

    def raw_ids(self, rows: Sequence[int]) -> list[str | int | None]:
        """The raw ids of rows; None for row 0 and for rows beyond the vocabulary."""
        index_N = np.asarray(rows, dtype=np.int64) - 1
        known_N = (index_N >= 0) & (index_N < len(self.raw))
        taken = self.raw.take(pa.array(index_N, mask=~known_N))
        return list(taken.to_pylist())


class Dataset:
    """A prepared dataset as `stack.data.layout` lays it out. Only complete days (those with a manifest) count.

    Raises `DataError` if there is no dataset, none of its days is complete, or its format is another version's.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not (path / "dataset.json").is_file():
            raise DataError(f"there is no prepared dataset at {path} (no dataset.json): run `stack ingest` first")
        self.manifest = _decode_manifest(path / "dataset.json", DatasetManifest)
        names = sorted(file.parent.name for file in path.glob("days/*/manifest.json"))
        if not names:
            raise DataError(f"dataset {path} has no complete day: run `stack ingest` until it ends")
        self._days = {name: _decode_manifest(day_folder(path, name) / "manifest.json", DayManifest) for name in names}
        for name, day in self._days.items():
            if day.day != name or len(day.buckets) != self.num_buckets:
                raise DataError(
                    f"manifest of day {name} in {path} is of day {day.day} with {len(day.buckets)} buckets, "
                    f"but the dataset has {self.num_buckets}: ingest that day again"
                )

    @property
    def schema(self) -> Schema:
        return self.manifest.schema

    @property
    def num_buckets(self) -> int:
        return self.manifest.num_buckets

    def days(self) -> tuple[str, ...]:
        """The complete days in time order, as YYYY-MM-DD."""
        return tuple(self._days)

    def day(self, day: str) -> DayManifest:
        """The manifest of a day; raises `DataError` with the range of days there is."""
        if day not in self._days:
            first, last = self.days()[0], self.days()[-1]
            raise DataError(
                f"dataset {self.path} has no complete day {day!r}: it has {len(self._days)} from {first} to {last}"
            )
        return self._days[day]

    def num_rows(self, day: str) -> dict[str, int]:
        """The size of every vocabulary at the end of a day, row 0 counted: 1 for tables without one."""
        return {raw.table: 1 for raw in self.schema.raw_ids or ()} | self.day(day).num_rows

    def num_timelines(self, day: str) -> tuple[int, ...]:
        """Timelines of a day by bucket."""
        return tuple(bucket.num_timelines for bucket in self.day(day).buckets)

    def bucket_path(self, day: str, bucket: int) -> Path:
        return day_folder(self.path, day) / self.day(day).buckets[bucket].name

    def verify(self, days: Sequence[str]) -> None:
        """Reads every file of `days`; raises `DataError` naming the first that is not as its manifest says."""
        for day in days:
            for bucket in self.day(day).buckets:
                file = day_folder(self.path, day) / bucket.name
                if not file.is_file():
                    raise DataError(f"{file} is missing: ingest day {day} again")
                digest = sha256_of(file)
                if digest != bucket.sha256:
                    raise DataError(
                        f"{file} is damaged (sha256 {digest[:12]}, its manifest says {bucket.sha256[:12]}): "
                        f"ingest day {day} again"
                    )

    def vocabulary(self, table: str) -> Vocabulary:
        """All raw ids of a table; raises `DataError` if it has none, or its rows are not 1, 2, ... once each."""
        if self.schema.without_vocabulary(table) is not None:
            raise DataError(
                f"dataset {self.path} has no vocabulary {table!r}: it was made with ingest.raw_ids, and keeps the keys "
                "of these ids; ingest without the table in ingest.raw_ids for one"
            )
        folder = self.path / "vocab" / table
        files = sorted(folder.glob("*.parquet"))
        if not files:
            known = ", ".join(sorted(path.name for path in folder.parent.glob("*"))) or "none"
            raise DataError(f"dataset {self.path} has no vocabulary {table!r}; it has: {known}")
        parts = pa.concat_tables([pq.read_table(file, columns=["raw", "row"], partitioning=None) for file in files])
        parts = parts.sort_by("row")
        row_N = parts["row"].to_numpy()
        if not np.array_equal(row_N, np.arange(1, len(row_N) + 1)):
            raise DataError(f"vocabulary {table!r} in {folder} does not have the rows 1 to {len(row_N)} once each")
        return Vocabulary(table=table, raw=parts["raw"].combine_chunks())

    def keys(self, table: str) -> NDArray[np.int64]:
        """The 64-bit keys (`stack.data.keys`) of a vocabulary's rows; row 0 has `UNKNOWN_KEY`. Raises what
        `vocabulary` does."""
        return np.concatenate([np.array([UNKNOWN_KEY]), keys_of(self.vocabulary(table).raw)])


M = TypeVar("M")


class _Version(msgspec.Struct):
    format_version: int


def _decode_manifest(path: Path, kind: type[M]) -> M:
    data = path.read_bytes()
    try:
        if kind is DatasetManifest:
            version = msgspec.json.decode(data, type=_Version).format_version
            if version != FORMAT_VERSION:
                raise DataError(
                    f"{path} has format version {version}; this code reads version {FORMAT_VERSION}: ingest again"
                )
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise DataError(f"{path} cannot be read as a {kind.__name__}: {error}") from error
