"""The two engines that ingest runs on, behind the few operations that ibis leaves to each backend.

Expressions are the same for both. `materialize` ends an expression: its rows are computed once and kept (spilled to
the temporary folder where memory ends) until the surrounding `scope` closes.
"""

from __future__ import annotations

import itertools
import shutil
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.operations as ops
import pyarrow as pa
import pyarrow.parquet as pq
from ibis.backends import BaseBackend
from ibis.expr.types import Column, IntegerColumn, Table

from stack.base.errors import MachineError
from stack.data.keys import UNKNOWN_KEY, arrow_keys_of

_KEY = "stack_key"


@ibis.udf.scalar.builtin(name=_KEY, signature=(("string",), "int64"))  # type: ignore[untyped-decorator]
def _key_of_text(text: str) -> int:  # type: ignore[empty-body]
    """Every engine has this function: `arrow_keys_of` under its name."""


def key_of(raw: Column) -> IntegerColumn:
    """The keys of raw ids (`stack.data.keys`), int64: `UNKNOWN_KEY` for nulls. On every engine alike."""
    if raw.type().is_integer():
        return raw.cast("int64").fill_null(UNKNOWN_KEY)
    return _key_of_text(raw.cast("string"))


class EngineName(StrEnum):
    """Where the expressions run: in this process, or on Spark (a session of its own on this machine)."""

    duckdb = "duckdb"
    spark = "spark"


class Engine(ABC):
    """Runs ibis expressions. `backend` is what sources read their files with."""

    backend: BaseBackend

    def __init__(self, *, folder: Path) -> None:
        self.folder = folder
        self._empty = itertools.count()
        self._scopes: list[list[str]] = [[]]

    @abstractmethod
    def _keep(self, name: str, expression: Table) -> Table:
        """Computes `expression` and keeps it as `name`."""

    @abstractmethod
    def _forget(self, name: str) -> None:
        """Frees what `_keep` kept."""

    @abstractmethod
    def _open(self, name: str, paths: Sequence[Path]) -> Table:
        """The rows of Parquet files of one schema, as a view `name` that replaces one of that name."""

    @abstractmethod
    def _arrow(self, expression: Table) -> pa.Table:
        """The rows of `expression`, in its order."""

    @abstractmethod
    def close(self) -> None:
        """Ends the engine; its tables are gone."""

    def materialize(self, name: str, expression: Table) -> Table:
        """The same rows, computed once; `name` is for people who read plans.

        Names repeat from scope to scope, so that the same expression over them is compiled to SQL once.
        """
        unique = f"{name}_{len(self._scopes)}_{len(self._scopes[-1])}"
        self._scopes[-1].append(unique)
        return self._keep(unique, expression)

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Tables materialised in the block are freed at its end."""
        self._scopes.append([])
        try:
            yield
        finally:
            for name in self._scopes.pop():
                self._forget(name)

    def fetch(self, expression: Table) -> pa.Table:
        """The rows of `expression` in this process, with the Arrow types of its schema."""
        return self._arrow(expression).cast(expression.schema().to_pyarrow())

    def write(self, expression: Table, path: Path) -> None:
        """Writes one Parquet file."""
        pq.write_table(self.fetch(expression), path, compression="zstd")

    def read(self, name: str, paths: Sequence[Path], schema: ibis.Schema) -> Table:
        """The rows of Parquet files of the given schema; of none where there are no files.

        `name` replaces what was read under it before: tables from earlier calls then have the rows of this one.
        """
        if not paths:
            empty = self.folder / f"empty_{next(self._empty)}.parquet"
            pq.write_table(schema.to_pyarrow().empty_table(), empty)
            paths = [empty]
        table = self._open(f"{name}_files", paths)
        return table.select(**{name: table[name].cast(dtype) for name, dtype in schema.items()})


class DuckEngine(Engine):
    """DuckDB in this process: bounded memory, spills to `folder`."""

    def __init__(self, *, folder: Path, memory_limit_gib: float, num_threads: int) -> None:
        super().__init__(folder=folder)
        spill = folder / "spill"
        spill.mkdir()
        self._connection = ibis.duckdb.connect(
            memory_limit=f"{memory_limit_gib}GiB",
            threads=num_threads,
            temp_directory=str(spill),
            preserve_insertion_order=False,
        )
        self._connection.con.create_function(
            _KEY, arrow_keys_of, ["VARCHAR"], "BIGINT", type="arrow", null_handling="special"
        )
        self.backend = self._connection
        self._compiled: dict[ops.Node, str] = {}

    def _sql(self, expression: Table) -> str:
        """Compiling takes ibis tens of milliseconds: what comes again with the next chunk is looked up."""
        node = expression.op()
        if node not in self._compiled:
            self._connection._run_pre_execute_hooks(expression)
            self._compiled[node] = self._connection.compile(expression)
        return self._compiled[node]

    def _keep(self, name: str, expression: Table) -> Table:
        schema = expression.schema()  # a literal 0 is int64 to ibis and int32 to DuckDB
        columns = ", ".join(column.sql("duckdb") for column in schema.to_sqlglot_column_defs("duckdb"))
        self._connection.con.execute(f'CREATE TABLE "{name}" ({columns})')
        self._connection.con.execute(f'INSERT INTO "{name}" {self._sql(expression)}')
        return ops.DatabaseTable(name, schema=schema, source=self._connection, namespace=ops.Namespace()).to_expr()

    def _forget(self, name: str) -> None:
        # ibis 12 writes its DROP statements over two lines, which DuckDB 2.0 refuses
        self._connection.con.execute(f'DROP TABLE "{name}"')

    def _open(self, name: str, paths: Sequence[Path]) -> Table:
        return self._connection.read_parquet([str(path) for path in paths], table_name=name)

    def _arrow(self, expression: Table) -> pa.Table:
        return self._connection.con.sql(self._sql(expression)).to_arrow_table()

    def close(self) -> None:
        self._connection.disconnect()


class SparkEngine(Engine):
    """Spark in local mode; materialised tables are Parquet files in `folder`."""

    def __init__(self, *, folder: Path, memory_limit_gib: float, num_threads: int) -> None:
        super().__init__(folder=folder)
        if shutil.which("java") is None:
            raise MachineError("ingest.engine=spark needs Java, and there is no program `java`: install a JDK (17)")
        try:
            from pyspark.sql import SparkSession
            from pyspark.sql.pandas.functions import arrow_udf
        except ImportError as error:
            raise MachineError("ingest.engine=spark needs pyspark: pip install 'stack[spark]'") from error
        self._session = (
            SparkSession.builder.master(f"local[{num_threads}]")
            .appName("stack ingest")
            .config("spark.driver.memory", f"{int(memory_limit_gib * 1024)}m")
            .config("spark.sql.shuffle.partitions", str(num_threads))
            .config("spark.sql.session.timeZone", "UTC")
            .config("spark.sql.warehouse.dir", str(folder / "warehouse"))
            .config("spark.local.dir", str(folder))
            .config("spark.driver.host", "127.0.0.1")
            .config("spark.driver.bindAddress", "127.0.0.1")
            .config("spark.ui.enabled", "false")
            .config("spark.ui.showConsoleProgress", "false")
            .getOrCreate()
        )
        self._session.sparkContext.pythonExec = sys.executable  # workers need the packages of this process
        as_udf: Any = arrow_udf  # its stub wants the kind of function, which it warns to leave to annotations
        self._session.udf.register(_KEY, as_udf(arrow_keys_of, "long"))
        self.backend = ibis.pyspark.connect(self._session)

    def _keep(self, name: str, expression: Table) -> Table:
        path = self.folder / name
        self.backend.to_parquet(expression, path)
        table = self.backend.read_parquet(path)
        schema = expression.schema()  # a literal 0 is int64 to ibis and int32 to Spark
        return table.select(**{column: table[column].cast(dtype) for column, dtype in schema.items()})

    def _forget(self, name: str) -> None:
        shutil.rmtree(self.folder / name)

    def _open(self, name: str, paths: Sequence[Path]) -> Table:
        self._session.read.parquet(*(str(path) for path in paths)).createOrReplaceTempView(name)
        return self.backend.table(name)

    def _arrow(self, expression: Table) -> pa.Table:
        return self._session.sql(self.backend.compile(expression)).toArrow()

    def close(self) -> None:
        self._session.stop()


@contextmanager
def open_engine(
    *, name: EngineName, memory_limit_gib: float, num_threads: int, temp_folder: Path | None
) -> Iterator[Engine]:
    """An engine and its temporary folder, both gone at the end of the block."""
    if temp_folder is not None:
        temp_folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="stack-ingest-", dir=temp_folder) as folder:
        kind = DuckEngine if name is EngineName.duckdb else SparkEngine
        engine = kind(folder=Path(folder), memory_limit_gib=memory_limit_gib, num_threads=num_threads)
        try:
            yield engine
        finally:
            engine.close()
