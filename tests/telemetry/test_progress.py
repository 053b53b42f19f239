"""Progress: lines every ten seconds off a terminal, a bar on one, silence from other ranks."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest

from stack.telemetry.progress import Progress, progress
from tests.clocks import Clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_comes_after_ten_seconds_with_rate_and_time_left() -> None:
    clock, file = Clock(), io.StringIO()
    with Progress(total=1000, description="ingest", unit="rows", file=file, clock=clock) as bar:
        clock.now += 9.9
        bar.advance(100)
        assert file.getvalue() == ""
        clock.now += 0.1
        bar.advance(100, note="2017-03-04")
        assert file.getvalue() == "ingest: 200/1,000 (20%) rows, 10 s, 20.0 rows/s, 40 s left, 2017-03-04\n"
        clock.now += 30
        bar.advance(800)
    lines = file.getvalue().splitlines()
    assert lines[1] == "ingest: 1,000/1,000 (100%) rows, 40 s, 25.0 rows/s, 0 s left, 2017-03-04"


def test_without_a_total_there_is_no_share_and_no_time_left() -> None:
    clock, file = Clock(), io.StringIO()
    with Progress(description="read", unit="B", file=file, clock=clock) as bar:
        clock.now += 20
        bar.advance(40)
    assert file.getvalue().splitlines()[0] == "read: 40 B, 20 s, 2.0 B/s"


def test_short_work_says_nothing_off_a_terminal() -> None:
    file = io.StringIO()
    with Progress(total=2, file=file, clock=Clock()) as bar:
        bar.advance(2)
    assert file.getvalue() == ""


def test_a_terminal_gets_a_bar() -> None:
    file = Terminal()
    with Progress(total=4, description="train", file=file) as bar:
        bar.advance(4, note="loss 0.3")
    assert "train: 100%" in file.getvalue()


def test_the_elements_pass_through_unchanged_and_are_taken_one_by_one() -> None:
    taken: list[int] = []

    def source() -> Iterator[int]:
        for number in range(3):
            taken.append(number)
            yield number

    shown = progress(source())
    assert next(shown) == 0
    assert taken == [0]
    assert list(shown) == [1, 2]


def test_other_ranks_are_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    clock, file = Clock(), io.StringIO()
    with Progress(file=file, clock=clock) as bar:
        clock.now += 60
        bar.advance()
    assert file.getvalue() == ""
