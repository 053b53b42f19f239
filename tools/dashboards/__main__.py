"""Writes Grafana's dashboards out of the panels: `python -m tools.dashboards`. They are committed; a test holds them
to the panels."""

from __future__ import annotations

import sys
from pathlib import Path

from stack.base.files import write_text
from stack.dashboard.boards import BOARDS
from stack.telemetry.console import say
from tools.dashboards.grafana import as_json

FOLDER = Path(__file__).parents[2] / "configs" / "dashboards" / "grafana"


def main() -> int:
    """One file for each board; files of boards that are no more are removed."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for board in BOARDS:
        write_text(FOLDER / f"{board.name}.json", as_json(board))
    for path in FOLDER.glob("*.json"):
        if path.stem not in {board.name for board in BOARDS}:
            path.unlink()
    say(f"{len(BOARDS)} dashboards are in {FOLDER}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
