"""Distinct ids mapped to rows in a second, by each kind of map, against a bare modulo of the same keys.

Managed tables are full before the clock starts, and ids come from a space ten times as large, so training evicts.
A timing is the processor time, on one thread, of `_STEPS` steps (TorchRec's module admits and evicts once in them),
each with the distinct keys of a batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stack.base.seed import derive
from stack.ids.config import IdMode, IdSpec, Implementation, ManagedConfig, Policy
from stack.ids.hashing import HashVariant, hash64
from stack.ids.maps import IdMaps
from tools.bench.harness import Figure, interleaved
from tools.bench.stream import full_of

_STEPS = 10
_IDS_PER_STEP = 100_000
_SPACE_PER_ROW = 10
_SKEWS = {"uniform": 1.0, "skewed": 4.0}
"""An id's number is space x u^skew with u uniform: at 4, a hundredth of the ids have a third of the sightings."""
_NAME = "item"
_MANAGED = (Implementation.bounded, Implementation.torchrec)


def measure(*, num_rounds: int, rows: Sequence[int]) -> list[Figure]:
    """Millions of distinct ids a second, for each number of rows, stream and map."""
    torch.set_num_threads(1)
    figures: list[Figure] = []
    for num_rows in rows:
        for stream in _SKEWS:
            found = interleaved(_variants(num_rows, stream), num_rounds=num_rounds)
            figures += [
                Figure(name=f"{num_rows:,} rows, {stream}: {name}", unit="M ids/s", values=values)
                for name, values in found.items()
            ]
    return figures


def _variants(num_rows: int, stream: str) -> dict[str, Callable[[], float]]:
    space = num_rows * _SPACE_PER_ROW
    plain = {
        "bare modulo": lambda key: key.remainder(num_rows),
        "direct": _map(IdMode.direct, num_rows),
        "hashed, modulo": _map(IdMode.hashed, num_rows),
        "hashed, double": _map(IdMode.hashed, num_rows, variant=HashVariant.double),
    }
    made = {name: _timed(rows_of, stream, space) for name, rows_of in plain.items()}
    for implementation in _MANAGED:
        maps = _full(num_rows, implementation)
        made[f"{implementation.value}, training"] = _timed(_training(maps), stream, space)
        made[f"{implementation.value}, evaluation"] = _timed(_evaluation(maps), stream, space)
    return made


def _map(mode: IdMode, num_rows: int, *, variant: HashVariant = HashVariant.modulo) -> Callable[[Tensor], Tensor]:
    maps = IdMaps([IdSpec(name=_NAME, mode=mode, num_rows=num_rows, hash=variant, managed=ManagedConfig())])
    return lambda key: maps(_NAME, key)


def _full(num_rows: int, implementation: Implementation) -> IdMaps:
    """A managed map whose rows are all taken, by the first ids of the space."""
    managed = ManagedConfig(
        implementation=implementation, policy=Policy.lru, admit_after=2, interval_steps=_STEPS, waiting_per_row=1.0
    )
    spec = IdSpec(name=_NAME, mode=IdMode.managed, num_rows=num_rows, hash=HashVariant.modulo, managed=managed)
    maps = IdMaps([spec])
    maps.load({_NAME: full_of(hash64(torch.arange(1, num_rows)))})
    return maps


def _training(maps: IdMaps) -> Callable[[Tensor], Tensor]:
    def rows(key: Tensor) -> Tensor:
        found: Tensor = maps.train()(_NAME, key)
        maps.drain_resets()
        return found

    return rows


def _evaluation(maps: IdMaps) -> Callable[[Tensor], Tensor]:
    return lambda key: maps.eval()(_NAME, key)


def _timed(rows_of: Callable[[Tensor], Tensor], stream: str, space: int) -> Callable[[], float]:
    """Every call draws new batches before its clock starts."""
    number = iter(range(1_000_000))

    def run() -> float:
        generator = torch.Generator().manual_seed(derive(0, stream, space, next(number)))
        batches = [_keys(generator, space, _SKEWS[stream]) for _ in range(_STEPS)]
        started = time.process_time()
        for key in batches:
            rows_of(key)
        seconds = time.process_time() - started
        return sum(len(key) for key in batches) / seconds / 1e6

    return run


def _keys(generator: torch.Generator, space: int, skew: float) -> Tensor:
    share = torch.rand(_IDS_PER_STEP, generator=generator, dtype=torch.float64).pow_(skew)
    return torch.unique(hash64((share * space).long() + 1))
