"""Baselines against values worked by hand; and that nothing of a held-out day reaches them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stack.base.errors import DataError
from stack.data.dataset import Dataset
from stack.data.schema import Group
from stack.evaluate import baselines
from stack.evaluate import rows as rows_module
from stack.evaluate.assess import Assessor, assess
from stack.evaluate.predict import Predictions
from stack.evaluate.rows import Rows, read_day, read_days
from stack.tasks import metrics


def rows(
    users: list[int], labels: list[float], *, icons: list[int] | None = None, dense: np.ndarray | None = None
) -> Rows:
    dense = np.zeros((len(users), 0)) if dense is None else dense
    names = tuple(f"feature_{index}" for index in range(dense.shape[1]))
    return Rows(
        group=Group(name="test", dense=names, labels=("label",)),
        user_E=np.array(users, dtype=np.int64),
        ids={} if icons is None else {"icon": np.array(icons, dtype=np.int64)},
        dense_EF=dense,
        labels={"label": np.array(labels, dtype=np.float32)},
    )


def test_majority_class_and_the_users_own_class_by_hand() -> None:
    train = rows([1, 1, 1, 2, 2, 9], [3, 3, 0, 5, 0, 0])
    found = baselines.class_frequencies(train, rows([1, 2, 7], [0, 0, 0]), label="label", num_classes=7)
    assert found["majority class"].score.argmax(axis=1).tolist() == [0, 0, 0]
    # user 1 bought class 3 twice; user 2 has a tie of 5 and 0, and 0 is commoner; user 7 was never seen
    assert found["user's most frequent"].score.argmax(axis=1).tolist() == [3, 0, 0]
    assert np.exp(found["majority class"].score[0]) == pytest.approx(
        np.array([3.5, 0.5, 0.5, 2.5, 0.5, 1.5, 0.5]) / 9.5
    )
    assert np.exp(found["user's most frequent"].score).sum(axis=1) == pytest.approx(1.0)
    assert baselines.class_frequencies(rows([], []), train, label="label", num_classes=7) == {}


def test_past_rates_by_hand_fall_back_on_the_overall_rate() -> None:
    train = rows([1] * 10 + [2] * 10, [1.0] * 5 + [0.0] * 15, icons=[-(2**62)] * 20)
    found = baselines.smoothed_rates(train, rows([1, 2, 3], [0, 0, 0], icons=[-(2**62), -(2**62), 900]), label="label")
    odds = [(5 + 10 * 0.25) / 20, (0 + 10 * 0.25) / 20, 0.25]
    assert found["user's past rate"].score == pytest.approx([math.log(p / (1 - p)) for p in odds])
    assert metrics.sigmoid(found["icon's past rate"].score) == pytest.approx([0.25, 0.25, 0.25])
    assert baselines.smoothed_rates(rows([1], [0.0]), train, label="label") == {}


@pytest.mark.parametrize("far", [0, 2**62, -(2**62)])
def test_past_choices_count_only_what_was_chosen(far: int) -> None:
    """Rows of a vocabulary, or keys of any size and sign."""
    train = rows([1, 1, 1, 2], [1.0, 1.0, 0.0, 1.0], icons=[5 + far, 5 + far, 6 - far, 6 - far])
    held = rows([1, 1, 2, 3, 1], [0] * 5, icons=[5 + far, 6 - far, 6 - far, 5 + far, 7 + far])
    found = baselines.past_choices(train, held, label="label")
    assert found["icon popularity"].score.tolist() == [2, 1, 1, 2, 0]
    assert found["user's own icon count"].score.tolist() == [2, 0, 1, 0, 0]
    nothing = baselines.past_choices(train.take(train.labels["label"] < 0), held, label="label")
    assert nothing["icon popularity"].score.tolist() == [0] * 5


def test_learners_find_what_the_features_hold_and_are_calibrated() -> None:
    rng = np.random.default_rng(0)

    def draw(count: int) -> Rows:
        dense = np.exp(rng.normal(size=(count, 3))).astype(np.float32)  # heavy-tailed, like counts
        logit = 2 * np.log(dense[:, 0]) - np.log(dense[:, 1]) - 1
        dense[::50, 2] = np.nan
        return rows([0] * count, (rng.random(count) < metrics.sigmoid(logit)).tolist(), dense=dense)

    train, held = draw(8000), draw(4000)
    found = baselines.learners(train, held, label="label", seed=0)
    assert list(found) == ["logistic regression", "boosted trees"]
    for baseline in found.values():
        assert metrics.auc(baseline.score, held.labels["label"]) > 0.85
        assert metrics.predicted_over_observed(baseline.score, held.labels["label"]) == pytest.approx(1.0, abs=0.06)
    assert baselines.learners(train.take(train.labels["label"] > 0), held, label="label", seed=0) == {}


def predictions(dataset: Dataset, days: tuple[str, ...]) -> dict[str, Predictions]:
    impressions = read_days(dataset, days, dataset.schema.group("impression"), max_rows=10**9)
    prices = read_days(dataset, days, dataset.schema.group("price"), max_rows=10**9)
    return {
        "ctr": Predictions(rows=impressions, score=impressions.dense("user_item_count").astype(np.float64)),
        "power": Predictions(rows=prices, score=np.zeros((len(prices), 7))),
    }


def test_baselines_read_no_held_out_day(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    training, held_out = dataset.days()[:4], dataset.days()[4:]
    predicted = predictions(dataset, held_out)
    read: list[str] = []

    def recording(dataset: Dataset, day: str, group: Group) -> Rows:
        read.append(day)
        return read_day(dataset, day, group)

    monkeypatch.setattr(rows_module, "read_day", recording)
    assessor = Assessor(
        dataset=dataset, training_days=training, held_out_days=held_out, max_rows=10**9, num_replicates=20, seed=0
    )
    reports = assess(assessor, predicted)
    assert set(read) == set(training)
    sizes = [dataset.day(day).num_examples["price"] for day in training]
    assert reports[1].sets[0].num_training_rows == sum(sizes)
    with pytest.raises(DataError, match=rf"{held_out[0]} ... {held_out[0]} are both trained on and held out"):
        Assessor(
            dataset=dataset,
            training_days=dataset.days()[:5],
            held_out_days=held_out,
            max_rows=1,
            num_replicates=20,
            seed=0,
        )


def test_baseline_scores_do_not_depend_on_held_out_labels(dataset: Dataset) -> None:
    def figures(flip: bool) -> list[np.ndarray]:
        predicted = predictions(dataset, dataset.days()[4:])
        if flip:
            labels = predicted["ctr"].rows.labels
            labels["clicked"] = 1 - labels["clicked"]
            predicted["power"].rows.labels["tier"] = 6 - predicted["power"].rows.labels["tier"]
        assessor = Assessor(
            dataset=dataset, training_days=dataset.days()[:4], held_out_days=dataset.days()[4:], max_rows=10**9,
            num_replicates=20, seed=0,
        )  # fmt: skip
        assess(assessor, predicted)
        return [one.score for fitted in assessor._fitted.values() for one in fitted.values()]

    for straight, flipped in zip(figures(False), figures(True), strict=True):
        assert np.array_equal(straight, flipped)
