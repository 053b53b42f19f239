"""The example as the samples of a real Prometheus: written as OpenMetrics with times, and made blocks by promtool."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import yaml

from stack.base.errors import UserError
from tools.dashboards.example import DAY, Process, processes
from tools.monitor.asked import Asked
from tools.monitor.programs import prometheus, require_programs

_RULE = {
    "alert": "TableNearlyFull",
    "expr": 'sum by (run, table) (stack_train_table_held_rows) / max by (run, table) (stack_train_table_rows) > 0.9',
    "labels": {"severity": "warning"},
    "annotations": {
        "summary": "Table {{ $labels.table }} of run {{ $labels.run }} is {{ $value | humanizePercentage }} full."
    },
}  # fmt: skip
"""So that something fires; the alerts that are meant for use are in configs/prometheus."""
_NUM_FIRING = 2
_BLOCK = "240h"
"""Else promtool reads the file once for every two hours."""


@contextmanager
def running_example(folder: Path, *, until: float, fine_seconds: float, nights: int) -> Iterator[str]:
    """The address (http://...) of a Prometheus that has the example up to a moment, which may be in the future (who
    asks for now gets what is there by now), and an alert that fires for each run that trains.

    Raises: `UserError` where Debian's Prometheus is not installed.
    """
    require_programs()
    samples = folder / "samples"
    samples.mkdir(parents=True)
    _fill(samples, open_metrics(until, fine_seconds=fine_seconds, nights=nights), folder=folder)
    (folder / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "example", "rules": [_RULE]}]}))
    config = {"global": {"evaluation_interval": "1s"}, "rule_files": ["rules.yml"]}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with prometheus(folder / "prometheus.yml", retention="30d") as address:
        while len(Asked(address).alerts()) < _NUM_FIRING:
            time.sleep(0.1)
        yield f"http://{address}"


def _fill(samples: Path, text: str, *, folder: Path) -> None:
    told = folder / "example.openmetrics"
    told.write_text(text)
    command = ["promtool", "tsdb", "create-blocks-from", "openmetrics", "--quiet", f"--max-block-duration={_BLOCK}"]
    made = subprocess.run([*command, str(told), str(samples)], capture_output=True, text=True, check=False)
    if made.returncode:
        raise UserError(f"promtool refused the example: {' '.join(made.stderr.split())}")


def open_metrics(until: float, *, fine_seconds: float, nights: int) -> str:
    """All samples: processes over the last `fine_seconds`, nights over as many days."""
    families: dict[str, tuple[str, dict[str, list[str]]]] = {}
    for process in processes(until - fine_seconds, until):
        begin = until - (fine_seconds if process.every_seconds < 60 else nights * DAY)
        _gather(process, begin, until, families)
    lines: list[str] = []
    for name, (kind, series) in families.items():
        lines.append(f"# TYPE {name} {kind}")
        for samples in series.values():
            lines += samples
    return "\n".join([*lines, "# EOF\n"])


def _gather(process: Process, begin: float, end: float, families: dict[str, tuple[str, dict[str, list[str]]]]) -> None:
    num_samples = round((end - begin) / process.every_seconds)
    for number in range(num_samples + 1):
        moment = begin + number * process.every_seconds
        process.advance(moment, process.every_seconds)
        for family in process.registry.collect():
            _, series = families.setdefault(family.name, (family.type, {}))
            for sample in family.samples:
                if not sample.name.endswith("_created"):
                    key = f"{sample.name}{_braces({**process.labels, **sample.labels})}"
                    series.setdefault(key, []).append(f"{key} {sample.value} {moment:.3f}")


def _braces(labels: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}"
