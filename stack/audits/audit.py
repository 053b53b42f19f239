"""The verb: normalisation of a trained model against live traffic, as tables, JSON, a page, and an exit status."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import reduce
from operator import add
from pathlib import Path

import msgspec
from rich.table import Table

from stack.audits.config import AuditConfig
from stack.audits.effect import EVERYTHING, Effect, effects
from stack.audits.findings import Finding, Level, worst
from stack.audits.judge import findings_of, layer_report, usual
from stack.audits.norm_stats import Seen, drift, live_statistics, norm_layers, seen_by
from stack.audits.page import page
from stack.audits.report import FORMAT_VERSION, PAGE, REPORT, AuditReport, LayerReport
from stack.audits.traffic import WeightOf, weight_of
from stack.base.errors import AuditError, DataError
from stack.base.files import write_bytes
from stack.base.version import code_version
from stack.data.batch import Batch
from stack.data.dataset import Dataset
from stack.data.loader import Loader
from stack.model import UserModel
from stack.telemetry.console import say, show
from stack.telemetry.progress import progress


@dataclass(frozen=True, kw_only=True)
class Audited:
    """What an audit must know of a run: the model in evaluation mode, which version it is, its data, what it learnt."""

    name: str
    version: int
    step: int
    model: UserModel
    dataset: Dataset
    training_days: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Timelines:
    """Timelines of some days, the same each time they are gone through: all, or as many drawn at random."""

    dataset: Dataset
    days: tuple[str, ...]
    most: int
    per_batch: int
    seed: int

    def __iter__(self) -> Iterator[Batch]:
        left = self.most
        loader = Loader(
            self.dataset, days=self.days, global_batch_size=min(self.per_batch, self.most), seed=self.seed,
            days_per_block=len(self.days), num_prefetch=2,
        )  # fmt: skip
        for batch in progress(
            loader, total=min(loader.num_steps, -(-self.most // self.per_batch)), description="audit"
        ):
            yield batch
            left -= batch.num_timelines
            if left <= 0:
                return


def audit(audited: Audited, *, folder: Path, config: AuditConfig) -> AuditReport:
    """Audits the normalisation of a version, shows what was found, and writes `audit.json` into `folder`.

    Raises: `DataError` where the days are not prepared; `AuditError`, once all is written, where one is critical.
    """
    if not norm_layers(audited.model):
        raise DataError(
            f"the model of {audited.name} has no normalisation with running statistics (model.norm is not batch, and "
            "no task standardises features): there is nothing to audit"
        )
    days = traffic_days(audited.dataset, audited.training_days, config)
    say(f"auditing version {audited.version} of {audited.name} on {config.traffic.value} traffic of {_span(days)}")
    report = _measured(audited, days, config)
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / REPORT, msgspec.json.format(msgspec.json.encode(report), indent=1))
    write_bytes(folder / PAGE, page(report).encode())
    for table in tables(report):
        show(table)
    for finding in report.findings:
        say(f"{finding.level.value}: {finding.line}")
    say(f"wrote {folder / REPORT} and {folder / PAGE}")
    critical = [finding for finding in report.findings if finding.level is Level.critical]
    if critical:
        raise AuditError(
            f"version {audited.version} of {audited.name} must not be released: {len(critical)} critical findings, the "
            f"first: {critical[0].line}"
        )
    return report


def traffic_days(dataset: Dataset, training_days: Sequence[str], config: AuditConfig) -> tuple[str, ...]:
    """The days of traffic. Raises: `DataError` where they are not prepared."""
    last_learnt = max(training_days)
    first = config.first_day or next((day for day in dataset.days() if day > last_learnt), last_learnt)
    last = config.last_day or first
    days = tuple(day for day in dataset.days() if first <= day <= last)
    if not days:
        raise DataError(
            f"{dataset.path} has no day from audit.first_day={first} to audit.last_day={last}: it has "
            f"{dataset.days()[0]} to {dataset.days()[-1]}"
        )
    return days


def _measured(audited: Audited, days: tuple[str, ...], config: AuditConfig) -> AuditReport:
    model, weigh = audited.model, weight_of(config.traffic)
    batches = Timelines(
        dataset=audited.dataset, days=days, most=config.timelines, per_batch=config.timelines_per_batch,
        seed=config.seed,
    )  # fmt: skip
    drifts = drift(model, batches, weigh)
    statistics = live_statistics(model, batches, weigh)
    alone = {name: {name: statistics[name]} for name in drifts}
    found = effects(model, batches, weigh, {EVERYTHING: statistics, **alone})
    references = _before(audited.dataset, days[0], config.reference_days)
    earlier = {day: _seen_on(audited, day, weigh, config) for day in progress(references, description="reference days")}
    layers: list[LayerReport] = []
    findings: list[Finding] = []
    for name, one in drifts.items():
        sums = [seen[name].sums for seen in earlier.values()]
        on_days = {day: seen[name].sums.moments() for day, seen in earlier.items()}
        allowed = usual(list(on_days.values()), reduce(add, sums).moments() if sums else None)
        layer, broken = layer_report(
            one, allowed, config, logit_rmse=_logit_rmse(found[name], one.task), earlier=on_days
        )  # fmt: skip
        layers.append(layer)
        findings += broken
    findings += findings_of(layers, found[EVERYTHING], config)
    return AuditReport(
        format_version=FORMAT_VERSION, run=audited.name, version=audited.version, step=audited.step,
        dataset=str(audited.dataset.path), created=datetime.now(UTC).isoformat(timespec="seconds"),
        code_version=code_version(), days=days, reference_days=references, traffic=config.traffic.value,
        num_timelines=sum(batch.num_timelines for batch in batches), level=worst(one.level for one in findings),
        findings=tuple(sorted(findings, key=lambda one: one.level is not Level.critical)),
        layers=tuple(sorted(layers, key=lambda layer: -(layer.logit_rmse or 0.0))), effects=tuple(found[EVERYTHING]),
    )  # fmt: skip


def _before(dataset: Dataset, day: str, number: int) -> tuple[str, ...]:
    earlier = tuple(one for one in dataset.days() if one < day)
    return earlier[-number:] if number else ()


def _seen_on(audited: Audited, day: str, weigh: WeightOf, config: AuditConfig) -> dict[str, Seen]:
    """What all layers are given on an earlier day."""
    some = Timelines(
        dataset=audited.dataset, days=(day,), most=config.reference_timelines, per_batch=config.timelines_per_batch,
        seed=config.seed,
    )  # fmt: skip
    return seen_by(audited.model, some, weigh)


def _logit_rmse(found: Sequence[Effect], task: str) -> float | None:
    return next((one.logit_rmse for one in found if (one.task, one.slice) == (task, EVERYTHING)), None)


def tables(report: AuditReport) -> list[Table]:
    """Layers, those that move predictions most first; and what live statistics would do to each task."""
    layers = Table(
        title=f"Normalisation against {report.traffic} traffic of {_span(report.days)}", title_justify="left"
    )  # fmt: skip
    for heading in (
        "layer",
        "kind",
        "rows",
        "shift, 95% of channels",
        "variance ratio",
        "divergence",
        "scores move by",
        "",
    ):
        layers.add_column(heading, justify="left" if heading in ("layer", "kind", "") else "right")
    for layer in report.layers:
        layers.add_row(
            layer.name, layer.kind, f"{layer.num_rows:,}",
            "" if layer.shift_p95 is None else f"{layer.shift_p95:.2f} ± {layer.shift_error or 0:.2f}",
            "" if layer.ratio_p5 is None else f"{layer.ratio_p5:.2f} to {layer.ratio_p95:.2f}",
            "" if layer.kl_mean is None else f"{layer.kl_mean:.3f}",
            "" if layer.logit_rmse is None else f"{layer.logit_rmse:.3f}", layer.drift.value,
        )  # fmt: skip
    tasks = Table(title="Live rows scored with the statistics learnt, and with live ones", title_justify="left")
    for heading in (
        "task",
        "rows",
        "AUC learnt",
        "live",
        "log loss learnt",
        "live",
        "predicted / observed learnt",
        "live",
        "scores move by",
        "PSI",
    ):
        tasks.add_column(heading, justify="left" if heading == "task" else "right")
    for one in report.effects:
        if one.slice == EVERYTHING:
            tasks.add_row(
                one.task, f"{one.num_examples:,}", _as(one.learnt.auc), _as(one.live.auc), _as(one.learnt.log_loss),
                _as(one.live.log_loss), _as(one.learnt.predicted_over_observed, 3),
                _as(one.live.predicted_over_observed, 3), _as(one.logit_rmse, 3), _as(one.psi, 3),
            )  # fmt: skip
    return [layers, tasks]


def _span(days: Sequence[str]) -> str:
    return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"


def _as(value: float | None, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}g}"
