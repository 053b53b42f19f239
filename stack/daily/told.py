"""What `stack daily` tells Prometheus when it ends, in whatever way but by SIGKILL: `<run>.daily.prom`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from prometheus_client import CollectorRegistry

from stack.audits.findings import Level
from stack.daily.day import Night
from stack.daily.records import Line
from stack.telemetry.metrics import DailyMetrics
from stack.telemetry.textfile import last_told, write_textfile
from stack.train.meter import end_of_day
from stack.train.run_folder import CONFIG
from stack.train.verb import STOPPED_STATUS

_JOB = "daily"
_SUCCEEDED = "stack_daily_last_success_timestamp_seconds"


@contextmanager
def told_at_end(night: Night, lines: Sequence[Line]) -> Iterator[None]:
    """Around all that a call does, on process 0. `lines`: of its days, as they are told on the way.

    A stop that was asked for is no failure, and no success. Where there is no run nothing is told: its name may have
    been mistyped.
    """
    failed = succeeded = False
    try:
        yield
        succeeded = True
    except SystemExit as end:
        failed = end.code != STOPPED_STATUS
        raise
    except BaseException:
        failed = True
        raise
    finally:
        if night.setup.telemetry.enabled and (night.setup.run.folder / CONFIG).is_file():
            with night.telemetry.mishaps.survived("textfile"):
                _tell(night, lines, failed=failed, succeeded=succeeded)


def _tell(night: Night, lines: Sequence[Line], *, failed: bool, succeeded: bool) -> None:
    """Raises `OSError`."""
    run = night.setup.run
    folder = night.setup.telemetry.textfile_folder(run.dir)
    registry = CollectorRegistry()
    metrics = DailyMetrics(registry)
    now = time.time()
    metrics.ended.set(now)
    metrics.succeeded.set(now if succeeded else last_told(folder, _SUCCEEDED, run=run.name, job=_JOB) or 0.0)
    metrics.failed.set(failed)
    for phase, seconds in night.all_seconds().items():
        metrics.seconds.labels(phase).set(seconds)
    levels = Counter(finding.level for line in lines for finding in line.findings)
    for level in Level:
        metrics.findings.labels(level.value).set(levels[level])
    newest = night.chain.newest_readable()
    if newest is not None:
        metrics.version.set(newest.version)
        metrics.data_seconds.set(end_of_day(max(newest.context.data_days)))
    write_textfile(registry, folder, run=run.name, job=_JOB)
