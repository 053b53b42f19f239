"""What fewer rows cost on a log: one training judged with its items exact, hashed and managed.

Each case is `stack train` and `stack evaluate` as anyone types them, with `ids.modes.item`, `ids.rows.item` and
the same seed; other `ids` options go for all cases. A case that has its report is not run again, so a study that was
stopped goes on.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from rich.table import Table

from stack.base.errors import UserError
from stack.data.dataset import Dataset
from stack.evaluate import report
from stack.ids.config import MIN_ROWS, IdMode
from stack.telemetry.console import say
from stack.train.run_folder import IDS
from tools.bench.assembly import workload_of

TABLE = "item"
SHARES = (0.01, 0.1, 1.0)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way to give items their rows. `run` is its run's name."""

    run: str
    name: str
    num_rows: int
    overrides: tuple[str, ...]


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """A case judged. `gauc` by evaluation set of the task `ctr`; `hit_share` of managed tables alone."""

    name: str
    num_rows: int
    gauc: dict[str, report.Estimate]
    hit_share: float | None


class _Line(msgspec.Struct, frozen=True):
    """What is read of a line of `ids.jsonl`."""

    table: str
    hit_share: float


def study(overrides: Sequence[str], *, shares: Sequence[float] = SHARES) -> list[Outcome]:
    """All cases, one after the other. `overrides` describe the training, as on the command line."""
    setup = workload_of(overrides, num_batches=0).setup
    dataset = Dataset(setup.dataset)
    last_day = setup.train.to_day or dataset.days()[-1]
    outcomes = []
    for case in cases(dataset.num_rows(last_day)[TABLE] - 1, shares, run=setup.run.name):
        folder = Path(setup.run.dir) / case.run
        if not (folder / "report.json").exists():
            _stack("train", *overrides, f"run.name={case.run}", *case.overrides)
            # What was trained, and how, `evaluate` takes from the run, and refuses to be told.
            _stack("evaluate", f"run.dir={setup.run.dir}", f"run.name={case.run}", "evaluate.baselines=false")
        outcomes.append(
            Outcome(name=case.name, num_rows=case.num_rows, gauc=_gauc(folder), hit_share=_last_hit_share(folder))
        )
    return outcomes


def as_table(outcomes: Sequence[Outcome]) -> Table:
    """A column for each evaluation set."""
    table = Table(title="GAUC of ctr, with 95% intervals over users", title_justify="left")
    sets = list(outcomes[0].gauc)
    for heading in ("items", "rows", *sets, "hits at the end"):
        table.add_column(heading, justify="left" if heading == "items" else "right")
    for one in outcomes:
        gauc = (f"{e.value:.4f} ({e.low:.4f} to {e.high:.4f})" for e in map(one.gauc.__getitem__, sets))
        table.add_row(one.name, f"{one.num_rows:,}", *gauc, "" if one.hit_share is None else f"{one.hit_share:.1%}")
    return table


def cases(num_distinct: int, shares: Sequence[float], *, run: str) -> Iterator[Case]:
    """`num_distinct`: items of the log, unknown ones not counted; `run`: what the runs' names begin with."""
    yield Case(run=f"{run}-exact", name="exact", num_rows=num_distinct + 1, overrides=())
    for share in shares:
        num_rows = max(MIN_ROWS, round(share * num_distinct) + 1)
        for mode in (IdMode.hashed, IdMode.managed):
            yield Case(
                run=f"{run}-{mode.value}-{num_rows}",
                name=mode.value,
                num_rows=num_rows,
                overrides=(f"ids.modes.{TABLE}={mode.value}", f"ids.rows.{TABLE}={num_rows}"),
            )


def _stack(*words: str) -> None:
    say(f"$ stack {' '.join(words)}")
    status = subprocess.run([sys.executable, "-m", "stack", *words], check=False).returncode
    if status:
        raise SystemExit(status)  # the verb has said why


def _gauc(folder: Path) -> dict[str, report.Estimate]:
    tasks = {task.task: task for task in report.read(folder / "report.json").tasks}
    if "ctr" not in tasks:
        raise UserError(
            f"{folder}/report.json has no task 'ctr', by which items are judged: train it, as tasks=ctr does"
        )
    return {
        one.set: next(score for score in one.scores if score.kind == "model").metrics["gauc"]
        for one in tasks["ctr"].sets
    }


def _last_hit_share(folder: Path) -> float | None:
    """Share of the table's sightings that had a row, in the last interval of the log; None where it was not managed."""
    path = folder / IDS
    if not path.exists():
        return None
    lines = [msgspec.json.decode(line, type=_Line) for line in path.read_bytes().splitlines()]
    return next((line.hit_share for line in reversed(lines) if line.table == TABLE), None)
