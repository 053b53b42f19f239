"""What an audit is given of a trained run: its model, and the parts that need its checkpoint, its data or a package."""

from __future__ import annotations

from pathlib import Path

from stack.audits import data_findings, data_page, tables_show
from stack.audits.audit import Audited
from stack.audits.config import AuditConfig
from stack.audits.data_config import DataAuditConfig
from stack.audits.data_drift import data_report
from stack.audits.data_report import DaysReport
from stack.audits.effect import gives_probabilities
from stack.audits.live import LiveTraffic
from stack.audits.sections import Part, Section, Sections
from stack.audits.tables import tables_report
from stack.audits.timelines import Timelines
from stack.checkpoint.chain import chain_of
from stack.checkpoint.restore import repaired
from stack.export import parity_report, skew_show
from stack.export.export import Trained
from stack.export.live_log import live_traffic
from stack.export.package import open_package
from stack.export.skew import skew
from stack.export.tables import trained_ids
from stack.tables.shard import dense_tensors
from stack.tasks.sampling import Sampling
from stack.telemetry.console import say
from stack.train.id_state import id_maps
from stack.train.norm_spread import RANK_SPREAD
from stack.train.trained import TrainedRun

VERB = "audit"


def audited_run(run: TrainedRun, *, config: AuditConfig, data: DataAuditConfig, folder: Path) -> Audited:
    """`folder`: where profiles of days are kept."""
    manifest = run.checkpoint.manifest
    if config.dataset is not None and (tasks := _counting_as_sampled(run)):
        say(
            f"note: scores of {', '.join(tasks)} count negatives at the rates of the data that they were learnt from "
            "(tasks.*.sampling): where audit.dataset draws at others, what is said of their probabilities does not hold"
        )

    def publish(how: str) -> int:
        chain, dense = chain_of(run.place, for_writing=True), dense_tensors(run.model)
        same = {RANK_SPREAD: 0.0}  # of one process
        return repaired(chain, manifest, verb=VERB, how=how, dense=dense, metrics=same).version

    return Audited(
        name=run.name,
        version=manifest.version,
        step=run.step,
        model=run.user_model,
        dataset=run.dataset,
        training_days=run.days,
        rank_spread=manifest.metrics.get(RANK_SPREAD),
        sections=_sections(run, config=config, data=data, folder=folder),
        publish=publish,
        live=_live(run, config),
    )


def _counting_as_sampled(run: TrainedRun) -> list[str]:
    """Tasks with drawn negatives whose scores would not be the same at other rates."""
    drawn = {group.name for group in run.dataset.schema.groups if "draw" in group.labels}
    model = run.user_model
    return [
        name
        for name in model.tasks
        if model.task(name).group in drawn
        and gives_probabilities(model.task(name))
        and model.task(name).sampling is not Sampling.logq
    ]


def _live(run: TrainedRun, config: AuditConfig) -> LiveTraffic | None:
    if config.live_log is None:
        return None
    assert config.package is not None
    return live_traffic(
        run.dataset, open_package(Path(config.package)), Path(config.live_log), most=config.timelines,
        per_batch=config.timelines_per_batch, seed=config.seed,
    )  # fmt: skip


def trained_of(run: TrainedRun) -> Trained:
    """The run as export takes it."""
    return Trained(
        name=run.name, model=run.user_model, checkpoint=run.checkpoint, dataset=run.dataset,
        ids=trained_ids(id_maps(run.model), run.dataset.schema),
    )  # fmt: skip


def _sections(run: TrainedRun, *, config: AuditConfig, data: DataAuditConfig, folder: Path) -> Sections:
    def of_data(days: tuple[str, ...]) -> Section:
        learnt = [day for day in run.days if day not in days]
        found = [data_report(run.dataset, day, config=data, folder=folder, learnt=learnt) for day in days]
        return Section(
            report=DaysReport(days=tuple(found)),
            findings=[finding for one in found for finding in data_findings.findings(one, data)],
            tables=[table for one in found for table in data_page.tables(one, data)],
            html="".join(map(data_page.html, found)),
        )  # fmt: skip

    def of_tables(days: tuple[str, ...]) -> Section:
        entries = run.checkpoint.manifest.tables
        report = tables_report(
            {name: entry.num_rows for name, entry in entries.items()}, run.checkpoint.table_parts, dataset=run.dataset,
            places=run.user_model.places, maps=id_maps(run.model), last_day=run.days[-1],
            batches=Timelines.of(run.dataset, days, config.timelines, config), days=days, config=config.tables,
        )  # fmt: skip
        return Section(
            report=report, findings=tables_show.findings(report, config.tables), tables=tables_show.tables(report),
            html=tables_show.html(report),
        )  # fmt: skip

    def of_skew(_: tuple[str, ...]) -> Section:
        assert config.package is not None
        assert config.skew_log is not None
        report = skew(trained_of(run), package=Path(config.package), log=Path(config.skew_log), config=config.skew)
        return Section(
            report=report, findings=skew_show.findings(report, config.skew), tables=skew_show.tables(report),
            html=skew_show.html(report),
        )  # fmt: skip

    def of_parity(_: tuple[str, ...]) -> Section:
        assert config.package is not None
        report = parity_report.parity_section(Path(config.package))
        return Section(
            report=report, findings=parity_report.findings(report), tables=parity_report.tables(report),
            html=parity_report.html(report),
        )  # fmt: skip

    return {Part.data: of_data, Part.tables: of_tables, Part.skew: of_skew, Part.parity: of_parity}
