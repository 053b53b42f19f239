"""One day: restore the version before, judge it on the day, learn the day, check, commit."""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property

import msgspec
import torch
import torch.distributed as dist
from msgspec import structs

from stack.audits.data_config import DataAuditConfig
from stack.audits.findings import Finding, Level
from stack.base.errors import CheckpointError, NotFiniteError
from stack.checkpoint.chain import Chain
from stack.checkpoint.load import Checkpoint
from stack.checkpoint.manifest import VersionManifest
from stack.daily.config import Allow, DailyConfig
from stack.daily.data import data_findings
from stack.daily.gate import (
    NOT_FINITE,
    Gate,
    Metrics,
    QuarantinedError,
    flipped_labels,
    high_losses,
    not_finite,
    num_examples,
    refuse,
)
from stack.daily.inputs import content, inputs_of
from stack.daily.ranks import told_by_first
from stack.daily.records import Report, put_once, quarantine_name, quarantines, report_name, report_of
from stack.daily.resolve import Resolved, history, resolve
from stack.daily.score import score_day
from stack.data.dataset import Dataset
from stack.evaluate.figures import Figures
from stack.ids.config import IdMode
from stack.model import enabled_tasks, places_of
from stack.tasks import TASKS
from stack.train.build import Setup, Stretch, build_loop
from stack.train.loop import Loop
from stack.train.periodic import Save
from stack.train.resume import held, opened
from stack.train.telemetry import Telemetry

_EARLIER = "before/"
"""Begins the names of metrics that are the figures of the version before on the day."""


@dataclass(frozen=True, kw_only=True)
class Night:
    """What every day of a call has in common. `timelines_per_batch`: of a process, where it only scores."""

    setup: Setup
    chain: Chain
    config: DailyConfig
    device: torch.device
    timelines_per_batch: int
    telemetry: Telemetry
    data: DataAuditConfig = field(default_factory=DataAuditConfig)
    seconds: dict[str, float] = field(default_factory=dict)
    _seconds_before: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time of the block to a phase of the day in hand."""
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def next_day(self) -> None:
        """Phases begin anew."""
        self._seconds_before.update(self.seconds)
        self.seconds.clear()

    def all_seconds(self) -> dict[str, float]:
        """By phase, of all days so far."""
        return dict(self._seconds_before + Counter(self.seconds))

    @cached_property
    def dataset(self) -> Dataset:
        """As it is when all days are ingested."""
        return Dataset(self.setup.dataset)

    @cached_property
    def groups(self) -> list[str]:
        """The example groups of the trained tasks."""
        trained, _ = enabled_tasks(self.setup.tasks, self.dataset.schema)
        return sorted({TASKS[name].group for name in trained})


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """What process 0 found of a day before any of it is learnt. `overridden`: names of findings that stop nothing."""

    resolved: Resolved
    findings: tuple[Finding, ...] = ()
    overridden: tuple[str, ...] = ()


def left_out(night: Night, day: str) -> bool:
    """Whether the day has nothing to learn and days may be missing. For process 0."""
    return Allow.gap in night.config.allow and num_examples(night.dataset, day, groups=night.groups) == 0


def check_day(night: Night, day: str) -> Checked:
    """For process 0. Raises: `CheckpointError` where the day cannot be learnt."""
    dataset = night.dataset

    def inputs(base: VersionManifest) -> str:
        return inputs_of(
            day, replayed=replayed(dataset, day, night.config), dataset=dataset, base=content(night.chain, base),
            composed=night.setup.composed, seed=night.setup.run.seed, config=night.config,
        )  # fmt: skip

    known = inputs if day in dataset.days() else lambda base: "nothing"
    resolved = resolve(night.chain, day, inputs=known, allow=night.config.allow)
    if resolved.done is not None:
        return Checked(resolved=resolved)
    refused = quarantines(night.chain.store, day, resolved.lineage.inputs)
    if refused and Allow.quarantined not in night.config.allow:
        name = quarantine_name(day, resolved.lineage.inputs, number=len(refused))
        raise CheckpointError(
            f"{day} is quarantined with these inputs, {night.chain.store.url}/{name} says why: mend its log and ingest "
            "it again, or learn it all the same with daily.allow=[quarantined]"
        )
    found = data_findings(
        dataset, day, learnt=resolved.learnt, groups=night.groups, config=night.config, data=night.data,
        folder=night.setup.run.folder,
    )  # fmt: skip
    told = [one for record in refused for one in record.findings if not one.name.startswith(NOT_FINITE)]
    return Checked(
        resolved=_on_record(resolved, told), findings=tuple(found),
        overridden=tuple(dict.fromkeys(one.name for one in told)),
    )  # fmt: skip


def _on_record(resolved: Resolved, overridden: Sequence[Finding]) -> Resolved:
    """The day's version tells what it was refused for before."""
    lines = tuple(dict.fromkeys(one.line for one in overridden))
    lineage = structs.replace(resolved.lineage, overridden=lines or msgspec.UNSET)
    return structs.replace(resolved, lineage=lineage)


def replayed(dataset: Dataset, day: str, config: DailyConfig) -> tuple[str, ...]:
    """The older days of which a share is learnt with a day, the latest first."""
    earlier = [one for one in dataset.days() if one < day]
    return tuple(earlier[::-1][: config.replay_days])


def learn_day(night: Night, checked: Checked, *, verify: bool) -> bool:
    """Commits the version of a day, on all processes together; False where it was asked to stop before the end.

    Raises: `QuarantinedError` where a check is critical; `CheckpointError` where the version before is damaged.
    """
    refuse(checked.findings, overridden=checked.overridden)
    resolved, chain = checked.resolved, night.chain
    with night.phase("restore"):
        options = night.setup.checkpoint
        checkpoint = opened(chain, resolved.parent, verify=verify and options.verify)
        base = chain.manifest(resolved.base)
        metrics: dict[str, float | None] = {}
        earlier = [version.metrics for version in history(chain, base)]
        with held(chain, checkpoint, options):
            loop = _loop(night, checked, checkpoint, metrics=metrics, history=earlier)
    with _closed(loop):
        with night.phase("evaluate"):
            metrics |= flat(_figures(night, loop, resolved, base))
            found = told_by_first(lambda: _of_figures(night, metrics, earlier), tuple[Finding, ...])
            refuse(found, overridden=checked.overridden)
        with night.phase("train"):
            ended = _run(loop)
    del loop
    gc.collect()  # the tables of the next day need the room, and some are held in cycles
    return ended


def _of_figures(night: Night, metrics: Metrics, earlier: Sequence[Metrics]) -> tuple[Finding, ...]:
    flips = flipped_labels(metrics, earlier, flipped=night.data.flipped)
    return (*high_losses(metrics, earlier, night.config), *flips)


@contextmanager
def _closed(loop: Loop) -> Iterator[None]:
    """Lets go of what a loop has open where it did not come to run."""
    try:
        yield
    except BaseException:
        for periodic in loop.periodics:
            periodic.close()
        raise


def _run(loop: Loop) -> bool:
    try:
        return loop.run()
    except NotFiniteError as error:
        raise QuarantinedError([_of_error(error)]) from error
    except CheckpointError as error:  # the writer takes no version whose numbers are not finite
        if bad := not_finite(loop.stepper.model):
            raise QuarantinedError(bad) from error
        raise


def flat(figures: Figures) -> dict[str, float | None]:
    """Figures of the version before as metrics of the day's: "before/ctr/all/auc"."""
    return {
        f"{_EARLIER}{task}/{examples}/{metric}": value
        for task, sets in figures.items()
        for examples, metrics in sets.items()
        for metric, value in metrics.items()
    }


def _loop(
    night: Night, checked: Checked, checkpoint: Checkpoint, *, metrics: Metrics, history: Sequence[Metrics]
) -> Loop:
    """Everything ready to learn the day, with the checks before its last save."""
    dataset, config, resolved = night.dataset, night.config, checked.resolved
    older = replayed(dataset, resolved.day, config)
    days = (resolved.day, *older)
    train = replace(night.setup.train, num_epochs=config.num_epochs, days_per_block=len(days), max_steps=None)
    stretch = Stretch(
        days=days,
        learnt=resolved.learnt,
        lineage=resolved.lineage,
        resumes=resolved.resumes,
        rate_share=config.rate_share,
        shares=dict.fromkeys(older, config.replay_share),
        metrics=metrics,
    )
    setup = replace(night.setup, train=train)
    loop = build_loop(
        setup, device=night.device, checkpoint=checkpoint, newest=resolved.newest, stretch=stretch,
        telemetry=night.telemetry,
    )  # fmt: skip
    gate = Gate(loop.stepper.model, history=history, config=config, overridden=checked.overridden)
    place = next(index for index, one in enumerate(loop.periodics) if isinstance(one, Save))
    return replace(loop, periodics=[*loop.periodics[:place], gate, *loop.periodics[place:]])


def _figures(night: Night, loop: Loop, resolved: Resolved, base: VersionManifest) -> Figures:
    """Of `base` on the day, on process 0: as they were reported, or measured now. None where the model has begun to
    learn the day and nobody reported them before."""
    store = night.chain.store
    reported = told_by_first(lambda: report_of(store, base.version, resolved.day), list[Report])
    if reported or resolved.resumes:
        return reported[0].figures if reported else {}
    dataset = night.dataset
    figures = score_day(
        loop.stepper.model,
        dataset,
        day=resolved.day,
        known=known_rows(night.setup, dataset, base),
        device=night.device,
        timelines_per_batch=night.timelines_per_batch,
    )
    if dist.get_rank() == 0:
        name = report_name(base.version, resolved.day)
        put_once(store, name, Report(version=base.link, day=resolved.day, figures=figures))
    return figures


def known_rows(setup: Setup, dataset: Dataset, base: VersionManifest) -> dict[str, int]:
    """By table whose ids are rows, how many of them a version has."""
    known = {table: entry.num_rows for table, entry in base.tables.items() if setup.ids.mode_of(table) is IdMode.direct}
    sizes = dataset.num_rows(base.context.data_days[-1])
    properties = places_of(setup.model, setup.tasks, dataset.schema).property
    return known | {one.table: sizes[one.table] + setup.model.property_headroom for one in properties}


def _of_error(error: NotFiniteError) -> Finding:
    return Finding(
        level=Level.critical, name=NOT_FINITE, measured=str(error), allowed="none",
        remedy="mend the day's log and ingest it again",
    )  # fmt: skip
