"""For each alert series of samples that must make it fire, and others just short of it; in promtool's notation.

A sample every 15 seconds, beginning at 0: `1x3 0x9` is four ones, then ten zeros from 60 s on. Times are written as
promtool wants them. An alert without samples of its own metric (`_x9`: nine times nothing) is one about absence.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

Series = Mapping[str, str]
_RUN = 'run="nightly"'


@dataclass(frozen=True, kw_only=True)
class Case:
    """With `bad` it is silent at `silent` and fires at `fires`, with these labels beside its severity; with `good` it
    is silent at `fires`. Series of `both` are there in either case."""

    alert: str
    bad: Series
    good: Series
    silent: str
    fires: str
    labels: Mapping[str, str] = field(default_factory=lambda: {"run": "nightly"})
    both: Series = field(default_factory=dict)


def _up(role: str) -> str:
    return f'up{{job="stack",instance="a:1",role="{role}",{_RUN}}}'


def _target(role: str) -> dict[str, str]:
    return {"job": "stack", "instance": "a:1", "role": role, "run": "nightly"}


def of(metric: str, **labels: str) -> str:
    """A series of the run."""
    return f"{metric}{{{','.join([_RUN, *(name + '=' + json.dumps(value) for name, value in labels.items())])}}}"


_TASK = {"run": "nightly", "task": "ctr"}
_ENTROPY = of("stack_train_normalized_entropy_ratio", task="ctr", rank="0")
_CALIBRATION = of("stack_train_calibration_ratio", task="ctr", rank="0")
_FAILED = of("stack_train_checkpoints_total", result="failed")
_SAVED = {of("stack_train_checkpoints_total", result="committed"): "1x10 9x200"}
_LOST = of("stack_telemetry_errors_total", rank="0", part="disk")
_LOST_LABELS = {"run": "nightly", "rank": "0", "part": "disk"}
_ENDED = "stack_daily_last_end_timestamp_seconds"
_CRITICAL = of("stack_audit_findings", part="normalisation", level="critical")
_SHIFT = of("stack_audit_norm_shift_deviations", layer="ctr.1")
OK = of("stack_serve_requests_total", route="/a", label="stable", code="200")
UNKNOWN = of("stack_serve_unknown_ids_total", feature="events.item")
_FEATURE = {"run": "nightly", "feature": "events.item"}
_REJECTED = of("stack_serve_swaps_total", instance="a:1", kind="rows", result="rejected")
_SWAP = {"run": "nightly", "instance": "a:1", "kind": "rows"}
_DATA = of("stack_serve_data_timestamp_seconds", label="stable")


def answers(code: str, number: int) -> tuple[str, str]:
    """So many requests every 15 s."""
    return of("stack_serve_requests_total", route="/a", label="stable", code=code), f"0+{number}x400"


def _buckets(within: float) -> dict[str, str]:
    """A hundred requests every 15 s, so many of them within 0.1 s and the others within 0.25."""
    counts = {"0.1": within, "0.25": 100, "+Inf": 100}
    return {
        of("stack_serve_request_seconds_bucket", route="/a", le=le): f"0+{number}x100" for le, number in counts.items()
    }


CASES = (
    Case(
        alert="StackRankDown", labels=_target("train"),
        bad={_up("train"): "1x8 0x40"}, good={_up("train"): "1x8 0x2 1x1 0x3 1x40"}, silent="3m", fires="3m15s",
    ),
    Case(
        alert="StackTrainStalled",
        both={of("stack_train_steps_total", rank="0"): "0+10x20 200x100", of("stack_train_step"): "200x130"},
        bad={of("stack_train_planned_steps"): "1000x130"}, good={of("stack_train_planned_steps"): "200x130"},
        silent="20m30s", fires="21m30s",
    ),
    Case(
        alert="StackLossOff", labels=_TASK,
        bad={_ENTROPY: "0.9x3 1.0x60"}, good={_ENTROPY: "0.9x3 0.99x60"}, silent="10m45s", fires="11m30s",
    ),
    Case(
        alert="StackLossJump", labels=_TASK,
        bad={_ENTROPY: "0.8x320 0.9x60"}, good={_ENTROPY: "0.8x320 0.87x60"}, silent="85m", fires="86m",
    ),
    Case(
        alert="StackCalibrationOff", labels=_TASK,
        bad={_CALIBRATION: "1x3 1.3x80"}, good={_CALIBRATION: "1x3 1.2x80"}, silent="15m45s", fires="16m30s",
    ),
    Case(
        alert="StackCalibrationOff", labels=_TASK,
        bad={_CALIBRATION: "1x3 0.7x80"}, good={_CALIBRATION: "1x3 0.85x80"}, silent="15m45s", fires="16m30s",
    ),
    Case(
        alert="StackBatchesRefused",
        bad={of("stack_train_refused_batches_total", rank="0"): "0x10 1x60"},
        good={of("stack_train_refused_batches_total", rank="0"): "5x60"}, silent="2m30s", fires="2m45s",
    ),
    Case(
        alert="StackLoaderBound", labels={"run": "nightly", "rank": "0"},
        both={of("stack_train_step_seconds_sum", rank="0"): "0+15x200"},
        bad={of("stack_train_loader_wait_seconds_total", rank="0"): "0+5x200"},
        good={of("stack_train_loader_wait_seconds_total", rank="0"): "0+4x200"}, silent="15m", fires="16m",
    ),
    Case(
        alert="StackTableFull", labels={"run": "nightly", "table": "item"},
        both={of("stack_train_table_rows", table=name): "1000x90" for name in ("item", "age")},
        bad={of("stack_train_table_held_rows", table="item"): "900x3 951x80"},
        good={of("stack_train_table_held_rows", table="item"): "900x3 950x80"}, silent="10m45s", fires="11m30s",
    ),
    Case(alert="StackCheckpointsFailing", bad={_FAILED: "_x10 1x40"}, good=_SAVED, silent="2m15s", fires="2m45s"),
    Case(
        alert="StackCheckpointsFailing",
        bad={_FAILED: "1x130 2x20"}, good={_FAILED: "1x200"}, silent="32m", fires="33m",
    ),
    Case(
        alert="StackTelemetryErrors", labels=_LOST_LABELS,
        bad={_LOST: "_x10 1x40"}, good={_LOST: "_x10 0x40"}, silent="2m15s", fires="2m45s",
    ),
    Case(
        alert="StackTelemetryErrors", labels=_LOST_LABELS,
        bad={_LOST: "1x70 2x20"}, good={_LOST: "1x90"}, silent="17m", fires="18m",
    ),
    Case(
        alert="StackDailyFailed",
        bad={of("stack_daily_last_failed"): "0x8 1x40"}, good={of("stack_daily_last_failed"): "0x8 1x2 0x40"},
        silent="3m", fires="3m15s",
    ),
    Case(
        alert="StackDailyLate",
        bad={of("stack_daily_last_success_timestamp_seconds"): "-93000x90"},
        good={of("stack_daily_last_success_timestamp_seconds"): "-92000x90"}, silent="20m", fires="21m",
    ),
    Case(
        alert="StackDataStale",
        bad={of("stack_daily_data_timestamp_seconds"): "-129000x90"},
        good={of("stack_daily_data_timestamp_seconds"): "-128000x90"}, silent="20m", fires="21m",
    ),
    Case(
        alert="StackDailyMissing", labels={},
        bad={_up("node"): "1x300"}, good={of(_ENDED): "1x300"}, silent="59m45s", fires="61m",
    ),
    Case(
        alert="StackDailyMissing", both={f'{_ENDED}{{run="other"}}': "1x300"},
        bad={of(_ENDED): "1x10 _x300"}, good={of(_ENDED): "1x10 _x200 1x90"}, silent="67m", fires="69m",
    ),
    Case(
        alert="StackTextfilesUnread", labels=_target("node"),
        bad={_up("node"): "1x3 0x60"}, good={_up("node"): "1x3 0x18 1x40"}, silent="5m45s", fires="6m15s",
    ),
    Case(
        alert="StackTextfilesUnread",
        bad={of("node_textfile_scrape_error"): "0x3 1x60"}, good={of("node_textfile_scrape_error"): "0x60"},
        silent="5m45s", fires="6m15s",
    ),
    Case(
        alert="StackCriticalFindings", labels={"run": "nightly", "part": "normalisation"},
        bad={_CRITICAL: "0x3 2x10"}, good={of("stack_audit_findings", part="normalisation", level="warning"): "2x20"},
        silent="45s", fires="1m",
    ),
    Case(
        alert="StackCriticalFindings",
        bad={of("stack_daily_findings", level="critical"): "0x3 1x10"},
        good={of("stack_daily_findings", level="warning"): "1x20"}, silent="45s", fires="1m",
    ),
    Case(
        alert="StackNormDrift", labels={"run": "nightly", "layer": "ctr.1"},
        both={of("stack_audit_norm_allowed_shift_deviations", layer="ctr.1"): "0.1x20", _SHIFT: "0.05x3 0.3x20"},
        bad={_CRITICAL: "1x20"}, good={_CRITICAL: "0x20"}, silent="45s", fires="1m30s",
    ),
    Case(
        alert="StackNormDrift", labels={"run": "nightly", "layer": "ctr.1"},
        both={of("stack_audit_norm_allowed_shift_deviations", layer="ctr.1"): "0.1x20", _CRITICAL: "1x20"},
        bad={_SHIFT: "0.05x3 0.11x20"}, good={_SHIFT: "0.05x3 0.09x20"}, silent="45s", fires="1m30s",
    ),
    Case(
        alert="StackWeightsNotFinite", labels={"run": "nightly", "layer": "ctr.1"},
        bad={of("stack_audit_norm_not_finite_channels", layer="ctr.1"): "0x3 1x9"},
        good={of("stack_audit_norm_not_finite_channels", layer="ctr.1"): "0x12"}, silent="45s", fires="1m",
    ),
    Case(
        alert="StackWeightsNotFinite", labels={"run": "nightly", "table": "item"},
        bad={of("stack_audit_table_not_finite_rows", table="item"): "0x3 7x9"},
        good={of("stack_audit_table_not_finite_rows", table="item"): "0x12"}, silent="45s", fires="1m",
    ),
    Case(
        alert="StackServeDown", labels=_target("serve"),
        bad={_up("serve"): "1x8 0x40"}, good={_up("serve"): "1x8 0x2 1x40"}, silent="3m", fires="3m15s",
    ),
    Case(
        alert="StackServeDown",
        bad={of("stack_serve_workers"): "2x8 0x40"}, good={of("stack_serve_workers"): "2x8 1x40"},
        silent="3m", fires="3m15s",
    ),
    Case(
        alert="StackServeMissing",
        bad={_up("serve"): "1x4 _x200"}, good={_up("serve"): "1x4 0x200"}, silent="20m45s", fires="22m",
    ),
    Case(
        alert="StackServeErrors",
        bad=dict([answers("200", 980), answers("503", 20)]), good=dict([answers("200", 991), answers("500", 9)]),
        silent="5m", fires="6m",
    ),
    Case(
        alert="StackServeOverloaded",
        bad=dict([answers("200", 980), answers("429", 20)]), good=dict([answers("200", 991), answers("429", 9)]),
        silent="5m", fires="6m",
    ),
    Case(
        alert="StackServeSlow", labels={"run": "nightly", "route": "/a"},
        bad=_buckets(98), good=_buckets(99.5), silent="10m", fires="11m",
    ),
    Case(
        alert="StackServeUnknownIds", labels=_FEATURE, both={OK: "0+10x100"},
        bad={UNKNOWN: "0+210x100"}, good={UNKNOWN: "0+190x100"}, silent="15m", fires="16m",
    ),
    Case(
        alert="StackServeUnknownIds", labels=_FEATURE, both={OK: "0+10x600"},
        bad={UNKNOWN: "0+10x400 4000+40x200"}, good={UNKNOWN: "0+10x400 4000+18x200"}, silent="115m", fires="119m",
    ),
    Case(
        alert="StackServeStale", labels={"run": "nightly", "label": "stable"},
        bad={_DATA: "-172200x90"}, good={_DATA: "-171000x90"}, silent="20m", fires="21m",
    ),
    Case(
        alert="StackServeSwapRejected", labels=_SWAP,
        bad={_REJECTED: "_x10 1x40"}, good={_REJECTED.replace("rejected", "accepted"): "_x10 1x40"},
        silent="2m15s", fires="2m45s",
    ),
    Case(
        alert="StackServeSwapRejected", labels=_SWAP,
        bad={_REJECTED: "1x130 2x20"}, good={_REJECTED: "1x200"}, silent="32m", fires="33m",
    ),
    Case(
        alert="StackServeNotFinite",
        bad={of("stack_serve_not_finite_total"): "0x10 1x60"}, good={of("stack_serve_not_finite_total"): "5x60"},
        silent="2m30s", fires="2m45s",
    ),
    Case(
        alert="StackServeWorkersDying", labels={"run": "nightly", "instance": "a:1"},
        bad={of("stack_serve_worker_restarts_total", instance="a:1"): "0x10 1x2 2x2 3x40"},
        good={of("stack_serve_worker_restarts_total", instance="a:1"): "0x10 1x2 2x40"},
        silent="3m30s", fires="5m",
    ),
)  # fmt: skip
