"""Every metric: its name, kind, labels and meaning, in one place. Names follow Prometheus: base units, `_total`.

Labels have few values by construction: routes, labels of versions, status codes, features of the schema. No id of a
user or an item is ever one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

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
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300), **of,
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
