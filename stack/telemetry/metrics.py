"""Every metric: its name, kind, labels and meaning, in one place. Names follow Prometheus: base units, `_total`.

Labels have few values by construction: routes, labels of versions, status codes, features of the schema, tasks, tables,
layers, reasons. No id of a user or an item is ever one, nor a channel of a layer. Which run and which rank a process is
of, Prometheus adds where it finds the process (`run`, `rank`, `role`: `stack.telemetry.exporter`).

A process fills one of these classes, on a registry that it is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_DURATIONS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_STEPS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_LATENCIES = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5)


class WorkerMetrics:
    """What the workers of a server count; summed over them by whoever reads (`prometheus_client.multiprocess`)."""

    def __init__(self, registry: CollectorRegistry) -> None:
        of: Any = {"registry": registry}
        self.requests = Counter(
            "stack_serve_requests_total", "Requests with a body, by route, label of the version and status.",
            ("route", "label", "code"), **of,
        )  # fmt: skip
        self.seconds = Histogram(
            "stack_serve_request_seconds", "From the body read to the answer encoded, by route.",
            ("route",), buckets=_LATENCIES, **of,
        )  # fmt: skip
        self.refused = Counter(
            "stack_serve_refused_total", "Requests refused before they were read, by reason.", ("reason",), **of
        )
        self.in_flight = Gauge(
            "stack_serve_in_flight_requests", "Requests being read or answered.", multiprocess_mode="livesum", **of
        )
        self.unknown_ids = Counter(
            "stack_serve_unknown_ids_total", "Ids given in requests that have no row, by feature.", ("feature",), **of
        )
        self.cache = Counter(
            "stack_serve_cache_total",
            "User vectors asked of the cache: hits, misses, expired (misses, too), errors; and evicted.",
            ("result",),
            **of,
        )
        self.recorded = Counter(
            "stack_serve_recorded_total",
            "Requests chosen to be recorded (`serve.record`), by result: written, full, failed.",
            ("result",),
            **of,
        )
        self.not_finite = Counter(
            "stack_serve_not_finite_total", "Answers that held a number that is not finite, and were refused.", **of
        )

    def count_unknown(self, unknown: Mapping[str, int]) -> None:
        """By place and feature, as a predictor counts them."""
        for feature, count in unknown.items():
            self.unknown_ids.labels(feature).inc(count)


class ServerMetrics:
    """What the supervisor of a server knows."""

    def __init__(self, registry: CollectorRegistry) -> None:
        of: Any = {"registry": registry}
        self.workers = Gauge("stack_serve_workers", "Worker processes that answer.", **of)
        self.restarts = Counter("stack_serve_worker_restarts_total", "Workers started again after they died.", **of)
        self.swaps = Counter(
            "stack_serve_swaps_total", "Packages and row deltas loaded, by kind and result: accepted, rejected.",
            ("kind", "result"), **of,
        )  # fmt: skip
        self.swap_seconds = Histogram(
            "stack_serve_swap_seconds", "From the request to load to the switch, by kind.", ("kind",),
            buckets=_DURATIONS, **of,
        )  # fmt: skip
        self.version = Gauge("stack_serve_version", "Number of the version behind a label.", ("label",), **of)
        self.share = Gauge("stack_serve_canary_share", "Share of requests that the canary answers.", **of)
        self.data_seconds = Gauge(
            "stack_serve_data_timestamp_seconds", "End of the last day that the rows behind a label have learnt.",
            ("label",), **of,
        )  # fmt: skip
        self.loaded_seconds = Gauge(
            "stack_serve_loaded_timestamp_seconds", "When what answers behind a label was loaded.", ("label",), **of
        )


class TrainMetrics:
    """What a process that trains counts. Figures of a window are over its own last steps' examples; losses are those of
    all processes together, as training logs them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        of: Any = {"registry": registry}
        self.steps = Counter("stack_train_steps_total", "Steps done, refused ones among them.", **of)
        self.step = Gauge("stack_train_step", "Where the run stands: steps done over all restarts.", **of)
        self.planned = Gauge("stack_train_planned_steps", "Steps that the run is to do.", **of)
        self.examples = Counter("stack_train_examples_total", "Examples learnt from, of all processes together.", **of)
        self.refused = Counter(
            "stack_train_refused_batches_total", "Batches refused since not all of them was finite.", **of
        )
        self.seconds = Histogram(
            "stack_train_step_seconds", "From batch to batch, waiting included.", buckets=_STEPS, **of
        )
        self.waited = Counter("stack_train_loader_wait_seconds_total", "Time that steps waited for the loader.", **of)
        self.exchanged = Counter(
            "stack_train_exchange_seconds_total",
            "Time that steps stood still for what tables exchange between processes (all-to-all and the like).",
            **of,
        )
        self.loss = Gauge("stack_train_loss", "Mean loss of a task over the window.", ("task",), **of)
        self.auc = Gauge("stack_train_auc", "AUC of a task's scores over the window.", ("task",), **of)
        self.entropy = Gauge(
            "stack_train_normalized_entropy_ratio",
            "Log loss over the window by that of its positives' share (He et al. 2014); above 1 nothing was learnt.",
            ("task",),
            **of,
        )
        self.calibration = Gauge(
            "stack_train_calibration_ratio", "Predicted over observed positives in the window.", ("task",), **of
        )
        self.gradient = Gauge("stack_train_gradient_norm", "Norm of the dense gradient before clipping.", **of)
        self.rate_share = Gauge("stack_train_learning_rate_share", "Share of the learning rates now in use.", **of)
        self.lookups = Counter(
            "stack_train_lookups_total", "Ids looked up in a table by this process.", ("table",), **of
        )
        self.unique = Gauge(
            "stack_train_unique_ids_ratio", "Of the ids looked up in the last batch measured, how many differ.",
            ("table",), **of,
        )  # fmt: skip
        self.rows = Gauge("stack_train_table_rows", "Rows of a table, of all processes together.", ("table",), **of)
        self.held = Gauge(
            "stack_train_table_held_rows",
            "Rows that an id has, of those that this process manages; of tables with managed ids.",
            ("table",),
            **of,
        )
        self.admitted = Counter("stack_train_admitted_ids_total", "Ids that were given a row.", ("table",), **of)
        self.evicted = Counter("stack_train_evicted_ids_total", "Ids whose row was taken.", ("table",), **of)
        self.device_bytes = Gauge(
            "stack_train_device_memory_bytes", "Most memory of its accelerator that the process has had.", **of
        )
        self.save_seconds = Histogram(
            "stack_train_checkpoint_seconds", "From asking for a version to its commit.", buckets=_DURATIONS, **of
        )
        self.save_bytes = Counter("stack_train_checkpoint_bytes_total", "Bytes of committed versions.", **of)
        self.saves = Counter(
            "stack_train_checkpoints_total", "Versions by result: committed, failed.", ("result",), **of
        )
        self.data_seconds = Gauge("stack_train_data_timestamp_seconds", "End of the day that is being learnt.", **of)
        self.bad_rows = Gauge(
            "stack_train_bad_rows", "Lines of the log that ingest set aside, of the days learnt from, by reason.",
            ("reason",), **of,
        )  # fmt: skip
        self.errors = Counter(
            "stack_telemetry_errors_total", "What telemetry could not do, training going on: by part.", ("part",), **of
        )


class DailyMetrics:
    """What the last `stack daily` did; written into a file when it ends (`stack.telemetry.textfile`)."""

    def __init__(self, registry: CollectorRegistry) -> None:
        of: Any = {"registry": registry}
        self.ended = Gauge("stack_daily_last_end_timestamp_seconds", "When it ended, in whatever way.", **of)
        self.succeeded = Gauge(
            "stack_daily_last_success_timestamp_seconds", "When it last ended with all days committed.", **of
        )
        self.failed = Gauge("stack_daily_last_failed", "1 where it failed or a day was quarantined, else 0.", **of)
        self.seconds = Gauge("stack_daily_last_duration_seconds", "How long it took, by phase.", ("phase",), **of)
        self.findings = Gauge("stack_daily_findings", "Findings of its days, by level.", ("level",), **of)
        self.version = Gauge("stack_daily_version", "Number of the newest committed version.", **of)
        self.data_seconds = Gauge(
            "stack_daily_data_timestamp_seconds", "End of the last day that the newest version has learnt.", **of
        )


class AuditMetrics:
    """What the last `stack audit` found; written into a file when it ends. By layer, never by channel."""

    def __init__(self, registry: CollectorRegistry) -> None:
        of: Any = {"registry": registry}
        self.ended = Gauge("stack_audit_last_end_timestamp_seconds", "When it ended.", **of)
        self.version = Gauge("stack_audit_version", "Number of the version audited.", **of)
        self.findings = Gauge("stack_audit_findings", "Findings by part and level.", ("part", "level"), **of)
        self.shift = Gauge(
            "stack_audit_norm_shift_deviations",
            "By how much 95% of a layer's channels are off at most, in deviations learnt.",
            ("layer",),
            **of,
        )
        self.allowed_shift = Gauge(
            "stack_audit_norm_allowed_shift_deviations", "What they may be off by.", ("layer",), **of
        )
        self.variance = Gauge(
            "stack_audit_norm_variance_ratio", "Live variance over the learnt one: 5% and 95% of a layer's channels.",
            ("layer", "percentile"), **of,
        )  # fmt: skip
        self.divergence = Gauge(
            "stack_audit_norm_divergence_nats", "Mean divergence of a layer's channels.", ("layer",), **of
        )
        self.not_finite = Gauge(
            "stack_audit_norm_not_finite_channels",
            "Channels whose statistics or inputs are no numbers.",
            ("layer",),
            **of,
        )
        self.cost = Gauge(
            "stack_audit_cost_auc", "AUC that learnt statistics cost a task against live ones.", ("task",), **of
        )
        self.moved = Gauge(
            "stack_audit_logit_rmse", "By how much live statistics move a task's scores.", ("task",), **of
        )
        self.calibration = Gauge(
            "stack_audit_calibration_ratio", "Predicted over observed positives on live rows.", ("task",), **of
        )
        self.touched = Gauge(
            "stack_audit_table_touched_ratio", "Share of a table's rows that training has touched.", ("table",), **of
        )
        self.collisions = Gauge(
            "stack_audit_table_collision_ratio", "Share of ids that share their row with another.", ("table",), **of
        )
        self.outliers = Gauge(
            "stack_audit_table_outlier_rows", "Rows whose norm is far from the others'.", ("table",), **of
        )
        self.table_not_finite = Gauge(
            "stack_audit_table_not_finite_rows", "Rows that hold a number that is none.", ("table",), **of
        )
