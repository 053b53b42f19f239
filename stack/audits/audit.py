"""The verb: normalisation of a trained model against live traffic, as tables, JSON, a page, and an exit status."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import reduce
from operator import add
from pathlib import Path

import msgspec
from rich.table import Table

from stack.audits.config import AuditConfig, Fix
from stack.audits.drivers import drivers
from stack.audits.effect import EVERYTHING, Effect, effects
from stack.audits.findings import Finding, Level, worst
from stack.audits.judge import findings_of, layer_report, spread_findings, usual
from stack.audits.norm_stats import Seen, drift, live_statistics, norm_layers, seen_by
from stack.audits.page import page
from stack.audits.rebuild import rebuild
from stack.audits.report import FORMAT_VERSION, PAGE, REPORT, AuditReport, LayerReport, Repaired
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
    """What an audit must know of a run: the model in evaluation mode, which version it is, its data, what it learnt.

    `rank_spread`: as `AuditReport` has it. `publish` writes the model as it then is
    as a new version, with words on what was done, and gives its number.
    """

    name: str
    version: int
    step: int
    model: UserModel
    dataset: Dataset
    training_days: Sequence[str]
    rank_spread: float | None
    publish: Callable[[str], int]


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
    """Audits the normalisation of a version, shows what was found, and writes `audit.json` and `audit.html` into
    `folder`; repairs it where asked, and tells of the version that came of it.

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
    if config.fix is Fix.rebuild:
        _tell(report)
        report = _rebuilt(audited, report, config)
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / REPORT, msgspec.json.format(msgspec.json.encode(report), indent=1))
    write_bytes(folder / PAGE, page(report).encode())
    _tell(report)
    say(f"wrote {folder / REPORT} and {folder / PAGE}")
    critical = _critical(report)
    if critical:
        raise AuditError(
            f"version {report.version} of {audited.name} must not be released: {len(critical)} critical findings, the "
            f"first: {critical[0].line}"
        )
    return report


def _rebuilt(audited: Audited, before: AuditReport, config: AuditConfig) -> AuditReport:
    """Repairs the model, audits it again, and writes it as a version. Raises: `AuditError` where that does not mend it:
    then nothing is written."""
    weigh, days = weight_of(config.traffic), before.days
    source = before.reference_days or days
    say(f"estimating statistics on {config.traffic.value} traffic of {_span(source)}, calibrating on {_span(days)}")
    tasks = rebuild(
        audited.model, statistics_from=_timelines(audited, source, config.fix_timelines, config),
        calibrate_on=_timelines(audited, days, config.timelines, config), weight_of=weigh,
    )  # fmt: skip
    after = _measured(audited, days, config)
    critical = _critical(after)
    if critical:
        raise AuditError(
            f"new statistics and calibration do not mend version {audited.version} of {audited.name}, and nothing was "
            f"written: {critical[0].line}"
        )
    how = f"statistics of {config.traffic.value} traffic of {_span(source)}, calibrated on {_span(days)}"
    version = audited.publish(how)
    say(f"wrote version {version}: version {audited.version} with {how}")
    repaired = Repaired(
        of=audited.version, days=source, level=before.level, findings=before.findings, effects=before.effects,
        tasks=tasks,
    )  # fmt: skip
    return msgspec.structs.replace(after, version=version, repaired=repaired)


def _tell(report: AuditReport) -> None:
    for table in tables(report):
        show(table)
    for finding in report.findings:
        say(f"{finding.level.value}: {finding.line}")


def _critical(report: AuditReport) -> list[Finding]:
    return [finding for finding in report.findings if finding.level is Level.critical]


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
    batches = _timelines(audited, days, config.timelines, config)
    drifts = drift(model, batches, weigh)
    driven = drivers(model, batches, weigh, schema=audited.dataset.schema, drifts=drifts)
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
            one, allowed, config, logit_rmse=_logit_rmse(found[name], one.task), earlier=on_days,
            drivers=driven.get(name, ()),
        )  # fmt: skip
        layers.append(layer)
        findings += broken
    findings += [*findings_of(layers, found[EVERYTHING], config), *spread_findings(audited.rank_spread)]
    return AuditReport(
        format_version=FORMAT_VERSION, run=audited.name, version=audited.version, step=audited.step,
        dataset=str(audited.dataset.path), created=datetime.now(UTC).isoformat(timespec="seconds"),
        code_version=code_version(), days=days, reference_days=references, traffic=config.traffic.value,
        num_timelines=sum(batch.num_timelines for batch in batches),
        steps_per_day=audited.step / len(audited.training_days),
        rank_spread=audited.rank_spread, level=worst(one.level for one in findings),
        findings=tuple(sorted(findings, key=lambda one: one.level is not Level.critical)),
        layers=tuple(sorted(layers, key=lambda layer: -(layer.logit_rmse or 0.0))), effects=tuple(found[EVERYTHING]),
    )  # fmt: skip


def _timelines(audited: Audited, days: tuple[str, ...], most: int, config: AuditConfig) -> Timelines:
    return Timelines(
        dataset=audited.dataset, days=days, most=most, per_batch=config.timelines_per_batch, seed=config.seed
    )


def _before(dataset: Dataset, day: str, number: int) -> tuple[str, ...]:
    earlier = tuple(one for one in dataset.days() if one < day)
    return earlier[-number:] if number else ()


def _seen_on(audited: Audited, day: str, weigh: WeightOf, config: AuditConfig) -> dict[str, Seen]:
    """What all layers are given on an earlier day."""
    some = _timelines(audited, (day,), config.reference_timelines, config)
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
        "cost in AUC",
    ):
        tasks.add_column(heading, justify="left" if heading == "task" else "right")
    for one in report.effects:
        if one.slice == EVERYTHING:
            tasks.add_row(
                one.task, f"{one.num_examples:,}", _as(one.learnt.auc), _as(one.live.auc), _as(one.learnt.log_loss),
                _as(one.live.log_loss), _as(one.learnt.predicted_over_observed, 3),
                _as(one.live.predicted_over_observed, 3), _as(one.logit_rmse, 3), _as(one.psi, 3),
                "" if one.auc_cost is None else f"{one.auc_cost.value:+.4f} ± {one.auc_cost.error:.4f}",
            )  # fmt: skip
    return [layers, tasks, *([] if report.repaired is None else [_repair_table(report.repaired)])]


def _repair_table(repaired: Repaired) -> Table:
    table = Table(title=f"Version {repaired.of} before and after the repair, on users that had no part in it",
                  title_justify="left")  # fmt: skip
    for heading in ("task", "score x", "+", "AUC", "", "log loss", "", "predicted / observed", "", "log loss falls by"):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    for one in repaired.tasks:
        gain = one.log_loss_gain
        table.add_row(
            one.task, _as(one.scale, 3), _as(one.shift, 3), _as(one.before.auc), _as(one.after.auc),
            _as(one.before.log_loss), _as(one.after.log_loss), _as(one.before.predicted_over_observed, 3),
            _as(one.after.predicted_over_observed, 3),
            "" if gain is None else f"{gain.value:.1%} ± {gain.error:.1%}",
        )  # fmt: skip
    return table


def _span(days: Sequence[str]) -> str:
    return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"


def _as(value: float | None, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}g}"
