"""Training on more and more distinct ids within bounded rows: step time and memory, and what they cost in rows.

Every case is a process of its own, so that its memory is its own; cases take turns in rounds. A case trains the model
of `tools.bench.stream` on raw 64-bit ids, with a table that is full long before the clock starts, `admit_after: 1` (the
worst case: every new id takes a row from another), and says the median time of a step over the second half.
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

from stack.ids.config import IdMode, IdSpec, ManagedConfig, Policy
from stack.ids.hashing import HashVariant
from stack.tables.config import RowType
from stack.telemetry.console import say
from tools.bench.harness import Figure, gib, interleaved, run_child
from tools.bench.stream import TABLE, Learner, Stream, alone

SPACES = (10**6, 10**7, 10**8, 10**9)
ROWS = (10**5, 10**6, 10**7)
LARGE_ROWS = 10**8
ROWS_OF_SPACES = 10**6
SPACE_OF_ROWS = 10**9
DIM, BATCH_SIZE, SKEW = 32, 16_384, 3.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """One process."""

    num_ids: int
    num_rows: int
    row_type: RowType = RowType.fp32
    num_steps: int = 200

    @property
    def name(self) -> str:
        return f"{self.num_ids:,} ids, {self.num_rows:,} x {DIM} {self.row_type.value}"


def measure(*, num_rounds: int, large: bool) -> list[Figure]:
    """Step time, memory and counts of every case; `large` adds a table of 1e8 rows in fp16."""
    cases = [Case(num_ids=num_ids, num_rows=ROWS_OF_SPACES) for num_ids in SPACES]
    cases += [Case(num_ids=SPACE_OF_ROWS, num_rows=rows) for rows in ROWS if rows != ROWS_OF_SPACES]
    if large:
        cases.append(Case(num_ids=SPACE_OF_ROWS, num_rows=LARGE_ROWS, row_type=RowType.fp16))
    found: dict[str, list[dict[str, float]]] = {case.name: [] for case in cases}

    def run(case: Case) -> float:
        result = _in_a_process(case)
        found[case.name].append(result)
        say(f"{case.name}: {result['step_ms']:.1f} ms a step, {result['peak_gib']:.2f} GiB")
        return result["step_ms"]

    interleaved({case.name: (lambda case=case: run(case)) for case in cases}, num_rounds=num_rounds, num_warmup=0)  # type: ignore[misc]
    units = {"step_ms": "ms", "peak_gib": "GiB", "occupancy": "share", "hit_share": "share", "evicted_per_step": "ids"}
    return [
        Figure(name=f"{case.name}: {what}", unit=unit, values=tuple(one[what] for one in found[case.name]))
        for case in cases
        for what, unit in units.items()
    ]


def train_once(case: Case, out: Path) -> None:
    """What a process does."""
    managed = ManagedConfig(policy=Policy.lru, admit_after=1)
    spec = IdSpec(name=TABLE, mode=IdMode.managed, num_rows=case.num_rows, hash=HashVariant.modulo, managed=managed)
    stream = Stream(num_ids=case.num_ids, batch_size=BATCH_SIZE, skew=SKEW, drift=case.num_ids / 10_000)
    half = case.num_steps // 2
    with alone():
        learner = Learner(spec, dim=DIM, row_type=case.row_type)
        seconds, evicted = [], 0
        for number in range(case.num_steps):
            step = stream.step(number)
            if number == half:
                evicted = learner.ids.figures()[TABLE].num_evicted
            started = time.perf_counter()
            learner.learn(step)
            seconds.append(time.perf_counter() - started)
        figures = learner.ids.figures()[TABLE]
    result = {
        "step_ms": statistics.median(seconds[half:]) * 1e3,
        "slowest_ms": max(seconds[half:]) * 1e3,
        "occupancy": figures.occupancy,
        "hit_share": figures.hit_share,
        "evicted_per_step": (figures.num_evicted - evicted) / (case.num_steps - half),
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
    large = Case(num_ids=SPACE_OF_ROWS, num_rows=LARGE_ROWS, row_type=RowType.fp16)
    if f"{large.name}: step_ms" in by_name:
        by_rows.append(large)
    for axes, cases, counts, what in (
        (left, by_ids, [case.num_ids for case in by_ids], f"distinct raw ids ({ROWS_OF_SPACES:,} rows)"),
        (right, by_rows, [case.num_rows for case in by_rows], f"rows of the table ({SPACE_OF_ROWS:,} ids)"),
    ):
        step = [by_name[f"{case.name}: step_ms"] for case in cases]
        memory = [by_name[f"{case.name}: peak_gib"] for case in cases]
        axes.plot(counts, [figure.median for figure in step], "o-", color="tab:blue")
        axes.fill_between(counts, [one.low for one in step], [one.high for one in step], color="tab:blue", alpha=0.2)
        axes.set(xscale="log", xlabel=what, ylabel="ms a step (blue)")
        axes.set_ylim(bottom=0)
        other = axes.twinx()
        other.plot(counts, [figure.median for figure in memory], "s--", color="tab:red")
        other.set_ylabel("GiB at most (red)")
        other.set_ylim(bottom=0)
    file.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(file, dpi=120)


def _in_a_process(case: Case) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        words = [str(case.num_ids), str(case.num_rows), case.row_type.value, str(case.num_steps), str(out)]
        child = run_child([sys.executable, "-m", "tools.bench.billion", *words])
        return {**json.loads(out.read_text()), "peak_gib": gib(child.peak_bytes)}


if __name__ == "__main__":
    num_ids, num_rows, row_type, num_steps, file = sys.argv[1:]
    train_once(
        Case(num_ids=int(num_ids), num_rows=int(num_rows), row_type=RowType(row_type), num_steps=int(num_steps)),
        Path(file),
    )
