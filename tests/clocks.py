"""Time in tests: a clock that stands, and a wait that ends."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_SECONDS = 60.0


class Clock:
    """Seconds that pass only when told."""

    def __init__(self, now: float = 100.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def wait_for(
    condition: Callable[[], bool], otherwise: str = "it did not come to pass", *, seconds: float = PATIENCE_SECONDS
) -> None:
    """Returns as soon as it holds; fails, saying `otherwise`, where it does not after so long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)
