"""The verb: what is to be said of a trained model before it is released; tables, JSON, a page, and an exit status."""

from __future__ import annotations

import webbrowser
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from stack.audits import calibration_show
from stack.audits.calibration import ScoredRows, calibration
from stack.audits.config import AuditConfig, Fix
from stack.audits.effect import EVERYTHING, Rows, gives_probabilities, scored
from stack.audits.findings import Finding, Level, worst
from stack.audits.live import LOG, LiveTraffic
from stack.audits.norm_stats import norm_layers
from stack.audits.normalisation import Normalisation, normalisation
from stack.audits.page import page
from stack.audits.rebuild import rebuild
from stack.audits.report import FORMAT_VERSION, PAGE, REPORT, AuditReport, Repaired
from stack.audits.sections import Part, PartReport, Section, Sections, part_report
from stack.audits.show import tables
from stack.audits.timelines import Timelines, span, traffic_days
from stack.audits.traffic import weight_of
from stack.base.errors import AuditError, DataError
from stack.base.files import make_folder, write_bytes
from stack.base.version import code_version
from stack.data.batch import Batch
from stack.data.dataset import Dataset
from stack.model import UserModel
from stack.telemetry.console import say, show


@dataclass(frozen=True, kw_only=True)
class Audited:
    """What an audit must know of a run: the model in evaluation mode, which version it is, its data, what it learnt.

    `rank_spread`: as `AuditReport` has it. `sections`: how the parts are looked at that the model alone does not tell.
    `live`: what normalisation is looked at on, in place of prepared days.
    `publish` writes the model as it then is as a new version, with words on what was done, and gives its number.
    """

    name: str
    version: int
    step: int
    model: UserModel
    dataset: Dataset
    training_days: Sequence[str]
    rank_spread: float | None
    sections: Sections
    publish: Callable[[str], int]
    live: LiveTraffic | None = None


@dataclass(frozen=True, kw_only=True)
class _Looked:
    """The report, and the sections beside it in the order in which they are told."""

    report: AuditReport
    sections: Mapping[Part, Section]


def audit(audited: Audited, *, folder: Path, config: AuditConfig) -> AuditReport:
    """Audits a version, shows what was found, and writes `audit.json` and `audit.html` into `folder`; repairs it where
    asked, and tells of the version that came of it.

    Raises: `DataError` where the days are not prepared; `AuditError` where a repair does not mend it.
    """
    if not norm_layers(audited.model) and (config.parts == [Part.normalisation] or config.fix is not Fix.none):
        raise DataError(
            f"the model of {audited.name} has no normalisation with running statistics (model.norm is not batch, and "
            "no task standardises features): there is nothing to audit"
        )
    days = traffic_days(audited.dataset, audited.training_days, config)
    say(f"auditing version {audited.version} of {audited.name} on {config.traffic.value} traffic of {span(days)}")
    if audited.live is not None:
        _tell_log(audited.live, config)
    make_folder(folder, option="audit.out")
    looked = _look(audited, days, config)
    if config.fix is Fix.rebuild:
        _tell(looked)
        looked = _rebuilt(audited, looked.report, config)
    report = looked.report
    write_bytes(folder / REPORT, msgspec.json.format(msgspec.json.encode(report), indent=1))
    write_bytes(folder / PAGE, page(report, [one.html for one in looked.sections.values()]).encode())
    _tell(looked)
    say(f"wrote {folder / REPORT} and {folder / PAGE}")
    if config.show and not webbrowser.open((folder / PAGE).absolute().as_uri()):
        say(f"no browser was found: open {folder / PAGE} in one")
    return report


def refuse(report: AuditReport) -> None:
    """Raises: `AuditError` where a finding is critical."""
    critical = _critical(report)
    if critical:
        raise AuditError(
            f"version {report.version} of {report.run} must not be released: {len(critical)} critical findings, the "
            f"first: {critical[0].line}"
        )


def _look(audited: Audited, days: tuple[str, ...], config: AuditConfig) -> _Looked:
    """All parts that are asked for; calibration only where there are labels."""
    live = audited.live
    found = Normalisation(reference_days=(), findings=(), layers=(), effects=(), rows={})
    if Part.normalisation in config.parts:
        found = normalisation(
            audited.model, audited.dataset, days, rank_spread=audited.rank_spread, config=config,
            live=None if live is None else live.batches,
        )  # fmt: skip
    sections: dict[Part, Section] = {}
    for part in Part:
        if part is Part.calibration and part in config.parts:
            if live is None:
                sections[part] = _calibration(audited, found.rows or _rows(audited, days, config), config)
        elif part is not Part.normalisation and part in config.parts:
            sections[part] = audited.sections[part](days)
    parts = {part.value: part_report(section) for part, section in sections.items()}
    if Part.normalisation in config.parts:
        parts = {Part.normalisation.value: PartReport(findings=tuple(found.findings)), **parts}
    findings = [finding for part in parts.values() for finding in part.findings]
    timelines = Timelines.of(audited.dataset, days, config.timelines, config)
    report = AuditReport(
        format_version=FORMAT_VERSION, run=audited.name, version=audited.version, step=audited.step,
        dataset=str(audited.dataset.path), created=datetime.now(UTC).isoformat(timespec="seconds"),
        code_version=code_version(), days=days, reference_days=found.reference_days,
        traffic=config.traffic.value if live is None else LOG,
        num_timelines=timelines.count() if live is None else live.report.num_requests,
        steps_per_day=audited.step / len(audited.training_days), rank_spread=audited.rank_spread,
        level=worst(one.level for one in findings),
        findings=tuple(sorted(findings, key=lambda one: one.level is not Level.critical)),
        layers=tuple(found.layers), effects=tuple(found.effects), parts=parts,
        log=None if live is None else live.report,
    )  # fmt: skip
    return _Looked(report=report, sections=sections)


def _rows(audited: Audited, days: tuple[str, ...], config: AuditConfig) -> dict[str, Rows]:
    batches = Timelines.of(audited.dataset, days, config.timelines, config)
    rows = scored(audited.model, batches, weight_of(config.traffic), {EVERYTHING: {}})
    return {task: one for (_, task), one in rows.items()}


def _calibration(audited: Audited, rows: Mapping[str, Rows], config: AuditConfig) -> Section:
    report = calibration(
        (
            ScoredRows(
                task=task, logit_E=one.learnt_E, label_E=(one.label_E > 0).astype(float), weight_E=one.weight_E,
                user_E=one.user_E, slices=one.slices,
            )
            for task, one in rows.items()
            if gives_probabilities(audited.model.task(task))
        ),
        config.calibration,
    )  # fmt: skip
    return Section(
        report=report, findings=calibration_show.findings(report, config.calibration),
        tables=calibration_show.tables(report), html=calibration_show.html(report),
    )  # fmt: skip


def _rebuilt(audited: Audited, before: AuditReport, config: AuditConfig) -> _Looked:
    """Repairs the model, audits it again, and writes it as a version. Raises: `AuditError` where that does not mend it:
    then nothing is written."""
    weigh, days = weight_of(config.traffic), before.days
    source = before.reference_days or days
    statistics_from: Iterable[Batch] = Timelines.of(audited.dataset, source, config.fix_timelines, config)
    traffic = f"{config.traffic.value} traffic"
    if audited.live is not None:
        statistics_from, source, traffic = audited.live.batches, audited.live.report.days, "recorded requests"
    say(f"estimating statistics on {traffic} of {span(source)}, calibrating on {span(days)}")
    tasks = rebuild(
        audited.model, statistics_from=statistics_from,
        calibrate_on=Timelines.of(audited.dataset, days, config.timelines, config), weight_of=weigh,
    )  # fmt: skip
    same = None if audited.rank_spread is None else 0.0  # what is written is of one process
    after = _look(replace(audited, rank_spread=same), days, config)
    mended = (Part.normalisation.value, Part.calibration.value)
    critical = [
        finding
        for name, part in after.report.parts.items()
        for finding in part.findings
        if name in mended and finding.level is Level.critical
    ]
    if critical:
        raise AuditError(
            f"new statistics and calibration do not mend version {audited.version} of {audited.name}, and nothing was "
            f"written: {critical[0].line}"
        )
    how = f"statistics of {traffic} of {span(source)}, calibrated on {span(days)}"
    version = audited.publish(how)
    say(f"wrote version {version}: version {audited.version} with {how}")
    repaired = Repaired(
        of=audited.version, days=source, level=before.level, findings=before.findings, effects=before.effects,
        tasks=tasks,
    )  # fmt: skip
    return _Looked(
        report=msgspec.structs.replace(after.report, version=version, repaired=repaired), sections=after.sections
    )


def _tell_log(live: LiveTraffic, config: AuditConfig) -> None:
    """What of the log is the traffic, and what of the audit it has no answer to."""
    report = live.report
    skipped = "".join(f"; passed over: {count:,} {reason}" for reason, count in sorted(report.skipped.items()))
    say(
        f"normalisation on {report.num_requests:,} of the {report.num_lines:,} lines of {report.path}, of "
        f"{span(report.days)}{skipped}"
    )
    if Part.calibration in config.parts:
        say("calibration is left out: recorded requests have no labels; audit it without audit.live_log")


def _tell(looked: _Looked) -> None:
    for table in (*tables(looked.report), *(one for section in looked.sections.values() for one in section.tables)):
        show(table)
    for finding in looked.report.findings:
        say(f"{finding.level.value}: {finding.line}")


def _critical(report: AuditReport) -> list[Finding]:
    return [finding for finding in report.findings if finding.level is Level.critical]
