"""Standard errors against what happens when users are drawn again and again."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from stack.audits.errors import (
    auc_contributions,
    auc_difference_error,
    calibration_error,
    clustered,
    log_loss_error,
    log_loss_share_error,
)
from stack.tasks.metrics import auc, log_loss, predicted_over_observed

Floats = np.ndarray
NUM_DRAWS = 400


def rows() -> dict[str, Floats]:
    """300 users of several rows each, whose rows are alike; two scores, of which the second is a little worse."""
    rng = np.random.default_rng(5)
    user_E = np.repeat(np.arange(300), rng.integers(1, 12, 300))
    taste_E = rng.normal(size=300)[user_E]
    logit_E = -1.5 + taste_E + 0.5 * rng.normal(size=len(user_E))
    return {
        "one_E": np.round(logit_E, 1),
        "other_E": logit_E + 0.7 * rng.normal(size=len(user_E)) + 0.2,
        "label_E": (rng.random(len(user_E)) < 1 / (1 + np.exp(-logit_E))).astype(float),
        "weight_E": rng.choice([1.0, 5.0], len(user_E)),
        "user_E": user_E,
    }


def drawn_again(figure: Callable[[dict[str, Floats]], float]) -> float:
    """The standard deviation of a figure over draws of whole users with replacement."""
    rng, every = np.random.default_rng(6), rows()
    of_user = [np.flatnonzero(every["user_E"] == user) for user in range(300)]
    values = []
    for _ in range(NUM_DRAWS):
        chosen = np.concatenate([of_user[user] for user in rng.integers(0, 300, 300)])
        values.append(figure({name: value[chosen] for name, value in every.items()}))
    return float(np.std(values))


def test_the_error_of_a_difference_of_aucs_is_that_of_users_drawn_again() -> None:
    every = rows()
    expected = drawn_again(
        lambda r: auc(r["one_E"], r["label_E"], r["weight_E"]) - auc(r["other_E"], r["label_E"], r["weight_E"])
    )
    assert auc_difference_error(**every) == pytest.approx(expected, rel=0.15)


def test_the_error_of_one_auc_alone_is_larger_than_that_of_the_difference() -> None:
    every = rows()
    alone = clustered(auc_contributions(every["one_E"], every["label_E"], every["weight_E"]), every["user_E"])
    assert alone == pytest.approx(drawn_again(lambda r: auc(r["one_E"], r["label_E"], r["weight_E"])), rel=0.15)
    assert auc_difference_error(**every) < 0.8 * alone


def test_the_error_of_a_share_of_log_loss_is_that_of_users_drawn_again() -> None:
    expected = drawn_again(
        lambda r: (
            log_loss(r["one_E"], r["label_E"], r["weight_E"]) / log_loss(r["other_E"], r["label_E"], r["weight_E"])
        )
    )
    assert log_loss_share_error(**rows()) == pytest.approx(expected, rel=0.15)


def test_the_error_of_predicted_over_observed_is_that_of_users_drawn_again() -> None:
    every = rows()
    del every["other_E"]
    expected = drawn_again(lambda r: predicted_over_observed(r["one_E"], r["label_E"], r["weight_E"]))
    found = calibration_error(every["one_E"], every["label_E"], every["weight_E"], every["user_E"])
    assert found == pytest.approx(expected, rel=0.15)


def test_the_error_of_a_log_loss_is_that_of_users_drawn_again() -> None:
    every = rows()
    del every["other_E"]
    expected = drawn_again(lambda r: log_loss(r["one_E"], r["label_E"], r["weight_E"]))
    found = log_loss_error(every["one_E"], every["label_E"], every["weight_E"], every["user_E"])
    assert found == pytest.approx(expected, rel=0.15)


def test_contributions_add_up_to_nothing_and_are_no_numbers_where_no_auc_is_defined() -> None:
    every = rows()
    contribution_E = auc_contributions(every["one_E"], every["label_E"], every["weight_E"])
    assert contribution_E.sum() == pytest.approx(0.0, abs=1e-12)
    assert np.isnan(auc_contributions(np.arange(3.0), np.ones(3), np.ones(3))).any()
    assert calibration_error(np.zeros(2), np.zeros(2), np.ones(2), np.arange(2)) == float("inf")


def test_one_user_tells_no_error_nor_do_positives_of_one() -> None:
    every = rows()
    one = {name: value[every["user_E"] == every["user_E"][0]] for name, value in every.items()}
    assert np.isnan(clustered(np.array([1.0, -1.0]), np.zeros(2, dtype=np.int64)))
    assert np.isnan(calibration_error(one["one_E"], np.ones(len(one["one_E"])), one["weight_E"], one["user_E"]))
    first = int(np.flatnonzero(every["label_E"])[0])
    of_one_E = np.where(np.arange(len(every["label_E"])) == first, 1.0, 0.0)
    assert np.isnan(auc_difference_error(**{**every, "label_E": of_one_E}))
    assert np.isnan(auc_difference_error(**{**every, "label_E": 1 - of_one_E}))


def test_few_users_are_not_taken_for_many() -> None:
    """A mean of two: the error is the root of the variance that two draws tell, over two."""
    value_E = np.array([1.0, 4.0])
    error = clustered((value_E - value_E.mean()) / 2, np.arange(2))
    assert error == pytest.approx((value_E.var(ddof=1) / 2) ** 0.5)


def test_the_same_score_twice_has_no_error() -> None:
    every = rows()
    assert auc_difference_error(**{**every, "other_E": every["one_E"]}) == 0.0
    assert log_loss_share_error(**{**every, "other_E": every["one_E"]}) == pytest.approx(0.0, abs=1e-15)
