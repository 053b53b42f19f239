"""Runs an iterator in a thread, a bounded number of items ahead."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class _Failure:
    error: BaseException


class _End:
    """No more items."""


def prefetched(items: Iterable[Item], *, depth: int) -> Iterator[Item]:
    """The items in order; at most `depth` are made ahead of the reader.

    What the iterator raises is raised here, after the items before it. Closing the generator (or leaving the loop and
    dropping it) stops the thread and waits for it.
    """
    made: queue.Queue[Item | _Failure | _End] = queue.Queue(maxsize=depth)
    stop = threading.Event()
    thread = threading.Thread(target=_fill, args=(items, made, stop), name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item = made.get()
            if isinstance(item, _End):
                return
            if isinstance(item, _Failure):
                raise item.error
            yield item
    finally:
        stop.set()
        while thread.is_alive():  # a put that waits for room ends once there is room
            while not made.empty():
                made.get_nowait()
            thread.join(timeout=0.01)


def _fill(items: Iterable[Item], made: queue.Queue[Item | _Failure | _End], stop: threading.Event) -> None:
    try:
        for item in items:
            if stop.is_set():
                return
            made.put(item)
        made.put(_End())
    except BaseException as error:  # carried to the reader's thread, whatever it is
        made.put(_Failure(error))
