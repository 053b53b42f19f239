"""For each task: its examples, its label, and the baselines that answer the same question."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from stack.base.errors import UnknownNameError
from stack.evaluate import baselines
from stack.evaluate.baselines import Baseline
from stack.evaluate.rows import Rows


class Question(Enum):
    """What kind of answer a task gives, which decides its baselines."""

    IMPRESSION = "will the user take this item"
    RESPONSE = "will the user respond to this"
    CHOICE = "which of these will the user choose"
    CLASSES = "which class"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`headline` is the metric whose verdict is said. `weight` is the label that weighs a task's loss: its log-odds
    are calibrated under these weights only, so baselines fitted without them are compared by order alone. Scores that
    are not `calibrated` are right up to a number for each moment, and are judged by order alone."""

    group: str
    label: str
    question: Question
    headline: str
    weight: str | None = None
    calibrated: bool = True


PLANS: Mapping[str, Plan] = {
    "ctr": Plan(group="impression", label="clicked", question=Question.IMPRESSION, headline="gauc"),
    "rank": Plan(group="impression", label="clicked", question=Question.IMPRESSION, headline="gauc", weight="weight"),
    "next_item": Plan(
        group="impression", label="clicked", question=Question.IMPRESSION, headline="gauc", calibrated=False
    ),
    "power": Plan(group="price", label="tier", question=Question.CLASSES, headline="accuracy"),
    "follow": Plan(group="follow", label="responded", question=Question.RESPONSE, headline="auc"),
    "shop": Plan(group="shop", label="visited", question=Question.CHOICE, headline="gauc"),
}


def plan_of(task: str) -> Plan:
    """The plan of a task; raises `UnknownNameError` with the tasks that have one."""
    if task not in PLANS:
        raise UnknownNameError("task to evaluate", task, PLANS)
    return PLANS[task]


def fit(plan: Plan, train: Rows, held_out: Rows, *, num_classes: int, seed: int) -> dict[str, Baseline]:
    """The baselines of a plan, fitted on `train` and applied to `held_out` (the examples of one set)."""
    if plan.question is Question.CLASSES:
        return baselines.class_frequencies(train, held_out, label=plan.label, num_classes=num_classes)
    learners = baselines.learners(train, held_out, label=plan.label, seed=seed)
    if plan.question is Question.IMPRESSION:
        return baselines.counts(held_out) | learners
    if plan.question is Question.RESPONSE:
        return baselines.smoothed_rates(train, held_out, label=plan.label) | learners
    return baselines.past_choices(train, held_out, label=plan.label) | learners
