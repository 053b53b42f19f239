"""Calibration with error bars, against loops, and on draws whose truth is known."""

from __future__ import annotations

import math
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.audits.calibration import (
    CalibrationReport,
    ScoredRows,
    calibration,
    holm,
)
from stack.audits.calibration_config import CalibrationConfig
from stack.audits.calibration_show import findings, html, tables
from stack.audits.findings import Level
from stack.base.errors import ConfigError
from stack.telemetry.console import show
from tests.audits.test_page import read

CONFIG = CalibrationConfig()


def drawn(
    seed: int, *, num_users: int = 150, keep: float = 0.2, factor: float = 1.0, alike: float = 0.0, task: str = "ctr"
) -> ScoredRows:
    """Rows of users of whom some see far more than others; of negatives the share `keep` is kept and weighs 1 / keep.
    What is predicted is `factor` times what is true in the slice "odd". `alike`: how much the labels of a user have in
    common beyond their probabilities, as a deviation of log-odds; probabilities are right on average over it."""
    rng = np.random.default_rng(seed)
    num_rows_U = rng.integers(5, 120, num_users)
    user_E = np.repeat(np.arange(num_users) * 7 + 3, num_rows_U)
    logit_E = rng.normal(-3, 1.2, len(user_E))
    shift_U = alike * rng.choice([-1.0, 1.0], num_users)
    shifted_E = logit_E + np.repeat(shift_U, num_rows_U)
    label_E = (rng.random(len(user_E)) < 1 / (1 + np.exp(-shifted_E))).astype(np.float64)
    if alike:  # what is right on average
        logit_E = np.log(mean := (sum(1 / (1 + np.exp(-logit_E - s)) for s in (-alike, alike)) / 2)) - np.log1p(-mean)
    odd_E = rng.random(len(user_E)) < 0.4
    told_E = np.minimum(np.where(odd_E, factor, 1.0) / (1 + np.exp(-logit_E)), 0.95)
    kept_E = (label_E > 0) | (rng.random(len(user_E)) < keep)
    weight_E = np.where(label_E > 0, 1.0, 1 / keep)
    slices = {"all": np.ones(len(user_E), dtype=bool), "odd": odd_E, "even": ~odd_E}
    return ScoredRows(
        task=task, logit_E=(np.log(told_E) - np.log1p(-told_E))[kept_E], label_E=label_E[kept_E],
        weight_E=weight_E[kept_E], user_E=user_E[kept_E],
        slices={name: chosen_E[kept_E] for name, chosen_E in slices.items()},
    )  # fmt: skip


def test_sums_are_those_of_a_loop() -> None:
    rows = drawn(0)
    (task,) = calibration([rows], CONFIG).tasks
    for part in task.slices:
        predicted = observed = weight = 0.0
        num_rows = num_positives = 0
        for logit, label, one, chosen in zip(
            rows.logit_E, rows.label_E, rows.weight_E, rows.slices[part.name], strict=True
        ):
            if chosen:
                predicted += one / (1 + math.exp(-logit))
                observed += one * label
                weight += one
                num_rows += 1
                num_positives += int(label)
        assert (part.num_rows, part.num_positives) == (num_rows, num_positives)
        assert part.ratio == pytest.approx(predicted / observed)
        assert (part.predicted, part.observed) == (pytest.approx(predicted / weight), pytest.approx(observed / weight))
    error = sum(part.weight * abs(part.predicted - part.observed) for part in task.buckets)
    assert task.error == pytest.approx(error / rows.weight_E.sum())
    assert task.relative == pytest.approx(error / (rows.weight_E * rows.label_E).sum())


def test_buckets_go_up_with_the_score_and_expect_as_many_positives_each() -> None:
    rows = drawn(1)
    (task,) = calibration([rows], CONFIG).tasks
    assert [part.name for part in task.buckets] == [str(number) for number in range(1, 11)]
    expected = [part.predicted * part.weight for part in task.buckets]
    most = float((rows.weight_E / (1 + np.exp(-rows.logit_E))).max())
    assert max(expected) - min(expected) <= 2 * most
    rates = [part.predicted for part in task.buckets]
    assert rates == sorted(rates)
    assert sum(part.num_rows for part in task.buckets) == task.num_rows


def test_equal_scores_are_in_one_bucket() -> None:
    rows = drawn(2)
    alike = replace(rows, logit_E=np.full_like(rows.logit_E, -3.0))
    (task,) = calibration([alike], CONFIG).tasks
    assert [part.num_rows for part in task.buckets] == [len(rows.logit_E)]


def test_errors_are_those_of_users_where_their_rows_are_alike_and_of_counts_where_they_are_few() -> None:
    """Rows one hundred times over are no more evidence; a user with one positive of weight 1 is a count."""
    rows = drawn(3, num_users=60)
    times = 100
    many = ScoredRows(
        task="ctr", logit_E=np.tile(rows.logit_E, times), label_E=np.tile(rows.label_E, times),
        weight_E=np.tile(rows.weight_E / times, times), user_E=np.tile(rows.user_E, times),
        slices={name: np.tile(chosen_E, times) for name, chosen_E in rows.slices.items()},
    )  # fmt: skip
    (one,), (other,) = calibration([rows], CONFIG).tasks, calibration([many], CONFIG).tasks
    for ours, theirs in zip(one.slices, other.slices, strict=True):
        assert ours.ratio == pytest.approx(theirs.ratio)
        assert theirs.ratio_low is not None
        assert ours.ratio_low is not None
        assert math.log(theirs.ratio / theirs.ratio_low) > 0.7 * math.log(ours.ratio / ours.ratio_low)
    count = ScoredRows(
        task="ctr", logit_E=np.full(100_000, math.log(1.6e-4)), label_E=np.repeat([1.0, 0.0], [4, 99_996]),
        weight_E=np.ones(100_000), user_E=np.arange(100_000), slices={"all": np.ones(100_000, dtype=bool)},
    )  # fmt: skip
    (part,) = calibration([count], CONFIG).tasks[0].slices
    assert part.ratio == pytest.approx(4.0, rel=1e-3)
    assert part.ratio_low == pytest.approx(16 / 10.242, rel=0.005), "Garwood's limits of 4: 1.090 to 10.242"
    assert part.ratio_high == pytest.approx(16 / 1.090, rel=0.015)
    below = sum(16**k / math.factorial(k) for k in range(5)) * math.exp(-16)
    assert part.p_value == pytest.approx(2 * below, rel=0.01)


def test_a_part_without_positives_is_off_only_where_some_were_expected() -> None:
    def of(rate: float) -> ScoredRows:
        return ScoredRows(
            task="ctr", logit_E=np.full(2000, math.log(rate / (1 - rate))), label_E=np.zeros(2000),
            weight_E=np.ones(2000), user_E=np.arange(2000) // 5, slices={"all": np.ones(2000, dtype=bool)},
        )  # fmt: skip

    (part,) = calibration([of(0.001)], CONFIG).tasks[0].slices
    assert (part.ratio, part.ratio_high, part.off) == (None, None, False)
    assert part.p_value == pytest.approx(2 * math.exp(-2), rel=0.01)
    (part,) = calibration([of(0.02)], CONFIG).tasks[0].slices
    assert part.off
    assert findings(calibration([of(0.02)], CONFIG), CONFIG)[0].measured == (
        "1 of 1 are off: score part 1 none observed (from 11.1)"
    )


@pytest.mark.parametrize(("keep", "alike"), [(1.0, 0.0), (0.1, 0.0), (0.3, 1.5)])
def test_draws_that_are_calibrated_are_found_so(keep: float, alike: float) -> None:
    """A false alarm is no likelier than is said: at 10% no more than 10% and three errors of 100 draws."""
    config = replace(CONFIG, false_alarms=0.1, allowed_ratio=1.0)
    alarms = inside = num_parts = 0
    for seed in range(100):
        report = calibration([drawn(seed, num_users=80, keep=keep, alike=alike)], config)
        parts = (*report.tasks[0].slices, *report.tasks[0].buckets)
        alarms += any(part.off for part in parts)
        inside += sum((part.ratio_low or 0) <= 1 <= (part.ratio_high or math.inf) for part in parts)
        num_parts += len(parts)
    assert alarms <= 100 * 0.1 + 3 * math.sqrt(100 * 0.1 * 0.9)
    assert 0.92 <= inside / num_parts <= 0.995, "95% limits hold the truth"


@settings(max_examples=12, derandomize=True, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.5, 0.6, 1.7, 2.0]), st.sampled_from([0.1, 1.0]))
def test_a_planted_factor_is_found_where_it_was_planted(seed: int, factor: float, keep: float) -> None:
    report = calibration([drawn(seed, num_users=400, keep=keep, factor=factor)], CONFIG)
    by_name = {part.name: part for part in report.tasks[0].slices}
    assert by_name["odd"].off
    assert not by_name["even"].off
    odd = by_name["odd"]
    assert odd.ratio is not None
    assert 0.7 < math.log(odd.ratio) / math.log(factor) < 1.3
    assert (odd.ratio_low or 0) / 1.1 < factor < (odd.ratio_high or math.inf) * 1.1
    (by_slice,) = (one for one in findings(report, CONFIG) if one.name.endswith("slices"))
    assert by_slice.measured.startswith("1 of 2 are off: odd ")


def test_findings_are_warnings_unless_they_are_to_stop_a_release() -> None:
    report = calibration([drawn(5, num_users=300, factor=3.0)], CONFIG)
    assert {one.level for one in findings(report, CONFIG)} == {Level.warning}
    assert {one.level for one in findings(report, replace(CONFIG, off_is_critical=True))} == {Level.critical}
    whole = next(part for part in report.tasks[0].slices if part.name == "all")
    assert whole.off, "is judged with the statistics, and no finding here"
    assert not any("all " in one.measured for one in findings(report, CONFIG))


def test_what_is_within_the_allowed_ratio_is_not_off_however_sure_it_is() -> None:
    rows = drawn(6, num_users=2000, keep=1.0, factor=1.15)
    (strict,) = calibration([rows], replace(CONFIG, allowed_ratio=1.0)).tasks
    (lenient,) = calibration([rows], replace(CONFIG, allowed_ratio=1.2)).tasks
    assert next(part for part in strict.slices if part.name == "odd").off
    assert not any(part.off for part in (*lenient.slices, *lenient.buckets))


def test_holm_rejects_in_order_of_the_p_values() -> None:
    """Limits are alpha / 4, / 3, / 2, / 1."""
    assert holm([0.04, 0.002, 0.5, 0.003], 0.01) == [False, True, False, True]
    assert holm([0.0026, 0.0001, 0.5, 0.2], 0.01) == [True, True, False, False]
    assert holm([0.003, 0.003, 0.5, 0.2], 0.01) == [False] * 4
    assert holm([], 0.01) == []


def test_scores_that_are_not_finite_are_left_out_and_counted() -> None:
    rows = drawn(7)
    logit_E = rows.logit_E.copy()
    logit_E[:5] = np.nan
    logit_E[5] = np.inf
    (task,) = calibration([replace(rows, logit_E=logit_E)], CONFIG).tasks
    assert (task.num_not_finite, task.num_rows) == (6, len(logit_E) - 6)
    assert calibration([replace(rows, weight_E=np.zeros_like(rows.weight_E))], CONFIG).tasks == ()
    nothing = replace(rows, logit_E=np.full_like(rows.logit_E, np.nan))
    (task,) = calibration([nothing], CONFIG).tasks
    assert (task.num_rows, task.buckets, task.slices) == (0, (), ())


def test_the_report_is_shown_drawn_and_can_be_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    report = calibration([drawn(8), drawn(9, task="follow & <more>")], CONFIG)
    assert msgspec.json.decode(msgspec.json.encode(report), type=CalibrationReport) == report
    reader = read(html(report))
    assert reader.num["svg"] == 2
    assert reader.num["circle"] == 20
    assert reader.loaded == []
    assert "follow & <more> by slice and score" in reader.text
    for shown in tables(report):
        show(shown)
    out = capsys.readouterr().out
    assert "Predicted over observed positives on live rows" in out


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"buckets": 1}, "audit.calibration.buckets=1 must be at least 2"),
        ({"allowed_ratio": 0.9}, "audit.calibration.allowed_ratio=0.9 must be 1 or more"),
        ({"false_alarms": 0.0}, "audit.calibration.false_alarms=0.0 must be above 0 and below 1"),
    ],
)
def test_limits_that_cannot_be_are_refused(changed: dict[str, float], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        replace(CONFIG, **changed)
