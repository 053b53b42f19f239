"""Whether probabilities come true, told: findings, a table for the terminal, a part of the page with plots."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

from rich.table import Table

from stack.audits.calibration import CalibrationReport, Part, TaskCalibration
from stack.audits.calibration_config import CalibrationConfig
from stack.audits.effect import EVERYTHING
from stack.audits.findings import Finding, Level
from stack.audits.fragment import BLUE, WIDTH, LogAxis, drawing, figure, number, table, text

_HEADINGS = ("task", "part", "rows", "positives", "predicted", "observed", "predicted / observed", "95% limits", "")
_MOST_TOLD = 3
_MARGIN, _TOP, _BOTTOM = 36, 18, 280


def findings(report: CalibrationReport, config: CalibrationConfig) -> list[Finding]:
    """One for the slices of a task and one for its scores. The whole is judged with the statistics
    (`audit.warn_calibration`), so it is none of the slices here."""
    return [finding for task in report.tasks for finding in _findings(task, config)]


def _findings(task: TaskCalibration, config: CalibrationConfig) -> Iterator[Finding]:
    slices = [part for part in task.slices if part.name != EVERYTHING]
    for parts, where, remedy in (
        (slices, "slices", "look what the model lacks there (features, examples), and calibrate by slice if need be"),
        (task.buckets, "scores", "probabilities are bent along the score: calibrate (isotonic, or Platt) on live rows"),
    ):
        off = sorted((part for part in parts if part.off), key=lambda part: part.p_value)
        if off:
            told = "; ".join(f"{_named(part, where)} {_ratio(part)}" for part in off[:_MOST_TOLD])
            more = "" if len(off) <= _MOST_TOLD else f"; and {len(off) - _MOST_TOLD} more"
            yield Finding(
                level=Level.critical if config.off_is_critical else Level.warning,
                name=f"probabilities of {task.task} by {where}",
                measured=f"{len(off)} of {len(parts)} are off: {told}{more}",
                allowed=f"predicted over observed of {1 / config.allowed_ratio:.3g} to {config.allowed_ratio:.3g}, and "
                f"what chance allows (audit.calibration.false_alarms={config.false_alarms:g})",
                remedy=remedy,
            )  # fmt: skip


def tables(report: CalibrationReport) -> list[Table]:
    shown = Table(title="Predicted over observed positives on live rows", title_justify="left")
    for heading in _HEADINGS:
        shown.add_column(heading, justify="left" if heading in ("task", "part", "") else "right")
    for task in report.tasks:
        for cells in _cells(task):
            shown.add_row(*cells)
    return [shown]


def html(report: CalibrationReport) -> str:
    return (
        "<h2>Whether probabilities come true</h2>"
        "<p>Live rows in parts with as many predicted positives each, by score. On the line predicted and observed are "
        "the same; bars are 95% limits, which take the rows of a user for one draw.</p>"
        f"{''.join(map(_task, report.tasks))}"
    )


def _task(task: TaskCalibration) -> str:
    chance = f"{number(task.error)} (by chance {number(task.by_chance)})"
    relative = "" if task.relative is None else f", {task.relative:.1%} of the rate observed"
    return (
        f"{figure(_reliability(task), f'{task.task}: expected calibration error {chance}{relative}')}"
        f"<details><summary>{escape(task.task)} by slice and score</summary>{table(_HEADINGS, _cells(task))}</details>"
    )


def _cells(task: TaskCalibration) -> Iterator[list[str]]:
    for parts, where in ((task.slices, "slices"), (task.buckets, "scores")):
        for part in parts:
            yield [
                task.task, _named(part, where), f"{part.num_rows:,}", f"{part.num_positives:,}",
                number(part.predicted), number(part.observed), number(part.ratio), _limits(part),
                "off" if part.off else "",
            ]  # fmt: skip


def _reliability(task: TaskCalibration) -> str:
    """Observed over predicted rates, both on logarithmic scales: base rates are small."""
    seen = [part for part in task.buckets if part.predicted > 0]
    if not seen:
        return ""
    rates = [value for part in seen for value in (part.predicted, part.observed) if value > 0]
    low = 10 ** math.floor(math.log10(min(rates)))
    high = 10 ** math.ceil(math.log10(max(rates)) + 1e-9)
    across = LogAxis(low=low, high=high, start=_MARGIN, end=WIDTH - 8)
    upward = LogAxis(low=low, high=high, start=_BOTTOM, end=_TOP)
    grid = "".join(
        f'<line x1="{across(rate):.1f}" x2="{across(rate):.1f}" y1="{_TOP}" y2="{_BOTTOM}" stroke="var(--soft)"/>'
        f'<line x1="{_MARGIN}" x2="{WIDTH - 8}" y1="{upward(rate):.1f}" y2="{upward(rate):.1f}" stroke="var(--soft)"/>'
        f"{text(across(rate), _BOTTOM + 11, f'{rate:g}', anchor='middle')}"
        f"{text(_MARGIN - 3, upward(rate) + 3, f'{rate:g}', anchor='end')}"
        for rate in across.decades
    )
    diagonal = (
        f'<line x1="{across(low):.1f}" y1="{upward(low):.1f}" x2="{across(high):.1f}" y2="{upward(high):.1f}" '
        f'stroke="currentColor" stroke-dasharray="3 3"/>'
    )
    names = text(WIDTH / 2, _BOTTOM + 22, "predicted", anchor="middle") + text(0, 10, "observed")
    dots = "".join(_dot(part, across(part.predicted), upward) for part in seen)
    return drawing(
        grid + diagonal + dots + names, height=_BOTTOM + 26, label=f"predicted and observed rates of {task.task}"
    )


def _dot(part: Part, x: float, upward: LogAxis) -> str:
    """With its limits; a part in which nothing was observed is a bar from the bottom."""
    fill = "var(--critical)" if part.off else BLUE
    top = part.predicted / part.ratio_low if part.ratio_low else part.observed
    bottom = part.predicted / part.ratio_high if part.ratio_high else upward.low
    bar = (
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{upward(top):.1f}" y2="{upward(bottom):.1f}" stroke="{fill}" '
        'stroke-width="1.5"/>'
    )
    told = (
        f"<title>{_named(part, 'scores')}: predicted {number(part.predicted)}, observed {number(part.observed)}</title>"
    )
    dot = f'<circle cx="{x:.1f}" cy="{upward(part.observed):.1f}" r="3.5" fill="{fill}">{told}</circle>'
    return bar + (dot if part.observed > 0 else "")


def _named(part: Part, where: str) -> str:
    return f"score part {part.name}" if where == "scores" else part.name


def _ratio(part: Part) -> str:
    return f"{'none observed' if part.ratio is None else number(part.ratio)} ({_limits(part)})"


def _limits(part: Part) -> str:
    ends: Sequence[float | None] = (part.ratio_low, part.ratio_high)
    return f"{number(ends[0])} to {number(ends[1])}" if ends[1] is not None else f"from {number(ends[0])}"
