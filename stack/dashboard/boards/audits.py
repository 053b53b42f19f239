"""May it be released: normalisation against live traffic, what the difference costs, the tables."""

from __future__ import annotations

from stack.dashboard.panels import Board, Kind, Level, Panel, Query, Step, Unit, above, within

_SHIFT = 'max by (run, layer) (stack_audit_norm_shift_deviations{run=~"$run"})'
_ALLOWED = 'max by (run, layer) (stack_audit_norm_allowed_shift_deviations{run=~"$run"})'
_NONE = "No audit is known."
_NOT_ONE = above(critical=1)
_COST = above(warning=0.0005, critical=0.002)
_RATIO = (
    Step(value=None, level=Level.warning),
    Step(value=0.8, level=Level.ok),
    Step(value=1.25, level=Level.warning),
)
"""Never critical, as the shift is not: an audit makes that of what it costs."""
_CALIBRATION = within(critical_below=0.8, warning_below=0.9, warning=1.1, critical=1.25)

_STATS = (
    Panel(
        title="Critical findings",
        look="0; one of them stops an export.",
        kind=Kind.stat,
        queries=(Query(expr='sum by (run) (stack_audit_findings{run=~"$run",level="critical"})'),),
        steps=_NOT_ONE,
        empty=_NONE,
    ),
    Panel(
        title="Warnings",
        look="Few and known; the report of the audit tells each with its remedy.",
        kind=Kind.stat,
        queries=(Query(expr='sum by (run) (stack_audit_findings{run=~"$run",level="warning"})'),),
        steps=above(warning=1),
        empty=_NONE,
    ),
    Panel(
        title="Version audited",
        look="The one that is served, or the one that is to be.",
        kind=Kind.stat,
        queries=(Query(expr='max by (run) (stack_audit_version{run=~"$run"})'),),
    ),
    Panel(
        title="Since the last audit",
        look="Below a day where audits gate the chain.",
        kind=Kind.stat,
        unit=Unit.seconds,
        queries=(Query(expr='time() - max by (run) (stack_audit_last_end_timestamp_seconds{run=~"$run"})'),),
    ),
    Panel(
        title="AUC that statistics cost",
        look="Near 0: the worst task, learnt statistics against live ones.",
        kind=Kind.stat,
        queries=(Query(expr='max by (run) (stack_audit_cost_auc{run=~"$run"})'),),
        steps=_COST,
    ),
    Panel(
        title="Worst layer, of what is allowed",
        look="Below 1; above, live traffic is not what the layer has learnt: look at what it costs.",
        kind=Kind.stat,
        queries=(Query(expr=f"max by (run) ({_SHIFT} / {_ALLOWED})"),),
        steps=above(warning=1),
    ),
)

_LINES = (
    Panel(
        title="Shift of the means, of what is allowed",
        look="Below 1; a layer that climbs from night to night drifts, one that jumped saw another kind of day.",
        queries=(Query(expr=f"{_SHIFT} / {_ALLOWED}", legend="{{layer}}"),),
        steps=above(warning=1),
    ),
    Panel(
        title="Live variance over the learnt one",
        look="Around 1, the 5% and 95% of a layer's channels; far below, training saw a wider sample than is live.",
        queries=(
            Query(
                expr='max by (run, layer, percentile) (stack_audit_norm_variance_ratio{run=~"$run"})',
                legend="{{layer}} {{percentile}}",
            ),
        ),
        steps=_RATIO,
        logarithmic=True,
    ),
    Panel(
        title="AUC that statistics cost, by task",
        look="Near 0; above 0.002 an export stops.",
        queries=(Query(expr='max by (run, task) (stack_audit_cost_auc{run=~"$run"})', legend="{{task}}"),),
        steps=_COST,
    ),
    Panel(
        title="Predicted over observed on live rows",
        look="Near 1; what users will see, where training's own figure is of its sample.",
        queries=(Query(expr='max by (run, task) (stack_audit_calibration_ratio{run=~"$run"})', legend="{{task}}"),),
        steps=_CALIBRATION,
    ),
    Panel(
        title="Scores move by",
        look="Root mean square of how live statistics change the logits; large at no cost was learnt around.",
        queries=(Query(expr='max by (run, task) (stack_audit_logit_rmse{run=~"$run"})', legend="{{task}}"),),
    ),
    Panel(
        title="Findings by part",
        look="Which part of the audit has found what.",
        kind=Kind.table,
        keys=("part",),
        queries=(
            Query(
                expr='sum by (run, part) (stack_audit_findings{run=~"$run",level="critical"})',
                legend="critical",
                steps=_NOT_ONE,
            ),
            Query(
                expr='sum by (run, part) (stack_audit_findings{run=~"$run",level="warning"})',
                legend="warning",
                steps=above(warning=1),
            ),
        ),
        empty=_NONE,
    ),
    Panel(
        title="Layers",
        look="In deviations learnt, of 95% of a layer's channels; a channel that is not finite makes all scores so.",
        kind=Kind.table,
        keys=("layer",),
        queries=(
            Query(expr=_SHIFT, legend="shift"),
            Query(expr=_ALLOWED, legend="allowed"),
            Query(
                expr='min by (run, layer) (stack_audit_norm_variance_ratio{run=~"$run"})',
                legend="variance, low",
                steps=_RATIO,
            ),
            Query(
                expr='max by (run, layer) (stack_audit_norm_variance_ratio{run=~"$run"})',
                legend="variance, high",
                steps=_RATIO,
            ),
            Query(
                expr='max by (run, layer) (stack_audit_norm_divergence_nats{run=~"$run"})',
                legend="divergence",
                steps=above(warning=0.02),
            ),
            Query(
                expr='max by (run, layer) (stack_audit_norm_not_finite_channels{run=~"$run"})',
                legend="not finite",
                steps=_NOT_ONE,
            ),
        ),
    ),
    Panel(
        title="Tables",
        look="Rows whose norm is far from the others' are learnt too fast; one that is not finite spoils its users.",
        kind=Kind.table,
        keys=("table",),
        queries=(
            Query(
                expr='max by (run, table) (stack_audit_table_touched_ratio{run=~"$run"})',
                legend="touched",
                unit=Unit.share,
            ),
            Query(
                expr='max by (run, table) (stack_audit_table_collision_ratio{run=~"$run"})',
                legend="ids that collide",
                unit=Unit.share,
                steps=above(warning=0.1, critical=0.3),
            ),
            Query(expr='max by (run, table) (stack_audit_table_outlier_rows{run=~"$run"})', legend="far rows"),
            Query(
                expr='max by (run, table) (stack_audit_table_not_finite_rows{run=~"$run"})',
                legend="not finite",
                steps=_NOT_ONE,
            ),
        ),
    ),
)

AUDITS = Board(
    name="audits",
    title="Audits",
    about="May it be released: normalisation against live traffic, what the difference costs, the tables.",
    range_seconds=7 * 24 * 3600,
    panels=(*_STATS, *_LINES),
)
