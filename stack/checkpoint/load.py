"""Reads checkpoints: the newest complete one of a folder, any rows of a table, dense tensors, the loop's state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
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
    TableShape,
    checkpoint_name,
    read_manifest,
)
from stack.tables.rows import TableShard, dtype_name

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

    def table_rows(
        self,
        name: str,
        first_row: int,
        num_rows: int,
        *,
        first_column: int = 0,
        num_columns: int | None = None,
        with_state: bool = True,
    ) -> TableShard:
        """Rows `first_row ... first_row + num_rows - 1` of a table, whichever parts they lie in, or a block of columns
        of them (None: to the last column).

        State with one number for each row of a block is given for the columns asked for: see `merged_blocks`.
        Raises `CheckpointError` if the table or some of the rows or columns do not exist.
        """
        table = self._table(name)
        if num_columns is None:
            num_columns = table.shape.dim - first_column
        for what, first, count, size in (
            ("rows", first_row, num_rows, table.num_rows),
            ("columns", first_column, num_columns, table.shape.dim),
        ):
            if first < 0 or count < 0 or first + count > size:
                raise CheckpointError(
                    f"{self.path} has {what} 0 to {size - 1} of table '{name}', "
                    f"asked for {first} to {first + count - 1}"
                )
        states = table.shape.state if with_state else ()
        asked = (first_column, num_columns)
        overlaps = [(block, common) for block in table.blocks if (common := _common(block, asked))[1]]
        found = [self._read_block(table, block, first_row, num_rows, common, states) for block, common in overlaps]
        joined = merged_blocks(found, [width for _, (_, width) in overlaps])
        return TableShard(
            name=name,
            num_rows=table.num_rows,
            dim=table.shape.dim,
            first_row=first_row,
            first_column=first_column,
            weight_ND=joined.pop("weight"),
            state=joined,
        )

    def table_parts(self, name: str, *, with_state: bool = True) -> Iterator[TableShard]:
        """The whole table in order of rows, as many at a time as the parts of the checkpoint have."""
        table = self._table(name)
        cuts = sorted({0, table.num_rows, *(part.first_row for part in table.parts)})
        for first, last in pairwise(cuts):
            yield self.table_rows(name, first, last - first, with_state=with_state)

    def restore(self, shards: Sequence[TableShard]) -> list[str]:
        """Copies rows and optimizer state into the tensors of `shards`. Returns the tables whose row-wise state was
        kept for other blocks of columns than theirs, and was merged (`merged_blocks`): worth a line to the user.

        Raises `CheckpointError` if a table is not as in the checkpoint: its rows, width, type or optimizer state
        differ.
        """
        merged: list[str] = []
        for shard in shards:
            table = self._table(shard.name)
            _check_same(self.path, shard, table.shape)
            held = int(shard.weight_ND.shape[0])
            for start in range(0, held, _BLOCK_ROWS):  # a bounded copy, whatever the size of the table
                block = slice(start, min(start + _BLOCK_ROWS, held))
                saved = self.table_rows(
                    shard.name, shard.first_row + start, block.stop - start, first_column=shard.first_column,
                    num_columns=shard.num_columns,
                )  # fmt: skip
                with torch.no_grad():
                    shard.weight_ND[block].copy_(saved.weight_ND)
                    for key, value in shard.state.items():
                        value[block].copy_(saved.state[key].view(value[block].shape))
            rowwise = any(value.dim() == 1 for value in shard.state.values())
            if rowwise and (shard.first_column, shard.num_columns) not in table.blocks and shard.name not in merged:
                merged.append(shard.name)
        return merged

    def place(self, shard: TableShard, *, from_row_N: Tensor, to_row_N: Tensor) -> None:
        """Copies some rows of a saved table into rows of `shard`; numbered as in their whole tables, which may have
        different numbers of rows.

        Raises `CheckpointError` if the table's width, type or optimizer state differ.
        """
        table = self._table(shard.name)
        _check_same(self.path, replace(shard, num_rows=table.num_rows), table.shape)
        for first in range(0, table.num_rows, _BLOCK_ROWS):
            inside = ((from_row_N >= first) & (from_row_N < first + _BLOCK_ROWS)).nonzero().squeeze(1)
            if not inside.numel():
                continue
            saved = self.table_rows(
                shard.name, first, min(_BLOCK_ROWS, table.num_rows - first), first_column=shard.first_column,
                num_columns=shard.num_columns,
            )  # fmt: skip
            here_N, there_N = to_row_N[inside] - shard.first_row, from_row_N[inside] - first
            with torch.no_grad():
                shard.weight_ND[here_N] = saved.weight_ND[there_N].to(shard.weight_ND.device)
                for key, value in shard.state.items():
                    value[here_N] = saved.state[key][there_N].view(-1, *value.shape[1:]).to(value.device)

    def ids(self, table: str) -> list[dict[str, Tensor]]:
        """The state of a table's managed ids, a part from each rank that wrote.

        Raises `CheckpointError` if the table's ids were not managed.
        """
        files = sorted(name for name in self.manifest.files if name.startswith(f"ids/{table}/"))
        if not files:
            raise CheckpointError(
                f"{self.path} has no managed ids of table '{table}': use the ids.modes it was saved with"
            )
        return [self._tensors(file) for file in files]

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

    def _read_block(
        self,
        table: TableEntry,
        block: tuple[int, int],
        first_row: int,
        num_rows: int,
        columns: tuple[int, int],
        states: Sequence[str],
    ) -> dict[str, Tensor]:
        """Rows of the saved block of columns `block`, of which the columns `columns` are wanted."""
        parts = [part for part in table.parts if (part.first_column, part.num_columns) == block]
        wanted = slice(columns[0] - block[0], columns[0] - block[0] + columns[1])
        pieces = [
            self._read_part(part, first_row, num_rows, wanted, states)
            for part in parts
            if part.first_row < first_row + num_rows and first_row < part.first_row + part.num_rows
        ]
        if not pieces:  # no rows asked for: shapes and types from the first part
            pieces = [self._read_part(parts[0], 0, 0, wanted, states)]
        return {key: torch.cat([piece[key] for piece in pieces]) for key in ("weight", *states)}

    def _read_part(
        self, part: Part, first_row: int, num_rows: int, columns: slice, states: Sequence[str]
    ) -> dict[str, Tensor]:
        """The rows and columns of a part that are asked for."""
        start = max(first_row - part.first_row, 0)
        end = max(min(first_row + num_rows - part.first_row, part.num_rows), start)
        file = safe_join(self.path, part.file)
        try:
            with safe_open(file, framework="pt") as opened:
                slices = {key: opened.get_slice(key) for key in ("rows", "weight", *states)}
                piece = {
                    key: value[start:end, columns] if len(value.get_shape()) == 2 else value[start:end]
                    for key, value in slices.items()
                }
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


def merged_blocks(blocks: Sequence[dict[str, Tensor]], widths: Sequence[int]) -> dict[str, Tensor]:
    """Adjacent blocks of columns as one: weights and state of each weight side by side, and the mean of row-wise state,
    each block counting by its width.

    Row-wise state is a mean of squared gradients over the columns of its block (row-wise Adagrad, partial row-wise
    Adam), so this mean is what whole rows would have had for the same gradients. The other way round a narrower block
    begins with the state of the wider one it was cut from: the row's learning rate goes on as it was.
    """
    if len(blocks) == 1:
        return dict(blocks[0])
    share = [width / sum(widths) for width in widths]
    return {
        key: torch.cat([block[key] for block in blocks], dim=1)
        if blocks[0][key].dim() == 2
        else torch.stack([block[key] * part for block, part in zip(blocks, share, strict=True)]).sum(0)
        for key in blocks[0]
    }


def _common(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    """What two blocks, each (first column, columns), have in common."""
    first = max(one[0], other[0])
    return first, max(min(sum(one), sum(other)) - first, 0)


def _check_same(path: Path, shard: TableShard, saved: TableShape) -> None:
    wanted = TableShape(
        num_rows=shard.num_rows,
        dim=shard.dim,
        dtype=dtype_name(shard.weight_ND.dtype),
        state=tuple(sorted(shard.state)),
    )
    if saved != wanted:
        raise CheckpointError(
            f"table '{shard.name}' of {path} has {_told(saved)}; the model's has {_told(wanted)}: "
            "resume with the configuration and data it was saved with"
        )


def _told(shape: TableShape) -> str:
    return f"{shape.num_rows} rows of {shape.dim} in {shape.dtype}, state {list(shape.state)}"


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
