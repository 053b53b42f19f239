"""What process 0 does for all while the others wait, however long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from typing import TypeVar

import msgspec
import torch.distributed as dist
from torch.distributed import Store  # type: ignore[attr-defined]  # not in the stubs' __all__
from torch.distributed.distributed_c10d import _get_default_store

from stack.base.errors import ConfigError, UserError

T = TypeVar("T")

_POLL_SECONDS = 0.05
_HEARD_SECONDS = 10.0
_numbers = count()

_TOLD, _REFUSED = "told ", "refused "


def told_by_first(action: Callable[[], T], kind: type[T]) -> T:
    """What `action` gives on process 0, on every process; `kind` is what JSON can say of it.

    The others ask the store and are in no collective, so that none runs out of time while a day is ingested. Called by
    all together. What `action` refuses on process 0 is refused everywhere.
    """
    if dist.get_world_size() == 1:
        return action()
    store, name = _get_default_store(), f"daily/{next(_numbers)}"
    if dist.get_rank() > 0:
        while not store.check([name]):
            time.sleep(_POLL_SECONDS)
        answer = store.get(name).decode()
        store.add(f"{name}/heard", 1)
        if answer.startswith(_REFUSED):
            raise ConfigError(answer.removeprefix(_REFUSED))  # which only process 0 says aloud
        return msgspec.json.decode(answer.removeprefix(_TOLD), type=kind)
    try:
        value = action()
    except BaseException as error:
        why = str(error) if isinstance(error, UserError) else f"process 0 failed: {error!r}"
        store.set(name, _REFUSED + why)
        _until_heard(store, name)
        raise
    store.set(name, _TOLD + msgspec.json.encode(value).decode())
    return value


def _until_heard(store: Store, name: str) -> None:
    """Process 0 may keep the store: it must not end before the others have heard why."""
    deadline = time.monotonic() + _HEARD_SECONDS
    while store.add(f"{name}/heard", 0) < dist.get_world_size() - 1 and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
