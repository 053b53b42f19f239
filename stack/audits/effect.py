"""What it does to predictions that normalisation is served with the statistics of a sample: the verdict of an audit.

The same rows of live traffic are scored twice, with the statistics as they were learnt and with those of the traffic.
Scores are brought to log-odds on live traffic, where every candidate is seen once (`stack.tasks.sampling`), and rows
weigh what they stand for.

Legend: E examples.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from stack.audits.errors import auc_difference_error, calibration_error, log_loss_error, log_loss_share_error
from stack.audits.moments import Floats
from stack.audits.norm_stats import norm_layers, replaced
from stack.audits.traffic import WeightOf
from stack.data.batch import Batch, to_device
from stack.model import UserModel
from stack.tasks import RankTask, Task
from stack.tasks.metrics import auc, gauc, log_loss, predicted_over_observed

EVERYTHING = "all"
NUM_BINS = 10
"""Of scores, for their stability index: tenths of the scores as learnt."""
_LEAST_SHARE = 1e-6
"""Of a bin: an empty one would make the index infinite."""
_HISTORY = {"no history": 0, "1 to 9 events": 9, "10 to 99 events": 99, "100 events or more": np.inf}
_DAY_SECONDS, _QUARTER_SECONDS = 86_400, 21_600

Statistics = Mapping[str, tuple[Floats, Floats]]


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """How well live rows are scored; None where that is not defined (labels of one kind or none, scores that are no
    log-odds). `log_loss_error`, `calibration_error`: standard errors, of the latter of `predicted_over_observed`."""

    auc: float | None
    gauc: float | None
    log_loss: float | None
    log_loss_error: float | None
    predicted_over_observed: float | None
    calibration_error: float | None


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """A difference, and its standard error (`stack.audits.errors`)."""

    value: float
    error: float

    @staticmethod
    def of(value: float, error: float) -> Cost | None:
        """None where either is not defined: a single user tells no error."""
        return Cost(value=value, error=error) if np.isfinite(value) and np.isfinite(error) else None


class Effect(msgspec.Struct, frozen=True, kw_only=True):
    """Of one task on one slice; figures are None where `num_not_finite` scores are no numbers.

    `observed_rate`: share of positives, of what the rows stand for; None for scores that are no log-odds, and without
    labels. `logit_*`: of the change from learnt to live statistics, its mean, root mean square, and the 99th percentile
    of its size. `psi`: population stability index of the scores over `NUM_BINS` bins. `auc_cost`: AUC with live
    statistics less that with learnt ones; `log_loss_cost`: log loss with learnt ones over that with live ones, less 1.
    """

    task: str
    slice: str
    num_examples: int
    num_positives: int
    num_not_finite: int
    observed_rate: float | None
    logit_mean: float | None
    logit_rmse: float | None
    logit_p99: float | None
    psi: float | None
    auc_cost: Cost | None
    log_loss_cost: Cost | None
    learnt: Figures
    live: Figures


@dataclass(kw_only=True)
class Rows:
    """Of a task, line by line: log-odds on the traffic with learnt and with live statistics, of which `offset_E` is
    what the task's own score lacks to be that; `slices` by name."""

    learnt_E: Floats
    live_E: Floats
    offset_E: Floats
    label_E: Floats
    weight_E: Floats
    user_E: NDArray[np.int64]
    slices: dict[str, NDArray[np.bool_]]


_NOTHING = Figures(
    auc=None, gauc=None, log_loss=None, log_loss_error=None, predicted_over_observed=None, calibration_error=None
)


def effects(
    model: UserModel, scores: Mapping[tuple[str, str], Rows], *, labelled: bool = True
) -> dict[str, list[Effect]]:
    """By variant, of all tasks that give an example one score, by slice. `scores`: as `scored` gives them; not
    `labelled`: nobody knows what came of the rows, and what needs labels is None. A variant that no row was scored
    with has none."""
    found: dict[str, list[Effect]] = defaultdict(list)
    for (variant, task), rows in scores.items():
        is_logit = gives_probabilities(model.task(task))
        for name, chosen_E in rows.slices.items():
            chosen_E = chosen_E & (rows.weight_E > 0)
            if chosen_E.any():
                found[variant].append(_effect(task, name, rows, chosen_E, is_logit=is_logit, labelled=labelled))
    return found


def gives_probabilities(task: Task) -> bool:
    """Whether the score of an example is the log-odds of its label, and not an order or a class alone. That of `rank`
    is learnt as one, but used for its order."""
    return task.gives_log_odds and not isinstance(task, RankTask)


def scored(
    model: UserModel, batches: Iterable[Batch], weight_of: WeightOf, variants: Mapping[str, Statistics]
) -> dict[tuple[str, str], Rows]:
    """Rows by variant and task, of all tasks that give an example one score. `variants`: statistics of live traffic by
    layer, of all layers or of some."""
    parts: dict[tuple[str, str], list[Rows]] = {}
    layers, device = norm_layers(model), next(model.user.parameters()).device
    with torch.no_grad():
        for batch in batches:
            heads = model.heads(to_device(batch, device))
            learnt = heads()
            for variant, statistics in variants.items():
                with replaced(layers, statistics):
                    live = heads()
                for name, output in learnt.items():
                    if output.score_E.dim() == 1:
                        scores = [one[name].score_E.double().cpu().numpy() for one in (learnt, live)]
                        label_E = output.label_E.double().cpu().numpy()
                        part = _part(batch, model.task(name), scores, label_E, weight_of)
                        parts.setdefault((variant, name), []).append(part)
    return {key: _joined(several) for key, several in parts.items()}


def _part(batch: Batch, task: Task, scores: list[Floats], label_E: Floats, weight_of: WeightOf) -> Rows:
    examples = batch.groups[task.group]
    offset_E = np.zeros(examples.num_examples)
    if "rate_uniform" in examples.labels:
        offset_E = weight_of.offset(examples.labels, task.sampling).cpu().numpy()
    moment_E = examples.moment_E
    return Rows(
        learnt_E=scores[0] + offset_E, live_E=scores[1] + offset_E, offset_E=offset_E,
        label_E=label_E,
        weight_E=weight_of(examples).cpu().numpy(),
        user_E=batch.user_B[batch.moment_row_M[moment_E]].cpu().numpy(),
        slices=dict(
            _slices(
                batch.moment_position_M[moment_E].cpu().numpy(), batch.moment_time_M[moment_E].cpu().numpy()
            )
        ),
    )  # fmt: skip


def _slices(position_E: NDArray[np.int64], seconds_E: NDArray[np.int64]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """By how much is known of the user, and by the quarter of the day (UTC)."""
    yield EVERYTHING, np.ones(len(position_E), dtype=bool)
    before = -1.0
    for name, most in _HISTORY.items():
        yield name, (position_E > before) & (position_E <= most)
        before = most
    quarter_E = seconds_E % _DAY_SECONDS // _QUARTER_SECONDS
    for quarter in range(_DAY_SECONDS // _QUARTER_SECONDS):
        yield f"{6 * quarter:02d} to {6 * quarter + 6:02d} h UTC", quarter_E == quarter


def _joined(parts: list[Rows]) -> Rows:
    arrays = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("learnt_E", "live_E", "offset_E", "label_E", "weight_E", "user_E")
    }
    slices = {name: np.concatenate([part.slices[name] for part in parts]) for name in parts[0].slices}
    return Rows(**arrays, slices=slices)


def _effect(task: str, name: str, rows: Rows, chosen_E: NDArray[np.bool_], *, is_logit: bool, labelled: bool) -> Effect:
    learnt_E, live_E, weight_E = rows.learnt_E[chosen_E], rows.live_E[chosen_E], rows.weight_E[chosen_E]
    counts = {
        "num_examples": int(chosen_E.sum()), "num_positives": int((rows.label_E[chosen_E] > 0).sum()),
        "num_not_finite": int((~(np.isfinite(learnt_E) & np.isfinite(live_E))).sum()),
    }  # fmt: skip
    if counts["num_not_finite"]:
        return Effect(
            task=task, slice=name, **counts, observed_rate=None, logit_mean=None, logit_rmse=None, logit_p99=None,
            psi=None, auc_cost=None,
            log_loss_cost=None, learnt=_NOTHING, live=_NOTHING,
        )  # fmt: skip
    change_E = live_E - learnt_E
    of = (rows.label_E[chosen_E], weight_E, rows.user_E[chosen_E])
    learnt, live = (figures_of(one, *of, is_logit=is_logit) if labelled else _NOTHING for one in (learnt_E, live_E))
    auc_cost = log_loss_cost = None
    if learnt.auc is not None and live.auc is not None:
        auc_cost = Cost.of(live.auc - learnt.auc, auc_difference_error(live_E, learnt_E, *of))
    if learnt.log_loss is not None and live.log_loss:  # of nothing there is no share
        share = learnt.log_loss / live.log_loss - 1
        log_loss_cost = Cost.of(share, log_loss_share_error(learnt_E, live_E, *of))
    return Effect(
        task=task, slice=name, **counts,
        observed_rate=float(np.average(rows.label_E[chosen_E], weights=weight_E)) if is_logit and labelled else None,
        logit_mean=float(np.average(change_E, weights=weight_E)),
        logit_rmse=float(np.sqrt(np.average(change_E**2, weights=weight_E))),
        logit_p99=quantile(np.abs(change_E), weight_E, 0.99), psi=stability_index(learnt_E, live_E, weight_E),
        auc_cost=auc_cost, log_loss_cost=log_loss_cost, learnt=learnt, live=live,
    )  # fmt: skip


def figures_of(
    score_E: Floats, label_E: Floats, weight_E: Floats, user_E: NDArray[np.int64], *, is_logit: bool
) -> Figures:
    """How well rows are scored; where a score is no log-odds, by its order alone."""
    odds = is_logit and label_E.sum() > 0
    return Figures(
        auc=_told(auc(score_E, label_E, weight_E)), gauc=_told(gauc(user_E, score_E, label_E, weight_E).value),
        log_loss=_told(log_loss(score_E, label_E, weight_E)) if is_logit else None,
        log_loss_error=_told(log_loss_error(score_E, label_E, weight_E, user_E)) if is_logit else None,
        predicted_over_observed=_told(predicted_over_observed(score_E, label_E, weight_E)) if odds else None,
        calibration_error=_told(calibration_error(score_E, label_E, weight_E, user_E)) if odds else None,
    )  # fmt: skip


def quantile(value_E: Floats, weight_E: Floats, share: float) -> float:
    """The smallest value such that values up to it have at least this share of the weight."""
    order_E = np.argsort(value_E, kind="stable")
    reached_E = np.cumsum(weight_E[order_E])
    place = int(np.searchsorted(reached_E, share * reached_E[-1] * (1 - 1e-12)))
    return float(value_E[order_E][min(place, len(value_E) - 1)])


def stability_index(before_E: Floats, after_E: Floats, weight_E: Floats) -> float:
    """Population stability index: the sum over bins of (q - p) ln(q / p), p and q the shares of weight in a bin before
    and after; bins are the tenths of the scores before. Below 0.1 is commonly taken for stable, above 0.25 not."""
    edges = [quantile(before_E, weight_E, number / NUM_BINS) for number in range(1, NUM_BINS)]
    shares = []
    for value_E in (before_E, after_E):
        share_B = np.bincount(np.searchsorted(edges, value_E), weight_E, NUM_BINS)
        shares.append(np.maximum(share_B / share_B.sum(), _LEAST_SHARE))
    before_B, after_B = shares
    return float(((after_B - before_B) * np.log(after_B / before_B)).sum())


def _told(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
