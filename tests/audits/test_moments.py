"""Weighted moments against sums written out, and their errors against many draws of the same traffic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stack.audits.moments import FAR, ChannelSums, Moments

NUM_CHANNELS = 3


def traffic(seed: int, *, num_requests: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values that the rows of a request share in part, weights, and the request of each row."""
    rng = np.random.default_rng(seed)
    request_N = np.repeat(np.arange(num_requests), rng.integers(1, 6, num_requests))
    common_RD = rng.normal(0.3, 1.2, (num_requests, NUM_CHANNELS))
    value_ND = common_RD[request_N] + rng.normal(0, 0.5, (len(request_N), NUM_CHANNELS))
    return value_ND, rng.choice([1.0, 20.0, 0.0], len(request_N)), request_N


def sums_of(value_ND: np.ndarray, weight_N: np.ndarray, request_N: np.ndarray) -> ChannelSums:
    sums = ChannelSums(num_channels=value_ND.shape[1])
    sums.add(value_ND, weight_N, request_N)
    return sums


def slow(value_ND: np.ndarray, weight_N: np.ndarray, request_N: np.ndarray) -> dict[str, list[float]]:
    """One channel and one request after the other."""
    found: dict[str, list[float]] = {name: [] for name in ("shift", "shift_error", "ratio", "ratio_error", "effective")}
    for channel in range(value_ND.shape[1]):
        y = value_ND[:, channel]
        total = sum(w for w in weight_N)
        mean = sum(w * one for w, one in zip(weight_N, y, strict=True)) / total
        square = sum(w * one * one for w, one in zip(weight_N, y, strict=True)) / total
        of_mean = of_ratio = weights = 0.0
        for request in set(request_N.tolist()):
            rows = np.flatnonzero(request_N == request)
            of_mean += sum(weight_N[row] * (y[row] - mean) for row in rows) ** 2
            of_ratio += sum(weight_N[row] * ((y[row] - mean) ** 2 - (square - mean**2)) for row in rows) ** 2
            weights += sum(weight_N[row] for row in rows) ** 2
        found["shift"].append(mean)
        found["shift_error"].append(of_mean**0.5 / total)
        found["ratio"].append(square - mean**2)
        found["ratio_error"].append(of_ratio**0.5 / total)
        found["effective"].append(total**2 / weights)
    return found


def assert_same(found: Moments, wanted: dict[str, list[float]]) -> None:
    for name, value in (
        ("shift", found.shift_D), ("shift_error", found.shift_error_D), ("ratio", found.ratio_D),
        ("ratio_error", found.ratio_error_D), ("effective", found.num_effective_D),
    ):  # fmt: skip
        np.testing.assert_allclose(value, wanted[name], rtol=1e-9, err_msg=name)


@given(seed=st.integers(0, 10_000), cut=st.integers(0, 40))
def test_moments_are_those_written_out_however_the_traffic_is_cut(seed: int, cut: int) -> None:
    value_ND, weight_N, request_N = traffic(seed)
    weight_N[0] = 1.0
    wanted = slow(value_ND, weight_N, request_N)
    assert_same(sums_of(value_ND, weight_N, request_N).moments(), wanted)
    first_N = request_N < cut
    parts = [sums_of(value_ND[one], weight_N[one], request_N[one]) for one in (first_N, ~first_N)]
    assert_same((parts[0] + parts[1]).moments(), wanted)
    shuffled = np.random.default_rng(seed).permutation(len(value_ND))
    assert_same(sums_of(value_ND[shuffled], weight_N[shuffled], request_N[shuffled]).moments(), wanted)


def test_errors_are_the_spread_over_many_draws_of_the_same_traffic() -> None:
    """Rows of a request are alike here: taken as independent, the errors would be half of what they are."""
    found = [sums_of(*traffic(seed, num_requests=400)).moments() for seed in range(300)]
    for name in ("shift", "ratio"):
        values_SD = np.stack([getattr(one, f"{name}_D") for one in found])
        errors_SD = np.stack([getattr(one, f"{name}_error_D") for one in found])
        np.testing.assert_allclose(np.sqrt((errors_SD**2).mean(0)), values_SD.std(0), rtol=0.15)


def test_distances_are_those_of_normal_distributions() -> None:
    """KL by integration; both are 0 where nothing differs."""

    def moments(shift: float, ratio: float) -> Moments:
        one = np.ones(1)
        return Moments(
            shift_D=shift * one, shift_error_D=one, ratio_D=ratio * one, ratio_error_D=one, far_D=one,
            num_effective_D=one, not_finite_D=one.astype(np.int64),
        )  # fmt: skip

    x = np.linspace(-30, 30, 200_001)
    for shift, ratio in ((0.0, 1.0), (0.5, 1.0), (-0.2, 3.0), (1.5, 0.4)):
        live = np.exp(-((x - shift) ** 2) / (2 * ratio)) / np.sqrt(2 * np.pi * ratio)
        log_live = -((x - shift) ** 2) / (2 * ratio) - 0.5 * np.log(2 * np.pi * ratio)
        log_known = -(x**2) / 2 - 0.5 * np.log(2 * np.pi)
        kl = float(np.trapezoid(live * (log_live - log_known), x))
        np.testing.assert_allclose(moments(shift, ratio).kl, kl, atol=1e-9)
        np.testing.assert_allclose(moments(shift, ratio).w2, np.sqrt(shift**2 + (ratio**0.5 - 1) ** 2))


def test_what_is_not_finite_is_counted_and_spoils_nothing_else() -> None:
    value_ND, weight_N, request_N = traffic(3)
    weight_N = np.maximum(weight_N, 1.0)
    bad_ND = value_ND.copy()
    bad_ND[[1, 5], 0], bad_ND[7, 2] = np.nan, np.inf
    found, clean = sums_of(bad_ND, weight_N, request_N).moments(), sums_of(value_ND, weight_N, request_N).moments()
    assert found.not_finite_D.tolist() == [2, 0, 1]
    assert found.shift_D[1] == clean.shift_D[1]
    rest_N = ~np.isin(np.arange(len(value_ND)), [1, 5])
    alone = sums_of(value_ND[rest_N, :1], weight_N[rest_N], request_N[rest_N]).moments()
    np.testing.assert_allclose(found.shift_D[0], alone.shift_D[0])
    nothing = sums_of(np.full((4, 1), np.nan), np.ones(4), np.arange(4)).moments()
    assert np.isnan(nothing.shift_D).all()
    assert nothing.not_finite_D.tolist() == [4]


def test_far_is_a_share_of_weight() -> None:
    value_ND = np.array([[0.0], [FAR + 1], [-FAR - 1], [FAR]])
    found = sums_of(value_ND, np.array([1.0, 2.0, 3.0, 4.0]), np.arange(4)).moments()
    assert found.far_D.tolist() == [0.5]


@pytest.mark.parametrize("weight", [-1.0, np.nan, np.inf])
def test_a_weight_that_is_none_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="weights of rows must be finite and 0 or more"):
        sums_of(np.zeros((1, 1)), np.array([weight]), np.zeros(1, dtype=np.int64))


def test_no_rows_say_nothing() -> None:
    sums = ChannelSums(num_channels=2)
    sums.add(np.zeros((0, 2)), np.zeros(0), np.zeros(0, dtype=np.int64))
    assert np.isnan(sums.moments().shift_D).all()
    assert sums.moments().not_finite_D.tolist() == [0, 0]


@pytest.mark.parametrize("rate", [0.5, 0.05])
def test_thinned_traffic_weighted_by_its_rate_says_what_all_of_it_says_within_its_errors(rate: float) -> None:
    """Clicks kept, other candidates thinned: unweighted, the mean is off by far more than its error."""
    rng = np.random.default_rng(7)
    num_requests, num_candidates = 2_000, 50
    request_N = np.repeat(np.arange(num_requests), num_candidates)
    clicked_N = rng.random(len(request_N)) < 0.03
    value_ND = rng.normal(0, 1, (len(request_N), NUM_CHANNELS)) + 1.5 * clicked_N[:, None]
    value_ND += rng.normal(0, 0.3, (num_requests, NUM_CHANNELS))[request_N]
    everything = sums_of(value_ND, np.ones(len(request_N)), request_N).moments()
    kept_N = clicked_N | (rng.random(len(request_N)) < rate)
    weight_N = np.where(clicked_N, 1.0, 1 / rate)[kept_N]
    weighted = sums_of(value_ND[kept_N], weight_N, request_N[kept_N]).moments()
    for ours, theirs, error in (
        (weighted.shift_D, everything.shift_D, weighted.shift_error_D),
        (weighted.ratio_D, everything.ratio_D, weighted.ratio_error_D),
    ):
        assert (np.abs(ours - theirs) < 3.5 * error).all()
    plain = sums_of(value_ND[kept_N], np.ones(kept_N.sum()), request_N[kept_N]).moments()
    off_D = np.abs(plain.shift_D - everything.shift_D) / plain.shift_error_D
    assert (off_D > (3.5 if rate == 0.05 else 1.0)).all()
