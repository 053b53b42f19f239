"""What a model has to beat: counts, rates, and standard learners, on the very same held-out examples.

Every baseline learns from training days only. A baseline that is `calibrated` gives log-odds (or, for classes,
log-probabilities) of the set it is scored on; the others give an order only.

Shape legend: E held-out examples, T training examples, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from stack.evaluate.rows import Rows
from stack.tasks.metrics import Array, Floats, Ints

ITEM_COUNT = "item_count"
"""Ranking feature: purchases of the item before the day. Ingest gives it as of the day's start."""
USER_ITEM_COUNT = "user_item_count"
"""Ranking feature: the user's own purchases of the item before the day."""
PRIOR_EXAMPLES = 10.0
"""Weight, in examples, of the overall rate in the smoothed rate of a user, candidate or class."""


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """(E,) scores, or (E, C) for classes."""

    score: Array
    calibrated: bool


def counts(rows: Rows) -> dict[str, Baseline]:
    """The ranking features that are baselines by themselves, where the dataset has them."""
    names = {"popularity": ITEM_COUNT, "own frequency": USER_ITEM_COUNT}
    return {
        name: Baseline(score=rows.dense(column), calibrated=False)
        for name, column in names.items()
        if column in rows.group.dense
    }


def learners(train: Rows, held_out: Rows, *, label: str, seed: int) -> dict[str, Baseline]:
    """Logistic regression and boosted trees on the dense features; none without features or with one label."""
    target_T = train.labels[label] > 0
    if not train.group.dense or target_T.all() or not target_T.any():
        return {}
    models = {"logistic regression": logistic_regression(seed), "boosted trees": boosted_trees(seed)}
    found = {}
    for name, model in models.items():
        model.fit(train.dense_EF, target_T)
        found[name] = Baseline(score=log_odds(model.predict_proba(held_out.dense_EF)[:, 1]), calibrated=True)
    return found


def logistic_regression(seed: int) -> Pipeline:
    """On standardised features (counts among them are logarithms already); missing values count as zero."""
    return make_pipeline(
        FunctionTransformer(_fill), StandardScaler(), LogisticRegression(max_iter=500, random_state=seed)
    )


def boosted_trees(seed: int) -> HistGradientBoostingClassifier:
    """300 trees at most, stopped early on a tenth of the training rows."""
    return HistGradientBoostingClassifier(max_iter=300, early_stopping=True, random_state=seed)


def smoothed_rates(train: Rows, held_out: Rows, *, label: str) -> dict[str, Baseline]:
    """Past response rates of the user and of each kind of candidate, drawn towards the overall rate."""
    keys = {"user's past rate": (train.user_E, held_out.user_E)}
    keys |= {f"{name}'s past rate": (train.ids[name], held_out.ids[name]) for name in train.ids}
    target_T = (train.labels[label] > 0).astype(np.float64)
    if target_T.min(initial=1.0) == target_T.max(initial=0.0) or len(target_T) == 0:
        return {}
    overall = float(target_T.mean())
    found = {}
    for name, (seen_T, asked_E) in keys.items():
        index_T, index_E = _dense_index(seen_T, asked_E)
        size = int(index_T.max()) + 2
        tries, successes = np.bincount(index_T, minlength=size), np.bincount(index_T, target_T, size)
        rate = (successes + PRIOR_EXAMPLES * overall) / (tries + PRIOR_EXAMPLES)
        found[name] = Baseline(score=log_odds(rate[index_E]), calibrated=True)
    return found


def class_frequencies(train: Rows, held_out: Rows, *, label: str, num_classes: int) -> dict[str, Baseline]:
    """Frequencies of the classes in training: everybody's (whose first is the majority class), and the user's own.

    The user's counts get everybody's frequencies as one more example in all: that orders ties and unseen
    classes, and never overturns a difference of one.
    """
    target_T = train.labels[label].astype(np.int64)
    if len(target_T) == 0:
        return {}
    # a class without training examples keeps half an example, so that its log-probability is finite
    totals_C = np.bincount(target_T, minlength=num_classes) + 0.5
    prior_C = totals_C / totals_C.sum()
    user, known = _dense_index(train.user_E, held_out.user_E)
    own_UC = np.zeros((int(user.max(initial=-1)) + 2, num_classes))
    np.add.at(own_UC, (user, target_T), 1.0)
    own_EC = own_UC[known] + prior_C
    return {
        "majority class": Baseline(score=np.tile(np.log(prior_C), (len(held_out), 1)), calibrated=True),
        "user's most frequent": Baseline(score=np.log(own_EC / own_EC.sum(axis=1, keepdims=True)), calibrated=True),
    }


def past_choices(train: Rows, held_out: Rows, *, label: str) -> dict[str, Baseline]:
    """How often the candidate was chosen in training: by everybody, and by this user."""
    chosen = train.take(train.labels[label] > 0)
    found = {}
    for name in train.ids:
        index_T, index_E = _dense_index(chosen.ids[name], held_out.ids[name])
        size = int(index_T.max(initial=-1)) + 2
        popular = np.bincount(index_T, minlength=size)
        pairs, times = np.unique(chosen.user_E * size + index_T, return_counts=True)
        own_E = _lookup(pairs, times, held_out.user_E * size + index_E)
        found[f"{name} popularity"] = Baseline(score=popular[index_E], calibrated=False)
        found[f"user's own {name} count"] = Baseline(score=own_E, calibrated=False)
    return found


def log_odds(chance_E: Array) -> Floats:
    """Logits of probabilities, kept finite."""
    chance_E = np.clip(np.asarray(chance_E, dtype=np.float64), 1e-12, 1 - 1e-12)
    return np.asarray(np.log(chance_E) - np.log1p(-chance_E))


def _fill(value: Array) -> Array:
    return np.nan_to_num(np.asarray(value, dtype=np.float64), nan=0.0)


def _dense_index(seen_T: Ints, asked_E: Ints) -> tuple[Ints, Ints]:
    """Indices 0..U-1 of the seen ids, and for each asked id its index, or U where it was never seen."""
    names_U, index_T = np.unique(seen_T, return_inverse=True)
    if not len(names_U):
        return index_T, np.zeros_like(asked_E)
    place_E = np.searchsorted(names_U, asked_E)
    found_E = names_U[np.minimum(place_E, len(names_U) - 1)] == asked_E
    return index_T, np.where(found_E, place_E, len(names_U))


def _lookup(keys: Ints, values: Array, asked_E: Ints) -> Array:
    """The value of each asked key in the sorted `keys`, zero where it is not there."""
    if len(keys) == 0:
        return np.zeros(len(asked_E))
    place_E = np.minimum(np.searchsorted(keys, asked_E), len(keys) - 1)
    return np.where(keys[place_E] == asked_E, values[place_E], 0)
