"""The part of one table that this process holds, as plain tensors: what a checkpoint reads and writes.

Imports neither TorchRec nor the checkpoint, so that both sides can name the same thing.
Shape legend: N rows held here, D columns held here (all, but for column-wise and grid sharding).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


@dataclass(frozen=True, kw_only=True)
class TableShard:
    """Rows `first_row ... first_row + N - 1`, columns `first_column ... first_column + D - 1` of the table `name`,
    which has `num_rows` rows of width `dim` over all processes.

    The tensors are views of the memory being trained: saving reads them, loading copies into them.
    `state` holds the optimizer's state by name, one line for each row: (N,) where there is a number for each row of
    the block (row-wise Adagrad), (N, D) where there is one for each weight (Adagrad).
    `written` is false where another process writes the same rows: of a replicated table, all but the first.
    """

    name: str
    num_rows: int
    dim: int
    first_row: int
    weight_ND: Tensor
    state: dict[str, Tensor]
    first_column: int = 0
    written: bool = True

    @property
    def num_columns(self) -> int:
        return int(self.weight_ND.shape[1])


def dtype_name(dtype: torch.dtype) -> str:
    """As `tables.row_type` says it."""
    return _NAMES[dtype]
