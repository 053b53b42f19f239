"""Vocabularies: raw id to row, append-only. Row 0 is "unknown"; an id keeps its row for ever.

Tables whose ids have none (`ingest.raw_ids`) hold the ids' keys (`stack.data.keys`) where others hold rows; key 0 is
"unknown" as row 0 is. Here such a vocabulary is None.

The ids first seen on a day get the next rows in the order (first_day, raw), so that any cutting of the log into
chunks numbers them alike. Where a day is ingested again, the ids it already brought keep their rows, and what is new
goes to the end.
"""

from __future__ import annotations

from pathlib import Path

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from ibis.expr.types import Table

from stack.base.errors import DataError
from stack.base.files import write_bytes
from stack.data.engine import Engine, key_of

USER = "user"


class Vocabularies:
    """All vocabularies of a dataset, as engine tables (raw, row int64, first_day int32)."""

    def __init__(self, *, engine: Engine, dataset: Path) -> None:
        self._engine = engine
        self._folder = dataset / "vocab"
        self._types: dict[str, str] = {}
        self._tables: dict[str, Table] = {}
        self._sizes: dict[str, dict[int, int]] = {}

    def table(self, name: str) -> Table | None:
        """(raw, row, first_day) of every id known so far; None for ids without a vocabulary, which was never loaded."""
        return self._tables.get(name)

    def load(self, name: str, raw: str) -> None:
        """Reads what the dataset has; `raw` is the type of the ids, "int64" or "string".

        Raises: `DataError` where the dataset has ids of the other type.
        """
        self._types[name] = raw
        self._sizes[name] = {}
        for file in self._files(name):
            rows = pq.read_table(file)
            held = str(rows.schema.field("raw").type)
            if held != raw:
                raise DataError(
                    f"the prepared dataset holds ids of {name!r} as {held}, the log now has them as {raw}: "
                    f"write them alike, or choose another data.out"
                )
            self._count(name, rows)
        self._open(name)

    def extend(self, found: dict[str, list[Table]], *, chunk: str) -> None:
        """Gives rows to the ids that have none: of each vocabulary's tables (raw, day). Others are passed over.

        The new ids are on disk when this returns: an ingest that is killed later finds them again.
        """
        for kind in sorted({self._types[name] for name in found if name in self._types}):
            names = sorted(name for name in found if self._types.get(name) == kind)
            for name, new in zip(names, self._new(names, kind, found), strict=True):
                if new.num_rows:
                    self._append(name, new, chunk)

    def _new(self, names: list[str], kind: str, found: dict[str, list[Table]]) -> list[pa.Table]:
        """The ids without a row (raw, first_day) of each of the vocabularies, in the order of their rows: one query."""
        rows = [
            part.select(table=ibis.literal(place, "int8"), raw=part.raw.cast(kind), day=part.day)
            for place, name in enumerate(names) for part in found[name]
        ]  # fmt: skip
        known = [
            self._tables[name].select("raw", table=ibis.literal(place, "int8")) for place, name in enumerate(names)
        ]
        every = _union(rows)
        first = every.filter(every.raw.notnull()).group_by("table", "raw").agg(first_day=lambda t: t.day.min())
        new = self._engine.fetch(first.anti_join(_union(known), ["table", "raw"]).order_by("table", "first_day", "raw"))
        return [new.filter(pc.equal(new["table"], place)).drop(["table"]) for place in range(len(names))]

    def _append(self, name: str, new: pa.Table, chunk: str) -> None:
        start = 1 + max(self._sizes[name].values(), default=0)
        rows = np.arange(start, start + new.num_rows, dtype=np.int32)
        days = np.datetime_as_string(new["first_day"].to_numpy().astype("datetime64[D]"))
        added = pa.table({"raw": new["raw"], "row": rows, "first_day": days.tolist()})
        self._write(name, added, chunk)
        self._count(name, added)
        self._open(name)

    def _files(self, name: str) -> list[Path]:
        return sorted((self._folder / name).glob("[0-9]*.parquet"))

    def _count(self, name: str, rows: pa.Table) -> None:
        last = rows.group_by("first_day").aggregate([("row", "max")])
        days = last["first_day"].to_numpy().astype("datetime64[D]").astype(np.int64).tolist()
        for day, row in zip(days, last["row_max"].to_pylist(), strict=True):
            self._sizes[name][day] = max(row, self._sizes[name].get(day, 0))

    def _open(self, name: str) -> None:
        schema = ibis.schema({"raw": self._types[name], "row": "int64", "first_day": "string"})
        stored = self._engine.read(f"vocabulary_{name}", self._files(name), schema)
        self._tables[name] = stored.mutate(first_day=stored.first_day.cast("date").epoch_days().cast("int32"))

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


def encode(table: Table, columns: dict[str, Table | None]) -> Table:
    """`table` with each named column of raw ids replaced by its vocabulary row (int64, 0 where unknown), or by its key
    where it has no vocabulary."""
    for column, vocabulary in columns.items():
        if vocabulary is None:
            table = table.mutate(**{column: key_of(table[column])})
            continue
        lookup = vocabulary.select(raw_=vocabulary.raw, row_=vocabulary.row)
        joined = table.left_join(lookup, table[column] == lookup.raw_)
        table = joined.mutate(**{column: joined.row_.fill_null(0).cast("int64")}).drop("raw_", "row_")
    return table


def raw_type(dtype: ibis.DataType) -> str:
    """The type in which ids of a column are kept: whole numbers as int64, anything else as text."""
    value = dtype.value_type if dtype.is_array() else dtype
    return "int64" if value.is_integer() else "string"


def _union(parts: list[Table]) -> Table:
    return parts[0] if len(parts) == 1 else ibis.union(*parts)
