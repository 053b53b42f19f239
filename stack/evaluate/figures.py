"""A model's figures without baselines and intervals: a plain number for each task, set of examples and metric."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from stack.evaluate.plans import plan_of
from stack.evaluate.predict import Predictions
from stack.evaluate.score import MODEL, Entry, binary_statistics, class_statistics, target
from stack.evaluate.sets import evaluation_sets

Figures = dict[str, dict[str, dict[str, float | None]]]
"""By task, set and metric; None where a metric is not defined (one label only)."""


def figures_of(predictions: Mapping[str, Predictions]) -> Figures:
    """The metrics of `stack evaluate` on the same sets; tasks and sets without examples are left out."""
    found = {task: _of_task(task, predicted) for task, predicted in predictions.items()}
    return {task: sets for task, sets in found.items() if sets}


def _of_task(task: str, predicted: Predictions) -> dict[str, dict[str, float | None]]:
    plan, found = plan_of(task), {}
    for name, selection in evaluation_sets(predicted.rows, predicted.sampling).items():
        if not len(selection.index_S):
            continue
        held = predicted.rows.take(selection.index_S)
        by_class = predicted.score.ndim == 2
        score = predicted.score[selection.index_S] if by_class else selection.logits(predicted.score)
        label_E = held.labels[plan.label]
        weight_E = None if plan.weight is None else held.labels[plan.weight]
        asked = target(held.user_E, label_E.astype(np.int64) if by_class else label_E, weight_E)
        entry = Entry(name=task, kind=MODEL, score=score, calibrated=plan.calibrated)
        statistics = (class_statistics if by_class else binary_statistics)(entry, asked)
        values = {metric: statistic(np.ones(asked.num_users)) for metric, statistic in statistics.items()}
        found[name] = {metric: value if math.isfinite(value) else None for metric, value in values.items()}
    return found
