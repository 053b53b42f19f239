"""Plausible numbers in the real metric classes (`stack.telemetry.metrics`), as a Prometheus would have gathered them:
two trainings, a server, a week of nights and their audits. None of it was measured.

    demo         two ranks, level but for one slow spell; ids fill the tables; served
    marketplace  one process, at its start
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Gauge

from stack.telemetry.metrics import AuditMetrics, DailyMetrics, ServerMetrics, TrainMetrics, WorkerMetrics

FINE_SECONDS = 15.0
NIGHT_SECONDS = 240.0
"""Between samples of processes, and of what nights leave behind: below the five minutes that Prometheus looks back."""
DAY = 86_400.0
TASKS = {"ctr": (0.31, 0.74), "next_item": (3.4, 0.81), "rank": (0.52, 0.69), "power": (0.61, 0.66)}
"""Loss and AUC at the end."""
ROWS = {"item": 92_000, "user": 2_469, "brand": 5_200, "category": 303}
MANAGED = ("item", "brand")
LAYERS = {
    "ctr.standardize": (0.17, 0.72, 1.38), "ctr.head.activate.0": (0.11, 0.81, 1.07),
    "ctr.head.rest.1": (0.21, 0.68, 1.31), "next_item.item.1": (0.08, 0.91, 1.09), "rank.head.1": (0.05, 0.89, 1.14),
}  # fmt: skip
"""Shift, low and high variance ratio."""
PHASES = {"ingest": 95.0, "judge": 40.0, "learn": 610.0, "check": 55.0, "commit": 22.0}


@dataclass(frozen=True, kw_only=True)
class Process:
    """One target of a Prometheus: what it tells, under which labels, and how it goes on."""

    labels: dict[str, str]
    registry: CollectorRegistry
    advance: Callable[[float, float], None]
    """(time, seconds since the last one) -> the registry is as it is then."""
    every_seconds: float


def processes(start: float, end: float) -> Iterator[Process]:
    """Of the example, from `start` (fine) or a week before `end` (nights)."""
    for number, (run, rank) in enumerate((("demo", 0), ("demo", 1), ("marketplace", 0))):
        registry = CollectorRegistry()
        labels = {"instance": f"127.0.0.1:{9400 + number}", "role": "train", "run": run, "rank": str(rank)}
        yield _process(labels, registry, _Training(registry, run=run, rank=rank, start=start, end=end))
    registry = CollectorRegistry()
    labels = {"instance": "127.0.0.1:8001", "role": "serve", "run": "demo"}
    yield _process(labels, registry, _Serving(WorkerMetrics(registry), ServerMetrics(registry), start=start, end=end))
    registry = CollectorRegistry()
    labels = {"instance": "127.0.0.1:9100", "role": "node", "run": "demo"}
    yield _process(labels, registry, _Nights(DailyMetrics(registry), AuditMetrics(registry), end=end), NIGHT_SECONDS)


def _process(
    labels: dict[str, str],
    registry: CollectorRegistry,
    advance: Callable[[float, float], None],
    every_seconds: float = FINE_SECONDS,
) -> Process:
    Gauge("up", "As Prometheus itself would write it.", registry=registry).set(1)
    return Process(
        labels={"job": "stack", **labels}, registry=registry, advance=advance, every_seconds=every_seconds
    )  # fmt: skip


class _Training:
    def __init__(self, registry: CollectorRegistry, *, run: str, rank: int, start: float, end: float) -> None:
        self._of = metrics = TrainMetrics(registry)
        self._random = random.Random(f"{run} {rank}")
        self._rank, self._start, self._span = rank, start, end - start
        self._steps = 0.0 if run == "marketplace" else 2_100.0
        self._share = 1.0 if run == "marketplace" else 0.5  # of the rows: each rank tells of its own
        self._pace = 4.0 if run == "marketplace" else 5.5
        self._planned = self._steps + 1.3 * self._pace * self._span
        self._saved = start
        resident = Gauge("process_resident_memory_bytes", "As `ProcessCollector` tells it.", registry=registry)
        resident.set(1.9e9 + 1e8 * rank)
        metrics.planned.set(round(self._planned))
        metrics.rate_share.set(1)
        for table, rows in ROWS.items():
            metrics.rows.labels(table).set(rows)
        for reason, count in {"duplicate": 412, "bad_time": 3, "no_side_information": 57}.items():
            metrics.bad_rows.labels(reason).set(count)
        metrics.errors.labels("tensorboard").inc(0)

    def __call__(self, now: float, seconds: float) -> None:
        of, draw = self._of, self._random
        done = (now - self._start) / self._span
        slow = 1.0 + (0.8 if 0.55 < done < 0.62 else 0.0)
        steps = int(seconds * self._pace / slow)
        self._steps += steps
        for _ in range(steps):
            took = draw.lognormvariate(math.log(slow / self._pace), 0.18 + 0.02 * self._rank)
            of.seconds.observe(took)
            of.waited.inc(took * (0.02 + (0.42 if slow > 1 else 0.0)) * draw.uniform(0.5, 1.5))
            of.exchanged.inc(took * draw.uniform(0.14, 0.22))
        of.steps.inc(steps)
        of.step.set(self._steps)
        of.examples.inc(steps * draw.uniform(2_300, 2_500))
        self._learn(min(1.0, self._steps / self._planned), steps)
        if now - self._saved > 600:
            self._save(now)

    def _learn(self, done: float, steps: int) -> None:
        of, draw = self._of, self._random
        left = math.exp(-4 * done)
        for task, (loss, auc) in TASKS.items():
            noise = draw.gauss(0, 0.008)
            of.loss.labels(task).set(loss * (1 + 0.5 * left + noise))
            of.auc.labels(task).set(auc - 0.16 * left + noise / 3)
            of.entropy.labels(task).set(0.82 + (auc < 0.7) * 0.08 + 0.16 * left + noise / 2)
            of.calibration.labels(task).set(1 + 0.2 * left * (1 if task == "ctr" else -0.4) + 2 * noise)
        of.gradient.set(draw.lognormvariate(math.log(1.4 + 3 * left), 0.2))
        of.rate_share.set(min(1.0, 0.1 + 20 * done))
        of.refused.inc(0)
        of.device_bytes.set(6.1e9 + 2e8 * self._rank)
        of.data_seconds.set(self._start - 2 * 3600)
        for table, rows in ROWS.items():
            of.lookups.labels(table).inc(steps * 2_400 * (0.1 if table == "user" else 8 if table == "item" else 4))
            of.unique.labels(table).set(min(1.0, rows / 160_000 + 0.04) * draw.uniform(0.95, 1.05))
        for table in MANAGED:
            held = ROWS[table] * (0.97 - 0.3 * left if table == "item" else 0.7 - 0.3 * left)
            of.held.labels(table).set(round(held * self._share))
            of.admitted.labels(table).inc(steps * (0.3 + 6 * left) * draw.uniform(0.7, 1.3))
            of.evicted.labels(table).inc(steps * (0.2 if table == "item" else 0.02) * draw.uniform(0.7, 1.3))

    def _save(self, now: float) -> None:
        self._saved = now
        self._of.saves.labels("committed").inc()
        self._of.saves.labels("failed").inc(0)
        self._of.save_seconds.observe(self._random.uniform(1.5, 4))
        self._of.save_bytes.inc(self._random.uniform(3.1e7, 3.6e7))


class _Serving:
    def __init__(self, worker: WorkerMetrics, server: ServerMetrics, *, start: float, end: float) -> None:
        self._worker, self._server = worker, server
        self._random = random.Random("serving")
        self._start, self._span = start, end - start
        self._swapped = start
        server.workers.set(2)
        server.restarts.inc(0)
        server.version.labels("stable").set(14)
        server.version.labels("canary").set(15)
        server.share.set(0.05)
        for label, age in (("stable", 31 * 3600), ("canary", 7 * 3600)):
            server.data_seconds.labels(label).set(end - age)
            server.loaded_seconds.labels(label).set(end - age + 5 * 3600)

    def __call__(self, now: float, seconds: float) -> None:
        of, draw = self._worker, self._random
        rate = 38 + 12 * math.sin(2 * math.pi * (now - self._start) / self._span)
        for route, share, typical in (
            ("/v1/users:embed", 0.6, 0.0021), ("/v1/items:score", 0.3, 0.0042), ("/v1/users:retrieve", 0.1, 0.0031),
        ):  # fmt: skip
            count = int(seconds * rate * share * draw.uniform(0.9, 1.1))
            of.requests.labels(route, "stable", "200").inc(count)
            of.requests.labels(route, "canary", "200").inc(count // 20)
            of.requests.labels(route, "stable", "400").inc(draw.random() < 0.2)
            for _ in range(count):
                cold = 3.5 if draw.random() < 0.08 else 1.0
                of.seconds.labels(route).observe(draw.lognormvariate(math.log(typical * cold), 0.35))
        asked = int(seconds * rate)
        of.recorded.labels("written").inc(asked // 100)
        of.refused.labels("in_flight").inc(draw.random() < 0.03)
        of.in_flight.set(max(0.0, draw.gauss(rate / 18, 0.7)))
        of.unknown_ids.labels("item").inc(asked * draw.uniform(0.1, 0.14))
        of.unknown_ids.labels("brand").inc(asked * draw.uniform(0.01, 0.02))
        hits = int(asked * (0.72 if now - self._swapped > 120 else 0.35) * draw.uniform(0.97, 1.03))
        for result, count in (
            ("hits", hits), ("misses", asked - hits), ("expired", asked // 30), ("errors", 0), ("evicted", asked // 80),
        ):  # fmt: skip
            of.cache.labels(result).inc(count)
        if now - self._swapped > 900:
            self._swap(now)

    def _swap(self, now: float) -> None:
        self._swapped = now
        self._server.swaps.labels("delta", "accepted").inc()
        self._server.swaps.labels("package", "rejected").inc(0)
        self._server.swap_seconds.labels("delta").observe(self._random.uniform(0.3, 0.9))


class _Nights:
    """Each night at 02:00 UTC; the fifth before the last failed and was caught up with."""

    def __init__(self, daily: DailyMetrics, audit: AuditMetrics, *, end: float) -> None:
        self._daily, self._audit = daily, audit
        self._last = int((end - 2 * 3600) // DAY)
        self._night = -1

    def __call__(self, now: float, seconds: float) -> None:
        night = int((now - 2 * 3600) // DAY)
        if night == self._night:
            return
        self._night = night
        draw = random.Random(night)
        self._end_night(night, draw)
        self._end_audit(night, draw)

    def _end_night(self, night: int, draw: random.Random) -> None:
        of = self._daily
        ended = night * DAY + 2 * 3600 + 900
        failed = night == self._last - 5
        of.ended.set(ended)
        of.failed.set(failed)
        for phase, seconds in PHASES.items():
            of.seconds.labels(phase).set(seconds * draw.uniform(0.85, 1.2))
        of.findings.labels("warning").set(draw.randint(0, 2))
        of.findings.labels("critical").set(failed)
        if not failed:
            of.succeeded.set(ended)
            of.version.set(40 + night - self._last)
            of.data_seconds.set(night * DAY)

    def _end_audit(self, night: int, draw: random.Random) -> None:
        of = self._audit
        of.ended.set(night * DAY + 2 * 3600 + 1_000)
        of.version.set(40 + night - self._last)
        for part, (warnings, critical) in {"normalisation": (3, 0), "tables": (1, 0), "calibration": (0, 0)}.items():
            of.findings.labels(part, "warning").set(warnings)
            of.findings.labels(part, "critical").set(critical)
        for number, (layer, (shift, low, high)) in enumerate(LAYERS.items()):
            grown = shift * (1 + 0.06 * (night - self._last + 7) * (number == 2)) * draw.uniform(0.93, 1.07)
            of.shift.labels(layer).set(grown)
            of.allowed_shift.labels(layer).set(0.2)
            of.variance.labels(layer, "5").set(low * draw.uniform(0.97, 1.03))
            of.variance.labels(layer, "95").set(high * draw.uniform(0.97, 1.03))
            of.divergence.labels(layer).set(grown**2 / 2)
            of.not_finite.labels(layer).set(0)
        for task, rmse in {"ctr": 0.21, "next_item": 0.34, "rank": 0.05}.items():
            of.cost.labels(task).set(draw.gauss(0.0002, 0.0001))
            of.moved.labels(task).set(rmse * draw.uniform(0.9, 1.1))
            of.calibration.labels(task).set(draw.uniform(0.95, 1.05))
        for table, touched in {"item": 0.91, "user": 1.0, "brand": 0.67, "category": 0.99}.items():
            of.touched.labels(table).set(touched)
            of.collisions.labels(table).set(0.004 if table == "item" else 0)
            of.outliers.labels(table).set(12 if table == "item" else 0)
            of.table_not_finite.labels(table).set(0)
