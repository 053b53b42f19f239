"""What replaying recorded requests came to: findings, tables for the terminal, a part of the page."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from stack.audits.findings import Finding, Level
from stack.audits.fragment import number, table
from stack.audits.skew_config import SkewConfig
from stack.export.skew import FeatureSkew, ScoreSkew, SkewReport
from stack.export.skew_features import (
    EXTRA_EVENT,
    MISSING_EVENT,
    NOT_IN_DATA,
    NOT_SENT,
    OLDER_EVENT,
    OTHER,
    SHIFTED,
    UNKNOWN,
)

_REMEDIES = {
    MISSING_EVENT: "look how late events reach whoever asks: what the log has was not there when it asked",
    OLDER_EVENT: "send more history: training reads the events carried over from earlier days as well",
    EXTRA_EVENT: "look for events that the log drops or counts once",
    SHIFTED: "compare clocks, time zones and units of the two sides",
    OTHER: "compute it in one place for both sides, at the same moment",
    UNKNOWN: "code ids as the log does: this one has no row in the vocabulary",
    NOT_SENT: "send it: a feature that is left out counts as unknown",
    NOT_IN_DATA: "look why the log lacks it",
}
_FEATURES = ("feature", "values", "differ", "requests", "first in", "how")
_SCORES = ("output", "answers", "features equal", "off", "from the package", "from the trained model", "all answers")


def findings(report: SkewReport, config: SkewConfig) -> list[Finding]:
    """A feature that differs is warned of, and is critical beyond a share of the requests; answers that differ though
    features are equal are critical."""
    return [*_compared(report), *_features(report, config), *_scores(report)]


def _compared(report: SkewReport) -> Iterator[Finding]:
    if not report.num_compared:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in report.skipped.items()) or "none was recorded"
        yield Finding(
            level=Level.warning, name="no recorded request could be replayed",
            measured=f"{report.num_recorded:,} recorded: {reasons}", allowed="some that are of prepared moments",
            remedy="ingest the days served, send `user`, `now` and `events`, or set audit.skew.within_seconds",
        )  # fmt: skip


def _features(report: SkewReport, config: SkewConfig) -> Iterator[Finding]:
    for one in sorted(report.features, key=lambda feature: -feature.num_requests):
        if one.num_requests:
            share = one.num_requests / report.num_compared
            most = max(one.kinds, key=lambda kind: one.kinds[kind])
            yield Finding(
                level=Level.critical if share > config.critical_share else Level.warning,
                name=f"feature {one.name} is not served as training sees it",
                measured=f"differs in {one.num_requests:,} of {report.num_compared:,} requests ({_how(one)})",
                allowed=f"none; audit.skew.critical_share={config.critical_share:g} of the requests stops a release",
                remedy=_REMEDIES[most],
            )  # fmt: skip


def _scores(report: SkewReport) -> Iterator[Finding]:
    for one in report.scores:
        if one.num_off:
            worst = max(one.from_package or 0.0, (one.from_trained or 0.0) if report.exact_rows else 0.0)
            yield Finding(
                level=Level.critical, name=f"{one.name} is served otherwise though all features are equal",
                measured=f"{one.num_off:,} of {one.num_equal:,} answers, by up to {worst:.2g}",
                allowed=f"audit.skew.tolerance={report.tolerance:g}",
                remedy="compare the versions of the engine on the two machines, and export the package again",
            )  # fmt: skip


def tables(report: SkewReport) -> list[Table]:
    features = Table(title=f"Recorded requests against prepared data: {_counts(report)}", title_justify="left")
    for heading in _FEATURES:
        features.add_column(heading, justify="left" if heading in ("feature", "how") else "right")
    for one in report.features:
        features.add_row(*_feature_cells(one))
    scores = Table(title="Answers served, and said of prepared data: largest differences", title_justify="left")
    for heading in _SCORES:
        scores.add_column(heading, justify="left" if heading == "output" else "right")
    for two in report.scores:
        scores.add_row(*_score_cells(two))
    return [features, scores]


def html(report: SkewReport) -> str:
    skipped = "; ".join(f"{count:,} {reason}" for reason, count in report.skipped.items())
    rounded = "" if report.exact_rows else " The package rounds rows, so the trained model says something else anyway."
    return (
        "<h2>Served and trained alike</h2>"
        f"<p>{_counts(report)}.{f' Passed over: {skipped}.' if skipped else ''}</p>"
        f"{table(_FEATURES, map(_feature_cells, report.features))}"
        f"<p>Answers against what the package and the trained model say of prepared data.{rounded}</p>"
        f"{table(_SCORES, map(_score_cells, report.scores))}"
    )


def _counts(report: SkewReport) -> str:
    return (
        f"{report.num_recorded:,} recorded, {report.num_compared:,} compared, {report.num_equal:,} with all features "
        "equal"
    )


def _feature_cells(one: FeatureSkew) -> list[str]:
    return [
        one.name, f"{one.num_values:,}", f"{one.num_different:,}", f"{one.num_requests:,}", f"{one.num_first:,}",
        _how(one),
    ]  # fmt: skip


def _score_cells(one: ScoreSkew) -> list[str]:
    return [
        one.name, f"{one.num_values:,}", f"{one.num_equal:,}", f"{one.num_off:,}", number(one.from_package, 2),
        number(one.from_trained, 2), number(one.all_from_package, 2),
    ]  # fmt: skip


def _how(one: FeatureSkew) -> str:
    told = ", ".join(f"{count:,} {kind}" for kind, count in one.kinds.items())
    return told if one.shift_seconds is None else f"{told} by {one.shift_seconds:+,.0f} s"
