"""What a chain of checkpoints is on disk, and the manifests that make its versions exist.

::

    <run>/checkpoints/
      manifests/00000012.json       version 12; appears when all its files are on disk, never changes, is never deleted
      bases/00000012.json           where version 12 was compacted: its tables, whole
      pruned/00000003.json          the same file as manifests/00000003.json: nobody may begin to read version 3 now
      leases/  quarantine/  reports/
      data/<unique>/                the files of one version, or of one compaction
        manifest.json                            the same file as manifests/00000012.json
        tables/<table>/part-00000-0.safetensors  of rank 0: key (int64, ascending), weight, <optimizer state>
        ids/<table>/part-00000.safetensors       of managed ids: keys that lost their rows, and what belongs to no key
        dense.safetensors                        parameters and buffers that every rank holds whole, by name
        optimizer.safetensors                    the dense optimizer's state
        loop.json                                where training stands: LoopState

A table's rows written at one time are a *run*. A version's run is whole, or a delta: the rows that changed since its
parent. Versions are counted, `previous` is the one counted before, `parent` the one that it builds on; they differ
where an older version was restored or a day trained anew. Both are named with their digests, so a chain cannot be
mistaken.

A key is the row where ids are direct or hashed, and the id where they are managed; then `row`, `count` and `last` of
the map come with it (`stack.ids.managed`), and `UNKNOWN_KEY` stands for row 0. Which rank wrote a part, and how many
there were, means nothing to a reader. Where keys come from a vocabulary, `raw` has the id of each as its 64-bit key
(`stack.data.keys`): a run tells whose rows it holds without the data that they were learnt from. Parts may be blocks of
columns (column-wise, grid); then row-wise optimizer state, one number for each row of a block, is kept for each block.
Nothing is pickled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from enum import Enum
from itertools import groupby
from typing import TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from stack.base.errors import CheckpointError
from stack.data.loader import Cursor
from stack.data.schema import Schema

FORMAT_VERSION = 3
MANIFEST = "manifest.json"
DENSE = "dense.safetensors"
OPTIMIZER = "optimizer.safetensors"
LOOP = "loop.json"

KEY, WEIGHT, ROW, COUNT, LAST, GONE, RAW = "key", "weight", "row", "count", "last", "gone", "raw"


class LoopState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where training stands: `cursor` is the next batch of the days in hand, `step` and `epoch` count what is done.

    `first_step`: the step with which these days began. `random` holds states of random generators as numbers, by a name
    the trainer chooses; `numbers` whatever else the trainer needs to go on (scales, counters). A number that is not
    finite comes back as None: JSON has no NaN.
    """

    step: int
    epoch: int
    cursor: Cursor
    first_step: int = 0
    random: dict[str, list[int]] = {}
    numbers: dict[str, float | None] = {}


class Context(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the numbers belong to: the data's schema, the days trained on, digests of configuration and vocabularies."""

    schema: Schema
    config_digest: str
    data_days: tuple[str, ...]
    vocabulary_digests: dict[str, str]
    code_version: str


class Link(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A version, and the digest of its manifest."""

    version: int
    digest: str


class Lineage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a version came about: the verb, the day it learnt where it is one, a digest of all that it was made from, the
    version whose place it takes, the version that it brings back, the version of another chain that its run began with,
    the version whose dense numbers it mends, with how in words, and lines of what its day was refused for before it was
    learnt all the same."""

    verb: str
    day: str | None = None
    inputs: str = ""
    supersedes: Link | None = None
    restores: Link | None = None
    origin: str | None = None
    repairs: Link | None = None
    how: str = ""
    overridden: tuple[str, ...] | UnsetType = UNSET


class FileEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    num_bytes: int
    sha256: str


class KeyKind(Enum):
    """What the keys of a table's runs are."""

    row = "row"
    id = "id"


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file of a run: `num_rows` rows with keys from `first_key` to `last_key`, and a block of columns."""

    file: str
    num_rows: int
    first_key: int
    last_key: int
    first_column: int
    num_columns: int


class TableShape(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all parts of a table have in common. `num_rows` is that of the table, not of the run; `state` names the
    optimizer's tensors; `dtype` is the weights', as `tables.row_type` says it."""

    num_rows: int
    dim: int
    dtype: str
    state: tuple[str, ...]


class TableEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table's run in a version; its parts are in order of columns and then of keys. `whole`: nothing lies below."""

    shape: TableShape
    keys: KeyKind
    whole: bool
    parts: tuple[Part, ...]

    @property
    def num_rows(self) -> int:
        """Of the whole table."""
        return self.shape.num_rows

    @property
    def dim(self) -> int:
        return self.shape.dim

    @property
    def blocks(self) -> tuple[tuple[int, int], ...]:
        """(first column, columns) of the blocks of columns it is saved in."""
        return tuple(sorted({(part.first_column, part.num_columns) for part in self.parts}))

    @property
    def num_written(self) -> int:
        """Rows of the run."""
        first_column = min((part.first_column for part in self.parts), default=0)
        return sum(part.num_rows for part in self.parts if part.first_column == first_column)


class VersionManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything about a version but its numbers. `created` is UTC, for people: order is that of `version`.

    `complete`: the training it belongs to came to its end; otherwise it is a save on the way. `shardings` is how each
    table was spread, for people. `data` is the folder of its `files`. `digest` is the sha256 of the file without
    it.
    """

    format_version: int
    version: int
    previous: Link | None
    parent: Link | None
    created: str
    complete: bool
    step: int
    world_size: int
    shardings: dict[str, str]
    context: Context
    lineage: Lineage
    metrics: dict[str, float | None]
    tables: dict[str, TableEntry]
    data: str
    files: dict[str, FileEntry]
    digest: str = ""

    @property
    def link(self) -> Link:
        return Link(version=self.version, digest=self.digest)

    @property
    def whole(self) -> bool:
        """Whether it is a base: none of its tables builds on the parent's."""
        return all(table.whole for table in self.tables.values())

    @property
    def num_bytes(self) -> int:
        return sum(file.num_bytes for file in self.files.values())


class BaseManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The tables of version `of`, whole: what its runs and those below it come to. The rest is in the version.

    A table is one run, or several where its blocks of columns changed (`stack.checkpoint.merge`), the oldest first.
    """

    format_version: int
    of: Link
    created: str
    tables: dict[str, tuple[TableEntry, ...]]
    data: str
    files: dict[str, FileEntry]
    digest: str = ""


M = TypeVar("M", VersionManifest, BaseManifest)

_BEFORE_DIGEST, _DIGEST_BYTES = b'"digest": "', 64


def manifest_name(version: int) -> str:
    return f"manifests/{version:08d}.json"


def base_name(version: int) -> str:
    return f"bases/{version:08d}.json"


def pruned_name(version: int) -> str:
    return f"pruned/{version:08d}.json"


def data_folder(data: str) -> str:
    return f"data/{data}"


def part_name(table: str, rank: int, number: int = 0) -> str:
    """The `number`-th part of a table that a rank wrote."""
    return f"tables/{table}/part-{rank:05d}-{number}.safetensors"


def ids_part_name(table: str, rank: int) -> str:
    return f"ids/{table}/part-{rank:05d}.safetensors"


def encode_manifest(manifest: M) -> bytes:
    """The bytes of the manifest file, with its digest filled in; readable by people."""
    blank = _blank(manifest)
    at = _place_of_digest(blank)
    return blank[:at] + _sha256(blank).encode() + blank[at:]


def with_digest(manifest: M) -> M:
    return msgspec.structs.replace(manifest, digest=_sha256(_blank(manifest)))


def decode_manifest(data: bytes, kind: type[M], *, name: str) -> M:
    """Raises `CheckpointError` if the manifest `name` is damaged or of another format version."""
    try:
        version = msgspec.json.decode(data, type=_Version).format_version
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{name} has format version {version}; this code reads version {FORMAT_VERSION}: "
                "use the code that wrote it"
            )
        at = _place_of_digest(data)
        said, blank = data[at : at + _DIGEST_BYTES], data[:at] + data[at + _DIGEST_BYTES :]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{name} is damaged: {error}") from error
    if said != _sha256(blank).encode():
        raise CheckpointError(f"{name} is damaged: its digest is another")
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{name} was written by other code ({error}): use the code that wrote it") from error


def table_entry(
    table: str, *, keys: KeyKind, whole: bool, shapes: Mapping[str, TableShape], parts: Sequence[Part]
) -> TableEntry:
    """The entry of a table from what each part's writer said of it, by file.

    Raises `CheckpointError` if the writers disagree, blocks of columns leave a hole or have other rows than the first,
    or a whole run does not have every row once (managed ids: that of unknown ids at least).
    """
    if len(set(shapes.values())) != 1:
        raise CheckpointError(
            f"table '{table}': ranks disagree on rows, width, type or optimizer state: {dict(shapes)}"
        )
    shape = next(iter(shapes.values()))
    ordered = sorted((part for part in parts if part.num_rows), key=lambda part: (part.first_column, part.first_key))
    entry = TableEntry(shape=shape, keys=keys, whole=whole, parts=tuple(ordered))
    next_column = 0
    for (first_column, num_columns), grouped in groupby(
        ordered, key=lambda part: (part.first_column, part.num_columns)
    ):
        block = list(grouped)
        if first_column != next_column:
            raise CheckpointError(
                f"table '{table}': {block[0].file} begins at column {first_column}, not {next_column}"
            )
        if sum(part.num_rows for part in block) != entry.num_written:
            raise CheckpointError(f"table '{table}': its blocks of columns have different numbers of rows")
        if whole and keys is KeyKind.row:
            _check_rows(table, block, shape.num_rows)
        next_column += num_columns
    if next_column != shape.dim and (whole or ordered):
        raise CheckpointError(f"table '{table}': its parts end at column {next_column}, but it has {shape.dim} columns")
    return entry


def _check_rows(table: str, parts: list[Part], num_rows: int) -> None:
    next_row = 0
    for part in parts:
        if part.first_key != next_row or part.last_key - part.first_key != part.num_rows - 1:
            raise CheckpointError(
                f"table '{table}': {part.file} has {part.num_rows} rows from {part.first_key} to {part.last_key}, "
                f"not all from {next_row}"
            )
        next_row += part.num_rows
    if next_row != num_rows:
        raise CheckpointError(f"table '{table}': its parts end at row {next_row}, but it has {num_rows} rows")


class _Version(msgspec.Struct):
    format_version: int


def _blank(manifest: M) -> bytes:
    """The file without its digest: what the digest is of. The bytes count, so that code with more fields reads it."""
    return msgspec.json.format(msgspec.json.encode(msgspec.structs.replace(manifest, digest="")), indent=1) + b"\n"


def _place_of_digest(data: bytes) -> int:
    """Behind the quote that begins it; it is the last field."""
    return data.rfind(_BEFORE_DIGEST) + len(_BEFORE_DIGEST)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
