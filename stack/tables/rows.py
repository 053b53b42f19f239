"""The rows of one table that this process holds, as plain tensors: what a checkpoint reads and writes.

Imports neither TorchRec nor the checkpoint, so that both sides can name the same thing.
Shape legend: N rows held here, D embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TableShard:
    """Rows `first_row ... first_row + N - 1` of the table `name`, which has `num_rows` rows over all processes.

    The tensors are views of the memory being trained: saving reads them, loading copies into them.
    `state` holds the optimizer's state by name, one line for each row: (N,) for row-wise Adagrad, (N, D) for Adagrad.
    """

    name: str
    num_rows: int
    first_row: int
    weight_ND: Tensor
    state: dict[str, Tensor]

    @property
    def dim(self) -> int:
        return int(self.weight_ND.shape[1])
