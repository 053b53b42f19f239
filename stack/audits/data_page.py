"""A day's data for people: tables for the terminal, and a piece of a page (its styles are `stack.audits.page`'s)."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from rich.markup import escape as plain
from rich.table import Table

from stack.audits.data_config import DataAuditConfig
from stack.audits.data_findings import allowed, shown, told
from stack.audits.data_report import ColumnReport, DataReport, Figure, Measure
from stack.audits.findings import Level

_WIDTH, _HEIGHT = 110.0, 28.0
_CLASS = {Level.ok: "ok", Level.warning: "warning", Level.critical: "critical"}
_ORDER = (Level.critical, Level.warning, Level.ok)


def tables(report: DataReport, config: DataAuditConfig | None = None) -> list[Table]:
    """How much there is; and what is not as usual, the worst first."""
    config = DataAuditConfig() if config is None else config
    volume = Table(title=f"Data of {report.day} against {_references(report)}", title_justify="left")
    for heading in ("", "on the day", "usually", "allowed"):
        volume.add_column(heading, justify="left" if heading in ("", "allowed") else "right")
    for column in report.columns:
        for figure in column.figures if column.kind == "volume" else ():
            volume.add_row(
                plain(column.name), shown(figure, figure.value), shown(figure, figure.usual), allowed(figure, config)
            )
    off = Table(title="Columns that are not as usual", title_justify="left")
    for heading in ("column", "what", "measured", "allowed", ""):
        off.add_column(heading, overflow="fold")
    for column, figure in _by_level(report):
        if figure.level is not Level.ok and column.kind != "volume":
            off.add_row(
                plain(column.name), figure.measure.value, plain(told(column, figure)), plain(allowed(figure, config)),
                figure.level.value,
            )  # fmt: skip
    return [volume, off] if off.row_count else [volume]


def html(report: DataReport) -> str:
    """A section of a page: a row for each figure of each column, what is not as usual first and the rest folded."""
    rows = _by_level(report)
    off = [one for one in rows if one[1].level is not Level.ok]
    said = (
        f"{len(report.columns)} columns of {escape(report.day)} against {_references(report)}. A line is a measure of "
        "a column: over the days before and, as a dot, on the day; the band is what is allowed."
    )
    return (
        f'<section class="data"><style>{_STYLE}</style><h2>Data of {escape(report.day)}</h2><p>{said}</p>'
        + (_table(off) if off else "<p>Everything is as usual.</p>")
        + f"<details><summary>All columns</summary>{_table(rows)}</details></section>"
    )


def _by_level(report: DataReport) -> list[tuple[ColumnReport, Figure]]:
    pairs = [(column, figure) for column in report.columns for figure in column.figures]
    return sorted(pairs, key=lambda pair: _ORDER.index(pair[1].level))


def _references(report: DataReport) -> str:
    days = report.reference_days
    return f"{len(days)} days, {days[0]} to {days[-1]}" if days else "no days before it"


def _table(rows: Sequence[tuple[ColumnReport, Figure]]) -> str:
    body = "".join(
        f'<tr><td class="mark {_CLASS[figure.level]}"><b>{escape(column.name)}</b><br>'
        f"{escape(_what(column, figure))}</td><td>{_spark(figure)}</td><td>{escape(shown(figure, figure.value))}<br>"
        f"<small>usually {escape(shown(figure, figure.usual))}</small></td></tr>"
        for column, figure in rows
    )
    return f'<div class="wide"><table><tbody>{body}</tbody></table></div>'


def _what(column: ColumnReport, figure: Figure) -> str:
    if figure.measure is Measure.constant:
        return "share of the commonest value"
    if figure.measure is Measure.distribution:
        return "distance, of shares" if column.kind == "ids" else "distance, in deviations"
    return str(figure.measure.value)


def _spark(figure: Figure) -> str:
    """The reference days as a line that ends in the day, a dot; the allowed band behind them."""
    values = [*figure.trend, figure.value]
    known = [one for one in values if one is not None]
    least, most = min(known), max(known)
    bounds = [one for one in (figure.low, figure.high) if one is not None]
    reach = (most - least) or abs(most) or 1.0
    within = [one for one in bounds if least - 2 * reach <= one <= most + 2 * reach]
    least, most = min([least, *within]), max([most, *within])
    span = (most - least) or 1.0

    def y(value: float) -> float:
        return 3 + (_HEIGHT - 6) * (1 - (min(max(value, least), most) - least) / span)

    def x(place: int) -> float:
        return 4 + (_WIDTH - 8) * place / max(len(values) - 1, 1)

    band = ""
    if bounds:
        top = y(most if figure.high is None else figure.high)
        bottom = y(least if figure.low is None else figure.low)
        band = f'<rect x="0" width="{_WIDTH:.0f}" y="{top:.1f}" height="{max(bottom - top, 0.5):.1f}"/>'
    points = [(x(place), y(value)) for place, value in enumerate(values) if value is not None]
    line = " ".join(f"{across:.1f},{down:.1f}" for across, down in points)
    across, down = points[-1]
    return (
        f'<svg class="spark" viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img" aria-label="over the days">{band}'
        f'<polyline points="{line}"/><circle class="{_CLASS[figure.level]}" cx="{across:.1f}" cy="{down:.1f}" r="3"/>'
        "</svg>"
    )


_STYLE = """
.data svg.spark{width:110px;height:28px;max-width:none}
.data .spark rect{fill:#8884}.data .spark polyline{fill:none;stroke:currentColor;stroke-width:1}
.data .spark .ok{fill:#2e7d32}.data .spark .warning{fill:#b26a00}.data .spark .critical{fill:#c62828}
.data .wide{overflow-x:auto}.data table{border-collapse:collapse;font-size:.85rem}
.data td{padding:.25rem .5rem;text-align:left;border-bottom:1px solid #8884}
.data td:last-child{text-align:right;white-space:nowrap}.data td:first-child{overflow-wrap:anywhere}
.data .mark{border-left:.5rem solid}.data .mark.ok{border-left-color:#2e7d32}
.data .mark.warning{border-left-color:#b26a00}.data .mark.critical{border-left-color:#c62828}
"""
