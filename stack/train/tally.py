"""What a stretch of training adds up, from its first step on, also over restarts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from stack.train.step import StepResult

_REFUSED, _LOSS, _STEPS = "num_refused", "loss/", "num_steps/"


@dataclass(kw_only=True)
class Tally:
    """Refused batches; by task the sum of the losses of the steps that had one, and how many these were."""

    num_refused: int = 0
    losses: dict[str, float] = field(default_factory=dict)
    steps: dict[str, float] = field(default_factory=dict)

    def add(self, result: StepResult) -> None:
        """Counts a step; of a refused one that it was."""
        self.num_refused += result.refused
        for name, loss in {} if result.refused else result.losses.items():
            if math.isfinite(loss):
                self.losses[name] = self.losses.get(name, 0.0) + loss
                self.steps[name] = self.steps.get(name, 0.0) + 1.0

    def mean_losses(self) -> dict[str, float]:
        """By task."""
        return {name: total / self.steps[name] for name, total in self.losses.items()}

    def numbers(self) -> dict[str, float]:
        """As a checkpoint keeps it."""
        return (
            {_REFUSED: float(self.num_refused)}
            | {f"{_LOSS}{name}": value for name, value in self.losses.items()}
            | {f"{_STEPS}{name}": value for name, value in self.steps.items()}
        )

    @classmethod
    def of_numbers(cls, numbers: Mapping[str, float | None]) -> Tally:
        """The inverse of `numbers`."""
        kept = {name: value for name, value in numbers.items() if value is not None}
        return cls(
            num_refused=int(kept.get(_REFUSED, 0)),
            losses={name.removeprefix(_LOSS): value for name, value in kept.items() if name.startswith(_LOSS)},
            steps={name.removeprefix(_STEPS): value for name, value in kept.items() if name.startswith(_STEPS)},
        )
