"""Who is missing where a job's processes wait for each other in vain.

A collective that fails says that a peer was silent or closed its connection, and with a ring of peers not even that the
peer is the culprit. So every process whose collective failed says so in the job's store, and whoever has not said so
after a while is the one that stalled or ended: it is somewhere else than in a collective.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from stack.base.errors import MachineError

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]  # not in the stubs' __all__

PATIENCE_SECONDS = 10.0
"""Collectives of one job fail within seconds of each other: the first failure closes connections."""

_POLL_SECONDS = 0.1


def failed_in_collective(error: RuntimeError) -> bool:
    """Whether `error` comes from torch's communication: gloo's errors have no type, but name their file."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


def missing_ranks(store: Store, *, rank: int, world_size: int, patience_seconds: float = PATIENCE_SECONDS) -> list[int]:
    """The ranks whose collective has not failed, asked by all whose has; empty where it failed for all.

    Rank 0 may keep the store, so it stays twice as long; a store that is gone means that rank 0 is.
    """
    import torch.distributed as dist

    try:
        store.set(_key(rank), "here")
        missing = _wait(store, set(range(world_size)), seconds=patience_seconds)
        if rank == 0 and missing:
            _wait(store, missing, seconds=patience_seconds)
    except dist.DistNetworkError:
        return [0]
    return sorted(missing)


def missing_error(ranks: list[int], *, world_size: int, timeout_seconds: float) -> MachineError:
    """What the ranks that are there have to say."""
    names = ", ".join(map(str, ranks))
    return MachineError(
        f"rank {names} of {world_size} is missing: it ended, or took no part for {timeout_seconds:g} s while the "
        "others waited for it; its own log says why. A restart goes on from the last checkpoint; where a rank is only "
        "slow, raise train.collective_timeout_seconds"
    )


def _wait(store: Store, absent: set[int], *, seconds: float) -> set[int]:
    """Those of `absent` that have not answered when the time is over."""
    deadline = time.monotonic() + seconds
    while True:
        absent = {rank for rank in absent if not store.check([_key(rank)])}
        if not absent or time.monotonic() > deadline:
            return absent
        time.sleep(_POLL_SECONDS)


def _key(rank: int) -> str:
    return f"roll-call/{rank}"
