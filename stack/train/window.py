"""How well the last steps' examples were scored, from what their steps computed anyway: each before it was learnt from.

Legend: E examples.

What is measured is what is learnt. Where negatives are sampled (`stack.tasks.sampling`), a score may count them at
another rate than the sample has them; its loss then is taken of the log-odds of the sample, and so are normalised
entropy and calibration here. A ratio of 1 says that as many positives were predicted among these examples as there are,
whatever the score means; what that is worth on unsampled traffic, `stack audit` measures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stack.tasks import TASKS, TaskOutput
from stack.tasks.metrics import entropy

_NAN = float("nan")


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Of one task. NaN where it is not defined: one label only, or scores that are no log-odds of their label."""

    auc: float
    normalized_entropy: float
    calibration: float


class Window:
    """The examples of some steps on this rank. Tensors stay where they are; on an accelerator they are judged there."""

    def __init__(self) -> None:
        self._outputs: dict[str, list[TaskOutput]] = {}

    def add(self, outputs: Mapping[str, TaskOutput]) -> None:
        for name, output in outputs.items():
            if output.score_E.dim() == 1:
                self._outputs.setdefault(name, []).append(output)

    def take(self) -> dict[str, Quality]:
        """By task with a score for each example; the next window begins empty."""
        outputs, self._outputs = self._outputs, {}
        return {name: _quality(name, steps) for name, steps in outputs.items()}


def _quality(name: str, steps: list[TaskOutput]) -> Quality:
    score_E, label_E = (torch.cat([getattr(one, field) for one in steps]) for field in ("score_E", "label_E"))
    found = Quality(auc=_auc(score_E, label_E), normalized_entropy=_NAN, calibration=_NAN)
    if not TASKS[name].gives_log_odds:
        return found
    loss_E, weight_E = (torch.cat([getattr(one, field) for one in steps]).double() for field in ("loss_E", "weight_E"))
    return replace(
        found,
        normalized_entropy=_normalized_entropy(loss_E, weight_E, label_E),
        calibration=_calibration(loss_E, weight_E, label_E),
    )


def _auc(score_E: Tensor, label_E: Tensor) -> float:
    """P(score of a positive > that of a negative), ties half. As `stack.tasks.metrics.auc`, but where the scores are,
    and without weights: of them only the negatives are sorted."""
    positive, negative = score_E[label_E > 0], score_E[label_E <= 0].sort().values
    twice_below = sum(torch.searchsorted(negative, positive, right=right).sum() for right in (False, True))
    return _ratio(twice_below, 2 * positive.shape[0] * negative.shape[0])


def _normalized_entropy(loss_E: Tensor, weight_E: Tensor, label_E: Tensor) -> float:
    """He et al. 2014: mean loss over the entropy of the mean label."""
    return _ratio(_ratio(loss_E.sum(), weight_E.sum()), entropy(_ratio(weight_E @ label_E.double(), weight_E.sum())))


def _calibration(loss_E: Tensor, weight_E: Tensor, label_E: Tensor) -> float:
    """Predicted over observed positives. The loss of an example is minus the log of the probability that its label was
    given, so it tells that of a positive, at whatever rate its score counts negatives."""
    loss_E = torch.where(weight_E > 0, loss_E / weight_E, 0.0)
    positive_E = torch.where(label_E > 0, torch.exp(-loss_E), -torch.expm1(-loss_E))
    return _ratio(weight_E @ positive_E, weight_E @ label_E.double())


def _ratio(above: Tensor | float, below: Tensor | float) -> float:
    """NaN over 0, as over what is NaN."""
    below = float(below)
    return float(above) / below if below else _NAN
