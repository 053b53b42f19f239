"""From what was measured to findings: which layers are off, and whether that costs anything.

A layer is off where its channels are, beyond what they are off by from day to day and beyond the error of the
measurement. That alone stops nothing: a model that learnt on a sample knows the layers as they are, and swapping
statistics under it may do more harm than good. What stops a release is what it costs: the same live rows scored worse
with the learnt statistics than with the live ones; probabilities that are wrong on live rows; numbers that are none.

Legend: D channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stack.audits.config import AuditConfig
from stack.audits.drivers import Driver
from stack.audits.effect import EVERYTHING, Effect
from stack.audits.findings import Drift, Finding, Level
from stack.audits.moments import Floats, Moments
from stack.audits.norm_stats import LayerDrift
from stack.audits.report import Channel, DayDrift, LayerReport

_ERRORS = 2.0
"""Standard errors by which a limit must be passed."""
_CALIBRATION_ERRORS = 3.0
_SIGMAS = 3.0
"""Of the differences among days, above their mean, that are allowed."""
_SWAP = "do not swap statistics alone: the model has learnt with these, and calibration goes with them"


@dataclass(frozen=True, kw_only=True)
class Usual:
    """By how much a layer's input on single days differs from all of them together: the 95% of the channels' shifts and
    ratios, and the mean divergence, with three standard deviations over the days on top."""

    shift: float = 0.0
    ratio: float = 1.0
    kl: float = 0.0


def usual(days: Sequence[Moments], together: Moments | None) -> Usual:
    """Of one layer. `days`: its moments on each reference day; `together`: on all of them."""
    if together is None or len(days) < 2:
        return Usual()
    deviation_D = np.sqrt(together.ratio_D)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = [
            _figures(
                (day.shift_D - together.shift_D) / deviation_D, day.ratio_D / together.ratio_D,
                (together.ratio_D > 0) & (day.ratio_D > 0),
            )
            for day in days
        ]  # fmt: skip
    defined = [one for one in found if one is not None]
    if len(defined) < 2:
        return Usual()

    def limit(values: Sequence[float]) -> float:
        return float(np.mean(values) + _SIGMAS * np.std(values, ddof=1))

    return Usual(
        shift=limit([one.shift for one in defined]), ratio=float(np.exp(limit([np.log(one.ratio) for one in defined]))),
        kl=limit([one.kl for one in defined]),
    )  # fmt: skip


def layer_report(
    drift: LayerDrift,
    usual: Usual,
    config: AuditConfig,
    *,
    logit_rmse: float | None = None,
    earlier: Mapping[str, Moments] | None = None,
    drivers: Sequence[Driver] = (),
) -> tuple[LayerReport, list[Finding]]:
    """What is said of a layer, and what of it is broken. `earlier`: its moments on days before; `drivers`: what
    makes it drift."""
    moments = drift.moments
    usable_D = ~(drift.dead | drift.broken | ~np.isfinite(moments.ratio_D))
    figures = _figures(moments.shift_D, moments.ratio_D, usable_D)

    def of(value_D: Floats, *shares: float) -> list[float | None]:
        """Quantiles over the channels that can be used."""
        return [float(np.quantile(value_D[usable_D], share)) if usable_D.any() else None for share in shares]

    size_D = np.abs(moments.shift_D)
    (shift_p50, shift_max), (ratio_p5, ratio_p95) = of(size_D, 0.5, 1.0), of(moments.ratio_D, 0.05, 0.95)
    (shift_error,), (ratio_error,) = of(moments.shift_error_D, 0.5), of(moments.ratio_error_D, 0.5)
    found = Drift.none
    if figures is not None:
        found = _drift(figures, usual, config, shift_error=shift_error or 0.0, ratio_error=ratio_error or 0.0)
    report = LayerReport(
        name=drift.name, task=drift.task, kind=drift.kind, drift=found, num_channels=len(drift.mean_D),
        num_dead=int(drift.dead.sum()), num_broken=int(drift.broken.sum()),
        num_not_finite=int((moments.not_finite_D > 0).sum()), num_batches=drift.num_batches,
        horizon=1 / drift.momentum, num_rows=drift.num_rows, num_requests=of(moments.num_effective_D, 0.0)[0] or 0.0,
        shift_p50=shift_p50, shift_p95=figures.shift if figures else None, shift_max=shift_max, shift_error=shift_error,
        ratio_p5=ratio_p5, ratio_p95=ratio_p95, kl_mean=figures.kl if figures else None, w2_p50=of(moments.w2, 0.5)[0],
        far_max=of(moments.far_D, 1.0)[0], allowed_shift=max(config.warn_shift, usual.shift),
        allowed_ratio=max(config.warn_ratio, usual.ratio), allowed_kl=max(config.warn_kl, usual.kl),
        logit_rmse=logit_rmse, drivers=tuple(drivers), channels=tuple(_channels(drift)),
        trend=tuple(_trend(earlier or {}, usable_D)),
    )  # fmt: skip
    return report, list(_broken(drift))


def _drift(figures: _Off, usual: Usual, config: AuditConfig, *, shift_error: float, ratio_error: float) -> Drift:
    """By the worst of the three, each less its error."""
    measured = (
        (figures.shift - _ERRORS * shift_error, config.warn_shift, config.critical_shift, usual.shift),
        (figures.ratio / (1 + _ERRORS * ratio_error), config.warn_ratio, config.critical_ratio, usual.ratio),
        (figures.kl - _ERRORS * shift_error**2, config.warn_kl, config.critical_kl, usual.kl),
    )
    if any(value > max(critical, days) for value, _, critical, days in measured):
        return Drift.far
    return Drift.off if any(value > max(warn, days) for value, warn, _, days in measured) else Drift.none


def findings_of(layers: Sequence[LayerReport], effects: Sequence[Effect], config: AuditConfig) -> Iterator[Finding]:
    """What layers and effects come to, task by task."""
    whole = {one.task: one for one in effects if one.slice == EVERYTHING}
    for task in dict.fromkeys(layer.task for layer in layers):
        off = [layer for layer in layers if layer.task == task and layer.drift is not Drift.none]
        costs = list(_costs(whole[task], config)) if task in whole else []
        if off:
            yield _drifted(task, off, whole.get(task), costs=bool(costs), config=config)
        yield from costs
    for effect in whole.values():
        if effect.num_not_finite:
            yield Finding(
                level=Level.critical, name=f"scores of {effect.task} are not finite",
                measured=f"{effect.num_not_finite:,} of {effect.num_examples:,}", allowed="none",
                remedy="go back to a version before it (`stack checkpoint list`)",
            )  # fmt: skip
        yield from _calibration(effect, config)


def spread_findings(spread: float | None) -> Iterator[Finding]:
    """Statistics that the processes of a training do not share: each has normalised by its own."""
    if spread is not None and not spread <= 0:
        yield Finding(
            level=Level.critical, name="drift between ranks", measured=f"statistics of the processes that trained it "
            f"were up to {spread:.3g} deviations apart", allowed="none: sums over a batch are those of all processes",
            remedy="train it anew, and look why a norm layer does not sum over ranks "
            "(stack.layers.norm.set_sum_over_ranks)",
        )  # fmt: skip


def _broken(drift: LayerDrift) -> Iterator[Finding]:
    if drift.broken.any():
        yield Finding(
            level=Level.critical, name=f"{drift.name} has learnt what is not finite",
            measured=f"{int(drift.broken.sum())} of {len(drift.broken)} channels", allowed="none",
            remedy="go back to a version before it (`stack checkpoint list`), and look for what the log held that day",
        )  # fmt: skip
    if (drift.moments.not_finite_D[~drift.broken] > 0).any():
        yield Finding(
            level=Level.critical, name=f"{drift.name} is given what is not finite",
            measured=f"{int(drift.moments.not_finite_D[~drift.broken].max())} of {drift.num_rows} rows", allowed="none",
            remedy="look at the day's features, and at the layers before it",
        )  # fmt: skip


def _drifted(
    task: str, off: Sequence[LayerReport], effect: Effect | None, *, costs: bool, config: AuditConfig
) -> Finding:
    most = max(off, key=lambda layer: layer.shift_p95 or 0.0)
    driven = next((f", driven by {layer.drivers[0].name}" for layer in (most, *off) if layer.drivers), "")
    told = "other scores come out"
    if effect is not None and effect.logit_rmse is not None:
        told = f"scores move by {effect.logit_rmse:.2g}"
    if effect is not None and effect.learnt.auc is not None:
        told += f", AUC from {_as(effect.learnt.auc)} to {_as(effect.live.auc)}"
    if effect is not None and effect.learnt.predicted_over_observed is not None:
        before, after = (_as(one.predicted_over_observed, 3) for one in (effect.learnt, effect.live))
        told += f", predicted over observed from {before} to {after}"
    remedy = "see what it costs, below" if costs else f"nothing to mend, as it costs nothing; {_SWAP}"
    if effect is not None and effect.num_not_finite == 0 and effect.auc_cost is None and effect.log_loss_cost is None:
        remedy = f"what it costs cannot be told without labels: audit it on prepared days, too; {_SWAP}"
    stops = config.far_is_critical and any(layer.drift is Drift.far for layer in off)
    if stops:
        remedy += "; to release it all the same set audit.far_is_critical=false"
    return Finding(
        level=Level.critical if stops else Level.warning, name=f"{task} is not given what its layers have learnt",
        measured=f"{len(off)} of them off, {most.name} the most, 95% of its channels by up to "
        f"{_as(most.shift_p95, 2)} deviations{driven}; with live statistics {told}",
        allowed=f"up to {most.allowed_shift:.2g} deviations, {most.allowed_ratio:.2g} times the variance",
        remedy=remedy,
    )  # fmt: skip


def _costs(effect: Effect, config: AuditConfig) -> Iterator[Finding]:
    """Where live statistics score the same live rows better, by more than the errors leave open."""
    costs = (
        ("AUC", effect.auc_cost, "max_auc_cost", "{:.4f}"),
        ("log loss", effect.log_loss_cost, "max_log_loss_cost", "{:.2%}"),
    )
    for what, cost, limit, form in costs:
        if cost is not None and cost.value - _ERRORS * cost.error > getattr(config, limit):
            yield Finding(
                level=Level.critical, name=f"learnt statistics cost {effect.task} {what}",
                measured=f"{form.format(cost.value)} ± {form.format(cost.error)}",
                allowed=f"audit.{limit}={getattr(config, limit):g}",
                remedy=f"estimate the statistics anew with `stack audit --fix rebuild`; {_SWAP}",
            )  # fmt: skip


def _calibration(effect: Effect, config: AuditConfig) -> Iterator[Finding]:
    """Beyond what its error leaves open."""
    ratio, error = effect.learnt.predicted_over_observed, effect.learnt.calibration_error
    if ratio is None or error is None or not ratio > 0:
        return
    errors = max(error / ratio, effect.num_positives**-0.5) if effect.num_positives else np.inf  # few users tell little
    off = abs(np.log(ratio)) - _CALIBRATION_ERRORS * errors
    for level, limit in ((Level.critical, config.critical_calibration), (Level.warning, config.warn_calibration)):
        if off > np.log(limit):
            yield Finding(
                level=level, name=f"probabilities of {effect.task} on live rows",
                measured=f"predicted over observed is {ratio:.3g} ± {error:.2g} ({effect.num_positives:,} positives)",
                allowed=f"{1 / limit:.3g} to {limit:.3g}",
                remedy="look whether training corrects for its sampling (tasks.*.sampling), then calibrate: `stack "
                "audit --fix rebuild` does both",
            )  # fmt: skip
            return


@dataclass(frozen=True, kw_only=True)
class _Off:
    shift: float
    ratio: float
    kl: float


def _figures(shift_D: Floats, ratio_D: Floats, usable_D: NDArray[np.bool_]) -> _Off | None:
    """95% of the channels are off by no more; the ratio is that of the larger variance to the smaller."""
    if not usable_D.any():
        return None
    shift_D, ratio_D = np.abs(shift_D[usable_D]), ratio_D[usable_D]
    kl_D = (ratio_D - 1 - np.log(ratio_D) + shift_D**2) / 2
    return _Off(
        shift=float(np.quantile(shift_D, 0.95)), ratio=float(np.exp(np.quantile(np.abs(np.log(ratio_D)), 0.95))),
        kl=float(kl_D.mean()),
    )  # fmt: skip


def _trend(earlier: Mapping[str, Moments], usable_D: NDArray[np.bool_]) -> Iterator[DayDrift]:
    for day, moments in earlier.items():
        found = _figures(moments.shift_D, moments.ratio_D, usable_D & (moments.ratio_D > 0))
        yield DayDrift(day=day, shift=found.shift if found else None, kl=found.kl if found else None)


def _channels(drift: LayerDrift) -> Iterator[Channel]:
    moments = drift.moments
    columns = (
        drift.mean_D, drift.variance_D, moments.shift_D, moments.shift_error_D, moments.ratio_D, moments.ratio_error_D,
        moments.far_D,
    )  # fmt: skip
    for values in zip(*(column.tolist() for column in columns), strict=True):
        mean, variance, shift, shift_error, ratio, ratio_error, far = (
            value if np.isfinite(value) else None for value in values
        )
        yield Channel(
            mean=mean, variance=variance, shift=shift, shift_error=shift_error, ratio=ratio, ratio_error=ratio_error,
            far=far,
        )  # fmt: skip


def _as(value: float | None, digits: int = 4) -> str:
    return "none" if value is None else f"{value:.{digits}g}"
