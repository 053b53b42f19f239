"""A trained model as evaluation wants it: a function from a batch to scores, and what those scores mean."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from stack.data.batch import Batch, to_device
from stack.evaluate.predict import Scorer
from stack.tasks import TASKS, CtrTask, Task, TaskOutput
from stack.tasks.ctr import Sampling


def scorer_of(model: nn.Module, *, device: torch.device) -> Scorer:
    """Puts the model (with or without its wrappers) in evaluation mode; scores come back as it computed them."""
    model.eval()

    def score(batch: Batch) -> Mapping[str, Tensor]:
        outputs: dict[str, TaskOutput] = model(to_device(batch, device))
        return {name: output.score_E for name, output in outputs.items()}

    return score


def corrections(tasks: Mapping[str, Task]) -> dict[str, bool]:
    """For each task whether its loss corrected the sampling of impressions, so that scores are log-odds without it."""
    return {name: _corrects(task) for name, task in tasks.items()}


def _corrects(task: Task) -> bool:
    if isinstance(task, CtrTask):
        return task.sampling is Sampling.logq
    return not isinstance(task, TASKS["rank"])  # equation 9 has no correction; other groups are not sampled
