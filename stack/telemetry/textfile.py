"""What a job tells when it ends, as a file for node_exporter's textfile collector, which is there when the job is not.

::

    runs/textfile/demo.daily.prom     stack_daily_last_success_timestamp_seconds{run="demo"} 1.764e+09
    runs/textfile/demo.audit.prom

Nobody adds labels to what lies in a file, so each series has the run's name in it.
"""

from __future__ import annotations

from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from stack.base.files import write_bytes
from stack.telemetry.exposition import Exposed


def write_textfile(registry: CollectorRegistry, folder: Path, *, run: str, job: str) -> Path:
    """Writes `<run>.<job>.prom`, whole or not at all; returns its path. Raises `OSError`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = _path(folder, run=run, job=job)
    write_bytes(path, generate_latest(Exposed(registry, labels={"run": run})))
    return path


def last_told(folder: Path, name: str, *, run: str, job: str) -> float | None:
    """A figure without labels of its own as the file has it; None where there is no such file, or figure in it."""
    try:
        text = _path(folder, run=run, job=job).read_text()
        found = [
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name
        ]
    except (OSError, ValueError):  # a file that cannot be read tells nothing, and is written anew
        return None
    return found[0] if found else None


def _path(folder: Path, *, run: str, job: str) -> Path:
    return folder / f"{run}.{job}.prom"
