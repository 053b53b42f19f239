"""What the tables of a version come to: findings, a table for the terminal, a part of the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table

from stack.audits.findings import Finding, Level
from stack.audits.fragment import BLUE, WIDTH, LogAxis, drawing, figure, number, percent, table, text
from stack.audits.tables import TableReport, TablesReport
from stack.audits.tables_config import TablesAuditConfig

_HEADINGS = (
    "table", "ids", "rows", "learnt", "full", "collisions", "norm, median", "largest", "outliers", "not finite",
    "lookups", "of new ids", "hottest id", "10", "100", "new ids a day",
)  # fmt: skip
_HEIGHT = 80
_GROWTH_HEIGHT = 40
_LEAST_DRAWN = 50
"""Rows of a table whose norms are worth a drawing."""


def findings(report: TablesReport, config: TablesAuditConfig) -> list[Finding]:
    """Numbers that are none are critical; the rest is told, table by table."""
    return [finding for one in report.tables for finding in _findings(one, config)]


def _findings(one: TableReport, config: TablesAuditConfig) -> Iterator[Finding]:
    name = one.name
    if one.num_not_finite:
        yield Finding(
            level=Level.critical, name=f"table {name} holds what is not finite",
            measured=f"{one.num_not_finite:,} of {one.num_rows:,} rows", allowed="none",
            remedy="go back to a version before it (`stack checkpoint list`), and look for what the log held that day",
        )  # fmt: skip
    if one.collision_share is not None and one.collision_share > config.max_collision_share:
        told = "measured" if one.collision_measured else "expected"
        yield Finding(
            level=Level.warning, name=f"ids of table {name} share their vectors",
            measured=f"{one.collision_share:.1%} of them ({told})",
            allowed=f"audit.tables.max_collision_share={config.max_collision_share:g}",
            remedy=f"raise ids.rows.{name}, set ids.hash=double or ids.modes.{name}=managed, and train anew",
        )  # fmt: skip
    if one.full_share is not None and one.full_share > config.max_full_share:
        yield Finding(
            level=Level.warning, name=f"table {name} is nearly full",
            measured=f"{one.num_held:,} of {one.num_rows - 1:,} rows have an id",
            allowed=f"audit.tables.max_full_share={config.max_full_share:g}",
            remedy=f"raise ids.rows.{name}, or have ids go with ids.managed.max_age_steps",
        )  # fmt: skip
    judged = one.num_candidates if one.num_learnt is None else one.num_learnt
    if one.num_outliers > config.max_outlier_share * judged:
        yield Finding(
            level=Level.warning, name=f"rows of table {name} are out of line",
            measured=f"{one.num_high:,} far longer and {one.num_low:,} far shorter than the median norm of "
            f"{number(one.norm_p50)}, of {judged:,} rows; the longest has {number(one.norm_max)}",
            allowed=f"audit.tables.max_outlier_share={config.max_outlier_share:g} of them beyond "
            f"audit.tables.outlier_z={config.outlier_z:g}",
            remedy="look which ids they are; where it is most of the hot ones, lower optim.tables_learning_rate",
        )  # fmt: skip
    if one.num_rows >= config.hottest_from_rows and one.hottest[0] > config.max_hottest_share:
        yield Finding(
            level=Level.warning, name=f"one id gets most lookups of table {name}",
            measured=f"{one.hottest[0]:.1%} of {one.num_lookups:,}",
            allowed=f"audit.tables.max_hottest_share={config.max_hottest_share:g}",
            remedy="where that id stands for a missing one leave it empty in the log; else row-wise sharding sends "
            f"most of the work to one process: set tables.shardings.{name}=column_wise",
        )  # fmt: skip


def tables(report: TablesReport) -> list[Table]:
    shown = Table(title=f"Embedding tables; lookups of {_span(report.days)}", title_justify="left")
    for heading in _HEADINGS:
        shown.add_column(heading, justify="left" if heading in ("table", "ids") else "right")
    for one in report.tables:
        shown.add_row(*_cells(one))
    return [shown]


def html(report: TablesReport) -> str:
    return (
        "<h2>Embedding tables</h2>"
        "<p>Rows count as learnt once the optimizer keeps something for them. Outliers are far from the median of the "
        "norms' logarithms. Lookups are those of the timelines of "
        f"{_span(report.days)}; ids are counted, never named.</p>"
        f"{table(_HEADINGS, map(_cells, report.tables))}"
        f"<details><summary>Norms and growth</summary>{''.join(map(_drawn, report.tables))}</details>"
    )


def _cells(one: TableReport) -> list[str]:
    days = list(one.growth.values())
    about = "" if one.collision_measured else "about "
    return [
        one.name, one.mode.value, f"{one.num_rows:,}",
        "not known" if one.num_learnt is None else f"{one.num_learnt:,} ({percent(one.learnt_share, 0)})",
        percent(one.full_share, 0), "" if one.collision_share is None else f"{about}{one.collision_share:.1%}",
        number(one.norm_p50), number(one.norm_max), f"{one.num_outliers:,}", f"{one.num_not_finite:,}",
        f"{one.num_lookups:,}", percent(one.new_share, 2), *(percent(share) for share in one.hottest),
        f"{sum(days) / len(days):,.1f}" if days else "",
    ]  # fmt: skip


def _drawn(one: TableReport) -> str:
    return _norms(one) + _growth(one)


def _norms(one: TableReport) -> str:
    """Bars over the norm, on a logarithmic scale: rows learnt above those never learnt."""
    if not one.norms or one.num_rows < _LEAST_DRAWN:
        return ""
    axis = LogAxis(low=one.norms[0].low, high=one.norms[-1].high, start=0, end=WIDTH)
    most = max(part.num_learnt + part.num_never for part in one.norms)
    bars = ""
    for part in one.norms:
        left, right = axis(part.low), axis(part.high)
        floor = float(_HEIGHT)
        for count, fill in ((part.num_never, "var(--soft)"), (part.num_learnt, BLUE)):
            height = _HEIGHT * count / most
            floor -= height
            bars += (
                f'<rect x="{left:.1f}" y="{floor:.1f}" width="{max(right - left - 1, 1):.1f}" height="{height:.1f}" '
                f'fill="{fill}"/>'
            )
    ends = text(0, _HEIGHT + 11, number(one.norms[0].low, 2)) + text(
        WIDTH, _HEIGHT + 11, number(one.norms[-1].high, 2), anchor="end"
    )
    never = "" if one.num_learnt is None else f"; never learnt (grey) {one.num_candidates - one.num_learnt:,}"
    return figure(
        drawing(bars + ends, height=_HEIGHT + 14, label=f"norms of the rows of {one.name}"),
        f"{one.name}: rows by norm, learnt (blue){never}",
    )


def _growth(one: TableReport) -> str:
    days, most = list(one.growth.items()), max(one.growth.values(), default=0)
    if not most:
        return ""
    width = WIDTH / len(days)
    bars = "".join(
        f'<rect fill="{BLUE}" x="{place * width + 0.5:.1f}" y="{_GROWTH_HEIGHT * (1 - count / most):.1f}" '
        f'width="{max(width - 1, 0.5):.1f}" height="{_GROWTH_HEIGHT * count / most:.1f}">'
        f"<title>{day}: {count:,}</title></rect>"
        for place, (day, count) in enumerate(days)
    )
    return figure(
        drawing(bars, height=_GROWTH_HEIGHT, label=f"new ids of {one.name} by day"),
        f"{one.name}: new ids by day, {days[0][0]} to {days[-1][0]}, {most:,} at most",
    )


def _span(days: Sequence[str]) -> str:
    return "no day" if not days else days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
