"""A managed map as plain arrays: what serving searches by bisection, without torch or TorchRec.

The two arrays are those of a list in a package (`stack.export.lookup.write_list`): keys ascending, and rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stack.data.schema import PADDING_ROW


@dataclass(frozen=True, kw_only=True)
class FrozenMap:
    """`key_N` ascending (int64), `row_N` (int64 or int32); both may be memory-mapped."""

    key_N: NDArray[np.int64]
    row_N: NDArray[np.integer]

    def rows(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row of each key, `PADDING_ROW` for those that have none."""
        if not len(self.key_N):
            return np.full(len(keys), PADDING_ROW, dtype=np.int64)
        place = np.minimum(np.searchsorted(self.key_N, keys), len(self.key_N) - 1)
        return np.where(self.key_N[place] == keys, self.row_N[place], PADDING_ROW).astype(np.int64)
