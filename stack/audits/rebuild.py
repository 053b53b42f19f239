"""The repair: statistics of live traffic put into the layers, and scores brought back to probabilities.

What a layer has learnt on a sample is replaced by what it is given where the sample is weighted to be live traffic
("precise" batch norm, layer after layer: `norm_stats.live_statistics`). That alone moves scores, and probabilities with
them, so the second part belongs to it: for each task whose score is a log-odds, the logistic regression of the label on
the score, over live rows, each weighing what it stands for (Platt 1999)::

    new score = scale * score + shift,  with the least weighted log loss of (new score + log rate, label)

where `log rate` takes a score that counts sampled negatives to live traffic (`stack.tasks.sampling`). Both numbers go
into the last linear map of the task's head, so the model keeps its form. They are fitted on half of the users, and
what the repair is worth is told of the other half.

Legend: E examples.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import numpy as np
from numpy.typing import NDArray

from stack.audits.effect import EVERYTHING, Cost, Figures, Rows, figures_of, scored
from stack.audits.errors import log_loss_share_error
from stack.audits.moments import Floats
from stack.audits.norm_stats import live_statistics, norm_layers, put
from stack.audits.traffic import WeightOf
from stack.base.errors import DataError
from stack.data.batch import Batch
from stack.model import UserModel
from stack.tasks.metrics import sigmoid

_MOST_STEPS = 50
_CLOSE = 1e-10
_PRIOR = 1e-3
"""Of a row's weight: how strongly a scale is held to 1, so that it is finite where scores tell labels perfectly."""


class Repair(msgspec.Struct, frozen=True, kw_only=True):
    """Of one task: what its score is multiplied by, and what is added, both None where it is no log-odds; its figures
    on users whose rows had no part in that, with the statistics learnt (`before`) and after the repair; by what share
    the log loss fell."""

    task: str
    scale: float | None
    shift: float | None
    num_positives: int
    num_examples: int
    before: Figures
    after: Figures
    log_loss_gain: Cost | None


def rebuild(
    model: UserModel, *, statistics_from: Iterable[Batch], calibrate_on: Iterable[Batch], weight_of: WeightOf
) -> tuple[Repair, ...]:
    """Repairs a model in evaluation mode, in place; by task that gives an example one score. Both kinds of batches must
    be the same each time they are gone through.

    Raises: `DataError` where half of the users leave a task without positives, or negatives, to be calibrated on.
    """
    before = _rows(model, calibrate_on, weight_of)
    statistics = live_statistics(model, statistics_from, weight_of)
    layers = norm_layers(model)
    for name, values in statistics.items():
        put(layers[name], *values)
    moved = _rows(model, calibrate_on, weight_of)
    return tuple(_repaired(model, name, before[name], rows) for name, rows in moved.items())


def platt(
    score_E: Floats, offset_E: Floats, label_E: Floats, weight_E: Floats, *, scaled: bool = True
) -> tuple[float, float]:
    """Scale (1 where not `scaled`) and shift with the least weighted log loss of scale * score + shift + offset; by
    Newton's method, each step halved until the loss falls. Raises: `ValueError` where labels are of one kind."""
    if not 0 < weight_E @ label_E < weight_E.sum():
        raise ValueError("labels of one kind cannot be calibrated on")
    inputs_E2 = np.stack([score_E, np.ones_like(score_E)], axis=1)
    free_2 = np.array([scaled, True])
    weight_E = weight_E / weight_E.sum()
    prior_22 = np.diag([_PRIOR / len(weight_E), 0.0])
    as_it_is_2 = np.array([1.0, 0.0])

    def loss(at_2: Floats) -> float:
        logit_E = inputs_E2 @ at_2 + offset_E
        held = float((at_2 - as_it_is_2) @ prior_22 @ (at_2 - as_it_is_2)) / 2
        return float(weight_E @ (np.logaddexp(0.0, logit_E) - label_E * logit_E)) + held

    found_2 = as_it_is_2
    for _ in range(_MOST_STEPS):
        probability_E = sigmoid(inputs_E2 @ found_2 + offset_E)
        gradient_2 = inputs_E2.T @ (weight_E * (probability_E - label_E)) + prior_22 @ (found_2 - as_it_is_2)
        curvature_22 = (inputs_E2.T * (weight_E * probability_E * (1 - probability_E))) @ inputs_E2 + prior_22
        step_2 = np.zeros(2)
        step_2[free_2] = np.linalg.lstsq(curvature_22[np.ix_(free_2, free_2)], gradient_2[free_2], rcond=None)[0]
        before, share = loss(found_2), 1.0
        while loss(found_2 - share * step_2) > before and share > _CLOSE:
            share /= 2
        found_2 = found_2 - share * step_2
        if float(gradient_2 @ step_2) < _CLOSE:
            break
    return float(found_2[0]), float(found_2[1])


def _rows(model: UserModel, batches: Iterable[Batch], weight_of: WeightOf) -> dict[str, Rows]:
    """By task, as the model is."""
    return {task: rows for (_, task), rows in scored(model, batches, weight_of, {EVERYTHING: {}}).items()}


def _repaired(model: UserModel, name: str, before: Rows, moved: Rows) -> Repair:
    """Calibrates one task."""
    task, after_E = model.task(name), moved.learnt_E
    weighs_E = moved.weight_E > 0
    own_E = np.isin(moved.user_E, _half(moved.user_E))
    scale = shift = None
    if task.ends():
        fitted_E = own_E & weighs_E
        scale, shift = _fitted(name, *(one[fitted_E] for one in _of(moved)))
        task.rescale(scale=scale, shift=shift)
        after_E = scale * (moved.learnt_E - moved.offset_E) + shift + moved.offset_E
    judged_E = ~own_E & weighs_E
    of = (moved.label_E[judged_E], moved.weight_E[judged_E], moved.user_E[judged_E])
    is_logit = bool(task.ends())
    figures = [figures_of(one[judged_E], *of, is_logit=is_logit) for one in (before.learnt_E, after_E)]
    gain = None
    if figures[0].log_loss and figures[1].log_loss is not None:  # of nothing there is no share
        share = 1 - figures[1].log_loss / figures[0].log_loss
        gain = Cost.of(share, log_loss_share_error(after_E[judged_E], before.learnt_E[judged_E], *of))
    return Repair(
        task=name, scale=scale, shift=shift, num_positives=int((moved.label_E[own_E & weighs_E] > 0).sum()),
        num_examples=int((own_E & weighs_E).sum()), before=figures[0], after=figures[1], log_loss_gain=gain,
    )  # fmt: skip


def _of(rows: Rows) -> tuple[Floats, Floats, Floats, Floats]:
    return rows.learnt_E - rows.offset_E, rows.offset_E, rows.label_E, rows.weight_E


def _half(user_E: NDArray[np.int64]) -> NDArray[np.int64]:
    """Every second user, by a draw that is the same each time."""
    users = np.unique(user_E)
    return np.random.default_rng(0).permutation(users)[::2]


def _fitted(name: str, score_E: Floats, offset_E: Floats, label_E: Floats, weight_E: Floats) -> tuple[float, float]:
    """Where scores do not rise with labels on these rows, their order is left as it is: they are shifted alone."""
    try:
        scale, shift = platt(score_E, offset_E, label_E, weight_E)
        return (scale, shift) if scale > 0 else platt(score_E, offset_E, label_E, weight_E, scaled=False)
    except ValueError as error:
        raise DataError(
            f"task {name!r} has {int(label_E.sum())} positives among {len(label_E)} examples of half of the users, too "
            "few to calibrate on: give it more traffic with audit.last_day or audit.timelines"
        ) from error
