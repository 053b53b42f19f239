"""Pictures of a plan: bytes on each process, stacked by table; and of a sweep: bytes and time as it grows."""

from __future__ import annotations

from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from stack.tables.cluster import GIB
from stack.tables.plan_report import PlanReport
from stack.tables.sweep import TITLES, SweepReport

INCHES = (8.0, 4.0)
COLOURS = 20
"""Of tables, before the first comes again."""

LINE_UP_TO = 4
"""How much more than the fullest process holds there may be room for, for the line of it to be drawn."""


def draw_plan(report: PlanReport, path: Path) -> None:
    """Writes `plan.png`: a bar for each process, its tables stacked, and the line that must not be crossed, where the
    bars would still be seen below it."""
    figure = Figure(figsize=INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    ranks = [rank.rank for rank in report.ranks]
    below = [0.0] * len(ranks)
    for number, table in enumerate(report.tables):
        heights = [rank.device_bytes_by_table.get(table.name, 0) / GIB for rank in report.ranks]
        label, colour = f"{table.name} ({table.sharding.value})", colormaps["tab20"](number % COLOURS)
        axes.bar(ranks, heights, bottom=below, label=label, color=colour, width=0.9)
        below = [base + height for base, height in zip(below, heights, strict=True)]
    room, fullest = report.room_bytes / GIB, max(below)
    with_line = room <= LINE_UP_TO * fullest
    if with_line:
        axes.axhline(room, color="black", linewidth=0.8, label="room for tables")
    title = f"Tables on {report.world_size} processes ({report.cluster}), {room:,.2f} GiB for them on each"
    axes.set(xlabel="rank", ylabel="GiB", title=title, ylim=(0.0, 1.05 * (room if with_line else fullest)))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize="small")
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
