"""What managed tables did: rows given and taken, and how often an id had one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, fields
from pathlib import Path

import msgspec
import torch
import torch.distributed as dist
from torch.utils.tensorboard import SummaryWriter

from stack.base.files import cut_lines
from stack.ids.managed import MapFigures
from stack.ids.maps import IdMaps
from stack.train.periodic import Moment, Periodic


class IdLog(Periodic):
    """A line in `path` for each managed table every `every_steps` steps, and the same as curves of TensorBoard.

    Sums over all processes, so it is on all of them; rank 0 writes. Counts are those since the line before; `num_held`
    and `occupancy` are as of now. Lines after `first_step` (a killed run's) are cut. `curves` is a folder of its own:
    of two writers in one, TensorBoard takes the second for a restart of the first, and drops what that has told.
    """

    def __init__(
        self, maps: IdMaps, path: Path, curves: Path, *, every_steps: int, first_step: int, writes: bool
    ) -> None:
        self._maps = maps
        self._every_steps = every_steps
        self._before = {name: MapFigures() for name in maps.managed_names}
        self._file = self._writer = None
        if writes:
            cut_lines(path, keep=lambda line: msgspec.json.decode(line, type=_Line).step <= first_step)
            self._file = path.open("ab")
            self._writer = SummaryWriter(str(curves), purge_step=first_step + 1)

    def after_step(self, moment: Moment) -> None:
        if moment.step % self._every_steps:
            return
        for name, figures in _over_processes(self._maps.figures()).items():
            told = _told(figures - self._before[name], now=figures)
            self._before[name] = figures
            if self._file is None or self._writer is None:
                continue
            self._file.write(msgspec.json.encode({"step": moment.step, "table": name, **told}) + b"\n")
            self._file.flush()
            for what, value in told.items():
                self._writer.add_scalar(f"ids/{name}/{what}", value, moment.step)

    def close(self) -> None:
        if self._file is not None and self._writer is not None:
            self._file.close()
            self._writer.close()


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
