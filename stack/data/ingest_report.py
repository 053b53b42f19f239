"""What an ingest did, and the table that ends it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.table import Table

from stack.data.layout import DayManifest


@dataclass(kw_only=True)
class IngestReport:
    """What an ingest did: counts over all its days, seconds by phase."""

    days: list[str] = field(default_factory=list)
    num_source_rows: int = 0
    num_side_rows: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    num_events: int = 0
    num_timelines: int = 0
    num_moments: int = 0
    num_examples: Counter[str] = field(default_factory=Counter)
    num_bytes: int = 0
    num_rows: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    outdated: list[str] = field(default_factory=list)

    def add(self, manifest: DayManifest) -> None:
        """Counts one more day."""
        self.days.append(manifest.day)
        self.num_events += manifest.num_events
        self.num_moments += manifest.num_moments
        self.num_examples.update(manifest.num_examples)
        self.num_timelines += sum(bucket.num_timelines for bucket in manifest.buckets)
        self.num_bytes += sum(bucket.num_bytes for bucket in manifest.buckets)
        self.num_rows = manifest.num_rows

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time of the block to the phase."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


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
