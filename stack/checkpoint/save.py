"""Writes a checkpoint: every rank its rows, rank 0 the rest, and the folder appears only when all of it is on disk.

::

    rank 0    make the folder aside | write own parts, dense, loop | check, manifest, flush, rename |
    rank 1                          | write own parts              |                                |
                                 barrier                        barrier                          barrier

A rank says what it wrote in a small JSON file beside its parts. A rank that fails or dies leaves none, so rank 0
publishes nothing and every rank raises. A kill at any moment leaves the older checkpoints as they were.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from stack.base.errors import CheckpointError
from stack.base.files import ASIDE, sha256_of, sync
from stack.checkpoint.load import open_checkpoint
from stack.checkpoint.manifest import (
    DENSE,
    FORMAT_VERSION,
    LOOP,
    MANIFEST,
    OPTIMIZER,
    CheckpointManifest,
    Context,
    FileEntry,
    LoopState,
    Part,
    TableEntry,
    TableShape,
    checkpoint_name,
    encode_manifest,
    ids_part_name,
    part_name,
    table_entry,
)
from stack.tables.rows import TableShard, dtype_name


class _Said(msgspec.Struct, frozen=True, kw_only=True):
    """What a rank wrote: its parts of each table, the table's shape by part's file, and all its files."""

    parts: dict[str, list[Part]]
    shapes: dict[str, TableShape]
    files: dict[str, FileEntry]


@dataclass(frozen=True, kw_only=True)
class _Save:
    """One save on one rank."""

    final: Path
    aside: Path
    rank: int
    world_size: int

    def said_file(self, rank: int) -> Path:
        return self.aside / f"rank-{rank:05d}.json"


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    shards: Sequence[TableShard],
    dense: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    loop: LoopState,
    context: Context,
    rank: int = 0,
    world_size: int = 1,
    barrier: Callable[[], object] = lambda: None,
    ids: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> Path:
    """Writes `folder/<step>`, to be called by every rank with its own `shards`; returns the complete folder.

    `ids` has this rank's state of every table with managed ids, by names the caller chooses.
    `shards` together, over ranks, have every row and column of each table once (those not `written` apart). `dense`,
    `optimizer` (by names the caller chooses), `loop` and `context` are taken from rank 0. `barrier` waits for all
    ranks. `folder` is the same place for all of them. A damaged checkpoint of the same step is renamed to
    `<step>.damaged-1`, not deleted.

    Raises:
        CheckpointError: a whole checkpoint has this step, a rank could not write, or rows are missing or held twice.
    """
    name = checkpoint_name(step)
    save = _Save(final=folder / name, aside=folder / f"{ASIDE}{name}", rank=rank, world_size=world_size)
    phases: list[Callable[[], None]] = [
        lambda: _begin(save),
        lambda: _write_own(save, shards, dense, optimizer, loop, ids or {}),
        lambda: _publish(save, step=step, context=context),
    ]
    failure: Exception | None = None
    for phase in phases:
        try:
            if failure is None:
                phase()
        except (OSError, SafetensorError, CheckpointError) as error:
            failure = error  # raised below: the other ranks wait at the barrier
        barrier()
    if failure is not None or not save.final.exists():
        shutil.rmtree(save.aside, ignore_errors=True)
        reason = failure or f"another rank than {rank} failed"
        raise CheckpointError(
            f"{save.final} was not written: {reason}; older checkpoints are as they were"
        ) from failure
    return save.final


def _begin(save: _Save) -> None:
    """Rank 0: makes the folder aside, and room for its final name if a damaged checkpoint has it."""
    if save.rank != 0:
        return
    shutil.rmtree(save.aside, ignore_errors=True)
    if save.final.exists():
        try:
            open_checkpoint(save.final)
        except CheckpointError:
            numbers = itertools.count(1)
            free = (save.final.with_name(f"{save.final.name}.damaged-{number}") for number in numbers)
            save.final.rename(next(path for path in free if not path.exists()))
        else:
            raise CheckpointError("it exists, and a checkpoint is never overwritten: delete it or resume from it")
    save.aside.mkdir(parents=True)


def _write_own(
    save: _Save,
    shards: Sequence[TableShard],
    dense: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    loop: LoopState,
    ids: Mapping[str, Mapping[str, Tensor]],
) -> None:
    """Writes and flushes this rank's files, then says so."""
    if not save.aside.is_dir():
        raise CheckpointError("rank 0 did not make its folder")
    parts: dict[str, list[Part]] = {}
    shapes: dict[str, TableShape] = {}
    files: dict[str, FileEntry] = {}
    for shard in (shard for shard in shards if shard.written):
        held = parts.setdefault(shard.name, [])
        file, num_rows = part_name(shard.name, save.rank, len(held)), int(shard.weight_ND.shape[0])
        shapes[file] = _shape(shard)
        held.append(
            Part(
                file=file, first_row=shard.first_row, num_rows=num_rows, first_column=shard.first_column,
                num_columns=shard.num_columns,
            )
        )  # fmt: skip
        if num_rows:
            rows_N = torch.arange(shard.first_row, shard.first_row + num_rows)
            files[file] = _write_tensors(save.aside / file, {"rows": rows_N, "weight": shard.weight_ND, **shard.state})
    for table, state in ids.items():
        file = ids_part_name(table, save.rank)
        files[file] = _write_tensors(save.aside / file, state)
    if save.rank == 0:
        files[DENSE] = _write_tensors(save.aside / DENSE, dense)
        files[OPTIMIZER] = _write_tensors(save.aside / OPTIMIZER, optimizer)
        files[LOOP] = _write_bytes(save.aside / LOOP, msgspec.json.encode(loop))
    _write_bytes(save.said_file(save.rank), msgspec.json.encode(_Said(parts=parts, shapes=shapes, files=files)))


def _publish(save: _Save, *, step: int, context: Context) -> None:
    """Rank 0: gathers what the ranks said, writes the manifest, flushes the folders and renames."""
    if save.rank != 0:
        return
    said = [_read_said(save, rank) for rank in range(save.world_size)]
    tables = sorted({table for one in said for table in one.parts})
    manifest = CheckpointManifest(
        format_version=FORMAT_VERSION,
        step=step,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        world_size=save.world_size,
        context=context,
        tables={table: _entry(table, said) for table in tables},
        files=dict(sorted((name, entry) for one in said for name, entry in one.files.items())),
    )
    for rank in range(save.world_size):
        save.said_file(rank).unlink()
    _write_bytes(save.aside / MANIFEST, encode_manifest(manifest))
    for name in sorted({str(Path(file).parent) for file in manifest.files} | {"tables", "ids"}, reverse=True):
        if (save.aside / name).is_dir():
            sync(save.aside / name)
    save.aside.rename(save.final)
    sync(save.final.parent)
    sync(save.final.parent.parent)


def _entry(table: str, said: Sequence[_Said]) -> TableEntry:
    parts = [part for one in said for part in one.parts.get(table, ())]
    shapes = {file: shape for one in said for file, shape in one.shapes.items()}
    return table_entry(table, {part.file: shapes[part.file] for part in parts}, parts)


def _shape(shard: TableShard) -> TableShape:
    return TableShape(
        num_rows=shard.num_rows,
        dim=shard.dim,
        dtype=dtype_name(shard.weight_ND.dtype),
        state=tuple(sorted(shard.state)),
    )


def _read_said(save: _Save, rank: int) -> _Said:
    file = save.said_file(rank)
    if not file.is_file():
        raise CheckpointError(f"rank {rank} of {save.world_size} did not write its part")
    return msgspec.json.decode(file.read_bytes(), type=_Said)


def _write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> FileEntry:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(_plain(tensors), file)
    sync(file)
    return FileEntry(num_bytes=file.stat().st_size, sha256=sha256_of(file))


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU and contiguous; copied only where two share a memory, which safetensors refuses."""
    plain: dict[str, Tensor] = {}
    memories: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        memory = value.untyped_storage().data_ptr()
        plain[name] = value.clone() if memory in memories else value
        memories.add(memory)
    return plain


def _write_bytes(file: Path, data: bytes) -> FileEntry:
    file.write_bytes(data)
    sync(file)
    return FileEntry(num_bytes=len(data), sha256=sha256_of(file))
