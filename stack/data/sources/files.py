"""The files of a log, looked at before an engine opens them: are they there, are they whole, which columns have they.

What only reading finds (a damaged page of Parquet, a line of CSV with too many fields) is for `unreadable_refused`.
"""

from __future__ import annotations

import csv
import gzip
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from stack.base.errors import DataError

_KINDS = {".parquet": "Parquet", ".csv": "CSV", ".tsv": "CSV", ".dat": "CSV", ".gz": "CSV"}
_CSV_ERROR = re.compile(
    r"CSV Error on Line: (?P<line>\d+)\n(?s:.*?)(?P<what>[^\n]+)\n+Possible(?s:.*?)\n *file = (?P<file>[^\n]*)"
)
_PARQUET_ERROR = re.compile(r"Failed to read file \"(?P<file>.*?)\": (?P<what>.*)")


def log_files(path: Path, option: str) -> list[Path]:
    """The file, or the files of the folder, sorted. Raises `DataError` where there are none, or of two kinds."""
    if not path.exists():
        raise DataError(f"{option}={path}: there is no such file or folder; it is looked up from {Path.cwd()}")
    if path.is_file():
        return [path]
    files = sorted(file for file in path.rglob("*") if file.suffix in _KINDS and not file.name.startswith((".", "_")))
    if not files:
        raise DataError(f"{option}={path}: the folder holds no .parquet, .csv, .csv.gz, .tsv or .dat file")
    if len({_KINDS[file.suffix] for file in files}) > 1:
        suffixes = ", ".join(sorted({file.suffix for file in files}))
        raise DataError(f"{option}={path}: the folder mixes {suffixes}; name one file, or one kind a folder")
    return files


def parquet_columns(file: Path, option: str) -> tuple[str, ...]:
    """Names of the columns. Raises `DataError` where the file is not whole."""
    try:
        return tuple(pq.read_schema(file).names)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{option}: {file} is not a whole Parquet file ({' '.join(str(error).split())}): write it again"
        ) from error


def csv_header(file: Path, *, delimiter: str, encoding: str, option: str) -> tuple[str, ...]:
    """Names of the columns, from the first line; one without a name is called `column<place>`.

    Raises: `DataError` where there is no such line, or it cannot be read.
    """
    encoding = "utf-8-sig" if encoding == "utf-8" else encoding
    try:
        with (
            gzip.open(file, "rt", encoding=encoding, newline="")
            if file.suffix == ".gz"
            else file.open(encoding=encoding, newline="") as text
        ):
            fields = next(csv.reader(text, delimiter=delimiter), [])
    except (UnicodeDecodeError, csv.Error, OSError, EOFError) as error:
        raise DataError(
            f"{option}: {file} cannot be read as CSV in UTF-8 ({error}): is it another kind of file?"
        ) from error
    if not any(fields):
        raise DataError(f"{option}: {file} is empty: its first line must name the columns")
    names = tuple(field or f"column{place}" for place, field in enumerate(fields))
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{option}: {file} has two columns named {twice[0]!r}: rename one")
    return names


@contextmanager
def unreadable_refused() -> Iterator[None]:
    """Turns what DuckDB says of a file that it cannot read to its end into a `DataError` of one line."""
    try:
        yield
    except duckdb.Error as error:
        bad_line, bad_file = _CSV_ERROR.search(str(error)), _PARQUET_ERROR.search(str(error))
        if bad_line is not None:
            what = bad_line["what"].strip().rstrip(".")
            raise DataError(
                f"{bad_line['file']}, line {bad_line['line']}: {what}; mend the line, or delete it"
            ) from error
        if bad_file is not None:
            raise DataError(f"{bad_file['file']} is damaged ({bad_file['what']}): write it again") from error
        raise
