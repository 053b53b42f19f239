"""A chain with one large table that changes as it is told, for benches to save and restore.

Legend: R rows of the table, D columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from stack.base.seed import derive
from stack.checkpoint.chain import chain_of
from stack.checkpoint.config import CheckpointConfig
from stack.checkpoint.load import Checkpoint, open_version
from stack.checkpoint.manifest import Context, Lineage, LoopState, VersionManifest
from stack.checkpoint.save import ChainWriter, Facts
from stack.checkpoint.snapshot import State
from stack.data.loader import Cursor
from stack.data.schema import Schema
from stack.tables.rows import TableShard

DIM = 32
_NAME, _STATE = "item", "momentum"
_BLOCK_ROWS = 1 << 20
OPTIONS = CheckpointConfig(asynchronous=False, whole_share=1.0, max_deltas=1000, max_snapshot_gib=1000.0)
"""A delta wherever one is possible."""


class Table:
    """Weights and row-wise state in memory, a chain, and its writer."""

    def __init__(self, folder: Path, *, num_rows: int, dtype: torch.dtype, options: CheckpointConfig = OPTIONS) -> None:
        self.chain = chain_of(folder, for_writing=True)
        self._folder = folder
        self._writer = ChainWriter(self.chain, options=options)
        weight_RD = torch.empty(num_rows, DIM, dtype=dtype)
        generator = torch.Generator().manual_seed(derive(0, num_rows))
        for first in range(0, num_rows, _BLOCK_ROWS):
            weight_RD[first : first + _BLOCK_ROWS].uniform_(-0.05, 0.05, generator=generator)
        self.shard = TableShard(
            name=_NAME, num_rows=num_rows, dim=DIM, first_row=0, weight_ND=weight_RD,
            state={_STATE: torch.rand(num_rows, generator=generator)},
        )  # fmt: skip
        self._generator = generator
        self._step = 0

    @property
    def num_bytes(self) -> int:
        """Of weights and state."""
        return self.shard.weight_ND.nbytes + sum(value.nbytes for value in self.shard.state.values())

    def touch(self, share: float) -> Tensor:
        """Changes about this share of the rows, drawn anew; gives them, ascending."""
        num_rows, touched = self.shard.num_rows, []
        for first in range(0, num_rows, _BLOCK_ROWS):
            drawn = torch.rand(min(_BLOCK_ROWS, num_rows - first), generator=self._generator)
            row = (drawn < share).nonzero().squeeze(1) + first
            self.shard.weight_ND.index_fill_(0, row, float(torch.rand((), generator=self._generator)))
            self.shard.state[_STATE].index_fill_(0, row, float(torch.rand((), generator=self._generator)))
            touched.append(row)
        return torch.cat(touched)

    def begin(self, row: Tensor | None) -> None:
        """Takes a version: all rows (None), or a delta. With `asynchronous` it is still being written."""
        self._step += 1
        state = State(
            tables=(_NAME,), shards=[self.shard], dense={}, optimizer={},
            loop=LoopState(step=self._step, epoch=0, cursor=Cursor(epoch=0, block=0, step=self._step)),
            changed={} if row is None else {_NAME: row},
        )  # fmt: skip
        context = Context(
            schema=Schema(event=()), config_digest="", data_days=("2017-11-01",), vocabulary_digests={}, code_version=""
        )
        self._writer.save(state, Facts(step=self._step, complete=True, context=context, lineage=Lineage(verb="bench")))

    @property
    def writing(self) -> bool:
        job = self._writer._job
        return job is not None and job.thread is not None and job.thread.is_alive()

    def end(self) -> VersionManifest:
        """The version taken last, when it is out."""
        self._writer.wait()
        version = self.chain.head()
        assert version is not None
        return version

    def save(self, row: Tensor | None) -> VersionManifest:
        self.begin(row)
        return self.end()

    def checkpoint(self, version: VersionManifest) -> Checkpoint:
        return open_version(self.chain, version)

    def files(self, version: VersionManifest) -> list[Path]:
        """All that restoring a version reads."""
        return [self._folder / name for name in self.checkpoint(version).files()]

    def drop(self, version: VersionManifest) -> None:
        """Deletes a version's files: it cannot be restored any more, nor what is saved on top of it."""
        self.chain.store.delete_folder(f"data/{version.data}")

    def checksum(self) -> Sequence[int]:
        """Of every bit of the live table."""
        values = (self.shard.weight_ND, *self.shard.state.values())
        return [sum(int(block.sum(dtype=torch.int64)) for block in _bits(value)) for value in values]

    def spoil(self) -> None:
        """Makes every number of the live table another."""
        for value in (self.shard.weight_ND, *self.shard.state.values()):
            value.fill_(9.0)


def _bits(value: Tensor) -> Sequence[Tensor]:
    whole = torch.int16 if value.itemsize == 2 else torch.int32
    return [block.contiguous().view(whole) for block in torch.split(value, _BLOCK_ROWS)]
