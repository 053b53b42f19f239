"""The days of a call: that they are fit to be learnt, and prepared."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from stack.base.errors import ConfigError, DataError
from stack.daily.config import Allow, DailyConfig, IngestDays
from stack.data.canonical import DataConfig
from stack.data.dataset import Dataset
from stack.data.days import day_name, day_number
from stack.data.ingest import ingest
from stack.data.ingest_config import IngestConfig
from stack.data.ingest_report import report_table
from stack.telemetry.console import say, show


def days_asked(config: DailyConfig, *, last_learnt: str) -> tuple[str, ...]:
    """The days of the call in order; without `--from` those after `last_learnt`, and the last one at least.

    Raises: `ConfigError` where no day is given.
    """
    if config.day is not None:
        return (config.day,)
    if config.to_day is None:
        given = "stack daily" if config.from_day is None else f"stack daily --from {config.from_day}"
        raise ConfigError(f"{given} needs a day: day=YYYY-MM-DD, or --from YYYY-MM-DD --to YYYY-MM-DD")
    last = day_number(config.to_day)
    first = day_number(last_learnt) + 1 if config.from_day is None else day_number(config.from_day)
    return tuple(day_name(number) for number in range(min(first, last), last + 1))


def refuse_future(days: Sequence[str], *, today: str, config: DailyConfig) -> None:
    """Raises `DataError` where a day is after today."""
    if days[-1] > today and Allow.future not in config.allow:
        raise DataError(
            f"{days[-1]} is in the future, today is {today}: choose an earlier day, or daily.allow=[future] where the "
            "log's clock is ahead"
        )


def prepare(days: Sequence[str], *, data: DataConfig, options: IngestConfig, config: DailyConfig) -> float:
    """Ingests those of the days that come after the last prepared one, all at once; the seconds that took.

    Raises: `DataError` where a day is not prepared and must be, and what `ingest` raises.
    """
    prepared = Dataset(Path(data.out)).days()
    missing = [day for day in days if day > prepared[-1]]
    if not missing:
        return 0.0
    if config.ingest is IngestDays.never:
        raise DataError(
            f"{missing[0]} is not prepared, {data.out} ends with {prepared[-1]}: run `stack ingest` first, or "
            "leave out daily.ingest=never"
        )
    started = time.perf_counter()
    say(f"ingesting {missing[0]}" + (f" to {missing[-1]}" if len(missing) > 1 else ""))
    report = ingest(replace(data, from_day=missing[0], to_day=missing[-1]), options)
    show(report_table(report))
    return time.perf_counter() - started
