"""What an audit found, for Prometheus: by layer, task and table, never by channel or row."""

from __future__ import annotations

from collections import Counter
from datetime import datetime

import msgspec
from prometheus_client import CollectorRegistry, Gauge

from stack.audits.effect import EVERYTHING, Effect
from stack.audits.findings import Level
from stack.audits.report import AuditReport, LayerReport
from stack.audits.sections import Part
from stack.audits.tables import TablesReport
from stack.telemetry.metrics import AuditMetrics


def audit_metrics(report: AuditReport) -> CollectorRegistry:
    """To be written by `stack.telemetry.textfile`. Figures that are not defined are left out."""
    registry = CollectorRegistry()
    metrics = AuditMetrics(registry)
    metrics.ended.set(datetime.fromisoformat(report.created).timestamp())
    metrics.version.set(report.version)
    for name, part in report.parts.items():
        levels = Counter(one.level for one in part.findings)
        for level in Level:
            metrics.findings.labels(name, level.value).set(levels[level])
    for layer in report.layers:
        _tell_layer(metrics, layer)
    for effect in report.effects:
        if effect.slice == EVERYTHING:
            _tell_task(metrics, effect)
    tables = report.parts.get(Part.tables.value)
    if tables is not None:
        _tell_tables(metrics, msgspec.json.decode(tables.report, type=TablesReport))
    return registry


def _tell_layer(metrics: AuditMetrics, layer: LayerReport) -> None:
    name = layer.name
    _set(metrics.shift, layer.shift_p95, name)
    _set(metrics.allowed_shift, layer.allowed_shift, name)
    _set(metrics.variance, layer.ratio_p5, name, "5")
    _set(metrics.variance, layer.ratio_p95, name, "95")
    _set(metrics.divergence, layer.kl_mean, name)
    either = layer.num_broken + layer.num_not_finite  # a channel may be both
    _set(metrics.not_finite, min(either, layer.num_channels), name)


def _tell_task(metrics: AuditMetrics, effect: Effect) -> None:
    _set(metrics.cost, None if effect.auc_cost is None else effect.auc_cost.value, effect.task)
    _set(metrics.moved, effect.logit_rmse, effect.task)
    _set(metrics.calibration, effect.learnt.predicted_over_observed, effect.task)


def _tell_tables(metrics: AuditMetrics, report: TablesReport) -> None:
    for table in report.tables:
        _set(metrics.touched, table.learnt_share, table.name)
        _set(metrics.collisions, table.collision_share, table.name)
        _set(metrics.outliers, table.num_outliers, table.name)
        _set(metrics.table_not_finite, table.num_not_finite, table.name)


def _set(gauge: Gauge, value: float | None, *labels: str) -> None:
    if value is not None:
        gauge.labels(*labels).set(value)
