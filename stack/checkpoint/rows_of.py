"""One id of one table: its row, what is in it, and the versions that wrote it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import yaml  # type: ignore[import-untyped]
from torch import Tensor

from stack.base.errors import CheckpointError
from stack.checkpoint.chain import Chain, Layer
from stack.checkpoint.load import Checkpoint
from stack.checkpoint.manifest import KEY, RAW, KeyKind, VersionManifest, data_folder
from stack.checkpoint.rows import TableReader
from stack.data.keys import UNKNOWN_KEY, keys_of
from stack.data.schema import PADDING_ROW
from stack.ids.hashing import HashedRows, HashVariant

CONFIG = "config.yaml"


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a version did with a key: `wrote`, `evicted`, or `unknown` where its files were pruned."""

    version: int
    day: str
    did: str


@dataclass(frozen=True, kw_only=True)
class RowShown:
    """`row` None: the id has no row of its own (`note` says what it has). `count` and `last`: of managed ids, steps in
    which it was seen, and the last of them."""

    table: str
    key: int
    row: int | None
    note: str
    count: int | None
    last: int | None
    weights: tuple[float, ...]
    state: Mapping[str, tuple[float, ...]]
    written: tuple[Written, ...]


def rows_of_id(
    chain: Chain, checkpoint: Checkpoint, table: str, raw: str, *, run: Path | None, vocabulary: Path | None
) -> list[RowShown]:
    """The row of an id; two where the table is hashed twice.

    An id that has a vocabulary is looked up there: in the prepared dataset `vocabulary`, or that which the run's
    configuration names, if it is there; else in the runs themselves, where they tell whose rows they hold; else it is
    taken for a row. Of ids without a vocabulary the key is made.
    Raises: `CheckpointError` where there is no such table, id or row.
    """
    entry = checkpoint.manifest.tables.get(table)
    if entry is None:
        known = ", ".join(sorted(checkpoint.manifest.tables))
        raise CheckpointError(f"{checkpoint.name} has no table '{table}'; it has: {known}")
    config = _config(run)
    key = _key(checkpoint, table, raw, vocabulary=vocabulary or _dataset(config, run))
    if entry.keys is KeyKind.id:
        return [_managed(chain, checkpoint, table, key)]
    return [_direct(chain, checkpoint, table, key, row) for row in _rows(config, table, key, num_rows=entry.num_rows)]


def _config(run: Path | None) -> Mapping[str, object]:
    path = None if run is None else run / CONFIG
    found = yaml.safe_load(path.read_text()) if path is not None and path.is_file() else None
    return found if isinstance(found, dict) else {}


def _group(config: Mapping[str, object], name: str) -> Mapping[str, object]:
    found = config.get(name)
    return found if isinstance(found, dict) else {}


def _dataset(config: Mapping[str, object], run: Path | None) -> Path | None:
    out = _group(config, "data").get("out")
    return Path(out) if isinstance(out, str) and Path(out).is_dir() else None


def _key(checkpoint: Checkpoint, table: str, raw: str, *, vocabulary: Path | None) -> int:
    """The key of a raw id where it has no vocabulary, else its row there."""
    without = checkpoint.manifest.context.schema.without_vocabulary(table)
    if without is not None:
        return int(keys_of(pa.array([raw]))[0]) if without.text else _number(raw, table)
    files = [] if vocabulary is None else sorted((vocabulary / "vocab" / table).glob("*.parquet"))
    if not files:
        found = _of_raw(checkpoint.readers[table], raw)
        return _number(raw, table) if found is None else found
    for file in files:
        ids = pq.read_table(file, columns=["raw", "row"])
        kind = ids.schema.field("raw").type
        wanted = pa.scalar(raw if pa.types.is_string(kind) or pa.types.is_large_string(kind) else _number(raw, table))
        at = pc.index(ids["raw"], wanted.cast(kind)).as_py()
        if at >= 0:
            return int(ids["row"][at].as_py())
    raise CheckpointError(
        f"{files[0].parent} does not know the id {raw!r} of table '{table}': it has row {PADDING_ROW}"
    )


def _of_raw(reader: TableReader, raw: str) -> int | None:
    """The key of a raw id where runs tell it; a whole number first, which is its own, then a text."""
    wanted = ([int(raw)] if raw.lstrip("-").isdecimal() else []) + [int(keys_of(pa.array([raw]))[0])]
    for key in wanted:
        for layer in reversed(reader.layers):
            for part in layer.entry.parts:
                file = reader.file(layer, part.file)
                if RAW not in file.shapes:
                    continue
                at = (file.rows(RAW, 0, part.num_rows) == key).nonzero()
                if len(at):
                    return int(file.rows(KEY, 0, part.num_rows)[at[0, 0]])
    return None


def _number(raw: str, table: str) -> int:
    try:
        return int(raw)
    except ValueError as error:
        raise CheckpointError(
            f"id {raw!r} of table '{table}' is no whole number: name the prepared dataset that has it with --vocabulary"
        ) from error


def _rows(config: Mapping[str, object], table: str, key: int, *, num_rows: int) -> list[int]:
    ids = _group(config, "ids")
    if _group(ids, "modes").get(table, ids.get("mode", "direct")) != "hashed":
        return [key]
    hashed = HashedRows(num_rows=num_rows, variant=HashVariant(ids.get("hash", HashVariant.modulo.value)))
    return hashed.rows(torch.tensor([key])).view(-1).tolist()


def _direct(chain: Chain, checkpoint: Checkpoint, table: str, key: int, row: int) -> RowShown:
    shard = checkpoint.table_rows(table, row, 1)
    return RowShown(
        table=table, key=key, row=row, note="" if key == row else "by the hash of its key", count=None, last=None,
        weights=_floats(shard.weight_ND), state={name: _floats(value) for name, value in sorted(shard.state.items())},
        written=tuple(_written(chain, checkpoint.manifest, table, row)),
    )  # fmt: skip


def _managed(chain: Chain, checkpoint: Checkpoint, table: str, key: int) -> RowShown:
    live = checkpoint.readers[table].live
    at = int(torch.searchsorted(live.key_N, key))
    there = at < len(live.key_N) and int(live.key_N[at]) == key
    row = int(live.row_N[at]) if there else PADDING_ROW
    shard = checkpoint.table_rows(table, row, 1)
    known = there and key != UNKNOWN_KEY
    return RowShown(
        table=table, key=key, row=row if there else None,
        note="" if there else f"it has no row of its own, and reads row {PADDING_ROW}",
        count=int(live.count_N[at]) if known else None, last=int(live.last_N[at]) if known else None,
        weights=_floats(shard.weight_ND), state={name: _floats(value) for name, value in sorted(shard.state.items())},
        written=tuple(_written(chain, checkpoint.manifest, table, key)),
    )  # fmt: skip


def _floats(value: Tensor) -> tuple[float, ...]:
    return tuple(value.float().reshape(-1).tolist())


def _written(chain: Chain, version: VersionManifest, table: str, key: int) -> Iterator[Written]:
    """From the newest to the oldest; whole runs among them, which say nothing of when a row changed last."""
    pruned = set(chain.pruned())
    for below in chain.line(version):
        entry = below.tables.get(table)
        if entry is None:
            return
        layer = Layer(version=below.version, folder=data_folder(below.data), entry=entry, files=below.files)
        day = below.context.data_days[-1]
        if below.version in pruned and not chain.has_files(below):
            yield Written(version=below.version, day=day, did="unknown")
        elif _in_run(TableReader(chain.store, table, [layer]), layer, key):
            did = "wrote all rows" if entry.whole else "wrote"
            yield Written(version=below.version, day=day, did=did)
        elif entry.keys is KeyKind.id and _gone(TableReader(chain.store, table, [layer]), layer, key):
            yield Written(version=below.version, day=day, did="evicted")


def _in_run(reader: TableReader, layer: Layer, key: int) -> bool:
    first_column = min((part.first_column for part in layer.entry.parts), default=0)
    for part in layer.entry.parts:
        if part.first_column == first_column and part.first_key <= key <= part.last_key:
            key_N = reader.file(layer, part.file).rows(KEY, 0, part.num_rows)
            if int(key_N[torch.searchsorted(key_N, key)]) == key:
                return True
    return False


def _gone(reader: TableReader, layer: Layer, key: int) -> bool:
    return bool((reader.gone(layer) == key).any())
