"""`stack ingest` from end to end in a process of its own: source rows per second and peak memory."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from stack.data.dataset import Dataset
from tools.bench import harness


def measure(overrides: Sequence[str], *, num_rounds: int) -> list[harness.Figure]:
    """`overrides` choose the log, as on the command line; every round prepares it anew, elsewhere."""
    rates, seconds, peaks = [], [], []
    for _ in range(num_rounds):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "prepared"
            command = [sys.executable, "-m", "stack", "ingest", *overrides, f"data.out={out}"]
            child = harness.run_child(command)
            num_rows = _num_source_rows(Dataset(out))
        rates.append(num_rows / child.seconds)
        seconds.append(child.seconds)
        peaks.append(harness.gib(child.peak_bytes))
    return [
        harness.Figure(name="ingest", unit="source rows/s", values=tuple(rates)),
        harness.Figure(name="ingest: wall time", unit="s", values=tuple(seconds)),
        harness.Figure(name="ingest: peak memory", unit="GiB", values=tuple(peaks)),
    ]


def _num_source_rows(dataset: Dataset) -> int:
    return sum(sum(dataset.day(day).num_source_rows.values()) for day in dataset.days())
