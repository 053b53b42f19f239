"""From a model's predictions to the figures of a report: fits the baselines, scores all on the same examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from stack.base.errors import DataError
from stack.data.dataset import Dataset
from stack.evaluate.baselines import Baseline
from stack.evaluate.plans import Plan, fit, plan_of
from stack.evaluate.predict import Predictions
from stack.evaluate.report import SetReport, TaskReport
from stack.evaluate.rows import Rows, read_days
from stack.evaluate.score import BASELINE, MODEL, Entry, score_set, target
from stack.evaluate.sets import Selection, evaluation_sets
from stack.telemetry.console import say


@dataclass(kw_only=True)
class Assessor:
    """Keeps what tasks share: training rows by group, fitted baselines by group and set.

    `training_days` are those that the model was trained on, `held_out_days` those it is scored on; baselines read
    the latest training days that reach `max_rows`, and never a held-out day.
    """

    dataset: Dataset
    training_days: Sequence[str]
    held_out_days: Sequence[str]
    max_rows: int
    num_replicates: int
    seed: int
    _training: dict[str, Rows] = field(default_factory=dict)
    _fitted: dict[tuple[str, str], dict[str, Baseline]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if overlap := sorted(set(self.training_days) & set(self.held_out_days)):
            raise DataError(
                f"day(s) {overlap[0]} ... {overlap[-1]} are both trained on and held out: choose days after training"
            )

    def task(self, task: str, predictions: Predictions) -> TaskReport:
        """Scores one task on each of its sets."""
        plan = plan_of(task)
        sets = []
        for name, selection in evaluation_sets(predictions.rows, predictions.sampling).items():
            if len(selection.index_S):
                sets.append(self._set(task, plan, name, selection, predictions))
        return TaskReport(task=task, group=plan.group, label=plan.label, headline=plan.headline, sets=tuple(sets))

    def _set(self, task: str, plan: Plan, name: str, selection: Selection, predictions: Predictions) -> SetReport:
        say(f"{task} on {name}: {len(selection.index_S):,} held-out examples")
        held = predictions.rows.take(selection.index_S)
        model = predictions.score[selection.index_S]
        if model.ndim == 1:
            model = selection.logits(predictions.score)
        entries = [Entry(name="model", kind=MODEL, score=model, calibrated=plan.calibrated)]
        train, fitted = self._baselines(plan, name, held, num_classes=model.shape[-1] if model.ndim == 2 else 0)
        for title, baseline in fitted.items():
            calibrated = baseline.calibrated and plan.weight is None
            entries.append(Entry(name=title, kind=BASELINE, score=baseline.score, calibrated=calibrated))
        weight_E = None if plan.weight is None else held.labels[plan.weight]
        label_E = held.labels[plan.label]
        return score_set(
            name,
            entries,
            target(held.user_E, label_E.astype(np.int64) if model.ndim == 2 else label_E, weight_E),
            num_replicates=self.num_replicates,
            seed=self.seed,
            num_left_out=selection.num_left_out,
            num_training_rows=len(train),
        )

    def _baselines(self, plan: Plan, name: str, held: Rows, *, num_classes: int) -> tuple[Rows, dict[str, Baseline]]:
        """The training rows of the set and what was fitted on them; fitted once for all tasks of a group."""
        train = self._training_rows(plan.group)
        chosen = evaluation_sets(train).get(name)
        train = train.take(chosen.index_S if chosen else np.zeros(0, dtype=np.int64))
        key = plan.group, name
        if key not in self._fitted:
            self._fitted[key] = fit(plan, train, held, num_classes=num_classes, seed=self.seed)
        return train, self._fitted[key]

    def _training_rows(self, group: str) -> Rows:
        if group not in self._training:
            self._training[group] = read_days(
                self.dataset, self.training_days, self.dataset.schema.group(group), max_rows=self.max_rows
            )
        return self._training[group]


def assess(assessor: Assessor, predictions: Mapping[str, Predictions]) -> tuple[TaskReport, ...]:
    """The reports of all tasks that have held-out examples, in the order of `predictions`."""
    found = [assessor.task(task, predicted) for task, predicted in predictions.items()]
    return tuple(report for report in found if report.sets)
