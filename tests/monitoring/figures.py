"""For each recording rule series of samples, and the number that it makes of them; in promtool's notation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tests.monitoring.cases import OK, UNKNOWN, Series, answers, of


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What a recording rule makes of `series` after five minutes."""

    record: str
    series: Series
    labels: Mapping[str, str]
    value: float


def _figure(record: str, value: float, series: Series, **labels: str) -> Figure:
    return Figure(record=record, series=series, labels={"run": "nightly", **labels}, value=value)


def _seconds(metric: str, **labels: str) -> dict[str, str]:
    """Four of five within 0.1 s, one in up to 0.25 s: the median is 0.0625 of the first bucket, p99 0.2425."""
    counts = {"0.1": 8, "0.25": 10, "+Inf": 10}
    return {of(f"{metric}_bucket", **labels, le=le): f"0+{number}x400" for le, number in counts.items()}


_STEPS = _seconds("stack_train_step_seconds", rank="0")

FIGURES = (
    _figure(
        "run:stack_train_examples:rate1m", 100,
        {of("stack_train_examples_total", rank=rank): "0+1500x40" for rank in "01"},
    ),
    _figure("run:stack_train_steps:rate1m", 2, {of("stack_train_steps_total", rank=rank): "0+30x40" for rank in "01"}),
    _figure("run:stack_train_progress:ratio", 0.25, {
        of("stack_train_step", rank="0"): "50x40", of("stack_train_planned_steps", rank="0"): "200x40",
    }),
    _figure("run_rank:stack_train_step_seconds:p50_5m", 0.0625, _STEPS, rank="0"),
    _figure("run_rank:stack_train_step_seconds:p99_5m", 0.2425, _STEPS, rank="0"),
    _figure("run_rank:stack_train_loader_wait:ratio_rate5m", 0.2, {
        of("stack_train_loader_wait_seconds_total", rank="1"): "0+3x40",
        of("stack_train_step_seconds_sum", rank="1"): "0+15x40",
    }, rank="1"),
    _figure("run_rank:stack_train_exchange:ratio_rate5m", 0.4, {
        of("stack_train_exchange_seconds_total", rank="1"): "0+6x40",
        of("stack_train_step_seconds_sum", rank="1"): "0+15x40",
    }, rank="1"),
    _figure("run_task:stack_train_normalized_entropy:avg", 0.85, {
        of("stack_train_normalized_entropy_ratio", rank="0", task="ctr"): "0.9x40",
        of("stack_train_normalized_entropy_ratio", rank="1", task="ctr"): "0.8x40",
    }, task="ctr"),
    _figure("run_task:stack_train_calibration:avg", 1.0, {
        of("stack_train_calibration_ratio", rank="0", task="ctr"): "0.9x40",
        of("stack_train_calibration_ratio", rank="1", task="ctr"): "1.1x40",
        of("stack_train_calibration_ratio", rank="2", task="ctr"): "NaN NaN NaN",
    }, task="ctr"),
    _figure("run_table:stack_train_lookups:rate1m", 30, {
        of("stack_train_lookups_total", rank="0", table="item"): "0+300x40",
        of("stack_train_lookups_total", rank="1", table="item"): "0+150x40",
    }, table="item"),
    _figure("run_table:stack_train_occupancy:ratio", 0.5, {
        of("stack_train_table_held_rows", rank="0", table="item"): "30x40",
        of("stack_train_table_held_rows", rank="1", table="item"): "20x40",
        of("stack_train_table_rows", rank="0", table="item"): "100x40",
        of("stack_train_table_rows", rank="0", table="age"): "9x40",
    }, table="item"),
    _figure(
        "run_table:stack_train_admitted_ids:rate5m", 2,
        {of("stack_train_admitted_ids_total", rank=rank, table="item"): "0+15x40" for rank in "01"}, table="item",
    ),
    _figure(
        "run_table:stack_train_evicted_ids:rate5m", 1,
        {of("stack_train_evicted_ids_total", rank=rank, table="item"): "0+15x40" for rank in "0"}, table="item",
    ),
    _figure(
        "run:stack_train_checkpoint_seconds:p99_1h", 0.2425, _seconds("stack_train_checkpoint_seconds", rank="0"),
    ),
    _figure("run_route:stack_serve_requests:rate1m", 4, dict([answers("200", 45), answers("500", 15)]), route="/a"),
    _figure("run:stack_serve_errors:ratio_rate5m", 0.25, dict([answers("200", 45), answers("500", 15)])),
    _figure("run:stack_serve_errors:ratio_rate5m", 0, dict([answers("200", 45), answers("422", 15)])),
    _figure("run:stack_serve_refused:ratio_rate5m", 0.25, dict([answers("200", 45), answers("429", 15)])),
    _figure("run:stack_serve_refused:ratio_rate5m", 0, dict([answers("200", 45)])),
    _figure(
        "run_route:stack_serve_request_seconds:p50_5m", 0.0625, _seconds("stack_serve_request_seconds", route="/a"),
        route="/a",
    ),
    _figure(
        "run_route:stack_serve_request_seconds:p99_5m", 0.2425, _seconds("stack_serve_request_seconds", route="/a"),
        route="/a",
    ),
    _figure(
        "run_feature:stack_serve_unknown_ids:per_request5m", 1.5, {OK: "0+10x40", UNKNOWN: "0+15x40"},
        feature="events.item",
    ),
    _figure("run:stack_serve_cache_hits:ratio_rate5m", 0.75, {
        of("stack_serve_cache_total", result=result): f"0+{number}x40"
        for result, number in {"hits": 3, "misses": 1, "expired": 1, "evicted": 7}.items()
    }),
    _figure("run_label:stack_serve_data_age:seconds", 400, {
        of("stack_serve_data_timestamp_seconds", label="stable", instance="a"): "-100x40",
        of("stack_serve_data_timestamp_seconds", label="stable", instance="b"): "0x40",
    }, label="stable"),
    _figure(
        "run:stack_daily_data_age:seconds", 1300, {of("stack_daily_data_timestamp_seconds"): "-1000x40"},
    ),
    _figure(
        "run:stack_daily_success_age:seconds", 1300, {of("stack_daily_last_success_timestamp_seconds"): "-1000x40"},
    ),
    _figure("run_layer:stack_audit_norm_shift:of_allowed", 3, {
        of("stack_audit_norm_shift_deviations", layer="ctr.1"): "0.75x40",
        of("stack_audit_norm_allowed_shift_deviations", layer="ctr.1"): "0.25x40",
    }, layer="ctr.1"),
)  # fmt: skip
