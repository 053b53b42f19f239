"""A polite end: SIGTERM or Ctrl-C lets the step finish and saves; Ctrl-C after that ends the process at once.

A second SIGTERM is taken for the first: torchrun passes on what a launcher may have sent to the processes as well, and
who means it sends SIGKILL.
"""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Self

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Inside its block, `asked` says whether a signal asked to stop."""

    def __init__(self) -> None:
        self.asked = False
        self._before = {number: signal.getsignal(number) for number in _SIGNALS}

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            signal.signal(number, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, self._before[signal.SIGINT])
