"""The report on a terminal."""

from __future__ import annotations

from rich.table import Table

from stack.audits.effect import EVERYTHING
from stack.audits.report import AuditReport, Repaired
from stack.audits.timelines import span


def tables(report: AuditReport) -> list[Table]:
    """Layers, those that move predictions most first; and what live statistics would do to each task."""
    against = f"{report.traffic} traffic of {span(report.days)}"
    if report.log is not None:
        against = f"{report.log.num_requests:,} recorded requests of {span(report.log.days)}"
    layers = Table(title=f"Normalisation against {against}", title_justify="left")
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
            "" if layer.logit_rmse is None else f"{layer.logit_rmse:.3f}",
            layer.drift.value if layer.num_rows else "not seen",
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
    found = [table for table in (layers, tasks) if table.row_count]
    return found if report.repaired is None else [*found, _repair_table(report.repaired)]


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


def _as(value: float | None, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}g}"
