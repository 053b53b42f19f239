"""Lines for the person at the terminal. The library has no `print`: what it says goes through here.

Results and lines go to stdout, progress and errors to stderr. Of the processes of one job only rank 0 speaks, but for
errors that the others may not share.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO

from stack.base.dist import world

if TYPE_CHECKING:
    from rich.table import Table


def say(text: str, *, file: TextIO | None = None, everywhere: bool = False) -> None:
    """Writes a line and flushes it, on rank 0, or on every rank where asked."""
    if everywhere or world().first:
        stream = sys.stdout if file is None else file
        stream.write(f"{text}\n")
        stream.flush()


def show(table: Table, *, file: TextIO | None = None) -> None:
    """Writes a rich table on rank 0; plain text, as wide as it needs, where the output is not a terminal."""
    from rich.console import Console

    if not world().first:
        return
    stream = sys.stdout if file is None else file
    width = None if stream.isatty() else 200
    Console(file=stream, width=width, highlight=False).print(table)
    stream.flush()
