"""Processes of every kind as Prometheus sees them, with real metrics, that are well at first and then are not.

None of them trains or serves: what is real is the way from a metric to a message (exposition, scrape, rules, alerts,
Alertmanager, webhook).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry, start_http_server, write_to_textfile

from stack.telemetry.exposition import Exposed
from stack.telemetry.metrics import AuditMetrics, DailyMetrics, ServerMetrics, TrainMetrics, WorkerMetrics
from tools.monitor.programs import write_target

DAY = 86_400.0
_ROUTE = "/v1/users:embed"


class Processes:
    """Run `bad` trains and is served, run `night` is a daily job that was always well, `late` one that comes to be
    late, `gone` one whose file vanishes; of `down` a process that trains and a server end."""

    def __init__(self, folder: Path) -> None:
        self.targets, self.textfiles = folder / "targets", folder / "textfiles"
        for made in (self.targets, self.textfiles):
            made.mkdir(parents=True)
        self._stack = ExitStack()
        self._ended = ExitStack()
        train, serve = CollectorRegistry(), CollectorRegistry()
        self._train = TrainMetrics(train)
        self._worker, self._server = WorkerMetrics(serve), ServerMetrics(serve)
        self.listen(train, "train", "bad", self._stack)
        self.listen(serve, "serve", "bad", self._stack)
        self.listen(CollectorRegistry(), "serve", "leaving", self._stack)
        for role in ("train", "serve"):
            self.listen(CollectorRegistry(), role, "down", self._ended)

    def listen(self, registry: CollectorRegistry, role: str, run: str, stack: ExitStack) -> None:
        server, thread = start_http_server(0, "127.0.0.1", registry=registry)
        stack.callback(thread.join)
        stack.callback(server.server_close)
        stack.callback(server.shutdown)
        self.tell(role, run, f"127.0.0.1:{server.server_port}")

    def tell(self, role: str, run: str, address: str) -> None:
        labels = {"role": role, "rank": "0"} | ({"run": run} if run else {})
        write_target(self.targets / f"{role}-{run}.json", address, **labels)

    def close(self) -> None:
        self._ended.close()
        self._stack.close()

    def be_well(self) -> None:
        """Some traffic and steps, and all that nights have left; called again and again."""
        train, server = self._train, self._server
        train.planned.set(1000)
        train.step.set(10)
        train.steps.inc()
        train.seconds.observe(0.1)
        train.waited.inc(0.001)
        train.entropy.labels("ctr").set(0.8)
        train.calibration.labels("ctr").set(1.0)
        train.rows.labels("item").set(1000)
        train.held.labels("item").set(500)
        train.saves.labels("committed").inc()
        self._answer("200", 20, seconds=0.01)
        server.workers.set(2)
        server.data_seconds.labels("stable").set(time.time() - DAY)
        for run in ("bad", "night", "late", "gone"):
            self._night(run, failed=0, ended_ago=0.1 * DAY)
        self._audit(critical=0, shift=0.05, not_finite=0)

    def be_bad(self) -> None:
        """Once: what is not a matter of rates."""
        train, server = self._train, self._server
        train.entropy.labels("ctr").set(1.2)
        train.calibration.labels("ctr").set(1.5)
        train.held.labels("item").set(990)
        server.data_seconds.labels("stable").set(time.time() - 3 * DAY)
        server.swaps.labels("rows", "rejected").inc()
        train.saves.labels("failed").inc()
        train.errors.labels("disk").inc()
        self._night("bad", failed=1, ended_ago=0.1 * DAY)
        self._night("late", failed=0, ended_ago=2 * DAY)
        self._audit(critical=1, shift=0.5, not_finite=3)
        (self.textfiles / "gone.prom").unlink()
        (self.targets / "serve-leaving.json").unlink()
        self._ended.close()

    def go_on_badly(self) -> None:
        """Called again and again: nobody does a step, and of the requests half are answered, late."""
        self._train.seconds.observe(0.1)
        self._train.waited.inc(0.05)
        self._train.refused.inc()
        self._answer("200", 10, seconds=0.5)
        self._answer("500", 5)
        self._answer("429", 5)
        self._worker.count_unknown({"candidates.item": 500})
        self._worker.not_finite.inc()
        self._server.restarts.inc()

    def break_a_textfile(self) -> None:
        (self.textfiles / "broken.prom").write_text("this is no metric\n")

    def _answer(self, code: str, number: int, seconds: float | None = None) -> None:
        self._worker.requests.labels(_ROUTE, "stable", code).inc(number)
        if seconds is not None:
            self._worker.seconds.labels(_ROUTE).observe(seconds)

    def _night(self, run: str, *, failed: int, ended_ago: float) -> None:
        def fill(registry: CollectorRegistry) -> None:
            night = DailyMetrics(registry)
            night.failed.set(failed)
            night.findings.labels("critical").set(failed)
            for gauge in (night.ended, night.succeeded, night.data_seconds):
                gauge.set(time.time() - ended_ago)

        self._leave(run, fill)

    def _audit(self, *, critical: int, shift: float, not_finite: int) -> None:
        def fill(registry: CollectorRegistry) -> None:
            audit = AuditMetrics(registry)
            audit.findings.labels("normalisation", "critical").set(critical)
            audit.shift.labels("ctr.1").set(shift)
            audit.allowed_shift.labels("ctr.1").set(0.1)
            audit.not_finite.labels("ctr.1").set(not_finite)

        self._leave("bad", fill, name="audit")

    def _leave(self, run: str, fill: Callable[[CollectorRegistry], None], *, name: str | None = None) -> None:
        registry = CollectorRegistry()
        fill(registry)
        write_to_textfile(str(self.textfiles / f"{name or run}.prom"), Exposed(registry, labels={"run": run}))


@contextmanager
def processes(folder: Path) -> Iterator[Processes]:
    one = Processes(folder)
    try:
        yield one
    finally:
        one.close()
