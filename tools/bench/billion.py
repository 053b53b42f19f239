"""Training on more and more distinct ids within bounded rows: step time and memory, and what they cost in rows.

Every case is a process of its own, so that its memory is its own; cases take turns in rounds. A case trains the model
of `tools.bench.stream` on raw 64-bit ids with `admit_after: 1`, and its table is full of other ids from the start: the
worst case, since every new id takes a row from another. It says the median processor time of a step (one thread; it is
that of the clock where the machine is idle) after the first steps, and the memory it holds at the end and held at most.
The largest table leaves no room for a map beside it: its ids are hashed.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from stack.base.errors import UserError
from stack.ids.config import IdMode, IdSpec, ManagedConfig, Policy
from stack.ids.hashing import HashVariant, hash64
from stack.ids.managed import MapFigures
from stack.tables.config import RowType
from stack.telemetry.console import say
from tools.bench.harness import Figure, gib, interleaved, run_child
from tools.bench.stream import TABLE, Learner, Stream, alone, full_of

SPACES = (10**6, 10**7, 10**8, 10**9)
ROWS = (10**5, 10**6, 10**7)
LARGE_ROWS = 10**8
LARGEST_ROWS, LARGEST_GIB = 3 * 10**8, 21.0
ROWS_OF_SPACES = 10**6
_SALT_OTHERS = 103
SPACE_OF_ROWS = 10**9
DIM, BATCH_SIZE, SKEW, DRIFT = 32, 16_384, 8.0, 50.0
"""Half of the sightings are of about a thousandth of the ids of the largest space; the head moves 50 ids a step."""
NUM_STEPS, NUM_WARMUP = 100, 30


@dataclass(frozen=True, kw_only=True)
class Case:
    """One process."""

    num_ids: int
    num_rows: int
    row_type: RowType = RowType.fp32
    mode: IdMode = IdMode.managed

    @property
    def name(self) -> str:
        return f"{self.num_ids:,} ids {self.mode.value}, {self.num_rows:,} x {DIM} {self.row_type.value}"


LARGE = (
    Case(num_ids=SPACE_OF_ROWS, num_rows=LARGE_ROWS, row_type=RowType.fp16),
    Case(num_ids=SPACE_OF_ROWS, num_rows=LARGEST_ROWS, row_type=RowType.fp16, mode=IdMode.hashed),
)


def measure(*, num_rounds: int, large: bool) -> list[Figure]:
    """Step time, memory and counts of every case; `large` adds a managed table of 1e8 rows in fp16, which begins empty,
    and a hashed one of 3e8.

    Raises: `UserError` where `large` does not fit in the memory that is free.
    """
    free_gib = gib(psutil.virtual_memory().available)
    if large and free_gib < LARGEST_GIB:
        raise UserError(f"--large needs {LARGEST_GIB} GiB of memory, {free_gib:.1f} are free: leave it out")
    cases = [Case(num_ids=num_ids, num_rows=ROWS_OF_SPACES) for num_ids in SPACES]
    cases += [Case(num_ids=SPACE_OF_ROWS, num_rows=rows) for rows in ROWS if rows != ROWS_OF_SPACES]
    if large:
        cases += LARGE
    found: dict[str, list[dict[str, float]]] = {case.name: [] for case in cases}

    def run(case: Case) -> float:
        result = _in_a_process(case)
        found[case.name].append(result)
        say(f"{case.name}: {result['cpu_ms']:.1f} ms a step, {result['held_gib']:.2f} GiB")
        return result["cpu_ms"]

    interleaved({case.name: (lambda case=case: run(case)) for case in cases}, num_rounds=num_rounds, num_warmup=0)  # type: ignore[misc]
    units = {
        "cpu_ms": "ms",
        "wall_ms": "ms",
        "held_gib": "GiB",
        "peak_gib": "GiB",
        "distinct": "ids",
        "new": "ids",
        "evicted": "ids",
    }
    return [
        Figure(name=f"{case.name}: {what}", unit=unit, values=tuple(one[what] for one in found[case.name]))
        for case in cases
        for what, unit in units.items()
    ]


def train_once(case: Case, out: Path) -> None:
    """What a process does."""
    managed = ManagedConfig(policy=Policy.lru, admit_after=1)
    spec = IdSpec(name=TABLE, mode=case.mode, num_rows=case.num_rows, hash=HashVariant.modulo, managed=managed)
    stream = Stream(num_ids=case.num_ids, batch_size=BATCH_SIZE, skew=SKEW, drift=DRIFT)
    with alone():
        learner = Learner(spec, dim=DIM, row_type=case.row_type)
        if case.mode is IdMode.managed and case not in LARGE:
            others = hash64(torch.arange(1, case.num_rows), salt=_SALT_OTHERS)
            learner.ids.load({TABLE: full_of(others)})
            del others
        cpu, wall, distinct = [], [], []
        for number in range(NUM_STEPS):
            step = stream.step(number)
            if number == NUM_WARMUP:
                before = learner.ids.figures().get(TABLE, MapFigures())
            started_cpu, started = time.process_time(), time.perf_counter()
            learner.learn(step)
            cpu.append(time.process_time() - started_cpu)
            wall.append(time.perf_counter() - started)
            distinct.append(int(torch.unique(step.raw_N).shape[0]))
        after = learner.ids.figures().get(TABLE, MapFigures())
        held = psutil.Process().memory_info().rss
    num_steps = NUM_STEPS - NUM_WARMUP
    result = {
        "cpu_ms": statistics.median(cpu[NUM_WARMUP:]) * 1e3,
        "wall_ms": statistics.median(wall[NUM_WARMUP:]) * 1e3,
        "held_gib": gib(held),
        "distinct": statistics.mean(distinct[NUM_WARMUP:]),
        "new": (after.num_admitted - before.num_admitted) / num_steps,
        "evicted": (after.num_evicted - before.num_evicted) / num_steps,
    }
    out.write_text(json.dumps(result))


def picture(figures: Sequence[Figure], file: Path) -> None:
    """Two curves: step time and memory by the number of ids, and by the number of rows."""
    from matplotlib.figure import Figure as Canvas

    by_name = {figure.name: figure for figure in figures}
    canvas = Canvas(figsize=(10, 3.6), layout="constrained")
    left, right = canvas.subplots(1, 2)
    by_ids = [Case(num_ids=num_ids, num_rows=ROWS_OF_SPACES) for num_ids in SPACES]
    by_rows = [Case(num_ids=SPACE_OF_ROWS, num_rows=rows) for rows in sorted({*ROWS, ROWS_OF_SPACES})]
    by_rows += [case for case in LARGE if f"{case.name}: cpu_ms" in by_name]
    for axes, cases, counts, what in (
        (left, by_ids, [case.num_ids for case in by_ids], f"distinct raw ids ({ROWS_OF_SPACES:,} rows)"),
        (right, by_rows, [case.num_rows for case in by_rows], f"rows of the table ({SPACE_OF_ROWS:,} ids)"),
    ):
        step = [by_name[f"{case.name}: cpu_ms"] for case in cases]
        memory = [by_name[f"{case.name}: held_gib"] for case in cases]
        axes.plot(counts, [figure.median for figure in step], "o-", color="tab:blue")
        axes.fill_between(counts, [one.low for one in step], [one.high for one in step], color="tab:blue", alpha=0.2)
        axes.set(xscale="log", xlabel=what, ylabel="processor ms a step (blue)")
        axes.set_ylim(0, 1.2 * max(figure.high for figure in step))
        other = axes.twinx()
        other.plot(counts, [figure.median for figure in memory], "s--", color="tab:red")
        other.set_ylabel("GiB held (red)")
        other.set_ylim(0, 1.2 * max(figure.high for figure in memory))
    file.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(file, dpi=120)


def _in_a_process(case: Case) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        words = [str(case.num_ids), str(case.num_rows), case.row_type.value, case.mode.value, str(out)]
        child = run_child([sys.executable, "-W", "ignore", "-m", "tools.bench.billion", *words])
        return {**json.loads(out.read_text()), "peak_gib": gib(child.peak_bytes)}


if __name__ == "__main__":
    num_ids, num_rows, row_type, mode, file = sys.argv[1:]
    one = Case(num_ids=int(num_ids), num_rows=int(num_rows), row_type=RowType(row_type), mode=IdMode(mode))
    train_once(one, Path(file))
