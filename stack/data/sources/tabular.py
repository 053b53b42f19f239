"""Log files as ibis tables: CSV (every column as text, so that what cannot be parsed can be counted) and Parquet.

What a column holds (integers or strings, seconds or dates) is settled once, from the first rows, and the same for the
whole file; a value that does not fit becomes null and is counted by ingest as a bad row.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.datatypes as dt
from ibis.backends import BaseBackend
from ibis.expr.types import Column, IntegerColumn, Table

from stack.base.errors import DataError

NUM_SAMPLED_ROWS = 1_000
_INTEGER_SHARE = 0.9
_MILLISECONDS_FROM = 10**11
"""Epoch figures above this are milliseconds: as seconds they would lie beyond the year 5100."""


class TimeFormat(Enum):
    """How a log writes its times."""

    auto = "auto"
    """By the column's type, or the first rows."""
    seconds = "seconds"
    milliseconds = "milliseconds"
    text = "text"
    """ISO 8601, e.g. 2017-03-04 12:30:00; a time zone, where given, is ignored."""


def open_table(
    backend: BaseBackend, path: str | None, *, option: str, delimiter: str = ",", names: tuple[str, ...] = ()
) -> Table:
    """The rows of a file, or of all files of a folder. CSV columns are strings; `names` are for files without header.

    Raises: `DataError` where there is no such file, or nothing in it; `option` is the setting to name.
    """
    if path is None:
        raise DataError(f"{option} is not set: give the file or folder of the log, e.g. {option}=log.csv")
    files = _files(Path(path), option)
    if files[0].suffix == ".parquet":
        return backend.read_parquet([str(file) for file in files])
    if backend.name == "duckdb":
        header = {"names": list(names), "header": False} if names else {"header": True}
        return backend.read_csv([str(file) for file in files], all_varchar=True, delim=delimiter, **header)
    table = backend.read_csv([str(file) for file in files], header=not names, sep=delimiter, inferSchema=False)
    return table.rename(dict(zip(names, table.columns, strict=True))) if names else table


def _files(path: Path, option: str) -> list[Path]:
    if not path.exists():
        raise DataError(f"{option}={path}: there is no such file or folder; it is looked up from {Path.cwd()}")
    if path.is_file():
        return [path]
    files = sorted(file for file in path.rglob("*") if file.suffix in (".parquet", ".csv", ".dat", ".tsv"))
    suffixes = {file.suffix for file in files}
    if not files:
        raise DataError(f"{option}={path}: the folder holds no .parquet, .csv, .tsv or .dat file")
    if len(suffixes) > 1:
        raise DataError(
            f"{option}={path}: the folder mixes {', '.join(sorted(suffixes))}; name one file, or one kind a folder"
        )
    return files


def require(table: Table, column: str, *, option: str, path: str | None) -> Column:
    """The column, or a `DataError` that names the option that chose it and the columns there are."""
    if column not in table.columns:
        raise DataError(f"{option}={column}: {path} has no such column; it has: {', '.join(table.columns)}")
    return table[column]


def ids(table: Table, column: Column) -> Column:
    """Raw ids: int64 where the column holds integers, or text of which nine in ten of the first rows read as integers
    (the others are then malformed ids, null); else strings."""
    kind = column.type()
    if isinstance(kind, dt.Integer):
        return column.cast("int64")
    if not isinstance(kind, dt.String):
        return column.cast("string")
    sample = _sample(table, column)
    num_integers = sum(_is_integer(value) for value in sample)
    return column.try_cast("int64") if num_integers > _INTEGER_SHARE * len(sample) else column


def numbers(column: Column) -> Column:
    """float64; what does not read as a number is null."""
    return column.try_cast("float64") if isinstance(column.type(), dt.String) else column.cast("float64")


def seconds(table: Table, column: Column, form: TimeFormat) -> IntegerColumn:
    """Epoch seconds, int64; null where the value cannot be parsed."""
    kind = column.type()
    if isinstance(kind, (dt.Timestamp, dt.Date)):
        return column.cast("timestamp").epoch_seconds().cast("int64")
    if form is TimeFormat.auto:
        form = _guess(_sample(table, column))
    if form is TimeFormat.text:
        return column.try_cast("timestamp").epoch_seconds().cast("int64")
    figure = column.cast("int64") if isinstance(kind, dt.Numeric) else column.try_cast("float64").cast("int64")
    return figure // 1000 if form is TimeFormat.milliseconds else figure


def _guess(sample: list[Any]) -> TimeFormat:
    figures = [float(value) for value in sample if _is_number(value)]
    if len(figures) * 2 < len(sample):
        return TimeFormat.text
    return TimeFormat.milliseconds if figures and max(figures) > _MILLISECONDS_FROM else TimeFormat.seconds


def _sample(table: Table, column: Column) -> list[Any]:
    values = table.select(value=column).limit(NUM_SAMPLED_ROWS).to_pyarrow()["value"].to_pylist()
    return [value for value in values if value is not None]


def _is_integer(value: str) -> bool:
    digits = value.strip().removeprefix("-")
    return digits.isascii() and digits.isdigit()


def _is_number(value: object) -> bool:
    try:
        float(str(value))
    except ValueError:
        return False
    return True


def numbered(table: Table, *, order_by: list[str]) -> Table:
    """The table with `row_id`, the place of each row in the order of `order_by`: the same on every engine."""
    return table.mutate(row_id=ibis.row_number().over(ibis.window(order_by=order_by)).cast("int64"))
