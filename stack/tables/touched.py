"""Which rows training changed since the last save: a byte for each row held here.

A row counts once it gets a gradient, that is in the backward pass which updates it: a refused batch (forward without
backward) and evaluation change nothing and count nothing. Rows that begin anew with another id count as well.

Legend: N rows named in a call, B bags of a step (none or one id each), F features of a kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from stack.tables.collection import table_name
from stack.tables.config import TableOptimizer
from stack.tables.shard import kernels_of, table_shards, tables_in

_STILL_WITHOUT_GRADIENT = (TableOptimizer.sgd, TableOptimizer.adagrad, TableOptimizer.rowwise_adagrad)
"""Rules that leave a row as it is whose gradient is zero. Momentum moves it on."""


class TouchedRows:
    """Rows by table, in global numbers; columns are not told apart: a row is held here where any block of it is.

    Exact under SGD and both Adagrads for blocks of whole rows: a row looked up with a gradient of zero is not among
    them. Blocks of columns, and the optimizers with momentum, have every row that was looked up in a step learnt from,
    so that all blocks of one row agree.
    """

    def __init__(self, model: nn.Module) -> None:
        self._marks: dict[str, dict[int, Tensor]] = {}
        for shard in table_shards(model):
            rows, device = shard.weight_ND.shape[0], shard.weight_ND.device
            blocks = self._marks.setdefault(shard.name, {})
            blocks.setdefault(shard.first_row, torch.zeros(rows, dtype=torch.bool, device=device))

    @property
    def num_bytes(self) -> int:
        """Memory of the marks."""
        return sum(mark.nbytes for blocks in self._marks.values() for mark in blocks.values())

    def take(self) -> dict[str, Tensor]:
        """Rows changed since the last call, ascending, for every table that this process holds rows of; begins anew."""
        taken = {name: self._rows(blocks) for name, blocks in self._marks.items()}
        for blocks in self._marks.values():
            for mark in blocks.values():
                mark.zero_()
        return taken

    def count(self) -> dict[str, int]:
        """How many rows `take` would give."""
        return {
            name: sum(int(mark.count_nonzero()) for mark in blocks.values()) for name, blocks in self._marks.items()
        }

    def put_back(self, rows: Mapping[str, Tensor]) -> None:
        """Has the next `take` give these too: those of a save that came to nothing."""
        for name, row_N in rows.items():
            self.add(name, row_N)

    def add(self, table: str, row_N: Tensor) -> None:
        """Counts rows of a table as changed; those held elsewhere are passed over."""
        for first_row, mark in self._marks.get(table, {}).items():
            own_N = row_N[(row_N >= first_row) & (row_N < first_row + mark.shape[0])]
            mark.index_fill_(0, own_N.to(mark.device) - first_row, True)

    def _rows(self, blocks: Mapping[int, Tensor]) -> Tensor:
        return torch.cat([first_row + blocks[first_row].nonzero().squeeze(1) for first_row in sorted(blocks)])

    def _looked_up(self, kernel: Any, given: tuple[KeyedJaggedTensor], vectors_BD: Tensor, *, exact: bool) -> None:
        """After each lookup of a kernel: has its rows marked when their gradients come, if they do."""
        if vectors_BD.requires_grad:
            hook = partial(self._learnt, kernel.config.embedding_tables, given[0], exact)
            vectors_BD.register_hook(hook)  # type: ignore[no-untyped-call]

    def _learnt(self, tables: Any, ids: KeyedJaggedTensor, exact: bool, gradient_BD: Tensor) -> None:
        """`tables` are in the order of features and of columns; ids are rows of a block."""
        widths = [table.local_cols for table in tables]
        values = torch.split(ids.values(), ids.length_per_key())
        gradients = torch.split(gradient_BD, widths, dim=1)
        length_FB = ids.lengths().view(len(widths), -1)
        for table, row_N, gradient, length_B in zip(tables, values, gradients, length_FB, strict=True):
            first_row, _ = table.local_metadata.shard_offsets
            if exact and table.local_cols == table.embedding_dim:
                # most bags of most tables are empty
                gradient_ND = gradient.index_select(0, length_B.nonzero().squeeze(1))
                row_N = row_N[gradient_ND.abs().sum(1) != 0]  # NaN counts; four times as fast as `any`
            self._marks[table_name(table.name)][first_row].index_fill_(0, row_N, True)


def track_touched(model: nn.Module) -> TouchedRows:
    """Follows a model's tables from now on; comes after `stack.tables.shard.shard`, once for a model."""
    touched = TouchedRows(model)
    for _, tables in tables_in(model):
        assert tables.fused is not None, "track_touched comes after shard"
        assert tables.renew.reset_rows is not None, "track_touched comes after shard"
        exact = tables.fused.optimizer in _STILL_WITHOUT_GRADIENT
        for kernel in kernels_of(tables.collection):
            kernel.register_forward_hook(partial(touched._looked_up, exact=exact))
        if tables.replicated is not None:
            tables.replicated.changed = touched.add
        tables.renew.reset_rows = partial(_reset, tables.renew.reset_rows, touched)
    return touched


def _reset(reset_rows: Callable[[str, Tensor], None], touched: TouchedRows, table: str, row_N: Tensor) -> None:
    reset_rows(table, row_N)
    touched.add(table, row_N)
