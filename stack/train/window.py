"""How well the last steps' examples were scored, from what their steps computed anyway: each before it was learnt from.

Legend: E examples.

What is measured is what is learnt. Where negatives are sampled (`stack.tasks.sampling`), a score may count them at
another rate than the sample has them; its loss then is taken of the log-odds of the sample, and so are normalised
entropy and calibration here. A ratio of 1 says that as many positives were predicted among these examples as there are,
whatever the score means; what that is worth on unsampled traffic, `stack audit` measures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stack.tasks import TASKS, TaskOutput
from stack.tasks.metrics import auc, entropy

_NAN = float("nan")


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Of one task. NaN where it is not defined: one label only, or scores that are no log-odds of their label."""

    auc: float
    normalized_entropy: float
    calibration: float


class Window:
    """The examples of some steps on this rank. Tensors stay where they are until they are asked about."""

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
    score_E, label_E = (_joined([getattr(one, field) for one in steps]) for field in ("score_E", "label_E"))
    if not TASKS[name].gives_log_odds:
        return Quality(auc=auc(score_E, label_E), normalized_entropy=_NAN, calibration=_NAN)
    loss_E, weight_E = (_joined([getattr(one, field) for one in steps]) for field in ("loss_E", "weight_E"))
    return Quality(
        auc=auc(score_E, label_E),
        normalized_entropy=_normalized_entropy(loss_E, weight_E, label_E),
        calibration=_calibration(loss_E, weight_E, label_E),
    )


def _joined(parts: list[Tensor]) -> NDArray[np.float64]:
    return torch.cat(parts).double().cpu().numpy()


def _normalized_entropy(
    loss_E: NDArray[np.float64], weight_E: NDArray[np.float64], label_E: NDArray[np.float64]
) -> float:
    """He et al. 2014: mean loss over the entropy of the mean label."""
    weight = float(weight_E.sum())
    return float(loss_E.sum()) / weight / entropy(float(weight_E @ label_E) / weight) if weight > 0 else _NAN


def _calibration(loss_E: NDArray[np.float64], weight_E: NDArray[np.float64], label_E: NDArray[np.float64]) -> float:
    """Predicted over observed positives. The loss of an example is minus the log of the probability that its label was
    given, so it tells that of a positive, at whatever rate its score counts negatives."""
    observed = float(weight_E @ label_E)
    loss_E = np.divide(loss_E, weight_E, out=np.zeros_like(loss_E), where=weight_E > 0)
    positive_E = np.where(label_E > 0, np.exp(-loss_E), -np.expm1(-loss_E))
    return float(weight_E @ positive_E) / observed if observed > 0 else _NAN
