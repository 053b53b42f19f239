"""The processes that write one checkpoint together, as little of them as writing needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


def _own(values: Sequence[float]) -> list[float]:
    return list(values)


def _same(data: bytes) -> bytes:
    return data


@dataclass(frozen=True, kw_only=True)
class Crew:
    """One of `world_size` processes; all call `totals` and `from_first` together and in the same order.

    `totals` gives the sums over processes; `from_first` what process 0 gave, which must be as long everywhere.
    `patience_seconds`: how long process 0 waits for what the others write.
    """

    rank: int = 0
    world_size: int = 1
    totals: Callable[[Sequence[float]], list[float]] = _own
    from_first: Callable[[bytes], bytes] = _same
    patience_seconds: float = 1800.0

    @property
    def first(self) -> bool:
        return self.rank == 0
