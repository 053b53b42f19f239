"""Lines and tables go to stdout, and only rank 0 speaks."""

from __future__ import annotations

import pytest
from rich.table import Table

from stack.telemetry.console import say, show


def _table() -> Table:
    table = Table()
    table.add_column("metric")
    table.add_column("value")
    table.add_row("GAUC" * 20, "[0.71, 0.73]")
    return table


def test_a_line_is_written_with_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    say("wrote runs/demo/report.json")
    assert capsys.readouterr() == ("wrote runs/demo/report.json\n", "")


def test_a_table_off_the_terminal_is_plain_and_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    show(_table())
    shown = capsys.readouterr().out
    assert "GAUC" * 20 in shown
    assert "\x1b" not in shown


def test_other_ranks_are_silent(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    say("hello")
    show(_table())
    assert capsys.readouterr() == ("", "")
