"""What a checkpoint is on disk, and the manifest that makes its folder complete.

::

    <run>/checkpoints/00000123/
      manifest.json                       written last; sizes and sha256 of every other file, and its own digest
      tables/<table>/part-00000-0.safetensors  what rank 0 held: rows (int64, ascending), weight, <optimizer state> ...
      ids/<table>/part-00000.safetensors      managed ids: keys and rows that rank 0 managed, statistics, who waits
      dense.safetensors                   parameters and buffers that every rank holds whole, by name
      optimizer.safetensors               the dense optimizer's state
      loop.json                           where training stands: LoopState

A table is rows, not shards: which rank wrote a part, and how many ranks there were, means nothing to a reader, so any
number of ranks loads it. Parts may be blocks of columns (column-wise, grid); then row-wise optimizer state, one number
for each row of a block, is kept for each block. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path

import msgspec

from stack.base.errors import CheckpointError
from stack.data.loader import Cursor
from stack.data.schema import Schema

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
DENSE = "dense.safetensors"
OPTIMIZER = "optimizer.safetensors"
LOOP = "loop.json"


class LoopState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where training stands: `cursor` is the next batch, `step` and `epoch` count what is done.

    `random` holds states of random generators as numbers, by a name the trainer chooses; `numbers` whatever else the
    trainer needs to go on (scales, counters). A number that is not finite comes back as None: JSON has no NaN.
    """

    step: int
    epoch: int
    cursor: Cursor
    random: dict[str, list[int]] = {}
    numbers: dict[str, float | None] = {}


class Context(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the numbers belong to: the data's schema, the days trained on, digests of configuration and vocabularies."""

    schema: Schema
    config_digest: str
    data_days: tuple[str, ...]
    vocabulary_digests: dict[str, str]
    code_version: str


class FileEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    num_bytes: int
    sha256: str


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file of a table: rows `first_row ... first_row + num_rows - 1`, and columns likewise."""

    file: str
    first_row: int
    num_rows: int
    first_column: int
    num_columns: int


class TableShape(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all parts of a table have in common. `state` names the optimizer's tensors; `dtype` is the weights',
    as `tables.row_type` says it."""

    num_rows: int
    dim: int
    dtype: str
    state: tuple[str, ...]


class TableEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table; its parts, in order of columns and then of rows, cover every number once."""

    shape: TableShape
    parts: tuple[Part, ...]

    @property
    def num_rows(self) -> int:
        return self.shape.num_rows

    @property
    def dim(self) -> int:
        return self.shape.dim

    @property
    def blocks(self) -> tuple[tuple[int, int], ...]:
        """(first column, columns) of the blocks of columns it is saved in."""
        return tuple(sorted({(part.first_column, part.num_columns) for part in self.parts}))


class CheckpointManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything about a checkpoint but its numbers. `created` is UTC, for people: order is that of `step`.

    `digest` is the sha256 of this manifest written with an empty digest.
    """

    format_version: int
    step: int
    created: str
    world_size: int
    context: Context
    tables: dict[str, TableEntry]
    files: dict[str, FileEntry]
    digest: str = ""


def checkpoint_name(step: int) -> str:
    return f"{step:08d}"


def part_name(table: str, rank: int, number: int = 0) -> str:
    """The `number`-th part of a table that a rank wrote."""
    return f"tables/{table}/part-{rank:05d}-{number}.safetensors"


def ids_part_name(table: str, rank: int) -> str:
    return f"ids/{table}/part-{rank:05d}.safetensors"


def encode_manifest(manifest: CheckpointManifest) -> bytes:
    """The bytes of the manifest file, with its digest filled in."""
    return msgspec.json.encode(msgspec.structs.replace(manifest, digest=_digest(manifest)))


def read_manifest(checkpoint: Path) -> CheckpointManifest:
    """Raises `CheckpointError` if the folder has no manifest, or one that is damaged or of another format version."""
    file = checkpoint / MANIFEST
    try:
        data = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"{checkpoint} is not a complete checkpoint: it has no {MANIFEST}") from error
    try:
        version = msgspec.json.decode(data, type=_Version).format_version
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{file} has format version {version}; this code reads version {FORMAT_VERSION}: "
                "use the code that wrote it"
            )
        manifest = msgspec.json.decode(data, type=CheckpointManifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} is damaged: {error}: delete its checkpoint to use an older one") from error
    if manifest.digest != _digest(manifest):
        raise CheckpointError(f"{file} is damaged: its digest is another: delete its checkpoint to use an older one")
    return manifest


def table_entry(table: str, shapes: Mapping[str, TableShape], parts: list[Part]) -> TableEntry:
    """The entry of a table from what each part's writer said of it, by file.

    Raises `CheckpointError` if the writers disagree, or if the parts do not cover the table once.
    """
    if len(set(shapes.values())) != 1:
        raise CheckpointError(
            f"table '{table}': ranks disagree on rows, width, type or optimizer state: {dict(shapes)}"
        )
    shape = next(iter(shapes.values()))
    ordered = sorted((part for part in parts if part.num_rows), key=lambda part: (part.first_column, part.first_row))
    next_column = 0
    for (first_column, num_columns), grouped in groupby(
        ordered, key=lambda part: (part.first_column, part.num_columns)
    ):
        block = list(grouped)
        if first_column != next_column:
            raise CheckpointError(
                f"table '{table}': {block[0].file} begins at column {first_column}, not {next_column}"
            )
        _check_rows(table, block, shape.num_rows)
        next_column += num_columns
    if next_column != shape.dim:
        raise CheckpointError(f"table '{table}': its parts end at column {next_column}, but it has {shape.dim} columns")
    return TableEntry(shape=shape, parts=tuple(ordered))


def _check_rows(table: str, parts: list[Part], num_rows: int) -> None:
    next_row = 0
    for part in parts:
        if part.first_row != next_row:
            raise CheckpointError(f"table '{table}': {part.file} begins at row {part.first_row}, not at {next_row}")
        next_row += part.num_rows
    if next_row != num_rows:
        raise CheckpointError(f"table '{table}': its parts end at row {next_row}, but it has {num_rows} rows")


class _Version(msgspec.Struct):
    format_version: int


def _digest(manifest: CheckpointManifest) -> str:
    return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(manifest, digest=""))).hexdigest()
