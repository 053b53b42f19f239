"""`stack daily`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import UTC, datetime

import torch
import torch.distributed as dist

from stack.audits.data_config import DataAuditConfig
from stack.audits.findings import Finding, Level
from stack.base.dist import World, own_device, process_group
from stack.base.errors import ConfigError
from stack.base.memory import keep_freed_memory
from stack.base.seed import seed_everything
from stack.checkpoint.chain import Chain, chain_of
from stack.checkpoint.manifest import VersionManifest
from stack.daily.config import DailyConfig
from stack.daily.day import Checked, Night, check_day, learn_day, left_out
from stack.daily.gate import QuarantinedError
from stack.daily.inputs import NOT_OF_DAYS
from stack.daily.prepare import days_asked, prepare, refuse_future
from stack.daily.ranks import told_by_first
from stack.daily.records import DayLog, Line, Quarantine, put_once, quarantine_name, quarantines
from stack.daily.resolve import Resolved, finished, since_base
from stack.daily.table import table_of
from stack.daily.told import told_at_end
from stack.data.canonical import DataConfig
from stack.data.ingest_config import IngestConfig
from stack.telemetry.console import say, show
from stack.train.build import Setup
from stack.train.run_folder import check_start, composed_of_run, write_facts
from stack.train.telemetry import Telemetry
from stack.train.verb import STOPPED_STATUS, own_share_of_cores

QUARANTINED_STATUS = 3


def daily(
    setup: Setup,
    *,
    data: DataConfig,
    ingest: IngestConfig,
    config: DailyConfig,
    timelines_per_batch: int,
    today: str,
    audit_data: DataAuditConfig | None = None,
) -> None:
    """Learns the days asked for, each as a version on top of the one before.

    Raises `SystemExit`: 3 where a day is quarantined, 143 where SIGTERM or Ctrl-C ended it early.
    """
    keep_freed_memory()
    device = own_device()
    timeout = setup.train.collective_timeout_seconds
    with process_group(device=device, collective_timeout_seconds=timeout) as world:
        if config.export and world.size > 1:
            raise ConfigError("daily.export=true needs one process: leave it out, and run `stack export` afterwards")
        torch.set_num_threads(setup.train.num_threads or own_share_of_cores(world))
        seed_everything(setup.run.seed)
        chain = chain_of(setup.chain_place)
        telemetry = Telemetry(setup.telemetry)
        night = Night(
            setup=setup, chain=chain, config=config, device=device, timelines_per_batch=timelines_per_batch,
            telemetry=telemetry, data=audit_data or DataAuditConfig(),
        )  # fmt: skip
        lines: list[Line] = []

        def begin() -> tuple[str, ...]:
            base = finished(chain)
            check_start(setup.run.folder, chain=chain, composed=setup.composed, resume=True, free=NOT_OF_DAYS)
            days = days_asked(config, last_learnt=max(base.context.data_days))
            refuse_future(days, today=today, config=config)
            chain_of(setup.chain_place, for_writing=True)  # refuses what cannot keep a chain before any work is done
            night.seconds["ingest"] = prepare(days, data=data, options=ingest, config=config)
            _write_facts(night, world, base)
            return days

        with told_at_end(night, lines) if world.first else nullcontext():
            days = told_by_first(begin, tuple[str, ...])
            with telemetry.shown(setup.run, world):
                _Days(night, lines).learn(days)
    say(f"daily: {days[-1]} is learnt, in {chain.store.url}")


class _Days:
    """The days of a call, one after the other; `lines` grow on the way."""

    def __init__(self, night: Night, lines: list[Line]) -> None:
        self._night = night
        self._lines = lines
        self._first = dist.get_rank() == 0
        self._log = DayLog(night.setup.run.folder) if self._first else None

    def learn(self, days: Sequence[str]) -> None:
        try:
            verify = True
            for day in days:
                verify = not self._learn(day, verify=verify) and verify
                self._night.next_day()
        finally:
            if self._lines:
                show(table_of(self._lines))

    def _learn(self, day: str, *, verify: bool) -> bool:
        """Whether the day was learnt now: the version that it left needs no reading through."""
        night = self._night
        if told_by_first(lambda: left_out(night, day), bool):
            say(f"{day} has nothing to learn: left out")
            return False
        checked = told_by_first(lambda: check_day(night, day), Checked)
        resolved = checked.resolved
        if resolved.done is not None:
            self._same(resolved, resolved.done)
            return False
        if resolved.note:
            say(resolved.note)
        _tell_findings(day, checked)
        try:
            ended = learn_day(night, checked, verify=verify)
        except QuarantinedError as error:
            self._quarantine(resolved, error)
            raise SystemExit(QUARANTINED_STATUS) from error
        if not ended:
            say(f"stopped as asked, and saved: the same command goes on with {day}")
            raise SystemExit(STOPPED_STATUS)
        if self._first:
            version = finished(night.chain)
            line = _line(night.chain, version, resolved, seconds=night.seconds, findings=checked.findings)
            self._tell(line)
        return True

    def _same(self, resolved: Resolved, number: int) -> None:
        say(f"{resolved.day} is version {number} already, made from the same inputs")
        if self._log is not None and not self._log.has(number):  # killed between the commit and the line
            chain = self._night.chain
            self._tell(_line(chain, chain.manifest(number), resolved, seconds={}))

    def _quarantine(self, resolved: Resolved, error: QuarantinedError) -> None:
        if not self._first:
            return
        chain, inputs = self._night.chain, resolved.lineage.inputs
        number = len(quarantines(chain.store, resolved.day, inputs)) + 1
        name = quarantine_name(resolved.day, inputs, number=number)
        base = chain.manifest(resolved.base)
        record = Quarantine(
            day=resolved.day,
            inputs=inputs,
            base=base.link,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            findings=error.findings,
        )
        put_once(chain.store, name, record)
        for finding in error.findings:
            say(f"stack: {resolved.day} is quarantined: {finding.line}", file=sys.stderr)
        told = f"stack: no version was committed; {chain.store.url}/{name} keeps the reasons"
        say(f"{told}; daily.allow=[quarantined] learns the day all the same, on record", file=sys.stderr)
        self._tell(
            Line(
                day=resolved.day, outcome="quarantined", version=None, base=resolved.base, inputs=inputs,
                step=base.step, steps=0, rows=0, bytes=0, seconds=dict(self._night.seconds), metrics={},
                findings=error.findings,
            )
        )  # fmt: skip

    def _tell(self, line: Line) -> None:
        assert self._log is not None
        self._log.append(line)
        self._lines.append(line)


def _tell_findings(day: str, checked: Checked) -> None:
    """Those that do not stop the day."""
    for finding in checked.findings:
        if finding.level is Level.warning:
            say(f"warning: {day}: {finding.line}")
        elif finding.name in checked.overridden:
            say(f"overridden: {day}: {finding.line}")


def _line(
    chain: Chain,
    version: VersionManifest,
    resolved: Resolved,
    *,
    seconds: dict[str, float],
    findings: tuple[Finding, ...] = (),
) -> Line:
    written = since_base(chain, version)
    return Line(
        day=resolved.day,
        outcome="trained",
        version=version.version,
        base=resolved.base,
        inputs=version.lineage.inputs,
        step=version.step,
        steps=version.step - chain.manifest(resolved.base).step,
        rows=sum(entry.num_written for one in written for entry in one.tables.values()),
        bytes=sum(one.num_bytes for one in written),
        seconds={phase: round(value, 3) for phase, value in seconds.items()},
        metrics=version.metrics,
        findings=findings,
    )


def _write_facts(night: Night, world: World, base: VersionManifest) -> None:
    setup = night.setup
    write_facts(
        setup.run.folder,
        composed=composed_of_run(setup.run.folder, now=setup.composed, free=NOT_OF_DAYS),
        seed=setup.run.seed,
        world_size=world.size,
        device=night.device,
        first_step=base.step,
    )
