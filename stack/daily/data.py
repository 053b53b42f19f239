"""What a day's data holds, before any of it is learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from stack.audits.data_config import DataAuditConfig
from stack.audits.data_drift import data_report
from stack.audits.data_findings import findings
from stack.audits.findings import Finding
from stack.base.files import make_folder, write_bytes
from stack.daily.config import DailyConfig
from stack.daily.gate import num_examples, volume
from stack.data.dataset import Dataset

AUDIT, DAYS = "audit", "days"
"""`audit/days/<day>.json` in a run's folder: `stack.audits.data_report.DataReport`. It may be deleted."""


def data_findings(
    dataset: Dataset,
    day: str,
    *,
    learnt: Sequence[str],
    groups: Sequence[str],
    config: DailyConfig,
    data: DataAuditConfig,
    folder: Path,
) -> list[Finding]:
    """Of a day against the days that the version before has learnt: one that was refused is no example of a good day.

    Raises: `DataError` where the day cannot be read.
    """
    found = list(volume(dataset, day, groups=groups, config=config, holiday=data.is_holiday(day)))
    if not num_examples(dataset, day, groups=groups):
        return found
    data = replace(data, critical_volume=max(data.critical_volume, config.max_volume_ratio))
    audit = folder / AUDIT
    report = data_report(dataset, day, config=data, folder=audit, learnt=learnt)
    make_folder(audit / DAYS, option="the run folder run.dir/run.name")
    write_bytes(audit / DAYS / f"{day}.json", msgspec.json.format(msgspec.json.encode(report), indent=1))
    return [*found, *findings(report, data)]
