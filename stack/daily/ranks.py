"""What process 0 does for all while the others wait, however long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from typing import TypeVar

import msgspec
import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from stack.base.errors import ConfigError, UserError

T = TypeVar("T")

_POLL_SECONDS = 0.05
_numbers = count()


class _Answer(msgspec.Struct):
    value: msgspec.Raw | None = None
    refused: str | None = None


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
        answer = msgspec.json.decode(store.get(name), type=_Answer)
        if answer.value is None:
            raise ConfigError(str(answer.refused))
        return msgspec.json.decode(answer.value, type=kind)
    try:
        value = action()
    except BaseException as error:
        why = str(error) if isinstance(error, UserError) else f"process 0 failed: {error!r}"
        store.set(name, msgspec.json.encode(_Answer(refused=why)).decode())
        raise
    store.set(name, msgspec.json.encode(_Answer(value=msgspec.Raw(msgspec.json.encode(value)))).decode())
    return value
