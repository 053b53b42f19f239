"""What is wrong with a day's data, by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from stack.audits.data_config import DataAuditConfig
from stack.audits.data_report import ColumnReport, DataReport, Figure, Measure
from stack.audits.findings import Finding, Level

_EACH = 4
"""So many columns with the same thing wrong have a finding each; more have one together."""
_BY_ITSELF = frozenset({Measure.not_finite, Measure.constant, Measure.turned_rate, Measure.turned_signs})
"""What a holiday does not explain."""
_FLIPS = frozenset({Measure.turned_signs, Measure.turned_rate})
_BETTER = {
    Measure.turned_rate: frozenset({Measure.turned_signs, Measure.constant}),
    Measure.rate: _FLIPS | {Measure.constant},
    Measure.distinct: frozenset({Measure.constant}),
    Measure.distribution: _FLIPS | {Measure.constant, Measure.rate},
}
"""What says better what is wrong with a column."""


def findings(report: DataReport, config: DataAuditConfig) -> list[Finding]:
    """Critical ones first."""
    if not any(column.count for column in report.columns if column.kind == "volume"):
        return [
            Finding(
                level=Level.critical, name="empty day", measured=f"{report.day} has no timeline", allowed="one or more",
                remedy="look whether its log is there, and ingest it again",
            )
        ]  # fmt: skip
    found = [finding for measure in Measure for finding in _of_measure(report, measure, config)]
    return sorted(found, key=lambda one: one.level is not Level.critical)


def _of_measure(report: DataReport, measure: Measure, config: DataAuditConfig) -> Iterator[Finding]:
    for level in (Level.critical, Level.warning):
        off = [
            (column, figure)
            for column in report.columns
            for figure in column.figures
            if figure.measure is measure and _level(figure, report) is level and not _said_better(figure, column)
        ]
        if len(off) > _EACH:
            yield _together(off, level, config)
        else:
            yield from (_finding(column, figure, level, config) for column, figure in off)


def _level(figure: Figure, report: DataReport) -> Level:
    softer = report.holiday and figure.measure not in _BY_ITSELF and figure.level is Level.critical
    return Level.warning if softer else figure.level


def _said_better(figure: Figure, column: ColumnReport) -> bool:
    """Whether another finding of the column is why this figure is off: a flip is why the rate is another, and a rate
    and a column that is stuck are why the distribution is."""
    off = {one.measure for one in column.figures if one.level is not Level.ok}
    return bool(off & _BETTER.get(figure.measure, frozenset()))


def _finding(column: ColumnReport, figure: Figure, level: Level, config: DataAuditConfig) -> Finding:
    return Finding(
        level=level, name=name_of(column, figure.measure), measured=told(column, figure),
        allowed=allowed(figure, config), remedy=_REMEDIES[figure.measure],
    )  # fmt: skip


def _together(off: Sequence[tuple[ColumnReport, Figure]], level: Level, config: DataAuditConfig) -> Finding:
    column, worst = max(off, key=lambda one: _excess(one[1]))
    rest = [one.name for one, _ in off if one.name != column.name]
    named = ", ".join(rest[:_EACH]) + (" and others" if len(rest) > _EACH else "")
    return Finding(
        level=level, name=f"{_NAMES[worst.measure].format('').rstrip()} {len(off)} columns",
        measured=f"{column.name} the most: {told(column, worst)}; also {named}", allowed=allowed(worst, config),
        remedy=_REMEDIES[worst.measure],
    )  # fmt: skip


def _excess(figure: Figure) -> float:
    if figure.high is not None and figure.value > figure.high:
        return figure.value / max(figure.high, 1e-9)
    return (figure.low or 0.0) / max(figure.value, 1e-9)


_NAMES = {
    Measure.volume: "volume of {}",
    Measure.not_finite: "not finite values in {}",
    Measure.missing: "missing values in {}",
    Measure.new: "new ids in {}",
    Measure.distinct: "distinct values of {}",
    Measure.constant: "constant feature {}",
    Measure.distribution: "distribution of {}",
    Measure.rate: "label rate of {}",
    Measure.turned_rate: "label flip of {}",
    Measure.turned_signs: "label flip of {}",
}
_MEND = "look at the day's log and at what wrote it, and ingest it again"
_REMEDIES = {
    Measure.volume: "look whether the day's log is whole, and there once",
    Measure.not_finite: f"{_MEND}: training refuses batches with them",
    Measure.missing: f"{_MEND}: a column may have been renamed, or a table not joined",
    Measure.new: f"{_MEND}: ids may be written in another way",
    Measure.distinct: _MEND,
    Measure.constant: f"{_MEND}: whatever computes this column does not any more",
    Measure.distribution: f"{_MEND}: its unit may be another",
    Measure.rate: f"{_MEND}: what counts as a positive may be another",
    Measure.turned_rate: f"{_MEND}: positives and negatives are exchanged",
    Measure.turned_signs: f"{_MEND}: positives and negatives are exchanged",
}


def name_of(column: ColumnReport, measure: Measure) -> str:
    if measure is Measure.constant and column.kind == "label":
        return f"constant label {column.name}"
    return _NAMES[measure].format(column.name)


def told(column: ColumnReport, figure: Figure) -> str:
    """The figure in words."""
    value, usual = figure.value, figure.usual
    before = f"usually {shown(figure, usual)}"
    match figure.measure:
        case Measure.not_finite:
            return f"{value:,.0f} of {column.count:,} values are NaN or infinite"
        case Measure.constant:
            was = "" if column.mean is None else f" ({column.mean:.6g})"
            return f"all {column.count:,} values are the same{was}; the commonest one had {usual or 0:.1%} before"
        case Measure.missing:
            return f"{value:.1%} of {column.count:,} ids are unknown, {before}"
        case Measure.new:
            return f"{value:.1%} of {column.count:,} ids were not there before, {before}"
        case Measure.distribution:
            what = "from the usual ids" if column.kind == "ids" else "usual deviations from the usual values"
            return f"{value:.3g} {what}, days are {usual or 0:.3g} from each other"
        case Measure.rate:
            return f"{value:.2%} of {column.count:,}, {before}"
        case Measure.turned_rate:
            return f"log-odds of positives are {value:.2f} times the usual ones"
        case Measure.turned_signs:
            return f"correlations with the features are {value:.2f} times the usual ones"
    return f"{value:,.0f}, {before}"


def allowed(figure: Figure, config: DataAuditConfig) -> str:
    """The limits in words, and the option that moves them."""
    stops = figure.level is Level.critical
    low = shown(figure, figure.stop_low if stops else figure.low)
    high = shown(figure, figure.stop_high if stops else figure.high)
    option = _OPTIONS.get(figure.measure)
    where = "" if option is None else f" (audit_data.{option})"
    match figure.measure:
        case Measure.not_finite:
            return "none"
        case Measure.constant:
            return "values that vary, as before"
        case Measure.turned_rate | Measure.turned_signs:
            return f"above {config.flipped:g}{where}"
        case Measure.missing | Measure.new | Measure.distribution:
            return f"up to {high}{where}"
    return f"{low} to {high}{where}"


def shown(figure: Figure, value: float | None) -> str:
    """A number of a figure's kind."""
    if value is None:
        return "not known"
    if figure.measure in (Measure.missing, Measure.new, Measure.constant):
        return f"{value:.1%}"
    if figure.measure is Measure.rate:
        return f"{value:.2%}"
    if figure.measure in (Measure.volume, Measure.distinct, Measure.not_finite):
        return f"{value:,.0f}"
    return f"{value:.3g}"


_OPTIONS = {
    Measure.volume: "warn_volume, critical_volume",
    Measure.missing: "warn_missing, critical_missing",
    Measure.new: "warn_new, critical_new",
    Measure.distinct: "warn_volume",
    Measure.distribution: "warn_distance, warn_divergence",
    Measure.rate: "warn_rate, critical_rate",
    Measure.turned_rate: "flipped",
    Measure.turned_signs: "flipped",
}
