"""The report as one page of HTML that needs nothing else: the verdict, what it rests on, and each layer drawn.

Read on a phone as on a desk; light or dark as the reader's machine is set. Drawings are SVG in the page.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

from stack.audits.effect import EVERYTHING, Effect
from stack.audits.findings import Drift, Finding, Level
from stack.audits.report import AuditReport, Channel, LayerReport

_VERDICT = {
    Level.ok: "May be released: normalisation is as it was learnt.",
    Level.warning: "May be released: what is off costs nothing on these days.",
    Level.critical: "Must not be released.",
}
_CLASS = {
    Level.ok: "ok", Level.warning: "warning", Level.critical: "critical",
    Drift.none: "ok", Drift.off: "warning", Drift.far: "critical",
}  # fmt: skip
_STRIP_DEVIATIONS = 1.5
"""Shown to either side; channels beyond stand at the edge."""
_NUM_DENSITIES = 4
_WIDTH, _HEIGHT = 300, 46


def page(report: AuditReport) -> str:
    """The whole page."""
    parts = [
        f"<h1>{escape(report.run)}, version {report.version}</h1>",
        f'<p class="verdict {_CLASS[report.level]}">{_VERDICT[report.level]}</p>',
        f"<p>Audited on {escape(report.traffic)} traffic of {escape(_span(report.days))}: {report.num_timelines:,} "
        f"timelines of {escape(report.dataset)}. {escape(report.created)}, code {escape(report.code_version)}.</p>",
        *map(_finding, report.findings),
        "<h2>What predictions are worth</h2>",
        "<p>The same live rows, scored with the statistics that the model has learnt and is served with, and with "
        "those of live traffic. Where the second are better, the first cost something.</p>",
        _effects([one for one in report.effects if one.slice == EVERYTHING]),
        "<details><summary>By slice</summary>", _effects(report.effects), "</details>",
        "<h2>Layers</h2>",
        "<p>Those whose statistics move predictions most come first. A dot is a channel: how far the mean of live "
        "traffic is from the mean learnt, in deviations learnt; the band is what is allowed.</p>",
        *map(_layer, report.layers),
    ]  # fmt: skip
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Audit of {escape(report.run)}, version {report.version}</title><style>{_STYLE}</style></head>"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _finding(finding: Finding) -> str:
    return (
        f'<div class="finding {_CLASS[finding.level]}"><b>{escape(finding.name)}</b> ({finding.level.value})'
        f"<p>Measured: {escape(finding.measured)}.<br>Allowed: {escape(finding.allowed)}.<br>"
        f"What to do: {escape(finding.remedy)}.</p></div>"
    )


def _effects(effects: Sequence[Effect]) -> str:
    rows = (
        [
            one.task, one.slice, f"{one.num_examples:,}", f"{one.num_positives:,}",
            _pair(one.learnt.auc, one.live.auc, 4), _pair(one.learnt.gauc, one.live.gauc, 4),
            _pair(one.learnt.log_loss, one.live.log_loss, 4),
            _pair(one.learnt.predicted_over_observed, one.live.predicted_over_observed, 3),
            *(_as(value, 3) for value in (one.logit_mean, one.logit_rmse, one.logit_p99, one.psi)),
        ]
        for one in effects
    )  # fmt: skip
    return _table(
        ["task", "slice", "rows", "positives", "AUC", "GAUC", "log loss", "predicted / observed", "scores move by",
         "root mean square", "99th percentile", "stability index"], rows,
    )  # fmt: skip


def _layer(layer: LayerReport) -> str:
    figures = [
        ("rows", f"{layer.num_rows:,} ({layer.num_requests:,.0f} independent requests)"),
        ("95% of channels are off by up to", f"{_as(layer.shift_p95, 3)} ± {_as(layer.shift_error, 2)} deviations "
         f"(allowed {layer.allowed_shift:.2g})"),
        ("live variance over the learnt one", f"{_as(layer.ratio_p5, 3)} to {_as(layer.ratio_p95, 3)} in 90% of them"),
        ("divergence", f"{_as(layer.kl_mean, 3)} nats (allowed {layer.allowed_kl:.2g})"),
        ("scores move by", _as(layer.logit_rmse, 3) + " where this layer alone had live statistics"),
        ("remembers", f"the last {layer.horizon:,.0f} batches or so, of {layer.num_batches:,}"),
        ("channels", f"{layer.num_channels}, of them {layer.num_dead} that never vary, {layer.num_broken} that learnt "
         f"what is not finite, {layer.num_not_finite} that were given it"),
    ]  # fmt: skip
    facts = "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in figures)
    return (
        f"<details><summary><b>{escape(layer.name)}</b> {escape(layer.kind)} "
        f'<span class="mark {_CLASS[layer.drift]}">{layer.drift.value}</span>{_strip(layer)}</summary>'
        f"<dl>{facts}</dl>{_trend(layer)}{''.join(_densities(layer))}</details>"
    )


def _strip(layer: LayerReport) -> str:
    """All channels on one line."""

    def x(shift: float) -> float:
        return _WIDTH / 2 * (1 + max(-1.0, min(1.0, shift / _STRIP_DEVIATIONS)))

    dots = "".join(
        f'<circle cx="{x(channel.shift):.1f}" cy="{8 + 13 * (number % 3)}" r="2.5"/>'
        for number, channel in enumerate(layer.channels)
        if channel.shift is not None
    )
    left, right = x(-layer.allowed_shift), x(layer.allowed_shift)
    return (
        f'<svg class="strip" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="shifts of the channels">'
        f'<rect x="{left:.1f}" y="0" width="{right - left:.1f}" height="{_HEIGHT - 8}"/>'
        f'<line x1="{_WIDTH / 2}" x2="{_WIDTH / 2}" y1="0" y2="{_HEIGHT - 8}"/>{dots}'
        f'<text x="0" y="{_HEIGHT}">-{_STRIP_DEVIATIONS}</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT}" text-anchor="end">+{_STRIP_DEVIATIONS}</text></svg>'
    )


def _trend(layer: LayerReport) -> str:
    """The days before, as bars: by how much 95% of the channels were off on each."""
    days = [one for one in layer.trend if one.shift is not None]
    if not days:
        return ""
    values = [*((one.day, one.shift or 0.0) for one in days), ("audited", layer.shift_p95 or 0.0)]
    most = max(layer.allowed_shift, *(shift for _, shift in values))
    width = _WIDTH / len(values)
    bars = "".join(
        f'<rect class="bar" x="{number * width + 1:.1f}" y="{40 * (1 - shift / most):.1f}" width="{width - 2:.1f}" '
        f'height="{40 * shift / most:.1f}"><title>{escape(day)}: {shift:.3f}</title></rect>'
        for number, (day, shift) in enumerate(values)
    )
    allowed = 40 * (1 - layer.allowed_shift / most)
    return (
        f"<p>On the {len(days)} days before, and (last) the traffic audited, against what is allowed:</p>"
        f'<svg class="strip" viewBox="0 0 {_WIDTH} 40" role="img" aria-label="shift by day">{bars}'
        f'<line x1="0" x2="{_WIDTH}" y1="{allowed:.1f}" y2="{allowed:.1f}"/></svg>'
    )


def _densities(layer: LayerReport) -> Iterator[str]:
    """The channels that diverge most, of those beyond what is allowed: normal distributions, learnt and live."""
    defined = [(_divergence(channel), number, channel) for number, channel in enumerate(layer.channels)]
    off = sorted((one for one in defined if one[0] > layer.allowed_kl), key=lambda one: -one[0])
    for _, number, channel in off[:_NUM_DENSITIES]:
        shift, ratio = channel.shift or 0.0, channel.ratio or 1.0
        peak = max(1.0, 1 / math.sqrt(ratio))
        yield (
            f'<figure><svg class="density" viewBox="0 0 {_WIDTH} 60" role="img" aria-label="densities of a channel">'
            f'<path class="learnt" d="{_bell(0.0, 1.0, peak)}"/>'
            f'<path class="live" d="{_bell(shift, ratio, peak)}"/></svg>'
            f"<figcaption>channel {number}: learnt (thin) and live (thick); shift {shift:+.2f} ± "
            f"{channel.shift_error or 0:.2f}, variance {ratio:.2f} times</figcaption></figure>"
        )


def _divergence(channel: Channel) -> float:
    """In nats; 0 where it is not defined."""
    if channel.shift is None or channel.ratio is None or channel.ratio <= 0:
        return 0.0
    return (channel.ratio - 1 - math.log(channel.ratio) + channel.shift**2) / 2


def _bell(mean: float, variance: float, peak: float) -> str:
    """The path of a normal density from -4 to 4; `peak` reaches the top."""
    points = []
    for step in range(81):
        place = -4 + step / 10
        height = math.exp(-((place - mean) ** 2) / (2 * variance)) / math.sqrt(variance)
        points.append(f"{_WIDTH * step / 80:.1f},{58 - 54 * height / peak:.1f}")
    return "M" + " L".join(points)


def _table(headings: Sequence[str], rows: Iterator[list[str]]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _pair(learnt: float | None, live: float | None, digits: int) -> str:
    return "" if learnt is None or live is None else f"{learnt:.{digits}g} → {live:.{digits}g}"


def _as(value: float | None, digits: int) -> str:
    return "none" if value is None else f"{value:.{digits}g}"


def _span(days: Sequence[str]) -> str:
    return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"


_STYLE = """
:root{color-scheme:light dark;--ok:#2e7d32;--warning:#b26a00;--critical:#c62828;--soft:#8884}
body{overflow-wrap:anywhere;font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:0 auto;padding:1rem}
h1{font-size:1.4rem;margin:.5rem 0}h2{font-size:1.15rem;margin:1.6rem 0 .4rem}
.verdict{font-size:1.2rem;font-weight:600;padding:.6rem .8rem;border-left:.5rem solid}
.ok{border-color:var(--ok)}.warning{border-color:var(--warning)}.critical{border-color:var(--critical)}
.finding{border-left:.3rem solid;padding:.1rem .8rem;margin:.6rem 0;border-color:var(--soft)}
.finding.warning{border-color:var(--warning)}.finding.critical{border-color:var(--critical)}
.mark{border-left:.7rem solid;padding-left:.3rem;font-size:.85rem;white-space:nowrap}
.mark.ok{border-color:var(--ok)}.mark.warning{border-color:var(--warning)}.mark.critical{border-color:var(--critical)}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.85rem}
th,td{padding:.25rem .6rem;text-align:right;border-bottom:1px solid var(--soft);white-space:nowrap}
th:first-child,td:first-child,th:nth-child(2),td:nth-child(2){text-align:left}
details{border-bottom:1px solid var(--soft);padding:.4rem 0}summary{cursor:pointer}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem .8rem;font-size:.9rem}dt{opacity:.7}dd{margin:0}
@media(max-width:40rem){dl{grid-template-columns:1fr}dt{margin-top:.3rem}}
svg{display:block;width:100%;max-width:30rem;fill:currentColor;font-size:9px}
.strip rect{fill:var(--soft)}.strip rect.bar{fill:#4a7fb5}.strip line{stroke:currentColor;stroke-width:1}
.strip circle{fill:#4a7fb5;fill-opacity:.6}figure{margin:.6rem 0}figcaption{font-size:.8rem;opacity:.8}
.density path{fill:none;stroke:currentColor}.density .learnt{stroke-width:1}
.density .live{stroke:#4a7fb5;stroke-width:2.5}
"""
