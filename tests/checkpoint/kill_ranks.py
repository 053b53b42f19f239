"""Kills one of the processes that save a version together, at every call to the system that changes something.

    python -m tests.checkpoint.kill_ranks [--world-size N] [--quick] [--json]

The processes are children of this one, and talk over gloo; process 0 waits for a part that does not come for
`PATIENCE_SECONDS`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from stack.base.errors import CheckpointError
from stack.checkpoint.chain import Chain, chain_of
from stack.checkpoint.config import CheckpointConfig
from stack.checkpoint.crew import Crew
from stack.checkpoint.load import open_version
from stack.checkpoint.retain import prune
from stack.checkpoint.save import ChainWriter
from stack.checkpoint.verify import Kind, verify
from tests.checkpoint.chains import DELTAS
from tests.checkpoint.count_faults import _child, _ended, _wrapped
from tests.checkpoint.fault_worker import LATER_SECONDS, NUM_DAYS, REFUSED, facts_of, save_day, toy_before

PATIENCE_SECONDS = 0.3


@dataclass(kw_only=True)
class Row:
    world_size: int
    rank: int
    points: int
    old: int = 0
    new: int = 0
    wrong: list[str] = field(default_factory=list)


def crew(rank: int, world_size: int) -> Crew:
    def totals(values: Any) -> list[float]:
        tensor = torch.tensor(list(values), dtype=torch.float64)
        dist.all_reduce(tensor)
        return [float(value) for value in tensor]

    def from_first(data: bytes) -> bytes:
        tensor = torch.tensor(list(data), dtype=torch.uint8)
        dist.broadcast(tensor, 0)
        return bytes(tensor.tolist())

    return Crew(
        rank=rank, world_size=world_size, totals=totals, from_first=from_first, patience_seconds=PATIENCE_SECONDS
    )  # fmt: skip


def save_together(folder: Path, rank: int, world_size: int, meeting: Path, counted: Callable[[str], None]) -> int:
    """One process of a job that adds a day; its exit status."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(meeting), world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=10))
    chain = chain_of(folder)
    toy = toy_before(chain, NUM_DAYS + 1)
    clocks = dict.fromkeys(toy.keys, toy.saved_clock)
    writer = ChainWriter(chain, options=DELTAS, crew=crew(rank, world_size), parent=toy.parent, clocks=clocks)
    lock = threading.Lock()

    def counting(call: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Callable[..., Any]:
        with lock:
            counted(call)
        return function

    try:
        with _wrapped(counting):
            writer.save(toy._state(rank, world_size, {"item": (3, 1)}), facts_of(toy, NUM_DAYS + 1))
            writer.wait()
    except (CheckpointError, RuntimeError):  # gloo tells with a RuntimeError that somebody is gone
        return REFUSED
    return 0


class Job:
    """Jobs of some processes on copies of one chain."""

    def __init__(self, folder: Path, world_size: int) -> None:
        self._folder = folder
        self._world_size = world_size
        chain = chain_of(folder / "template", for_writing=True)
        for day in range(1, NUM_DAYS + 1):
            save_day(chain, day)
        self._digests = [self._digest(chain, number) for number in chain.numbers()]
        assert set(self.run(folder / "whole")) == {0}
        self._digests.append(self._digest(chain_of(folder / "whole"), NUM_DAYS + 1))

    def counts(self) -> list[int]:
        """By process, its calls."""
        self.run(self._folder / "counted", counts=self._folder)
        return [int((self._folder / f"count-{rank}").read_text()) for rank in range(self._world_size)]

    def run(self, folder: Path, *, rank: int = -1, number: int = 0, counts: Path | None = None) -> list[int]:
        """Exit statuses of a job on a copy (or on what is there), of which `rank` is killed before a call."""
        if not folder.exists():
            shutil.copytree(self._folder / "template", folder)
        meeting = self._folder / "meeting"
        meeting.unlink(missing_ok=True)

        def body(own: int) -> int:
            seen = [0]

            def counted(call: str) -> None:
                seen[0] += 1
                if own == rank and seen[0] == number:
                    os.kill(os.getpid(), signal.SIGKILL)

            status = save_together(folder, own, self._world_size, meeting, counted)
            if counts is not None:
                (counts / f"count-{own}").write_text(str(seen[0]))
            return status

        pids = [_child(lambda own=own: body(own)) for own in range(self._world_size)]  # type: ignore[misc]
        return [_ended(pid) for pid in pids]

    def kill(self, row: Row, number: int) -> None:
        """One kill; then a reader looks, and a new job tries again."""
        folder = self._folder / "copy"
        with suppress(FileNotFoundError):
            shutil.rmtree(folder)
        statuses = self.run(folder, rank=row.rank, number=number)
        if set(statuses) == {0}:  # it had fewer calls this time: who makes a folder first is chance
            row.points -= 1
            return
        assert statuses[row.rank] == -signal.SIGKILL, statuses
        assert 1 not in statuses, statuses
        chain = chain_of(folder)
        row.new += self._look(chain) == NUM_DAYS + 1
        row.old += self._look(chain) == NUM_DAYS
        if self._look(chain) == NUM_DAYS:
            assert set(self.run(folder)) == {0}
        assert self._look(chain) == NUM_DAYS + 1
        prune(chain, CheckpointConfig(keep_last=99), clock=lambda: time.time() + LATER_SECONDS)
        assert not verify(chain).findings

    def _look(self, chain: Chain) -> int:
        for number in chain.numbers():
            assert self._digest(chain, number) == self._digests[number - 1], f"version {number} reads differently"
        assert not [one for one in verify(chain).findings if one.kind is not Kind.leftover]
        return chain.numbers()[-1]

    @staticmethod
    def _digest(chain: Chain, number: int) -> str:
        return open_version(chain, chain.manifest(number)).digest()


def count(folder: Path, world_size: int, *, quick: bool) -> list[Row]:
    job = Job(folder, world_size)
    rows = []
    for rank, num_calls in enumerate(job.counts()):
        points = sorted({1, (num_calls + 1) // 2, num_calls - 2}) if quick else range(1, num_calls + 1)
        row = Row(world_size=world_size, rank=rank, points=len(points))
        rows.append(row)
        for number in points:
            try:
                job.kill(row, number)
            except AssertionError as error:
                row.wrong.append(f"{world_size} processes, {rank} killed at call {number} of {num_calls}: {error}")
    return rows


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--world-size", type=int, action="append")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for world_size in asked.world_size or (2, 4):
        with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
            rows += count(Path(folder), world_size, quick=asked.quick)
    wrong = [line for row in rows for line in row.wrong]
    if asked.json:
        print(json.dumps([asdict(row) for row in rows]))  # noqa: T201
    else:
        print("| processes | killed | kills | old seen | new seen | wrong |\n|---:|---:|---:|---:|---:|---:|")  # noqa: T201
        for row in rows:
            cells = (row.world_size, row.rank, row.points, row.old, row.new, len(row.wrong))
            print(f"| {' | '.join(map(str, cells))} |")  # noqa: T201
        print("\n".join(wrong), file=sys.stderr)  # noqa: T201
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
