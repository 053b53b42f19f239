"""What each type of row costs, measured on moments of a held-out day: how the answers rank, and how far vectors move.

Legend: M moments, E examples, R representation.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from stack.data.batch import Batch
from stack.export.package import USER_VECTOR
from stack.export.parity import Answers
from stack.model import UserModel
from stack.tasks.metrics import auc, gauc


class TaskQuality(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of one task; None where the day's labels are all alike. `auc_loss`: of exact rows, less this."""

    num_examples: int
    auc: float | None
    gauc: float | None
    auc_loss: float | None
    gauc_loss: float | None


class RowQuality(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of one type of row. `row_bytes`: of all tables together. Vector errors are to those of exact rows:
    `vector_error_max` the largest of any number, `vector_error_mean` the mean of |difference| / |vector|."""

    row_bytes: int
    vector_error_max: float
    vector_error_mean: float
    tasks: dict[str, TaskQuality]


class Quality(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of a package's tables by type of row, on a day that the model has not learnt."""

    day: str
    num_moments: int
    rows: dict[str, RowQuality]


class Judge:
    """Collects the answers with one type of row, and their labels."""

    def __init__(self, model: UserModel) -> None:
        self._model = model
        self._answers: dict[str, list[NDArray[np.float32]]] = {}
        self._labels: dict[str, list[NDArray[np.float32]]] = {}
        self._users: dict[str, list[NDArray[np.int64]]] = {}

    def add(self, batch: Batch, answers: Answers, labels: Answers) -> None:
        self._answers.setdefault(USER_VECTOR, []).append(answers[USER_VECTOR])
        for name, label_E in labels.items():
            examples = batch.groups[self._model.task(name).group]
            row_E = batch.moment_row_M[examples.moment_E]
            self._answers.setdefault(name, []).append(answers[name])
            self._labels.setdefault(name, []).append(label_E)
            self._users.setdefault(name, []).append(batch.user_B[row_E].cpu().numpy())

    def result(self, exact: Judge, *, row_bytes: int) -> RowQuality:
        """`exact`: what was collected with exact rows."""
        vector_MR, exact_MR = (np.concatenate(one._answers[USER_VECTOR]) for one in (self, exact))
        length_M = np.linalg.norm(exact_MR, axis=1)
        share_M = np.linalg.norm(vector_MR - exact_MR, axis=1) / np.where(length_M > 0, length_M, 1)
        ranked, best = self._ranked(), exact._ranked()
        return RowQuality(
            row_bytes=row_bytes,
            vector_error_max=float(np.abs(vector_MR - exact_MR).max(initial=0.0)),
            vector_error_mean=float(share_M.mean()) if len(share_M) else 0.0,
            tasks={
                name: TaskQuality(
                    num_examples=sum(map(len, self._labels[name])),
                    auc=_told(ranked[name][0]),
                    gauc=_told(ranked[name][1]),
                    auc_loss=_told(best[name][0] - ranked[name][0]),
                    gauc_loss=_told(best[name][1] - ranked[name][1]),
                )
                for name in self._labels
            },
        )

    def _ranked(self) -> dict[str, tuple[float, float]]:
        """By task, AUC and GAUC; NaN where they are not defined."""
        found = {}
        for name in self._labels:
            score_E, label_E, user_E = (
                np.concatenate(one[name]) for one in (self._answers, self._labels, self._users)
            )  # fmt: skip
            found[name] = auc(score_E, label_E), gauc(user_E, score_E, label_E).value
        return found


def _told(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
