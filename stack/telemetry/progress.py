"""Progress of long work: a bar on a terminal, elsewhere a line about every ten seconds. Both go to stderr, on rank 0.

for day in progress(days, description="ingest", unit="days"): ...

with Progress(total=num_bytes, description="read", unit="B") as bar:
    bar.advance(1024)
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from types import TracebackType
from typing import Self, TextIO, TypeVar

from tqdm import tqdm

from stack.base.dist import world

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 10.0


def progress(
    iterable: Iterable[T], *, total: int | None = None, description: str = "", unit: str = "steps"
) -> Iterator[T]:
    """Yields the elements and shows how many are done; `total` is found where the iterable has a length."""
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    with Progress(total=total, description=description, unit=unit) as bar:
        for element in iterable:
            yield element
            bar.advance(1)


class Progress:
    """Counts done work. `total` is None where it is not known; `note` is a short text beside the figures."""

    def __init__(
        self,
        *,
        total: int | None = None,
        description: str = "",
        unit: str = "steps",
        file: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = total
        self._description = description
        self._unit = unit
        self._file = sys.stderr if file is None else file
        self._clock = clock
        self._start = self._said = clock()
        self._done = self._said_done = 0
        self._note = ""
        self._speaks = world().first
        self._bar: tqdm[None] | None = None
        if self._speaks and self._file.isatty():
            self._bar = tqdm(total=total, desc=description, unit=unit, file=self._file, unit_scale=True)

    def advance(self, amount: int = 1, *, note: str | None = None) -> None:
        """Adds finished work; `note` replaces the text beside the figures."""
        self._done += amount
        if note is not None:
            self._note = note
        if self._bar is not None:
            if note is not None:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(amount)
        elif self._speaks and self._clock() - self._said >= SECONDS_BETWEEN_LINES:
            self._line()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._speaks and self._said > self._start and self._done > self._said_done:
            # a last line only where there has been one, and more was done since
            self._line()

    def _line(self) -> None:
        self._said, self._said_done = self._clock(), self._done
        seconds = self._said - self._start
        done = (
            f"{self._done:,}"
            if self._total is None
            else f"{self._done:,}/{self._total:,} ({self._done / max(self._total, 1):.0%})"
        )
        rate = self._done / seconds if seconds > 0 else 0.0
        left = ""
        if self._total is not None and rate > 0:
            left = f", {max(self._total - self._done, 0) / rate:,.0f} s left"
        note = f", {self._note}" if self._note else ""
        self._file.write(
            f"{self._description}: {done} {self._unit}, {seconds:,.0f} s, {rate:,.1f} {self._unit}/s{left}{note}\n"
        )
        self._file.flush()
