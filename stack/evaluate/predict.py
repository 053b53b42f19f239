"""Runs a trained model over held-out days and keeps, per task, its scores with the examples they belong to.

`stack evaluate` is one process: forward only, and it reads a few days. Where the model is spread over processes, each
scores its own buckets, all in equally many batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stack.data.batch import Batch
from stack.data.dataset import Dataset
from stack.data.loader import Loader
from stack.evaluate.plans import plan_of
from stack.evaluate.rows import Rows, concatenate, from_batch
from stack.tasks.metrics import Array
from stack.tasks.sampling import Sampling
from stack.telemetry.progress import progress

Scorer = Callable[[Batch], Mapping[str, Tensor]]
"""A model in evaluation mode: by task, (E,) log-odds or (E, C) class scores of the task's examples in the
batch, in their order."""


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """A task's scores and, line by line, the examples they are for. `sampling`: the rate at which the scores count
    sampled negatives."""

    rows: Rows
    score: Array
    sampling: Sampling = Sampling.none


def predict(
    scorer: Scorer,
    dataset: Dataset,
    *,
    days: Sequence[str],
    tasks: Mapping[str, Sampling],
    timelines_per_batch: int,
    rank: int = 0,
    world_size: int = 1,
) -> dict[str, Predictions]:
    """Scores every example of the tasks on `days`, or this rank's share of them, without gradients; tasks of one group
    share their rows.

    `tasks` are all tasks of the model, and at which rate the score of each counts sampled negatives.
    """
    groups = {plan_of(task).group for task in tasks}
    loader = Loader(
        dataset, days=days, global_batch_size=timelines_per_batch * world_size, rank=rank, world_size=world_size,
        shuffle=False, groups=sorted(groups), num_prefetch=2,
    )  # fmt: skip
    rows: dict[str, list[Rows]] = {name: [] for name in groups}
    scores: dict[str, list[Array]] = {task: [] for task in tasks}
    with torch.no_grad():  # FBGEMM has no kernel on the CPU for inference mode
        for batch in progress(loader, total=loader.num_steps, description="score"):
            for name in groups:
                rows[name].append(from_batch(batch, dataset.schema.group(name)))
            outputs = scorer(batch)
            for task in tasks:
                scores[task].append(outputs[task].cpu().numpy())
    whole = {name: concatenate(parts, group=dataset.schema.group(name)) for name, parts in rows.items()}
    found = {}
    for task, sampling in tasks.items():
        score = np.concatenate(scores[task]).astype(np.float64)
        of_task = whole[plan_of(task).group]
        assert len(score) == len(of_task), f"task {task}: {len(score)} scores for {len(of_task)} examples"
        found[task] = Predictions(rows=of_task, score=score, sampling=sampling)
    return found
