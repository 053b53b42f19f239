"""A trained model as evaluation wants it: a function from a batch to scores, and what those scores mean."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from stack.audits.modes import refuse_modes
from stack.data.batch import Batch, to_device
from stack.evaluate.predict import Scorer
from stack.tasks import TaskOutput


def scorer_of(model: nn.Module, *, device: torch.device) -> Scorer:
    """Puts the model (with or without its wrappers) in evaluation mode; scores come back as it computed them.

    Raises: `AuditError` naming the layers that do not compute as they are served.
    """
    model.eval()
    refuse_modes(model, what="scoring")

    def score(batch: Batch) -> Mapping[str, Tensor]:
        outputs: dict[str, TaskOutput] = model(to_device(batch, device))
        return {name: output.score_E for name, output in outputs.items()}

    return score
