"""Running an iterator ahead in a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from stack.data.prefetch import prefetched


def test_items_come_in_order_and_at_most_depth_ahead() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            made.append(number)
            yield number

    for number, item in enumerate(prefetched(items(), depth=3)):
        assert item == number
        assert len(made) <= number + 1 + 3 + 1  # handed out, in the queue, and one waiting for room
    assert made == list(range(20))


def test_an_error_arrives_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("in the thread")

    ahead = prefetched(items(), depth=2)
    assert next(ahead) == 1
    with pytest.raises(KeyError, match="in the thread"):
        next(ahead)


def test_closing_stops_a_thread_that_waits_for_room() -> None:
    before = threading.active_count()
    ahead = prefetched(iter(range(1_000_000)), depth=1)
    assert next(ahead) == 0
    ahead.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
