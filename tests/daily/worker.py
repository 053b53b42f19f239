"""Small runs that go on by days, for tests in this process and as a program of one or several processes:

python -m tests.daily.worker <arguments of `Nights` as JSON>
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from stack.audits.data_config import DataAuditConfig
from stack.checkpoint.chain import Chain, chain_of
from stack.checkpoint.manifest import VersionManifest
from stack.daily.config import Allow, DailyConfig, IngestDays
from stack.daily.verb import daily
from stack.data.canonical import DataConfig
from stack.data.ingest_config import IngestConfig
from stack.train.verb import train
from tests.train.worker import Run, setup_of

DAYS = tuple(f"2016-07-{number}" for number in range(18, 30))
"""Those of `tests.prepared`."""


class Nights(msgspec.Struct, frozen=True, kw_only=True):
    """A run and the days that it is to learn."""

    run: Run
    first: str
    last: str
    options: dict[str, int | float] = {}
    allow: tuple[str, ...] = ()
    audit_data: dict[str, int | float] = {}
    today: str = "2030-01-01"


def first_training(run: Run, *, to_day: str = DAYS[1]) -> None:
    """Learns the days up to `to_day` as `stack train` does."""
    setup = setup_of(run)
    train(replace(setup, train=replace(setup.train, to_day=to_day)))


def learn(nights: Nights) -> None:
    """Learns the days as `stack daily` does."""
    daily(
        setup_of(nights.run),
        data=DataConfig(source="test", out=nights.run.dataset),
        ingest=IngestConfig(),
        config=DailyConfig(
            from_day=nights.first,
            to_day=nights.last,
            ingest=IngestDays.never,
            allow=[Allow[name] for name in nights.allow],
            **nights.options,
        ),
        timelines_per_batch=16,
        today=nights.today,
        audit_data=DataAuditConfig(**nights.audit_data),
    )


def learn_days(run: Run, *days: str, **options: int | float) -> None:
    """The days from the first to the last of them."""
    learn(Nights(run=run, first=days[0], last=days[-1], options=options))


def chain(run: Run) -> Chain:
    return chain_of(run.folder / "checkpoints")


def finished(run: Run) -> list[VersionManifest]:
    """The finished versions that the newest builds on, and itself, oldest first."""
    versions = chain(run)
    head = versions.head()
    assert head is not None
    return [one for one in versions.line(head) if one.complete][::-1]


def digests(versions: Sequence[VersionManifest]) -> list[dict[str, str]]:
    """Of every file of each version."""
    return [{name: entry.sha256 for name, entry in version.files.items()} for version in versions]


def log_of(run: Run) -> list[dict[str, object]]:
    """The lines of `daily.jsonl`."""
    path: Path = run.folder / "daily.jsonl"
    return [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]


if __name__ == "__main__":
    learn(msgspec.json.decode(sys.argv[1], type=Nights))
