"""The report for people: one table of two-class tasks, one of classes, and a line for each verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table

from stack.evaluate.report import Comparison, Estimate, Report, Score, SetReport, TaskReport
from stack.evaluate.score import HIGHER_IS_BETTER, MODEL

TITLES = {
    "gauc": "GAUC",
    "auc": "AUC",
    "log_loss": "log loss",
    "normalised_entropy": "norm. entropy",
    "predicted_over_observed": "predicted / observed",
    "accuracy": "accuracy",
    "top_2_accuracy": "top-2 accuracy",
}
TWO_CLASS = ("gauc", "auc", "log_loss", "normalised_entropy", "predicted_over_observed")
CLASSES = ("accuracy", "top_2_accuracy", "log_loss")


def tables(report: Report) -> list[Table]:
    """The tables of a report; kinds of tasks that it does not have give none."""
    found = []
    for title, columns in (("Two-class tasks", TWO_CLASS), ("Classes", CLASSES)):
        tasks = [(task, part) for task in report.tasks for part in task.sets if columns[0] in part.scores[0].metrics]
        if tasks:
            found.append(_table(title, columns, tasks))
    return found


def verdicts(report: Report) -> list[str]:
    """One line for each task and set; a baseline that wins is named as plainly as one that loses."""
    return [
        _verdict(f"{task.task} on {part.set}", part, comparison)
        for task in report.tasks
        for part in task.sets
        for comparison in part.comparisons
        if comparison.metric == task.headline
    ]


def _table(title: str, columns: Sequence[str], tasks: Sequence[tuple[TaskReport, SetReport]]) -> Table:
    table = Table(title=f"{title} (95% intervals over users; bold: best)", title_justify="left")
    for heading in ("task", "set", "scored by"):
        table.add_column(heading)
    for column in columns:
        table.add_column(TITLES[column], justify="right")
    for task, part in tasks:
        for row in _rows(task, part, columns):
            table.add_row(*row)
        table.add_section()
    return table


def _rows(task: TaskReport, part: SetReport, columns: Sequence[str]) -> Iterator[list[str]]:
    facts = [part.set, f"{part.num_examples:,} examples", f"{part.num_users:,} users"]
    if "gauc" in columns:
        facts += [f"{part.num_positives:,} positive", f"{part.num_users_with_both_labels:,} users in GAUC"]
    if part.num_left_out:
        facts.append(f"{part.num_left_out:,} left out")
    best = {column: _best(part.scores, column) for column in columns}
    num_lines = max(len(part.scores), len(facts))
    for line in range(num_lines):
        row = [task.task if line == 0 else "", facts[line] if line < len(facts) else ""]
        if line >= len(part.scores):
            yield row
            continue
        score = part.scores[line]
        row.append(f"[cyan]{score.name}[/]" if score.kind == MODEL else score.name)
        for column in columns:
            text = _figure(score.metrics.get(column))
            row.append(f"[bold]{text}[/]" if score.name in best[column] else text)
        yield row


def _best(scores: Sequence[Score], metric: str) -> set[str]:
    """Names of the scorers whose value is the best one; none for metrics without a direction."""
    values = {score.name: score.metrics[metric].value for score in scores if metric in score.metrics}
    defined = {name: value for name, value in values.items() if value is not None}
    if metric not in HIGHER_IS_BETTER or not defined:
        return set()
    best = (max if HIGHER_IS_BETTER[metric] else min)(defined.values())
    return {name for name, value in defined.items() if value == best}


def _figure(estimate: Estimate | None) -> str:
    if estimate is None or estimate.value is None:
        return "-"
    return f"{estimate.value:.4f} {_interval(estimate, '.3f')}"


def _interval(estimate: Estimate, form: str) -> str:
    if estimate.low is None or estimate.high is None:
        return "[-]"
    return f"\\[{estimate.low:{form}}, {estimate.high:{form}}]"


def _verdict(where: str, part: SetReport, comparison: Comparison) -> str:
    title, difference = TITLES[comparison.metric], comparison.difference
    model = part.scores[0].metrics[comparison.metric].value
    baseline = next(score for score in part.scores if score.name == comparison.baseline)
    rival = baseline.metrics[comparison.metric].value
    if model is None or rival is None or difference.value is None or difference.low is None or difference.high is None:
        return f"{where}: {title} is not defined"
    outcome = {
        "ahead": f"the model is ahead of {comparison.baseline}, the best baseline",
        "behind": f"THE MODEL LOSES to {comparison.baseline}",
        "undecided": f"no difference shown between the model and {comparison.baseline}, the best baseline",
    }[comparison.verdict]
    span = f"[{difference.low:+.4f}, {difference.high:+.4f}]"
    return f"{where}: {outcome}: {title} {model:.4f} against {rival:.4f}, difference {difference.value:+.4f} {span}"
