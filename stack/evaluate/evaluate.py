"""The verb: a trained model on the days after its training, beside baselines, as tables, JSON and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from stack.base.errors import DataError
from stack.data.dataset import Dataset
from stack.evaluate.assess import Assessor, assess
from stack.evaluate.bootstrap import CONFIDENCE
from stack.evaluate.config import EvaluateConfig
from stack.evaluate.plans import plan_of
from stack.evaluate.plots import draw
from stack.evaluate.predict import Scorer, predict
from stack.evaluate.report import Report, write
from stack.evaluate.table import tables, verdicts
from stack.tasks.sampling import Sampling
from stack.telemetry.console import say, show


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What evaluation must know of a training run: the model as a function, and what it was trained on.

    `tasks`: all tasks of the model, and at which rate the score of each counts sampled negatives.
    """

    name: str
    step: int
    dataset: Dataset
    training_days: Sequence[str]
    tasks: Mapping[str, Sampling]
    scorer: Scorer


def evaluate(trained: Trained, *, folder: Path, settings: EvaluateConfig) -> Report:
    """Scores the held-out days, shows the tables, and writes `report.json` (and pictures) into `folder`.

    Raises: `DataError` where there is no held-out day, or none of its examples belongs to a task.
    """
    days = held_out_days(trained.dataset, trained.training_days, first=settings.first_day, last=settings.last_day)
    say(f"evaluating {trained.name} at step {trained.step:,} on {len(days)} day(s), {days[0]} to {days[-1]}")
    if not any(_has_examples(trained.dataset, days, plan_of(task).group) for task in trained.tasks):
        raise DataError(
            f"{days[0]} to {days[-1]} of {trained.dataset.path} hold no example of {', '.join(trained.tasks)}: "
            "choose other days with evaluate.first_day and evaluate.last_day"
        )
    predictions = predict(
        trained.scorer,
        trained.dataset,
        days=days,
        tasks=trained.tasks,
        timelines_per_batch=settings.timelines_per_batch,
    )
    assessor = Assessor(
        dataset=trained.dataset,
        training_days=trained.training_days if settings.baselines else (),
        held_out_days=days,
        max_rows=settings.baseline_rows,
        num_replicates=settings.num_replicates,
        seed=settings.seed,
    )
    report = Report(
        run=trained.name,
        step=trained.step,
        dataset=str(trained.dataset.path),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        training_days=tuple(trained.training_days),
        held_out_days=days,
        num_replicates=settings.num_replicates,
        confidence=CONFIDENCE,
        seed=settings.seed,
        tasks=assess(assessor, predictions),
    )
    write(report, folder / "report.json")
    present(report)
    for path in [folder / "report.json", *(draw(report, folder) if settings.plots else [])]:
        say(f"wrote {path}")
    return report


def present(report: Report) -> None:
    """Shows the tables and says the verdicts."""
    for table in tables(report):
        show(table)
    for line in verdicts(report):
        say(line)


def held_out_days(
    dataset: Dataset, training_days: Sequence[str], *, first: str | None = None, last: str | None = None
) -> tuple[str, ...]:
    """The prepared days after the last trained one, from `first` to `last` where these are given.

    Raises: `DataError` where there is none, or `first` is not after training.
    """
    trained = max(training_days)
    if first is not None and first <= trained:
        raise DataError(
            f"evaluate.first_day={first} is not after the last trained day {trained}: the model has seen it; "
            "choose a later day"
        )
    days = tuple(day for day in dataset.days() if day > trained and (first or "") <= day <= (last or "9999"))
    if not days:
        raise DataError(
            f"{dataset.path} has no day to evaluate: the last trained day is {trained}, the last prepared one "
            f"{dataset.days()[-1]}, evaluate.first_day={first}, evaluate.last_day={last}: ingest later days, "
            "or train on fewer"
        )
    return days


def _has_examples(dataset: Dataset, days: Sequence[str], group: str) -> bool:
    return any(dataset.day(day).num_examples.get(group, 0) for day in days)
