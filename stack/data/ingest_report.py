"""The table that ends an ingest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from stack.data.ingest import IngestReport


def report_table(report: IngestReport) -> Table:
    """Rows in and out, what was dropped and why, examples of every group, time and size."""
    table = Table(title=f"ingest of {len(report.days)} days", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("events read", f"{report.num_source_rows:,}")
    for name, count in report.num_side_rows.items():
        table.add_row(f"  {name}", f"{count:,}")
    for reason, count in sorted(report.dropped.items()):
        table.add_row(f"  dropped: {reason}", f"{count:,}")
    table.add_row("events", f"{report.num_events:,}")
    table.add_row("timelines (user and day)", f"{report.num_timelines:,}")
    table.add_row("moments", f"{report.num_moments:,}")
    for group, count in report.num_examples.items():
        table.add_row(f"  examples: {group}", f"{count:,}")
    table.add_row("ids", ", ".join(f"{name} {size - 1:,}" for name, size in report.num_rows.items()))
    table.add_row("size", f"{report.num_bytes / 1e6:,.1f} MB")
    for name, seconds in report.seconds.items():
        table.add_row(f"  {name}", f"{seconds:,.1f} s")
    table.add_row("time", f"{sum(report.seconds.values()):,.1f} s")
    if report.outdated:
        days = f"{report.outdated[0]} to {report.outdated[-1]}"
        table.add_row("built on what these days were before", f"{days}: ingest them again")
    return table
