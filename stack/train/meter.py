"""What a process that trains tells Prometheus: figures that steps have anyway, and a few that cost next to nothing."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist

from stack.base.errors import CheckpointError
from stack.checkpoint.manifest import VersionManifest
from stack.data.dataset import Dataset
from stack.data.days import SECONDS_PER_DAY, day_number
from stack.tables.stalls import Stalls
from stack.telemetry.metrics import TrainMetrics
from stack.train.periodic import Moment, Periodic
from stack.train.window import Window


class Meter(Periodic):
    """Fills `metrics`, but for what those know alone who save versions or manage ids (`SaveMeter`, `IdLog`).

    Loss, AUC, normalised entropy and calibration are of windows of `window_steps` steps, each shown until the next one
    is full; a last one that is not, when training ends.
    """

    def __init__(self, metrics: TrainMetrics, *, window_steps: int, num_steps: int, device: torch.device) -> None:
        self._metrics = metrics
        self._window_steps = window_steps
        self._device = device
        self._window = Window()
        self._losses: dict[str, list[float]] = {}
        self._num_in_window = 0
        self._stalls = Stalls(device) if dist.get_world_size() > 1 else None
        metrics.planned.set(num_steps)

    def at_start(self) -> None:
        if self._stalls is not None:
            self._stalls.on()

    def after_step(self, moment: Moment) -> None:
        metrics, result = self._metrics, moment.result
        metrics.steps.inc()
        metrics.step.set(moment.step)
        metrics.seconds.observe(moment.seconds)
        metrics.waited.inc(moment.wait_seconds)
        metrics.rate_share.set(result.rate_share)
        metrics.data_seconds.set(end_of_day(moment.day))
        if self._stalls is not None:
            metrics.exchanged.inc(self._stalls.take_seconds())
        for table, count in moment.own.num_ids.items():
            metrics.lookups.labels(table).inc(count)
            if count:
                metrics.unique.labels(table).set(moment.own.num_distinct_ids[table] / count)
        if result.refused:
            metrics.refused.inc()
        else:
            metrics.examples.inc(result.num_examples)
            metrics.gradient.set(result.gradient_norm)
            self._window.add(moment.own.outputs)
            for task, loss in result.losses.items():
                self._losses.setdefault(task, []).append(loss)
        self._num_in_window += 1
        if self._num_in_window == self._window_steps:
            self._tell_window()

    def at_end(self, moment: Moment | None) -> None:
        if self._num_in_window:
            self._tell_window()

    def close(self) -> None:
        if self._stalls is not None:
            self._stalls.off()

    def _tell_window(self) -> None:
        metrics, losses = self._metrics, self._losses
        for task, values in losses.items():
            metrics.loss.labels(task).set(float(np.mean(values)))
        for task, quality in self._window.take().items():
            metrics.auc.labels(task).set(quality.auc)
            metrics.entropy.labels(task).set(quality.normalized_entropy)
            metrics.calibration.labels(task).set(quality.calibration)
        if self._device.type == "cuda":
            metrics.device_bytes.set(torch.cuda.max_memory_allocated(self._device))
        self._losses, self._num_in_window = {}, 0


class SaveMeter:
    """Tells of versions; on process 0, which alone knows when one is out. `then`: what comes after a commit."""

    def __init__(self, metrics: TrainMetrics, *, then: Callable[[VersionManifest], None]) -> None:
        self._metrics = metrics
        self._then = then
        self._first = dist.get_rank() == 0
        self._asked: deque[float] = deque()
        if self._first:  # Prometheus sees the first of them only where there was a 0 before
            for result in ("committed", "failed"):
                metrics.saves.labels(result)

    def asked(self) -> None:
        """A version is about to be asked for; the one before may still be written."""
        if self._first:
            self._asked.append(time.perf_counter())

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Around whatever tells that a version could not be written."""
        try:
            yield
        except CheckpointError:
            if self._first:
                self._metrics.saves.labels("failed").inc()
            raise

    def committed(self, version: VersionManifest) -> None:
        """Called where it is written, one after the other in the order asked for."""
        self._metrics.saves.labels("committed").inc()
        self._metrics.save_bytes.inc(version.num_bytes)
        self._metrics.save_seconds.observe(time.perf_counter() - self._asked.popleft())
        self._then(version)


def tell_data(metrics: TrainMetrics, dataset: Dataset, *, days: Sequence[str], num_rows: Mapping[str, int]) -> None:
    """What is known before the first step: rows that ingest set aside, of the days to learn; sizes of tables."""
    dropped = sum((Counter(dataset.day(day).dropped) for day in days), Counter[str]())
    metrics.bad_rows.clear()  # of the days before, where a process learns one after the other
    for reason, count in dropped.items():
        metrics.bad_rows.labels(reason).set(count)
    for table, number in num_rows.items():
        metrics.rows.labels(table).set(number)


def end_of_day(day: str) -> float:
    """Seconds since 1970 at its end, as `stack serve` tells the age of its rows: days count as those of UTC."""
    return float((day_number(day) + 1) * SECONDS_PER_DAY)
