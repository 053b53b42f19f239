"""Counts of a column and their distances, against what NumPy says of the values themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stack.audits.data_sketch import Counts, jensen_shannon, total, wasserstein

NUMBERS = st.floats(-1e9, 1e9).filter(lambda value: value == 0 or abs(value) > 1e-9)
VALUES = arrays(np.float64, st.integers(1, 60), elements=NUMBERS)


def _wasserstein(one: np.ndarray, other: np.ndarray) -> float:
    """The integral of |F - G| over the values, as it is defined."""
    both = np.sort(np.concatenate([one, other]))
    apart = [abs(np.mean(one <= value) - np.mean(other <= value)) for value in both[:-1]]
    return float(np.sum(np.array(apart) * np.diff(both)))


@given(VALUES, VALUES)
@settings(max_examples=60, deadline=None)
def test_wasserstein_is_that_of_the_values_to_within_their_rounding(one: np.ndarray, other: np.ndarray) -> None:
    rounding = 0.011 * (np.abs(one).mean() + np.abs(other).mean())
    found = wasserstein(Counts.of(one), Counts.of(other))
    assert found == pytest.approx(_wasserstein(one, other), abs=rounding + 1e-12)


@given(VALUES)
@settings(max_examples=60, deadline=None)
def test_buckets_keep_the_order_of_values_and_miss_none_by_more_than_a_hundredth(value_N: np.ndarray) -> None:
    counts = Counts.of(value_N)
    assert np.all(np.diff(counts.values()) > 0)
    rounded = np.repeat(counts.values(), counts.count_B)
    assert rounded == pytest.approx(np.sort(value_N), rel=0.0101, abs=1e-12)


@given(VALUES, VALUES)
@settings(max_examples=40, deadline=None)
def test_counts_add_up_and_come_apart_again(one: np.ndarray, other: np.ndarray) -> None:
    both = Counts.of(one) + Counts.of(other)
    whole, rest = Counts.of(np.concatenate([one, other])), both - Counts.of(other)
    for found, expected in ((both, whole), (rest, Counts.of(one))):
        assert np.array_equal(found.bucket_B, expected.bucket_B)
        assert np.array_equal(found.count_B, expected.count_B)


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [
        ([1, 1, 2], [2, 1, 1, 1, 1, 2], 0.0),
        ([1, 2], [3, 4], 1.0),
        ([1], [1, 2], np.sqrt(0.5 * np.log2(4 / 3) + 0.5 * (0.5 * np.log2(2 / 3) + 0.5))),
    ],
)  # fmt: skip
def test_jensen_shannon_is_as_worked_by_hand(one: list[int], other: list[int], distance: float) -> None:
    found = jensen_shannon(Counts.of_whole(np.array(one)), Counts.of_whole(np.array(other)))
    assert found == pytest.approx(distance, abs=1e-12)


def test_quantiles_are_those_of_the_values() -> None:
    value_N = np.random.default_rng(0).lognormal(0, 2, 5000)
    counts = total([Counts.of(part) for part in np.split(value_N, 5)])
    shares = [0.0, 0.05, 0.5, 0.95, 1.0]
    assert counts.quantiles(shares) == pytest.approx(np.quantile(value_N, shares), rel=0.02)
