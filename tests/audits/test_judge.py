"""From figures to findings: what is off, what it costs, and what neither errors nor days leave open."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from stack.audits.config import AuditConfig
from stack.audits.effect import EVERYTHING, Cost, Effect, Figures
from stack.audits.findings import Drift, Finding, Level, worst
from stack.audits.judge import Usual, findings_of, layer_report, usual
from stack.audits.moments import Moments
from stack.audits.norm_stats import LayerDrift
from stack.audits.report import LayerReport

NUM_CHANNELS = 20
CONFIG = AuditConfig()


def moments(*, shift: float = 0.0, ratio: float = 1.0, error: float = 0.001, not_finite: int = 0) -> Moments:
    """All channels alike."""
    ones_D = np.ones(NUM_CHANNELS)
    return Moments(
        shift_D=shift * ones_D, shift_error_D=error * ones_D, ratio_D=ratio * ones_D, ratio_error_D=error * ones_D,
        far_D=0 * ones_D, num_effective_D=1e4 * ones_D, not_finite_D=np.full(NUM_CHANNELS, not_finite),
    )  # fmt: skip


def layer(found: Moments, *, task: str = "ctr", broken: int = 0) -> LayerDrift:
    mean_D = np.zeros(NUM_CHANNELS)
    mean_D[:broken] = np.nan
    return LayerDrift(
        name=f"{task}.head.1", task=task, kind="batch norm", momentum=0.05, num_batches=9, num_rows=500, mean_D=mean_D,
        variance_D=np.ones(NUM_CHANNELS), eps=1e-5, moments=found,
    )  # fmt: skip


def drift_of(found: Moments, usual: Usual | None = None) -> Drift:
    return layer_report(layer(found), usual or Usual(), CONFIG, logit_rmse=None)[0].drift


@pytest.mark.parametrize(
    ("found", "drift"),
    [
        (moments(), Drift.none),
        (moments(shift=0.099), Drift.none),
        (moments(shift=0.11), Drift.off),
        (moments(shift=-0.11), Drift.off),
        (moments(shift=0.26), Drift.far),
        (moments(ratio=1.24), Drift.none),
        (moments(ratio=1.3), Drift.off),
        (moments(ratio=1 / 1.3), Drift.off),
        (moments(ratio=2.1), Drift.far),
        (moments(ratio=0.45), Drift.far),
        (moments(shift=0.26, error=0.06), Drift.off),
        (moments(shift=0.26, error=0.09), Drift.none),
    ],
)
def test_a_layer_is_off_beyond_limits_and_errors(found: Moments, drift: Drift) -> None:
    assert drift_of(found) is drift


def test_what_days_differ_by_anyway_is_allowed() -> None:
    days = [moments(shift=shift) for shift in (-0.2, 0.0, 0.2, 0.1, -0.1)]
    allowed = usual(days, moments())
    sizes = [0.2, 0.0, 0.2, 0.1, 0.1]
    assert allowed.shift == pytest.approx(np.mean(sizes) + 3 * np.std(sizes, ddof=1))
    assert allowed.ratio == pytest.approx(1.0)
    assert drift_of(moments(shift=0.26)) is Drift.far
    assert drift_of(moments(shift=0.26), allowed) is Drift.none
    assert drift_of(moments(shift=0.5), allowed) is Drift.far
    assert usual(days[:1], moments()) == usual([], None) == Usual(), "one day differs from none"


def test_days_are_told_in_the_deviations_of_all_of_them() -> None:
    """A layer that has learnt a variance far too small is not allowed more for it."""
    days = [moments(shift=10 + shift, ratio=100.0) for shift in (-1.0, 1.0)]
    assert usual(days, moments(shift=10.0, ratio=100.0)).shift == pytest.approx(0.1)


def test_what_is_dead_or_broken_does_not_count_and_broken_is_critical() -> None:
    report, findings = layer_report(layer(moments(), broken=2), Usual(), CONFIG, logit_rmse=0.5)
    assert (report.drift, report.num_broken, report.logit_rmse) == (Drift.none, 2, 0.5)
    assert [finding.level for finding in findings] == [Level.critical]
    assert findings[0].line.startswith(
        "ctr.head.1 has learnt what is not finite: 2 of 20 channels, allowed is none: go "
    )
    assert report.channels[0].mean is None
    report, findings = layer_report(layer(moments(not_finite=3)), Usual(), CONFIG, logit_rmse=None)
    assert findings[0].line.startswith("ctr.head.1 is given what is not finite: 3 of 500 rows, allowed is none: look")
    report, findings = layer_report(layer(moments(), broken=NUM_CHANNELS), Usual(), CONFIG, logit_rmse=None)
    assert (report.shift_p95, report.kl_mean, report.drift) == (None, None, Drift.none)
    assert msgspec.json.decode(msgspec.json.encode(report), type=LayerReport) == report


def effect(
    *, auc: tuple[float, float] = (0.7, 0.7), log_loss: tuple[float, float] = (0.1, 0.1),
    calibration: tuple[float, float] = (1.0, 1.0), positives: int = 10_000,
    error: float = 0.0,
) -> Effect:  # fmt: skip
    learnt, live = (
        Figures(
            auc=auc[one], gauc=None, log_loss=log_loss[one], log_loss_error=0.001,
            predicted_over_observed=calibration[one],
            calibration_error=calibration[one] / positives**0.5 if positives else None,
        )
        for one in (0, 1)
    )  # fmt: skip
    return Effect(
        task="ctr", slice=EVERYTHING, num_examples=100_000, num_positives=positives, num_not_finite=0,
        observed_rate=0.1, logit_mean=0.0, logit_rmse=0.2, logit_p99=1.0, psi=0.1,
        auc_cost=Cost(value=auc[1] - auc[0], error=error),
        log_loss_cost=Cost(value=log_loss[0] / log_loss[1] - 1, error=error), learnt=learnt,
        live=live,
    )  # fmt: skip


def findings(found: Moments, *effects: Effect, config: AuditConfig = CONFIG) -> list[Finding]:
    report, _ = layer_report(layer(found), Usual(), config, logit_rmse=0.1)
    return list(findings_of([report], effects, config))


def test_drift_that_costs_nothing_is_warned_of_and_not_to_be_swapped_away() -> None:
    (found,) = findings(moments(shift=0.4), effect(calibration=(1.02, 1.9)))
    assert found.level is Level.warning
    assert found.line == (
        "ctr is not given what its layers have learnt: 1 of them off, ctr.head.1 the most, 95% of its channels by up "
        "to 0.4 deviations; with live statistics scores move by 0.2, AUC from 0.7 to 0.7, predicted over observed from "
        "1.02 to 1.9, allowed is up to 0.1 deviations, 1.2 times the variance: nothing to mend, as it costs nothing; "
        "do not swap statistics alone: the model has learnt with these, and calibration goes with them"
    )
    (strict,) = findings(moments(shift=0.4), effect(), config=replace(CONFIG, far_is_critical=True))
    assert strict.level is Level.critical
    assert strict.remedy.endswith("to release it all the same set audit.far_is_critical=false")
    (mild,) = findings(moments(shift=0.2), effect(), config=replace(CONFIG, far_is_critical=True))
    assert mild.level is Level.warning


@pytest.mark.parametrize(
    ("given", "name", "measured"),
    [
        (effect(auc=(0.7, 0.7021)), "learnt statistics cost ctr AUC", "0.0021 ± 0.0000"),
        (effect(log_loss=(0.1021, 0.1)), "learnt statistics cost ctr log loss", "2.10% ± 0.00%"),
    ],
)
def test_what_learnt_statistics_cost_on_the_same_rows_is_critical(given: Effect, name: str, measured: str) -> None:
    drifted, cost = findings(moments(shift=0.4), given)
    assert (drifted.level, drifted.remedy) == (Level.warning, "see what it costs, below")
    assert (cost.level, cost.name, cost.measured) == (Level.critical, name, measured)
    assert not findings(moments(), effect(auc=(0.7, 0.7019), log_loss=(0.1019, 0.1)))


def test_a_cost_that_chance_may_have_made_is_no_finding() -> None:
    assert not findings(moments(), effect(auc=(0.7, 0.71), log_loss=(0.11, 0.1), error=0.045))
    assert len(findings(moments(), effect(auc=(0.7, 0.71), log_loss=(0.11, 0.1), error=0.0035))) == 2


@pytest.mark.parametrize(
    ("ratio", "positives", "level"),
    [(1.05, 10_000, None), (1.2, 10_000, Level.warning), (1.4, 10_000, Level.critical), (0.7, 10_000, Level.critical),
     (1.4, 60, None), (0.49, 8, None), (0.49, 100, Level.critical), (1.4, 0, None)],
)  # fmt: skip
def test_probabilities_are_judged_as_far_as_positives_allow(ratio: float, positives: int, level: Level | None) -> None:
    found = findings(moments(), effect(calibration=(ratio, 1.0), positives=positives))
    assert [finding.level for finding in found] == ([] if level is None else [level])


def test_the_worst_of_levels() -> None:
    assert worst([]) is Level.ok
    assert worst([Level.warning, Level.critical, Level.ok]) is Level.critical
