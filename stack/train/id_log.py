"""What managed tables did: rows given and taken, and how often an id had one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, fields
from pathlib import Path

import msgspec
import torch
import torch.distributed as dist

from stack.ids.managed import MapFigures
from stack.ids.maps import IdMaps
from stack.telemetry.logs import Board, LineLog
from stack.telemetry.metrics import TrainMetrics
from stack.telemetry.mishaps import Mishaps
from stack.train.periodic import Moment, Periodic


class IdLog(Periodic):
    """A line in `path` for each managed table every `every_steps` steps, and the same as curves of TensorBoard.

    Sums over all processes, so it is on all of them; rank 0 writes. Counts are those since the line before; `num_held`
    and `occupancy` are as of now. Lines after `first_step` (a killed run's) are cut. `curves` is a folder of its own:
    of two writers in one, TensorBoard takes the second for a restart of the first, and drops what that has told.
    `metrics` are told what this process alone has done.
    """

    def __init__(
        self,
        maps: IdMaps,
        path: Path,
        curves: Path,
        *,
        every_steps: int,
        first_step: int,
        writes: bool,
        metrics: TrainMetrics,
        mishaps: Mishaps,
    ) -> None:
        def learnt(line: bytes) -> bool:
            return msgspec.json.decode(line, type=_Line).step <= first_step

        self._maps = maps
        self._every_steps = every_steps
        self._metrics = metrics
        self._before = {name: MapFigures() for name in maps.managed_names}
        self._own_before = dict(self._before)
        for name in self._before:  # Prometheus sees the first ids only where there was a 0 before
            metrics.admitted.labels(name)
            metrics.evicted.labels(name)
        self._log = LineLog(path, keep=learnt, part="ids", mishaps=mishaps) if writes else None
        self._board = Board(curves, first_step=first_step, part="curves", mishaps=mishaps) if writes else None

    def after_step(self, moment: Moment) -> None:
        if moment.step % self._every_steps:
            return
        own = self._maps.figures()
        self._tell(own)
        for name, figures in _over_processes(own).items():
            told = _told(figures - self._before[name], now=figures)
            self._before[name] = figures
            if self._log is not None and self._board is not None:
                self._log.add({"step": moment.step, "table": name, **told})
                self._board.add({f"ids/{name}/{what}": value for what, value in told.items()}, step=moment.step)

    def close(self) -> None:
        if self._log is not None and self._board is not None:
            self._log.close()
            self._board.close()

    def _tell(self, own: Mapping[str, MapFigures]) -> None:
        for name, figures in own.items():
            since = figures - self._own_before[name]
            self._metrics.held.labels(name).set(figures.num_held)
            self._metrics.admitted.labels(name).inc(since.num_admitted)
            self._metrics.evicted.labels(name).inc(since.num_evicted)
            self._own_before[name] = figures


def _over_processes(figures: Mapping[str, MapFigures]) -> dict[str, MapFigures]:
    """The sums; all processes ask together."""
    counts = torch.tensor([astuple(one) for one in figures.values()], dtype=torch.int64)
    dist.all_reduce(counts)
    names = [field.name for field in fields(MapFigures)]
    return {
        table: MapFigures(**dict(zip(names, row, strict=True)))
        for table, row in zip(figures, counts.tolist(), strict=True)
    }


def _told(since: MapFigures, *, now: MapFigures) -> dict[str, float]:
    return {
        "num_held": now.num_held,
        "occupancy": now.occupancy,
        "hit_share": since.hit_share,
        "miss_share": since.miss_share,
        "num_admitted": since.num_admitted,
        "num_evicted": since.num_evicted,
    }


class _Line(msgspec.Struct):
    step: int
