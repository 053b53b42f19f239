"""Pictures of a plan: bytes on each process, stacked by table; and of a sweep: bytes and time as it grows."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from stack.tables.cluster import GIB
from stack.tables.plan_report import PlanReport
from stack.tables.sweep import TITLES, SweepReport

INCHES = (8.0, 4.0)


def draw_plan(report: PlanReport, path: Path) -> None:
    """Writes `plan.png`: a bar for each process, its tables stacked, and the line that must not be crossed."""
    figure = Figure(figsize=INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    ranks = [rank.rank for rank in report.ranks]
    below = [0.0] * len(ranks)
    for table in report.tables:
        heights = [rank.device_bytes_by_table.get(table.name, 0) / GIB for rank in report.ranks]
        axes.bar(ranks, heights, bottom=below, label=f"{table.name} ({table.sharding.value})", width=0.9)
        below = [base + height for base, height in zip(below, heights, strict=True)]
    axes.axhline(report.room_bytes / GIB, color="black", linewidth=0.8, label="room for tables")
    axes.set(xlabel="rank", ylabel="GiB", title=f"Tables on {report.world_size} processes ({report.cluster})")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def draw_sweep(report: SweepReport, path: Path) -> None:
    """Writes `sweep.png`: bytes and time over what grows; grey is where it does not fit."""
    figure = Figure(figsize=INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    bytes_axes, time_axes = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    edge = () if report.edge is None else (report.edge,)
    fitting = sorted((point for point in (*report.points, *edge) if point.fits), key=lambda point: point.value)
    values = [point.value for point in fitting]
    in_all = [(point.total_bytes or 0) / GIB for point in fitting]
    fullest = [(point.fullest_bytes or 0) / GIB for point in fitting]
    bytes_axes.plot(values, in_all, marker="o", markersize=3, label="all processes")
    bytes_axes.plot(values, fullest, marker="o", markersize=3, label="fullest process")
    bytes_axes.axhline(report.room_bytes / GIB, color="black", linewidth=0.8, label="room on a process")
    bytes_axes.set(ylabel="GiB", yscale="log")
    bytes_axes.legend(fontsize="small")
    time_axes.plot(values, [point.step_ms or 0.0 for point in fitting], marker="o", markersize=3)
    time_axes.set(ylabel="estimated step, ms", ylim=(0.0, None))
    for axes in (bytes_axes, time_axes):
        _mark(axes, report)
    figure.suptitle(f"Growing {report.swept.value} on {report.cluster}")
    figure.savefig(path, dpi=120)


def _mark(axes: Axes, report: SweepReport) -> None:
    """The scale, and what does not fit."""
    axes.set(xscale="log", xlabel=TITLES[report.swept])
    failing = [point.value for point in report.points if not point.fits]
    if failing:
        known = failing if report.edge is None else [*failing, report.edge.value]
        axes.axvspan(min(known), max(known), color="lightgrey", linewidth=0)
