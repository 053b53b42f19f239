"""An audit's report as metrics, by layer, task and table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from msgspec.structs import replace

from stack.audits.config import AuditConfig
from stack.audits.findings import Finding, Level
from stack.audits.judge import Usual, layer_report
from stack.audits.report import FORMAT_VERSION, AuditReport
from stack.audits.sections import PartReport, Section, part_report
from stack.audits.tables import TableReport, TablesReport
from stack.audits.telemetry import audit_metrics
from stack.ids.config import IdMode
from stack.telemetry.textfile import write_textfile
from tests.audits.test_judge import NUM_CHANNELS, effect, layer, moments

_FINDING = Finding(level=Level.warning, name="n", measured="m", allowed="a", remedy="r")


def _report(**sections: Section) -> AuditReport:
    findings = (_FINDING, replace(_FINDING, level=Level.critical), _FINDING)
    parts = {"normalisation": PartReport(findings=findings)} | {
        name: part_report(section) for name, section in sections.items()
    }
    told, _ = layer_report(layer(moments(ratio=1.5, not_finite=2), broken=1), Usual(), AuditConfig(), logit_rmse=None)
    whole = effect(auc=(0.7, 0.72), calibration=(1.2, 1.0))
    return AuditReport(
        format_version=FORMAT_VERSION, run="demo", version=7, step=9, dataset="d", created="2026-11-28T12:00:00+00:00",
        code_version="c", days=("2026-11-27",), reference_days=(), traffic="live", num_timelines=5, steps_per_day=10.0,
        rank_spread=None, parts=parts, level=Level.critical, findings=findings,
        layers=(told,), effects=(whole, replace(whole, slice="new users", logit_rmse=9.0)),
    )  # fmt: skip


def test_layers_tasks_and_findings_are_told_in_a_textfile(tmp_path: Path) -> None:
    report = _report()
    lines = write_textfile(audit_metrics(report), tmp_path, run="demo", job="audit").read_text().splitlines()
    (layer_told,) = report.layers
    for line in (
        'stack_audit_version{run="demo"} 7.0',
        'stack_audit_last_end_timestamp_seconds{run="demo"} 1.7958672e+09',
        'stack_audit_findings{level="warning",part="normalisation",run="demo"} 2.0',
        'stack_audit_findings{level="critical",part="normalisation",run="demo"} 1.0',
        'stack_audit_findings{level="ok",part="normalisation",run="demo"} 0.0',
        f'stack_audit_norm_shift_deviations{{layer="ctr.head.1",run="demo"}} {layer_told.shift_p95}',
        f'stack_audit_norm_allowed_shift_deviations{{layer="ctr.head.1",run="demo"}} {layer_told.allowed_shift}',
        f'stack_audit_norm_variance_ratio{{layer="ctr.head.1",percentile="5",run="demo"}} {layer_told.ratio_p5}',
        f'stack_audit_norm_variance_ratio{{layer="ctr.head.1",percentile="95",run="demo"}} {layer_told.ratio_p95}',
        f'stack_audit_norm_not_finite_channels{{layer="ctr.head.1",run="demo"}} {NUM_CHANNELS}.0',
        'stack_audit_logit_rmse{run="demo",task="ctr"} 0.2',
        'stack_audit_calibration_ratio{run="demo",task="ctr"} 1.2',
    ):
        assert line in lines
    (cost,) = (
        float(line.split()[1]) for line in lines if line.startswith('stack_audit_cost_auc{run="demo",task="ctr"}')
    )
    assert np.isclose(cost, 0.02)
    assert not any("table" in line for line in lines if line[0] != "#")


def test_tables_and_findings_of_other_parts_are_told_where_they_are_given() -> None:
    table = TableReport(
        name="item", mode=IdMode.hashed, num_rows=100, dim=8, num_ids=50, num_held=None, num_learnt=40,
        num_not_finite=3, num_zero=0, norm_p50=1.0, norm_p99=2.0, norm_max=3.0, num_low=1, num_high=4,
        collision_share=0.25, collision_measured=True, num_lookups=10, num_distinct=5, missing_share=0.0,
        new_share=0.0, hottest=(0.1,), hottest_error=0.0, growth={}, norms=(),
    )  # fmt: skip
    tables = TablesReport(days=(), tables=(table, replace(table, name="brand", collision_share=None)))
    registry = audit_metrics(_report(tables=Section(report=tables, findings=[_FINDING], tables=(), html="")))
    told = {
        name: registry.get_sample_value(f"stack_audit_table_{name}", {"table": "item"})
        for name in ("touched_ratio", "collision_ratio", "outlier_rows", "not_finite_rows")
    }
    assert told == {"touched_ratio": 0.4, "collision_ratio": 0.25, "outlier_rows": 5, "not_finite_rows": 3}
    assert registry.get_sample_value("stack_audit_table_collision_ratio", {"table": "brand"}) is None
    labels = {"part": "tables", "level": "warning"}
    assert registry.get_sample_value("stack_audit_findings", labels) == 1
