"""What a call did, a row for each day."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from stack.daily.records import Line

PHASES = ("ingest", "restore", "evaluate", "train")


def table_of(lines: Sequence[Line]) -> Table:
    """`AUC` and `GAUC` are those of the version before on the day, which it had not learnt."""
    judged = next((name for line in lines if (name := _judged(line.metrics))), "")
    title = f"daily; AUC and GAUC: {judged} of the version before" if judged else "daily"
    table = Table(title=title)
    table.add_column("day")
    for name in ("version", "steps", *(f"{phase} s" for phase in PHASES), "AUC", "GAUC", "rows", "MB"):
        table.add_column(name, justify="right")
    for line in lines:
        figures = [line.metrics.get(f"before/{judged}/{metric}") for metric in ("auc", "gauc")]
        table.add_row(
            line.day,
            line.outcome if line.version is None else str(line.version),
            f"{line.steps:,}",
            *(f"{line.seconds[phase]:,.1f}" if phase in line.seconds else "-" for phase in PHASES),
            *("-" if value is None else f"{value:.4f}" for value in figures),
            f"{line.rows:,}",
            f"{line.bytes / 1e6:,.1f}",
        )
    return table


def _judged(metrics: Mapping[str, float | None]) -> str:
    """The task and set whose AUC is shown: the first that has one, click-through before others."""
    names = [name.split("/") for name in metrics if name.startswith("before/") and name.endswith("/auc")]
    names.sort(key=lambda parts: parts[1] != "ctr")
    return "/".join(names[0][1:3]) if names else ""
