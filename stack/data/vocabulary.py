"""Vocabularies: raw id to row, append-only. Row 0 is "unknown"; an id keeps its row for ever.

The ids first seen on a day get the next rows in the order (first_day, raw), so that any cutting of the log into
chunks numbers them alike. Where a day is ingested again, the ids it already brought keep their rows, and what is new
goes to the end.
"""

from __future__ import annotations

from pathlib import Path

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ibis.expr.types import Table

from stack.base.files import write_bytes
from stack.data.engine import Engine

USER = "user"


class Vocabularies:
    """All vocabularies of a dataset, as engine tables (raw, row int64, first_day int32)."""

    def __init__(self, *, engine: Engine, dataset: Path) -> None:
        self._engine = engine
        self._folder = dataset / "vocab"
        self._types: dict[str, str] = {}
        self._tables: dict[str, Table] = {}
        self._sizes: dict[str, dict[int, int]] = {}

    def table(self, name: str) -> Table:
        """(raw, row, first_day) of every id known so far."""
        return self._tables[name]

    def load(self, name: str, raw: str) -> None:
        """Reads what the dataset has; `raw` is the type of the ids, "int64" or "string"."""
        self._types[name] = raw
        files = sorted((self._folder / name).glob("[0-9]*.parquet"))
        stored = self._engine.read(files, ibis.schema({"raw": raw, "row": "int64", "first_day": "string"}))
        table = stored.mutate(first_day=stored.first_day.cast("date").epoch_days().cast("int32"))
        self._tables[name] = table
        last = self._engine.fetch(table.group_by("first_day").agg(row=lambda t: t.row.max()))
        self._sizes[name] = dict(zip(last["first_day"].to_pylist(), last["row"].to_pylist(), strict=True))

    def extend(self, name: str, candidates: Table, *, chunk: str) -> int:
        """Gives rows to the ids of `candidates` (raw, day) that have none; returns how many were new.

        The new ids are on disk when this returns: an ingest that is killed later finds them again.
        """
        candidates = candidates.mutate(raw=candidates.raw.cast(self._types[name]))
        first = candidates.filter(candidates.raw.notnull()).group_by("raw").agg(first_day=lambda t: t.day.min())
        new = self._engine.fetch(first.anti_join(self._tables[name], "raw").order_by("first_day", "raw"))
        if new.num_rows == 0:
            return 0
        start = 1 + max(self._sizes[name].values(), default=0)
        rows = np.arange(start, start + new.num_rows, dtype=np.int32)
        days = np.datetime_as_string(new["first_day"].to_numpy().astype("datetime64[D]"))
        self._write(name, pa.table({"raw": new["raw"], "row": rows, "first_day": days.tolist()}), chunk)
        self.load(name, self._types[name])
        return int(new.num_rows)

    def num_rows(self, day: int) -> dict[str, int]:
        """The size of every vocabulary at the end of `day`, row 0 included."""
        return {
            name: 1 + max((row for first, row in sizes.items() if first <= day), default=0)
            for name, sizes in sorted(self._sizes.items())
        }

    def _write(self, name: str, new: pa.Table, chunk: str) -> None:
        path = self._folder / name / f"{chunk}.parquet"
        if path.exists():
            new = pa.concat_tables([pq.read_table(path), new])
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = pa.BufferOutputStream()
        pq.write_table(new, buffer, compression="zstd")
        write_bytes(path, buffer.getvalue().to_pybytes())


def encode(table: Table, columns: dict[str, Table]) -> Table:
    """`table` with each named column of raw ids replaced by its vocabulary row (int64, 0 where unknown)."""
    for column, vocabulary in columns.items():
        lookup = vocabulary.select(raw_=vocabulary.raw, row_=vocabulary.row)
        joined = table.left_join(lookup, table[column] == lookup.raw_)
        table = joined.mutate(**{column: joined.row_.fill_null(0).cast("int64")}).drop("raw_", "row_")
    return table


def raw_type(dtype: ibis.DataType) -> str:
    """The type in which ids of a column are kept: whole numbers as int64, anything else as text."""
    value = dtype.value_type if dtype.is_array() else dtype
    return "int64" if value.is_integer() else "string"
