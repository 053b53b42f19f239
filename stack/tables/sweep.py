"""The cost curve of growing: rows, processes or batch doubled and halved, each planned, and where it stops fitting."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace

import msgspec
from rich.table import Table

from stack.base.errors import ConfigError
from stack.tables.cluster import GIB
from stack.tables.plan import NoRoomError, plan_tables
from stack.tables.plan_config import Sweep
from stack.tables.plan_report import fullest_bytes, step_ms, total_bytes
from stack.tables.plan_request import Request

_CLOSENESS = 1.02
"""The edge is found to 2%."""


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One plan of a sweep. `value`: rows of all tables, processes, or timelines of a step on each process. `fits` is
    false also where a table outgrows its own options, as a data-parallel one does."""

    factor: float
    value: int
    fits: bool
    total_bytes: int | None = None
    fullest_bytes: int | None = None
    step_ms: float | None = None


class SweepReport(msgspec.Struct, frozen=True, kw_only=True):
    """Points by rising value. `edge`: where it begins or ceases to fit, between two points; None where none differ."""

    format_version: int = 1
    swept: Sweep
    cluster: str
    room_bytes: int
    points: tuple[Point, ...]
    edge: Point | None


def sweep(request: Request, what: Sweep, *, num_doublings: int) -> SweepReport:
    """Plans `request` at 2^-n ... 2^n of what is swept; hosts are whole, so fewer than one are left out."""
    points: dict[int, Point] = {}
    for power in range(-num_doublings, num_doublings + 1):
        point = _point(request, what, 2.0**power)
        points.setdefault(point.value, point)
    ordered = tuple(points[value] for value in sorted(points))
    return SweepReport(
        swept=what,
        cluster=request.cluster.name,
        room_bytes=request.cluster.device_bytes,
        points=ordered,
        edge=_edge(request, what, ordered),
    )


def sweep_table(report: SweepReport) -> Table:
    """The curve for people; the edge is marked."""
    table = Table(title=f"Growing {report.swept.value} on {report.cluster} (times are estimates)", title_justify="left")
    headings = (
        TITLES[report.swept],
        "of what was asked",
        "fits",
        "GiB in all",
        "GiB on the fullest process",
        "GiB for tables",
        "step ms",
    )
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "fits" else "right")
    edge = () if report.edge is None else (report.edge,)
    for point in sorted((*report.points, *edge), key=lambda point: point.value):
        fits = ("yes, to here" if report.swept is not Sweep.ranks else "yes, from here") if point in edge else "yes"
        table.add_row(
            f"{point.value:,}", f"x {point.factor:.4g}", fits if point.fits else "no",
            *("-" if of is None else f"{of / GIB:,.2f}" for of in (point.total_bytes, point.fullest_bytes)),
            f"{report.room_bytes / GIB:,.2f}",
            "-" if point.step_ms is None else f"{point.step_ms:.2f}",
        )  # fmt: skip
    return table


TITLES: Mapping[Sweep, str] = {
    Sweep.rows: "rows of all tables",
    Sweep.ranks: "processes",
    Sweep.batch: "timelines of a step on each process",
}


def _point(request: Request, what: Sweep, factor: float) -> Point:
    value = _value(request, what, factor)
    true_factor = value / _value(request, what, 1.0)
    try:
        planned = plan_tables(_grown(request, what, factor))
    except ConfigError as error:
        if factor == 1.0 and not isinstance(error, NoRoomError):
            raise  # not for its size
        return Point(factor=true_factor, value=value, fits=False)
    return Point(
        factor=true_factor,
        value=value,
        fits=True,
        total_bytes=total_bytes(planned),
        fullest_bytes=fullest_bytes(planned),
        step_ms=step_ms(planned),
    )


def _grown(request: Request, what: Sweep, factor: float) -> Request:
    if what is Sweep.rows:
        tables = tuple(replace(one, num_rows=_scaled(one.num_rows, factor)) for one in request.tables)
        return replace(request, tables=tables)
    if what is Sweep.ranks:
        return replace(request, cluster=replace(request.cluster, hosts=_scaled(request.cluster.hosts, factor)))
    return replace(request, load=replace(request.load, num_timelines=_scaled(request.load.num_timelines, factor)))


def _value(request: Request, what: Sweep, factor: float) -> int:
    return {
        Sweep.rows: sum(_scaled(one.num_rows, factor) for one in request.tables),
        Sweep.ranks: _scaled(request.cluster.hosts, factor) * request.cluster.local_size,
        Sweep.batch: _scaled(request.load.num_timelines, factor),
    }[what]


def _scaled(number: int, factor: float) -> int:
    return max(1, round(number * factor))


def _edge(request: Request, what: Sweep, points: tuple[Point, ...]) -> Point | None:
    """The point that fits nearest to one that does not, by halving the step between the two."""
    for one, other in itertools.pairwise(points):
        if one.fits != other.fits:
            fits, fails = (one, other) if one.fits else (other, one)
            return _closer(request, what, fits, fails)
    return None


def _closer(request: Request, what: Sweep, fits: Point, fails: Point) -> Point:
    while max(fits.factor, fails.factor) / min(fits.factor, fails.factor) > _CLOSENESS:
        middle = _point(request, what, math.sqrt(fits.factor * fails.factor))
        if middle.value in (fits.value, fails.value):
            break
        fits, fails = (middle, fails) if middle.fits else (fits, middle)
    return fits
