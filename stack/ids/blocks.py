"""Which process manages which rows and keys, and the way of keys to their managers and of rows back.

A table's rows are in blocks, one for each process, as row-wise sharding has them (a table held whole by one process is
one block and empty others). A process manages the rows of its own block alone. Ten rows over three processes::

    block 0: rows 0 1 2 3    block 1: rows 4 5 6 7    block 2: rows 8 9        bounds (0, 4, 8, 10)
    usable:       1 2 3                  4 5 6 7               8 9             row 0 is that of unknown keys

A key belongs to the block that holds row 1 + hash(key) mod (rows - 1), so keys spread as usable rows do.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from stack.ids.hashing import SALT_OWNER, hash63


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """`bounds[r]` is the first row of rank r's block, `bounds[-1]` the number of rows; `rank` is this process."""

    bounds: tuple[int, ...]
    rank: int = 0

    def __post_init__(self) -> None:
        assert self.bounds[0] == 0, f"bounds {self.bounds}"
        assert list(self.bounds) == sorted(self.bounds), f"bounds {self.bounds}"
        assert 0 <= self.rank < self.num_blocks, f"rank {self.rank} of {self.num_blocks} blocks"

    @property
    def num_blocks(self) -> int:
        return len(self.bounds) - 1

    @property
    def num_rows(self) -> int:
        return self.bounds[-1]

    @property
    def first_usable(self) -> int:
        """The first row of this process's block that a key can get."""
        return max(self.bounds[self.rank], 1)

    @property
    def capacity(self) -> int:
        """How many keys this process can give a row."""
        return max(self.bounds[self.rank + 1] - self.first_usable, 0)

    def owner(self, key_N: Tensor) -> Tensor:
        """The rank that manages each key (int64)."""
        if self.num_blocks == 1:
            return torch.zeros_like(key_N)
        place_N = hash63(key_N, salt=SALT_OWNER) % (self.num_rows - 1) + 1
        return torch.bucketize(place_N, torch.tensor(self.bounds[1:-1], device=key_N.device), right=True)


def even_blocks(num_rows: int, *, num_blocks: int = 1, rank: int = 0) -> Blocks:
    """Blocks as TorchRec's row-wise sharding cuts them: all of ceil(rows / processes) rows, the last ones smaller."""
    size = -(-num_rows // num_blocks)
    return Blocks(bounds=tuple(min(number * size, num_rows) for number in range(num_blocks + 1)), rank=rank)


class Exchange:
    """Keys of this process on their way to the ranks that own them; built, and answered, by all ranks together."""

    def __init__(self, key_N: Tensor, owner_N: Tensor) -> None:
        num_ranks = dist.get_world_size()
        self._order_N = torch.argsort(owner_N, stable=True)
        self._sent = torch.bincount(owner_N, minlength=num_ranks)
        received = torch.empty_like(self._sent)
        dist.all_to_all_single(received, self._sent)
        self._received = received
        self.key_M = self._swap(key_N[self._order_N], self._sent, received)
        """What this rank owns of all ranks' keys; one that several ranks have comes several times."""

    def answer(self, row_M: Tensor) -> Tensor:
        """(N,) rows of this rank's own keys, from every owner's rows of `key_M`."""
        sorted_N = self._swap(row_M, self._received, self._sent)
        row_N = torch.empty_like(sorted_N)
        row_N[self._order_N] = sorted_N
        return row_N

    @staticmethod
    def _swap(values: Tensor, sent: Tensor, received: Tensor) -> Tensor:
        out = values.new_empty(int(received.sum()))
        dist.all_to_all_single(out, values.contiguous(), received.tolist(), sent.tolist())
        return out
