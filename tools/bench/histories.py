"""The item ids that batches of a dataset ask for: histories and candidates together."""

from __future__ import annotations

import torch
from torch import Tensor

from stack.data.batch import Batch, Jagged
from tools.bench.assembly import Workload, build_loader

NUM_BATCHES = 4


def item_ids(workload: Workload) -> tuple[int, list[Tensor]]:
    """Rows of the table `item`, and the ids of the first batches of the training job, (N,) each."""
    batches = [batch for batch, _ in zip(build_loader(workload), range(NUM_BATCHES), strict=False)]
    num_rows = workload.dataset.num_rows(workload.days()[-1])["item"]
    return num_rows, [_ids(batch) for batch in batches]


def _ids(batch: Batch) -> Tensor:
    asked = [batch.event["item"], *(group.ids["item"] for group in batch.groups.values() if "item" in group.ids)]
    return torch.cat([ids.values_N if isinstance(ids, Jagged) else ids for ids in asked])
