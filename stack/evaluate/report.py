"""The report for machines, `<run>/report.json`, as types. `null` stands for a figure that is not defined.

::

    {"format_version": 1, "run": ..., "step": ..., "dataset": ..., "held_out_days": [...], ...,
     "tasks": [{"task": "ctr", "group": "impression", "label": "clicked", "headline": "gauc",
      "sets": [
        {"set": "popularity", "num_examples": ..., "num_users": ...,
         "scores": [{"name": "model", "kind": "model", "metrics": {"gauc": {"value": .79, "low": .78, "high": .80}}}],
         "comparisons": [{"metric": "gauc", "baseline": "boosted trees", "difference": {...}, "verdict": "ahead"}]}]}]}
"""

from __future__ import annotations

import math
from pathlib import Path

import msgspec

from stack.base.files import write_bytes

FORMAT_VERSION = 1


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A figure with its 95% bootstrap interval over users; null where it is not defined."""

    value: float | None
    low: float | None
    high: float | None


class Bin(msgspec.Struct, frozen=True, kw_only=True):
    """A tenth of the examples in order of prediction: mean predicted and mean observed rate."""

    num_examples: int
    predicted: float
    observed: float


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """A model's or a baseline's figures. Uncalibrated baselines give an order only, so they have no log loss."""

    name: str
    kind: str
    metrics: dict[str, Estimate]
    reliability: tuple[Bin, ...] = ()


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Model minus the best baseline in one metric, on the same replicates.

    `verdict`: "ahead" or "behind" where the interval of the difference excludes zero, otherwise "undecided".
    """

    metric: str
    baseline: str
    difference: Estimate
    verdict: str


class SetReport(msgspec.Struct, frozen=True, kw_only=True):
    """Scores on one evaluation set. `num_users_with_both_labels` are those that GAUC is about;
    `num_left_out` positives could not have been drawn and are not in the set."""

    set: str
    num_examples: int
    num_positives: int
    num_users: int
    num_users_with_both_labels: int
    num_left_out: int
    num_training_rows: int
    scores: tuple[Score, ...]
    comparisons: tuple[Comparison, ...]


class TaskReport(msgspec.Struct, frozen=True, kw_only=True):
    """One task of the model, on one example group; `headline` is the metric to watch."""

    task: str
    group: str
    label: str
    headline: str
    sets: tuple[SetReport, ...]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All of `<run>/report.json`. `step` is the checkpoint's; days are YYYY-MM-DD."""

    format_version: int = FORMAT_VERSION
    run: str
    step: int
    dataset: str
    created: str
    training_days: tuple[str, ...]
    held_out_days: tuple[str, ...]
    num_replicates: int
    confidence: float
    seed: int
    tasks: tuple[TaskReport, ...]


def estimate(value: float, low: float, high: float) -> Estimate:
    """An estimate whose undefined (NaN) parts are null."""
    return Estimate(value=_or_null(value), low=_or_null(low), high=_or_null(high))


def write(report: Report, path: Path) -> None:
    """Writes the report, indented, whole or not at all."""
    write_bytes(path, msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")


def read(path: Path) -> Report:
    """Reads a report; raises `msgspec.ValidationError` if it is not one."""
    return msgspec.json.decode(path.read_bytes(), type=Report)


def _or_null(value: float) -> float | None:
    return value if math.isfinite(value) else None
