"""What jobs leave for node_exporter: whole files, in which every series has the run."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Gauge, Histogram

from stack.telemetry.textfile import last_told, write_textfile


def test_every_series_has_the_run_and_the_help_of_its_metric(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    Gauge("stack_daily_findings", "By level.", ("level",), registry=registry).labels("critical").set(2)
    Histogram("stack_thing_seconds", "Of a thing.", buckets=(1,), registry=registry).observe(0.5)
    path = write_textfile(registry, tmp_path / "textfile", run="demo", job="daily")
    assert path == tmp_path / "textfile" / "demo.daily.prom"
    assert path.read_text().splitlines() == [
        "# HELP stack_daily_findings By level.",
        "# TYPE stack_daily_findings gauge",
        'stack_daily_findings{level="critical",run="demo"} 2.0',
        "# HELP stack_thing_seconds Of a thing.",
        "# TYPE stack_thing_seconds histogram",
        'stack_thing_seconds_bucket{le="1.0",run="demo"} 1.0',
        'stack_thing_seconds_bucket{le="+Inf",run="demo"} 1.0',
        'stack_thing_seconds_count{run="demo"} 1.0',
        'stack_thing_seconds_sum{run="demo"} 0.5',
    ]
    assert [one.name for one in path.parent.iterdir()] == ["demo.daily.prom"]


@pytest.mark.parametrize("text", [None, "", 'other{run="demo"} 1.0\n', "no } metrics {\n", "\0"])
def test_what_was_told_last_is_read_and_is_nothing_where_it_cannot_be(tmp_path: Path, text: str | None) -> None:
    registry = CollectorRegistry()
    Gauge("stack_seconds", "When.", registry=registry).set(1_764_000_000.25)
    write_textfile(registry, tmp_path, run="demo", job="daily")
    assert last_told(tmp_path, "stack_seconds", run="demo", job="daily") == 1_764_000_000.25
    path = tmp_path / "demo.daily.prom"
    path.unlink() if text is None else path.write_text(text)
    assert last_told(tmp_path, "stack_seconds", run="demo", job="daily") is None
