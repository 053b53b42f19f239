"""How long steps stand still for what tables exchange between processes: ids, rows, gradients.

TorchRec's functions call collectives through the module that they know as `dist`; while this is on, that is one which
also looks at the clock. So only what tables exchange is counted, not DDP's gradients nor what ranks agree on; and of an
exchange that goes on beside other work, only what is waited for. On an accelerator the clock is the device's: there,
waiting is an order to its stream, and costs the process nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torchrec.distributed import comm_ops, dist_data

from stack.ids import blocks

_COLLECTIVES = (
    "all_to_all_single", "all_to_all", "reduce_scatter_tensor", "reduce_scatter", "all_gather_into_tensor",
    "all_gather",
)  # fmt: skip
_CALLERS: tuple[Any, ...] = (comm_ops, dist_data, blocks)


class Stalls:
    """Counts while it is on; one at a time."""

    def __init__(self, device: torch.device) -> None:
        self._on_device = device.type == "cuda"
        self._seconds = 0.0
        self._marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._before: list[Any] = []

    def on(self) -> None:
        assert not self._before
        self._before = [caller.dist for caller in _CALLERS]
        for caller in _CALLERS:
            caller.dist = _Clocked(caller.dist, self)

    def off(self) -> None:
        """May be called twice."""
        for caller, before in zip(_CALLERS, self._before, strict=False):
            caller.dist = before
        self._before = []

    def take_seconds(self) -> float:
        """Of all that has ended since this was last asked."""
        while self._marks and self._marks[0][1].query():  # type: ignore[no-untyped-call]
            begin, end = self._marks.pop(0)
            self._seconds += begin.elapsed_time(end) / 1e3
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    @contextmanager
    def counted(self) -> Iterator[None]:
        """The time of the block, or of what it has the device do."""
        if self._on_device:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            yield
            end.record()
            self._marks.append((begin, end))
            return
        started = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - started


class _Clocked:
    """`torch.distributed`, with collectives whose calls and waits are counted."""

    def __init__(self, module: ModuleType, stalls: Stalls) -> None:
        self._module = module
        for name in _COLLECTIVES:
            setattr(self, name, self._clocked(getattr(module, name), stalls))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    @staticmethod
    def _clocked(collective: Callable[..., Any], stalls: Stalls) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            with stalls.counted():
                work = collective(*arguments, **named)
            return None if work is None else _Waited(work, stalls)

        return call


class _Waited:
    """A collective under way; it passes for a `Work`, since TorchRec waits for nothing else."""

    def __init__(self, work: Any, stalls: Stalls) -> None:
        self._work = work
        self._stalls = stalls

    @property  # type: ignore[misc]  # what isinstance asks
    def __class__(self) -> type:
        return dist.Work

    def wait(self, *arguments: Any) -> Any:
        with self._stalls.counted():
            return self._work.wait(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)
