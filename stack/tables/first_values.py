"""The values that rows start with: by seed, table and row alone, whoever holds them.

Shape legend: N rows, W columns of a block, D width of the table.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stack.base.seed import derive

_BLOCK_ROWS = 65_536


@dataclass(frozen=True, kw_only=True)
class FirstValues:
    """Uniform in [-init_range, init_range], for `seed`."""

    seed: int
    init_range: float

    def fill(self, weight_NW: Tensor, *, table: str, dim: int, first_row: int, first_column: int = 0) -> None:
        """Fills a block of a table of width `dim` whose upper left corner is (`first_row`, `first_column`).

        Values are drawn in fixed blocks of rows, each from its own generator, so a holder draws only what it needs.
        """
        num_rows, num_columns = (int(size) for size in weight_NW.shape)
        columns = slice(first_column, first_column + num_columns)
        last_row = first_row + num_rows
        for block in range(first_row // _BLOCK_ROWS, -(-last_row // _BLOCK_ROWS)):
            generator = torch.Generator().manual_seed(derive(self.seed, "table", table, block))
            block_start = block * _BLOCK_ROWS
            num_drawn = min(last_row - block_start, _BLOCK_ROWS)
            values = torch.rand(num_drawn, dim, generator=generator).mul_(2.0).sub_(1.0).mul_(self.init_range)
            skipped = max(first_row - block_start, 0)
            target = block_start + skipped - first_row
            weight_NW[target : target + num_drawn - skipped].copy_(values[skipped:, columns])

    def again(self, rows_N: Tensor, *, table: str, first_column: int, num_columns: int) -> Tensor:
        """(N, W): new first values of rows that are given to another id, in the same range.

        A hash of seed, table, row and column, not a draw in sequence: any few rows of a billion cost what they are.
        """
        column_W = torch.arange(first_column, first_column + num_columns, device=rows_N.device)
        key = derive(self.seed, "table again", table)
        mixed_N1 = _mix(rows_N.to(torch.int64)[:, None] ^ key)
        mixed_NW = _mix(mixed_N1 + column_W)
        # the upper 24 of 64 bits, as fine as fp32 is below 1
        share_NW = _shift(mixed_NW, 40).to(torch.float32) * 2.0**-24
        return share_NW.mul_(2.0).sub_(1.0).mul_(self.init_range)


def _mix(value: Tensor) -> Tensor:
    """splitmix64's step and finaliser (Steele, Lea, Flood 2014), wrapping round at 64 bits."""
    value = value + _signed(0x9E3779B97F4A7C15)
    value = (value ^ _shift(value, 30)) * _signed(0xBF58476D1CE4E5B9)
    value = (value ^ _shift(value, 27)) * _signed(0x94D049BB133111EB)
    return value ^ _shift(value, 31)


def _shift(value: Tensor, bits: int) -> Tensor:
    """To the right, zeros from the left: torch shifts the sign in."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
