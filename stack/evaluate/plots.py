"""Two pictures of a report: whether probabilities are right (reliability), and who orders best (GAUC)."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from stack.evaluate.report import Report, SetReport
from stack.evaluate.score import MODEL

INCHES = 4.0


def draw(report: Report, folder: Path) -> list[Path]:
    """Writes `reliability.png` and `gauc.png` into `folder`, those that the report has figures for."""
    panels = [
        (f"{task.task}, {part.set}", part)
        for task in report.tasks
        for part in task.sets
        if "gauc" in part.scores[0].metrics
    ]
    if not panels:
        return []
    written = []
    for name, panel in (("reliability", _reliability), ("gauc", _gauc)):
        figure = Figure(figsize=(INCHES * len(panels), INCHES), layout="constrained")
        FigureCanvasAgg(figure)
        for index, (title, part) in enumerate(panels):
            axes = figure.add_subplot(1, len(panels), index + 1)
            axes.set_title(title)
            panel(axes, part)
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=120)
        written.append(path)
    return written


def _reliability(axes: Axes, part: SetReport) -> None:
    """Observed against predicted rate in tenths of the examples; on the diagonal the probabilities are right."""
    curves = [score for score in part.scores if score.reliability]
    values = [v for score in curves for bin_ in score.reliability for v in (bin_.predicted, bin_.observed) if v > 0]
    if not values:
        return
    axes.plot([min(values), 1.0], [min(values), 1.0], color="grey", linewidth=0.8)
    for score in curves:
        drawn = [bin_ for bin_ in score.reliability if bin_.observed > 0]
        x, y = [bin_.predicted for bin_ in drawn], [bin_.observed for bin_ in drawn]
        axes.plot(x, y, marker="o", markersize=3, label=score.name, linewidth=2.0 if score.kind == MODEL else 1.0)
    axes.set(xscale="log", yscale="log", xlabel="predicted", ylabel="observed")
    axes.legend(fontsize="small")


def _gauc(axes: Axes, part: SetReport) -> None:
    """GAUC of each scorer with its interval; the line is chance."""
    scores = [score for score in part.scores if score.metrics["gauc"].value is not None]
    for index, score in enumerate(scores):
        found = score.metrics["gauc"]
        if found.value is None or found.low is None or found.high is None:
            continue
        color = "tab:cyan" if score.kind == MODEL else "lightgrey"
        axes.barh(index, found.value, color=color)
        axes.plot([found.low, found.high], [index, index], color="black")
    axes.set_yticks(range(len(scores)), [score.name for score in scores])
    axes.invert_yaxis()
    axes.axvline(0.5, color="grey", linewidth=0.8)
    axes.set_xlabel("GAUC")
