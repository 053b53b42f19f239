"""What telemetry cannot do: counted, said once, and survived. A full disk or a taken port stops no training."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter

from stack.telemetry.console import say
from stack.telemetry.metrics import TrainMetrics


class Mishaps:
    """Counts by part of telemetry; of each part the first one is said, by whichever process it befalls."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._told: set[str] = set()

    @contextmanager
    def survived(self, part: str) -> Iterator[None]:
        """Ends the block where it raises `OSError`, and goes on after it."""
        try:
            yield
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            self.tell(part, f"{error.strerror or error}{where}: going on without")

    def tell(self, part: str, what: str) -> None:
        """One more, and a line where it is the part's first."""
        self._counter.labels(part).inc()
        if part not in self._told:
            self._told.add(part)
            say(f"telemetry, {part}: {what}", file=sys.stderr, everywhere=True)


def uncounted() -> Mishaps:
    """Where nobody scrapes what is counted."""
    return Mishaps(TrainMetrics(CollectorRegistry()).errors)
