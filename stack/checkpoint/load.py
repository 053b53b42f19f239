"""Reads checkpoints: the newest complete one of a folder, any rows of a table, dense tensors, the loop's state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from stack.base.errors import CheckpointError
from stack.base.files import safe_join, sha256_of
from stack.checkpoint.manifest import (
    DENSE,
    LOOP,
    MANIFEST,
    OPTIMIZER,
    CheckpointManifest,
    LoopState,
    Part,
    TableEntry,
    checkpoint_name,
    read_manifest,
)
from stack.tables.rows import TableShard

_BLOCK_ROWS = 262_144


@dataclass(frozen=True, kw_only=True)
class Latest:
    """The newest complete checkpoint of a folder (None if there is none), and why newer ones were passed over."""

    path: Path | None
    ignored: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A complete checkpoint. Tables are read from memory-mapped files: only the rows asked for."""

    path: Path
    manifest: CheckpointManifest

    def table_rows(self, name: str, first_row: int, num_rows: int, *, with_state: bool = True) -> TableShard:
        """Rows `first_row ... first_row + num_rows - 1` of a table, whichever parts they lie in.

        Raises `CheckpointError` if the table or some of the rows do not exist.
        """
        table = self._table(name)
        if first_row < 0 or num_rows < 0 or first_row + num_rows > table.num_rows:
            raise CheckpointError(
                f"{self.path} has rows 0 to {table.num_rows - 1} of table '{name}', "
                f"asked for {first_row} to {first_row + num_rows - 1}"
            )
        states = table.state if with_state else ()
        pieces = [
            self._read_part(part, first_row, num_rows, states)
            for part in table.parts
            if part.first_row < first_row + num_rows and first_row < part.first_row + part.num_rows
        ]
        if not pieces:  # no rows asked for: shapes and types from the first part
            pieces = [self._read_part(table.parts[0], 0, 0, states)]
        joined = {key: torch.cat([piece[key] for piece in pieces]) for key in ("weight", *states)}
        return TableShard(
            name=name,
            num_rows=table.num_rows,
            first_row=first_row,
            weight_ND=joined.pop("weight"),
            state=joined,
        )

    def table_parts(self, name: str, *, with_state: bool = True) -> Iterator[TableShard]:
        """The whole table in order of rows, one part of the checkpoint at a time."""
        for part in self._table(name).parts:
            yield self.table_rows(name, part.first_row, part.num_rows, with_state=with_state)

    def restore(self, shards: Sequence[TableShard]) -> None:
        """Copies rows and optimizer state into the tensors of `shards`.

        Raises `CheckpointError` if a table is not as in the checkpoint: its rows, width or optimizer state differ.
        """
        for shard in shards:
            table = self._table(shard.name)
            found = (table.num_rows, table.dim, table.state)
            wanted = (shard.num_rows, shard.dim, tuple(sorted(shard.state)))
            if found != wanted:
                raise CheckpointError(
                    f"table '{shard.name}' of {self.path} has {found[0]} rows of {found[1]}, state {list(found[2])}; "
                    f"the model's has {wanted[0]} rows of {wanted[1]}, state {list(wanted[2])}: "
                    "resume with the configuration and data it was saved with"
                )
            held = int(shard.weight_ND.shape[0])
            for start in range(0, held, _BLOCK_ROWS):  # a bounded copy, whatever the size of the table
                block = slice(start, min(start + _BLOCK_ROWS, held))
                saved = self.table_rows(shard.name, shard.first_row + start, block.stop - start)
                with torch.no_grad():
                    shard.weight_ND[block].copy_(saved.weight_ND)
                    for key, value in shard.state.items():
                        value[block].copy_(saved.state[key].view(value[block].shape))

    def dense(self) -> dict[str, Tensor]:
        """Parameters and buffers by name."""
        return self._tensors(DENSE)

    def optimizer(self) -> dict[str, Tensor]:
        """The dense optimizer's state by the names it was saved under."""
        return self._tensors(OPTIMIZER)

    def loop(self) -> LoopState:
        try:
            return msgspec.json.decode((self.path / LOOP).read_bytes(), type=LoopState)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _damaged(self.path / LOOP, str(error)) from error

    def verify(self, *, rank: int = 0, world_size: int = 1) -> None:
        """Reads every file (of several ranks, each its share); raises `CheckpointError` naming one that has changed."""
        for name, entry in list(self.manifest.files.items())[rank::world_size]:
            file = safe_join(self.path, name)
            digest = sha256_of(file)
            if digest != entry.sha256:
                raise _damaged(file, f"its sha256 is {digest[:12]}, the manifest says {entry.sha256[:12]}")

    def _table(self, name: str) -> TableEntry:
        if name not in self.manifest.tables:
            known = ", ".join(sorted(self.manifest.tables)) or "none"
            raise CheckpointError(f"{self.path} has no table '{name}'; it has: {known}")
        return self.manifest.tables[name]

    def _read_part(self, part: Part, first_row: int, num_rows: int, states: Sequence[str]) -> dict[str, Tensor]:
        """The rows of a part that are asked for."""
        start = max(first_row - part.first_row, 0)
        end = max(min(first_row + num_rows - part.first_row, part.num_rows), start)
        file = safe_join(self.path, part.file)
        try:
            with safe_open(file, framework="pt") as opened:
                piece = {key: opened.get_slice(key)[start:end] for key in ("rows", "weight", *states)}
        except (SafetensorError, OSError) as error:
            raise _damaged(file, str(error)) from error
        first = part.first_row
        if not torch.equal(piece["rows"], torch.arange(first + start, first + end)):
            raise _damaged(file, f"its rows are not {first} to {first + part.num_rows - 1}")
        return piece

    def _tensors(self, name: str) -> dict[str, Tensor]:
        try:
            return load_file(self.path / name)
        except (SafetensorError, OSError) as error:
            raise _damaged(self.path / name, str(error)) from error


def open_checkpoint(path: Path) -> Checkpoint:
    """Checks the manifest, and that the folder holds its files in their sizes and no others (`verify` reads them).

    Raises `CheckpointError` naming the file that is damaged, missing, too short, too long, or not in the manifest.
    """
    manifest = read_manifest(path)
    present = {str(file.relative_to(path)) for file in path.rglob("*") if not file.is_dir()} - {MANIFEST}
    for name, entry in manifest.files.items():
        file = safe_join(path, name)
        if name not in present:
            raise CheckpointError(f"{file} is missing: delete its checkpoint to use an older one")
        if file.stat().st_size != entry.num_bytes:
            raise _damaged(file, f"it has {file.stat().st_size} bytes, the manifest says {entry.num_bytes}")
    extra = sorted(present - set(manifest.files))
    if extra:
        raise CheckpointError(f"{path / extra[0]} is not in the manifest of its checkpoint: remove it")
    if path.name != checkpoint_name(manifest.step):
        raise CheckpointError(f"{path} holds the checkpoint of step {manifest.step}: rename it back")
    return Checkpoint(path=path, manifest=manifest)


def complete_checkpoints(folder: Path) -> tuple[list[Checkpoint], tuple[str, ...]]:
    """The complete checkpoints of a run, oldest first, and why each other folder with a step's name is not one."""
    complete: list[Checkpoint] = []
    ignored: list[str] = []
    named = [path for path in folder.glob("*") if path.name.isdecimal()]
    for path in sorted(named, key=lambda path: int(path.name)):
        try:
            complete.append(open_checkpoint(path))
        except CheckpointError as error:
            ignored.append(str(error))
    return complete, tuple(ignored)


def latest(folder: Path) -> Latest:
    """The newest complete checkpoint in `folder`. Say what it ignored: training then repeats steps."""
    complete, ignored = complete_checkpoints(folder)
    return Latest(path=complete[-1].path if complete else None, ignored=ignored)


def _damaged(file: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{file} is damaged: {reason}: delete its checkpoint to use an older one")
