"""Log files as ibis tables: CSV (every column as text, so that what cannot be parsed can be counted) and Parquet.

What a column holds (integers or strings, seconds or dates) is settled once, from the first rows, and the same for the
whole file; a value that does not fit becomes null and is counted by ingest as a bad row.
"""

from __future__ import annotations

import math
import re
from enum import Enum
from functools import reduce
from operator import add
from pathlib import Path
from statistics import median
from typing import Any

import ibis
import ibis.expr.datatypes as dt
import pyarrow as pa
from ibis.backends import BaseBackend
from ibis.expr.types import ArrayColumn, Column, FloatingColumn, IntegerColumn, Table

from stack.base.errors import DataError
from stack.data.sources.files import csv_header, log_files, parquet_columns

NUM_SAMPLED_ROWS = 1_000
_INTEGER_SHARE = 0.9
_MAX_WHOLE = 2.0**53
"""Whole numbers up to here are exact in float64."""
_MAX_NUMBER = 1e30
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
    backend: BaseBackend,
    path: str | None,
    *,
    option: str,
    delimiter: str = ",",
    names: tuple[str, ...] = (),
    encoding: str = "utf-8",
) -> Table:
    """The rows of a file, or of all files of a folder. CSV columns are strings; `names` are for files without header.

    A CSV line with fewer fields than the header has nulls in the others.
    Raises: `DataError` where there is no such file, nothing in it, or it is not whole; `option` is the setting to name.
    """
    if path is None:
        raise DataError(f"{option} is not set: give the file or folder of the log, e.g. {option}=log.csv")
    files = log_files(Path(path), option)
    paths = [str(file) for file in files]
    if files[0].suffix == ".parquet":
        _same_columns(files, {file: parquet_columns(file, option) for file in files}, option)
        return backend.read_parquet(paths)
    headers = {file: names or csv_header(file, delimiter=delimiter, encoding=encoding, option=option) for file in files}
    columns = _same_columns(files, headers, option)
    if backend.name == "duckdb":
        return backend.read_csv(
            paths, columns=dict.fromkeys(columns, "VARCHAR"), header=not names, delim=delimiter, encoding=encoding,
            quote="" if names else '"', escape="" if names else '"', null_padding=True, auto_detect=False,
        )  # fmt: skip
    quote = {"quote": "", "encoding": encoding} if names else {"quote": '"', "escape": '"', "encoding": encoding}
    table = backend.read_csv(paths, header=not names, sep=delimiter, inferSchema=False, **quote)
    return table.rename(dict(zip(columns, table.columns, strict=True)))


def require(table: Table, column: str, *, option: str, path: str | None) -> Column:
    """The column, or a `DataError` that names the option that chose it and the columns there are."""
    if column not in table.columns:
        hint = "; is data.delimiter the right one?" if len(table.columns) == 1 else ""
        raise DataError(f"{option}={column}: {path} has no such column; it has: {', '.join(table.columns)}{hint}")
    return table[column]


def _same_columns(files: list[Path], columns: dict[Path, tuple[str, ...]], option: str) -> tuple[str, ...]:
    first = columns[files[0]]
    for file in files:
        if columns[file] != first:
            raise DataError(
                f"{option}: {file} has the columns {', '.join(columns[file])}, and {files[0].name} beside it has "
                f"{', '.join(first)}: name one file, or folders of files with the same columns"
            )
    return first


def ids(table: Table, column: Column, *, like: Column | None = None) -> Column:
    """Raw ids: int64 where the column holds whole numbers, or text of which nine in ten of the first rows read as such
    (the others are then malformed ids, null); else strings. `like`: ids of the same things, whose type is taken."""
    integers = _holds_integers(table, column) if like is None else like.type().is_integer()
    if integers:
        return whole_numbers(column)
    if isinstance(column.type(), (dt.Floating, dt.Decimal)):
        return whole_numbers(column).cast("string")
    return column.cast("string")


def whole_numbers(column: Column) -> IntegerColumn:
    """int64; null for what is not written as a whole number, on every engine alike."""
    kind = column.type()
    if isinstance(kind, (dt.Floating, dt.Decimal)):
        figure = _finite(column.cast("float64"), limit=_MAX_WHOLE)
        return (figure == figure.floor()).ifelse(figure, ibis.null("float64")).cast("int64")
    if isinstance(kind, dt.String):
        return column.re_search(r"^-?[0-9]{1,18}$").ifelse(column, ibis.null("string")).cast("int64")
    return column.cast("int64")


def numbers(column: Column) -> FloatingColumn:
    """float64; null for what does not read as a finite number."""
    figure = column.try_cast("float64") if isinstance(column.type(), dt.String) else column.cast("float64")
    return _finite(figure, limit=_MAX_NUMBER)


def seconds(table: Table, column: Column, form: TimeFormat) -> IntegerColumn:
    """Epoch seconds, int64; null where the value cannot be parsed."""
    kind = column.type()
    if isinstance(kind, (dt.Timestamp, dt.Date)):
        return column.cast("timestamp").epoch_seconds().cast("int64")
    if form is TimeFormat.auto:
        form = _guess(_sample(table, column))
    if form is TimeFormat.text:
        # a time zone is cut off: the hour stays the one that was written
        local = column.cast("string").re_replace(r"(Z|[+-][0-9]{2}:[0-9]{2})$", "")
        return local.try_cast("timestamp").epoch_seconds().cast("int64")
    figure = whole_numbers(column) if isinstance(kind, dt.Integer) else _finite(numbers(column), limit=_MAX_WHOLE)
    whole = figure.cast("int64") if isinstance(kind, dt.Integer) else figure.floor().cast("int64")
    return whole // 1000 if form is TimeFormat.milliseconds else whole


def _finite(figure: FloatingColumn, *, limit: float) -> FloatingColumn:
    # Parquet's statistics know no NaN, and DuckDB takes their word for what `between` can find
    figure = figure.isnan().ifelse(ibis.null("float64"), figure)
    return figure.between(-limit, limit).ifelse(figure, ibis.null("float64"))


def _holds_integers(table: Table, column: Column) -> bool:
    kind = column.type()
    if not isinstance(kind, (dt.String, dt.Floating, dt.Decimal)):
        return isinstance(kind, dt.Integer)
    sample = [value for value in _sample(table, column) if isinstance(value, str) or math.isfinite(value)]
    num_integers = sum(_is_integer(value) for value in sample)
    return num_integers > _INTEGER_SHARE * len(sample)


def _guess(sample: list[Any]) -> TimeFormat:
    figures = [float(value) for value in sample if _is_number(value)]
    if len(figures) * 2 < len(sample):
        return TimeFormat.text
    return TimeFormat.milliseconds if figures and median(figures) > _MILLISECONDS_FROM else TimeFormat.seconds


def fetch(table: Table) -> pa.Table:
    """The rows of a small table."""
    backend = table.get_backend()
    if backend.name == "pyspark":  # ibis would go through pandas
        return backend.raw_sql(backend.compile(table)).toArrow()
    return table.to_pyarrow()


def _sample(table: Table, column: Column) -> list[Any]:
    values = fetch(table.select(value=column).limit(NUM_SAMPLED_ROWS))["value"].to_pylist()
    return [value for value in values if value is not None]


def _is_integer(value: str | float) -> bool:
    if not isinstance(value, str):
        return value == int(value)
    digits = value.removeprefix("-")
    return digits.isascii() and digits.isdigit()


def _is_number(value: object) -> bool:
    try:
        float(str(value))
    except ValueError:
        return False
    return True


def split(column: Column, separator: str) -> ArrayColumn:
    """Text cut at each `separator`. Spark takes it for a regular expression, so there it is written as one."""
    engine = column.get_backend().name
    return column.cast("string").split(re.escape(separator) if engine == "pyspark" else separator)


def unread(written: dict[str, Column], parsed: dict[str, Column]) -> Column:
    """Of each row the values of `written` that `parsed` has as null, as text; null where there are none."""
    parts = [
        (parsed[name].isnull() & column.notnull()).ifelse(f"{column.get_name()}=" + column.cast("string") + " ", "")
        for name, column in written.items()
    ]
    return reduce(add, parts).strip().nullif("")


def numbered(table: Table, *, order_by: list[str]) -> Table:
    """The table with `row_id`, the place of each row in the order of `order_by`: the same on every engine."""
    return table.mutate(row_id=ibis.row_number().over(ibis.window(order_by=order_by)).cast("int64"))
