"""Reads a version: any rows of its tables, managed ids, dense tensors, the loop's state."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import msgspec
import torch
from torch import Tensor

from stack.base.errors import CheckpointError
from stack.checkpoint.chain import Chain, Layer
from stack.checkpoint.manifest import (
    DENSE,
    KEY,
    LOOP,
    OPTIMIZER,
    RAW,
    WEIGHT,
    FileEntry,
    KeyKind,
    LoopState,
    TableEntry,
    TableShape,
    VersionManifest,
    data_folder,
)
from stack.checkpoint.rows import TableReader
from stack.checkpoint.snapshot import OF_KEYS, shape_of
from stack.checkpoint.store import Store
from stack.checkpoint.tensors import TensorFile, side_by_side
from stack.data.keys import UNKNOWN_KEY
from stack.ids.managed import MapState, join_states
from stack.tables.rows import TableShard

_BLOCK_ROWS = 262_144
_BLOCK_BYTES = 4 << 20
_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A version and the runs that its tables are made of. Only the rows asked for are read."""

    store: Store
    manifest: VersionManifest
    layers: Mapping[str, Sequence[Layer]]

    @property
    def name(self) -> str:
        """For people."""
        return f"version {self.manifest.version} of {self.store.url}"

    @cached_property
    def readers(self) -> dict[str, TableReader]:
        return {name: TableReader(self.store, name, layers) for name, layers in self.layers.items()}

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
        """Rows `first_row ... first_row + num_rows - 1` of a table, or a block of columns of them (None: to the last
        column). Of a table with managed ids, rows that no id has are zeros.

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
                    f"{self.name} has {what} 0 to {size - 1} of table '{name}', "
                    f"asked for {first} to {first + count - 1}"
                )
        values = self.readers[name].rows(
            first_row, num_rows, columns=(first_column, num_columns), states=table.shape.state if with_state else ()
        )
        return TableShard(
            name=name,
            num_rows=table.num_rows,
            dim=table.shape.dim,
            first_row=first_row,
            first_column=first_column,
            weight_ND=values.pop(WEIGHT),
            state=values,
        )

    def table_parts(self, name: str, *, with_state: bool = True) -> Iterator[TableShard]:
        """The whole table in order of rows, a bounded number at a time."""
        table = self._table(name)
        for first in range(0, table.num_rows, _BLOCK_ROWS):
            yield self.table_rows(name, first, min(_BLOCK_ROWS, table.num_rows - first), with_state=with_state)

    def restore(self, shards: Sequence[TableShard]) -> list[str]:
        """Copies rows and optimizer state into the tensors of `shards`; rows that the version does not have stay as
        they are. Returns the tables whose row-wise state was kept for other blocks of columns than theirs, and was
        merged (`merged_blocks`): worth a line to the user.

        Raises `CheckpointError` if a table's width, type or optimizer state differ, or it has fewer rows than here.
        """
        merged: list[str] = []
        for shard in shards:
            table = self._table(shard.name)
            self._check_same(shard, table.shape)
            num_rows = max(min(int(shard.weight_ND.shape[0]), table.num_rows - shard.first_row), 0)
            there = {name: value[:num_rows] for name, value in {WEIGHT: shard.weight_ND, **shard.state}.items()}
            with torch.no_grad():
                self.readers[shard.name].fill(there, shard.first_row, first_column=shard.first_column)
            rowwise = any(value.dim() == 1 for value in shard.state.values())
            own = (shard.first_column, shard.num_columns)
            others = any(layer.entry.parts and own not in layer.entry.blocks for layer in self.layers[shard.name])
            if rowwise and others and shard.name not in merged:
                merged.append(shard.name)
        return merged

    def place(self, shard: TableShard, *, from_row_N: Tensor, to_row_N: Tensor) -> None:
        """Copies some rows of a saved table into rows of `shard`; numbered as in their whole tables, which may have
        different numbers of rows.

        Raises `CheckpointError` if the table's width, type or optimizer state differ.
        """
        table = self._table(shard.name)
        self._check_same(replace(shard, num_rows=max(shard.num_rows, table.num_rows)), table.shape)
        order = torch.argsort(from_row_N)
        for part in torch.split(order, _BLOCK_ROWS):
            saved = self.readers[shard.name].taken(
                from_row_N[part], columns=(shard.first_column, shard.num_columns), states=table.shape.state
            )
            here_N = (to_row_N[part] - shard.first_row).to(shard.weight_ND.device)
            with torch.no_grad():
                shard.weight_ND[here_N] = saved[WEIGHT].to(shard.weight_ND.device)
                for key, value in shard.state.items():
                    value[here_N] = saved[key].view(-1, *value.shape[1:]).to(value.device)

    def map_state(self, table: str) -> MapState:
        """The whole state of a table's managed ids.

        Raises `CheckpointError` if the table's ids were not managed.
        """
        layer = self.layers[table][-1]
        if layer.entry.keys is not KeyKind.id:
            raise CheckpointError(
                f"{self.name} has no managed ids of table '{table}': use the ids.modes it was saved with"
            )
        folder, files = self._own
        names = sorted(name for name in files if name.startswith(f"ids/{table}/"))
        parts = [TensorFile(self.store, f"{folder}/{name}").all() for name in names]
        live = self.readers[table].live
        known = live.key_N != UNKNOWN_KEY
        nothing = {name: getattr(live, name)[:0] for name in OF_KEYS}
        rest = join_states([MapState.of_tensors(part | nothing) for part in parts])
        return replace(rest, **{name: getattr(live, name)[known] for name in OF_KEYS})

    def raw_keys(self, table: str) -> Tensor:
        """By row of a table with a vocabulary, the 64-bit key of its id. Raises `CheckpointError` where it has none."""
        reader = self.readers[table]
        keys = torch.zeros(self._table(table).num_rows, dtype=torch.int64)
        for layer in self.layers[table]:
            for part in (part for part in layer.entry.parts if part.first_column == 0):
                file = reader.file(layer, part.file)
                if RAW not in file.shapes or layer.entry.keys is not KeyKind.row:
                    raise CheckpointError(f"{self.name} does not tell which ids the rows of table '{table}' are of")
                keys[file.rows(KEY, 0, part.num_rows)] = file.rows(RAW, 0, part.num_rows)
        return keys

    def dense(self) -> dict[str, Tensor]:
        """Parameters and buffers by name."""
        return self._tensors(DENSE)

    def optimizer(self) -> dict[str, Tensor]:
        """The dense optimizer's state by the names it was saved under."""
        return self._tensors(OPTIMIZER)

    def loop(self) -> LoopState:
        name = f"{self._own[0]}/{LOOP}"
        try:
            return msgspec.json.decode(self.store.read(name), type=LoopState)
        except FileNotFoundError as error:
            raise CheckpointError(f"{self.store.url}/{name} is missing") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{self.store.url}/{name} is damaged: {error}") from error

    def files(self) -> dict[str, FileEntry]:
        """Every file that restoring reads, by its name in the store."""
        folder, own = self._own
        needed = {f"{folder}/{name}": entry for name, entry in own.items()}
        for table, layers in self.layers.items():
            for layer in layers:
                parts = {part.file for part in layer.entry.parts}
                for name, entry in layer.files.items():
                    if name in parts or name.startswith(f"ids/{table}/"):
                        needed[f"{layer.folder}/{name}"] = entry
        return needed

    def digest(self) -> str:
        """A sha256 of all that training goes on from, however many versions, processes and files it was written in."""
        digest = hashlib.sha256(msgspec.json.encode(self.loop()))

        def add(tensors: Mapping[str, Tensor]) -> None:
            for name, value in sorted(tensors.items()):
                digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
                digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)

        for table in sorted(self.manifest.tables):
            digest.update(table.encode())
            if self.layers[table][-1].entry.keys is KeyKind.id:
                add(self.map_state(table).tensors())
            for shard in self.table_parts(table):
                add({WEIGHT: shard.weight_ND, **shard.state})
        add(self.dense())
        add(self.optimizer())
        return digest.hexdigest()

    def verify(self, *, rank: int = 0, world_size: int = 1) -> None:
        """Reads every file (of several ranks, each its share); raises `CheckpointError` naming one that is missing or
        has changed."""
        own = sorted(self.files().items())[rank::world_size]
        side_by_side([partial(check_file, self.store, name, entry) for name, entry in own], num_threads=_THREADS)

    @property
    def _own(self) -> tuple[str, Mapping[str, FileEntry]]:
        return data_folder(self.manifest.data), self.manifest.files

    def _table(self, name: str) -> TableEntry:
        if name not in self.manifest.tables:
            known = ", ".join(sorted(self.manifest.tables)) or "none"
            raise CheckpointError(f"{self.name} has no table '{name}'; it has: {known}")
        return self.manifest.tables[name]

    def _check_same(self, shard: TableShard, saved: TableShape) -> None:
        wanted = shape_of(shard)
        if saved.num_rows > wanted.num_rows or msgspec.structs.replace(saved, num_rows=wanted.num_rows) != wanted:
            raise CheckpointError(
                f"table '{shard.name}' of {self.name} has {_told(saved)}; the model's has {_told(wanted)}: "
                "resume with the configuration and data it was saved with"
            )

    def _tensors(self, name: str) -> dict[str, Tensor]:
        return TensorFile(self.store, f"{self._own[0]}/{name}").all()


def digest_of(store: Store, name: str) -> str:
    """The sha256 of a file. Raises `FileNotFoundError`."""
    digest, size = hashlib.sha256(), store.size(name)
    block = memoryview(bytearray(min(size, _BLOCK_BYTES)))
    for first in range(0, size, _BLOCK_BYTES):
        digest.update(block[: store.read_into(name, block[: size - first], first=first)])
    return digest.hexdigest()


def check_file(store: Store, name: str, entry: FileEntry) -> None:
    """Raises `CheckpointError` if a file is missing, or not what its manifest says."""
    try:
        size = store.size(name)
        digest = digest_of(store, name) if size == entry.num_bytes else None
    except FileNotFoundError as error:
        raise CheckpointError(f"{store.url}/{name} is missing") from error
    if digest is None:
        raise CheckpointError(f"{store.url}/{name} is damaged: it has {size} bytes, not {entry.num_bytes}")
    if digest != entry.sha256:
        raise CheckpointError(
            f"{store.url}/{name} is damaged: its sha256 is {digest[:12]}, the manifest says {entry.sha256[:12]}"
        )


def open_version(chain: Chain, version: VersionManifest) -> Checkpoint:
    """Raises `CheckpointError` where something that the version builds on is missing."""
    return Checkpoint(store=chain.store, manifest=version, layers=chain.layers(version))


def _told(shape: TableShape) -> str:
    return f"{shape.num_rows} rows of {shape.dim} in {shape.dtype}, state {list(shape.state)}"
