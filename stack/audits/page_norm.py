"""The part of the page that is about normalisation: what predictions are worth, what was mended, and each layer drawn.

Drawings are SVG in the page.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from html import escape

from stack.audits.effect import EVERYTHING, Cost, Effect
from stack.audits.findings import Drift
from stack.audits.report import AuditReport, Channel, LayerReport, Repaired

DRIFT_CLASS = {Drift.none: "ok", Drift.off: "warning", Drift.far: "critical"}
_STRIP_DEVIATIONS = 1.5
"""Shown to either side; channels beyond stand at the edge."""
_NUM_DENSITIES = 4
_WIDTH, _HEIGHT = 300, 48


def normalisation(report: AuditReport) -> str:
    """The sections of the page."""
    whole = [one for one in report.effects if one.slice == EVERYTHING]
    parts = [
        "" if report.repaired is None else _repaired(report.repaired),
        "<h2>What predictions are worth</h2>",
        "<p>The same live rows, scored with the statistics that the model has learnt and is served with, and with "
        "those of live traffic. "
        + ("Where the second are better, the first cost something.</p>" if report.log is None
           else "Recorded requests have no labels, so what the first cost is not known.</p>"),
        _effects(whole),
        "<details><summary>By slice</summary>", _effects(report.effects), "</details>",
        "<h2>Layers</h2>",
        "<p>Those whose statistics move predictions most come first. A dot is a channel: how far the mean of live "
        "traffic is from the mean learnt, in deviations learnt; the band is what is allowed.</p>",
        _ranks(report.rank_spread),
        *(_layer(layer, steps_per_day=report.steps_per_day) for layer in report.layers),
    ]  # fmt: skip
    return "".join(parts)


def _ranks(spread: float | None) -> str:
    if spread is None:
        return "<p>Whether the processes that trained it have the same statistics was not told with this version.</p>"
    return f"<p>At the last save, the processes that trained it had statistics {spread:.3g} deviations apart.</p>"


def _repaired(repaired: Repaired) -> str:
    rows = (
        [
            one.task, "" if one.scale is None else f"{one.scale:.3g}", _as(one.shift, 3),
            _pair(one.before.auc, one.after.auc, 4), _pair(one.before.log_loss, one.after.log_loss, 4),
            _pair(one.before.predicted_over_observed, one.after.predicted_over_observed, 3),
            _cost(one.log_loss_gain, "{:.1%}"),
        ]
        for one in repaired.tasks
    )  # fmt: skip
    before = "".join(f"<li>{escape(one.name)}: {escape(one.measured)}</li>" for one in repaired.findings)
    return (
        f"<h2>What was mended</h2><p>Version {repaired.of} with the statistics of live traffic of "
        f"{escape(', '.join(repaired.days))}, and its scores calibrated. On users that had no part in that:</p>"
        + _table(["task", "score times", "plus", "AUC", "log loss", "predicted / observed", "log loss falls by"], rows)
        + (f"<p>Found before:</p><ul>{before}</ul>" if before else "")
    )


def _effects(effects: Sequence[Effect]) -> str:
    rows = (
        [
            one.task, one.slice, f"{one.num_examples:,}", f"{one.num_positives:,}",
            _pair(one.learnt.auc, one.live.auc, 4), _pair(one.learnt.gauc, one.live.gauc, 4),
            _pair(one.learnt.log_loss, one.live.log_loss, 4),
            _pair(one.learnt.predicted_over_observed, one.live.predicted_over_observed, 3),
            _cost(one.auc_cost, "{:+.4f}"), _cost(one.log_loss_cost, "{:+.1%}"),
            *(_as(value, 3) for value in (one.logit_mean, one.logit_rmse, one.logit_p99, one.psi)),
        ]
        for one in effects
    )  # fmt: skip
    return _table(
        ["task", "slice", "rows", "positives", "AUC", "GAUC", "log loss", "predicted / observed",
         "cost in AUC", "in log loss", "scores move by",
         "root mean square", "99th percentile", "stability index"], rows,
    )  # fmt: skip


def _layer(layer: LayerReport, *, steps_per_day: float) -> str:
    figures = [
        ("rows", f"{layer.num_rows:,} ({layer.num_requests:,.0f} independent requests)"),
        ("95% of channels are off by up to", f"{_as(layer.shift_p95, 3)} ± {_as(layer.shift_error, 2)} deviations "
         f"(allowed {layer.allowed_shift:.2g})"),
        ("live variance over the learnt one", f"{_as(layer.ratio_p5, 3)} to {_as(layer.ratio_p95, 3)} in 90% of them"),
        ("divergence", f"{_as(layer.kl_mean, 3)} nats (allowed {layer.allowed_kl:.2g})"),
        ("scores move by", _as(layer.logit_rmse, 3) + " where this layer alone had live statistics"),
        ("remembers", f"the last {layer.horizon:,.0f} batches or so, of {layer.num_batches:,}; a day of training "
         f"has {steps_per_day:,.0f}"),
        ("channels", f"{layer.num_channels}, of them {layer.num_dead} that never vary, {layer.num_broken} that learnt "
         f"what is not finite, {layer.num_not_finite} that were given it"),
    ]  # fmt: skip
    if layer.drivers:
        told = (f"{one.name} {one.shift:.2f} (up to {one.most:+.2f})" for one in layer.drivers)
        figures.append(("moved most by", ", ".join(told)))
    facts = "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in figures)
    return (
        f"<details><summary><b>{escape(layer.name)}</b> {escape(layer.kind)} "
        f'<span class="mark {DRIFT_CLASS[layer.drift]}">{_drift(layer)}</span>{_strip(layer)}</summary>'
        f"<dl>{facts}</dl>{_trend(layer)}{''.join(_densities(layer))}</details>"
    )


def _drift(layer: LayerReport) -> str:
    return layer.drift.value if layer.num_rows else "not seen"


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
        f'<rect x="{left:.1f}" y="0" width="{right - left:.1f}" height="{_HEIGHT - 10}"/>'
        f'<line x1="{_WIDTH / 2}" x2="{_WIDTH / 2}" y1="0" y2="{_HEIGHT - 10}"/>{dots}'
        f'<text x="0" y="{_HEIGHT - 1}">-{_STRIP_DEVIATIONS}</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT - 1}" text-anchor="end">+{_STRIP_DEVIATIONS}</text></svg>'
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


def _table(headings: Sequence[str], rows: Iterable[list[str]]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _pair(learnt: float | None, live: float | None, digits: int) -> str:
    return "" if learnt is None or live is None else f"{learnt:.{digits}g} → {live:.{digits}g}"


def _cost(cost: Cost | None, form: str) -> str:
    return "" if cost is None else f"{form.format(cost.value)} ± {form.format(cost.error).lstrip('+')}"


def _as(value: float | None, digits: int) -> str:
    return "none" if value is None else f"{value:.{digits}g}"
