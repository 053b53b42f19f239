"""What the numbers of a version or a compaction say for themselves, whatever their digests: to find a wrong writer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import msgspec
import torch
from torch import Tensor

from stack.base.errors import CheckpointError
from stack.checkpoint.manifest import (
    COUNT,
    DENSE,
    GONE,
    KEY,
    LAST,
    LOOP,
    OPTIMIZER,
    RAW,
    ROW,
    WEIGHT,
    BaseManifest,
    KeyKind,
    LoopState,
    Part,
    TableEntry,
    VersionManifest,
    data_folder,
    table_entry,
)
from stack.checkpoint.merge import repeated_key
from stack.checkpoint.rows import TYPES
from stack.checkpoint.store import Store
from stack.checkpoint.tensors import TensorFile
from stack.data.keys import UNKNOWN_KEY

_BLOCK_ROWS = 262_144


def deep_findings(
    store: Store, manifest: VersionManifest | BaseManifest, parent: VersionManifest | None
) -> Iterator[tuple[str, str]]:
    """Names of files, and what is wrong with each. `parent`: that of a version."""
    folder = data_folder(manifest.data)
    if isinstance(manifest, VersionManifest):
        runs: dict[str, tuple[TableEntry, ...]] = {table: (entry,) for table, entry in manifest.tables.items()}
        yield from _rest(store, folder, manifest.files)
    else:
        runs = manifest.tables
    for table, entries in runs.items():
        for entry in entries:
            yield from _run(store, folder, table, entry)
        below = None if parent is None else parent.tables.get(table)
        if below is not None and not entries[0].whole:
            yield from _grown(store, folder, table, entries[0], below.num_rows)


def _rest(store: Store, folder: str, files: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    for name in files:
        path = f"{folder}/{name}"
        try:
            if name in (DENSE, OPTIMIZER):
                file = TensorFile(store, path)
                yield from ((path, f"{key} is not finite") for key in file.shapes if _not_finite(file, key) is not None)
            elif name == LOOP:
                msgspec.json.decode(store.read(path), type=LoopState)
            elif name.startswith("ids/") and not _ascending(TensorFile(store, path).all()[GONE]):
                yield path, f"{GONE} does not ascend"
        except (CheckpointError, msgspec.DecodeError, KeyError) as error:
            yield path, f"cannot be read: {error}"


def _run(store: Store, folder: str, table: str, entry: TableEntry) -> Iterator[tuple[str, str]]:
    where = entry.parts[0].file if entry.parts else ""
    try:
        table_entry(table, keys=entry.keys, whole=entry.whole, shapes={where: entry.shape}, parts=entry.parts)
    except CheckpointError as error:
        yield f"{folder}/{where}", str(error)
        return
    good = True
    for part in entry.parts:
        for what in _part(store, f"{folder}/{part.file}", entry, part):
            good = False
            yield f"{folder}/{part.file}", what
    # Rows of a whole run are all there, so none can be there twice.
    for block in entry.blocks if good and not (entry.whole and entry.keys is KeyKind.row) else ():
        files = [
            TensorFile(store, f"{folder}/{part.file}")
            for part in entry.parts
            if (part.first_column, part.num_columns) == block
        ]
        twice = repeated_key(files)
        if twice is not None:
            yield f"{folder}/{where}", f"{entry.keys.value} {twice} of table '{table}' is there twice"
    if good and entry.whole and entry.keys is KeyKind.id and not _has(store, folder, entry, UNKNOWN_KEY):
        yield f"{folder}/{where}", f"table '{table}' has no row for unknown ids"


def _part(store: Store, name: str, entry: TableEntry, part: Part) -> Iterator[str]:
    try:
        file = TensorFile(store, name)
    except CheckpointError as error:
        yield str(error)
        return
    of_ids = (ROW, COUNT, LAST) if entry.keys is KeyKind.id else ()
    wanted = {KEY, WEIGHT, *of_ids, *entry.shape.state}
    if file.shapes.keys() - {RAW} != wanted:
        yield f"it holds {', '.join(sorted(file.shapes))}, not {', '.join(sorted(wanted))}"
        return
    sizes = {shape[0] if shape else 0 for shape in file.shapes.values()}
    if sizes != {part.num_rows}:
        yield f"it has {sorted(sizes)} lines, its manifest says {part.num_rows}"
        return
    if file.shapes[WEIGHT][1:] != (part.num_columns,) or file.dtypes[WEIGHT] != TYPES[entry.shape.dtype]:
        yield f"its rows are {file.shapes[WEIGHT][1:]} of {file.dtypes[WEIGHT]}, not as its manifest says"
    key_N = file.rows(KEY, 0, part.num_rows)
    if not _ascending(key_N):
        yield "its keys do not ascend"
    elif (int(key_N[0]), int(key_N[-1])) != (part.first_key, part.last_key):
        yield f"its keys go from {int(key_N[0])} to {int(key_N[-1])}, its manifest says otherwise"
    rows = file.rows(ROW if of_ids else KEY, 0, part.num_rows)
    if int(rows.min()) < 0 or int(rows.max()) >= entry.num_rows:
        yield f"it has the rows {int(rows.min())} to {int(rows.max())}; the table has {entry.num_rows}"
    for tensor in (WEIGHT, *entry.shape.state):
        line = _not_finite(file, tensor)
        if line is not None:
            yield f"{tensor} of {entry.keys.value} {int(key_N[line])} is not finite"


def _grown(store: Store, folder: str, table: str, entry: TableEntry, num_old: int) -> Iterator[tuple[str, str]]:
    """Rows that the parent did not have must be in the delta."""
    if entry.keys is KeyKind.id or entry.num_rows <= num_old:
        return
    new = 0
    for part in (part for part in entry.parts if part.first_column == 0):
        key_N = TensorFile(store, f"{folder}/{part.file}").rows(KEY, 0, part.num_rows)
        new += part.num_rows - int(torch.searchsorted(key_N, num_old))
    if new != entry.num_rows - num_old:
        where = f"{folder}/{entry.parts[0].file if entry.parts else table}"
        yield where, f"table '{table}' grew from {num_old} to {entry.num_rows} rows, of which {new} are there"


def _has(store: Store, folder: str, entry: TableEntry, key: int) -> bool:
    for part in entry.parts:
        if part.first_key <= key <= part.last_key:
            key_N = TensorFile(store, f"{folder}/{part.file}").rows(KEY, 0, part.num_rows)
            if int(key_N[torch.searchsorted(key_N, key)]) == key:
                return True
    return False


def _ascending(key_N: Tensor) -> bool:
    """Strictly, a block at a time."""
    for first in range(0, len(key_N) - 1, _BLOCK_ROWS):
        block = key_N[first : first + _BLOCK_ROWS + 1]
        if not bool((block[1:] > block[:-1]).all()):
            return False
    return True


def _not_finite(file: TensorFile, name: str) -> int | None:
    """The first line with a number that is NaN or infinite."""
    if not file.dtypes[name].is_floating_point:
        return None
    num_rows = file.shapes[name][0] if file.shapes[name] else 1
    for first in range(0, num_rows, _BLOCK_ROWS):
        block = file.rows(name, first, min(first + _BLOCK_ROWS, num_rows)) if file.shapes[name] else file.all()[name]
        if not all(math.isfinite(float(bound)) for bound in block.aminmax()):  # NaN is a bound where there is one
            bad = ~torch.isfinite(block.reshape(min(_BLOCK_ROWS, num_rows - first), -1)).all(1)
            return first + int(bad.nonzero()[0])
    return None
