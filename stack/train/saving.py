"""A training state to a checkpoint and back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel

from stack.base.errors import CheckpointError
from stack.base.files import sha256_of
from stack.base.version import code_version
from stack.checkpoint.load import Checkpoint
from stack.checkpoint.manifest import Context, LoopState
from stack.checkpoint.retain import keep_last
from stack.checkpoint.save import save_checkpoint
from stack.data.dataset import Dataset
from stack.tables.shard import dense_parameters, dense_tensors, table_shards
from stack.telemetry.console import say
from stack.train.id_state import id_tensors, restore_tables
from stack.train.optim import optimizer_state, restore_optimizer_state
from stack.train.periodic import Moment
from stack.train.ranks import barrier

NUM_REFUSED = "num_refused"


class Saver:
    """Writes checkpoints of a model and its optimizers into a run's folder, and deletes old ones."""

    def __init__(
        self,
        folder: Path,
        *,
        model: DistributedModelParallel,
        optimizer: torch.optim.Optimizer,
        context: Context,
        num_kept: int,
    ) -> None:
        self._folder = folder
        self._model = model
        self._optimizer = optimizer
        self._context = context
        self._num_kept = num_kept

    def __call__(self, moment: Moment) -> None:
        save_checkpoint(
            self._folder,
            step=moment.step,
            shards=table_shards(self._model),
            dense=dense_tensors(self._model),
            optimizer=optimizer_state(self._optimizer, dense_parameters(self._model)),
            loop=LoopState(
                step=moment.step,
                epoch=moment.cursor.epoch,
                cursor=moment.cursor,
                numbers={NUM_REFUSED: float(moment.num_refused)},
            ),
            context=self._context,
            rank=dist.get_rank(),
            world_size=dist.get_world_size(),
            barrier=barrier,
            ids=id_tensors(self._model),
        )
        if dist.get_rank() == 0:
            keep_last(self._folder, count=self._num_kept)


def restore_model(model: DistributedModelParallel, checkpoint: Checkpoint) -> None:
    """Fills tables and dense tensors from a checkpoint, whatever number of processes wrote it.

    Raises:
        CheckpointError: the model is not as in the checkpoint; names the first tensor that differs.
    """
    merged = restore_tables(model, table_shards(model), checkpoint)
    if merged:
        say(
            f"row-wise optimizer state of {', '.join(merged)} was saved for other blocks of columns than this job has: "
            "each block goes on with the mean of those it came from, so the steps differ from an uninterrupted run"
        )
    saved, wanted = checkpoint.dense(), dense_tensors(model)
    for name in sorted(saved.keys() | wanted.keys()):
        shapes = [tuple(tensors[name].shape) if name in tensors else None for tensors in (saved, wanted)]
        if shapes[0] != shapes[1]:
            raise CheckpointError(
                f"{checkpoint.path}: {name!r} has shape {shapes[0]} there and {shapes[1]} in the model: "
                "use the configuration and data it was saved with"
            )
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(saved[name])


def restore_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], checkpoint: Checkpoint
) -> None:
    """Fills the dense optimizer's state; that of the tables comes with their rows."""
    restore_optimizer_state(optimizer, parameters, checkpoint.optimizer())


def context_of(dataset: Dataset, *, days: Sequence[str], tables: Sequence[str], composed: str) -> Context:
    """What the numbers of a checkpoint belong to."""
    return Context(
        schema=dataset.schema,
        config_digest=hashlib.sha256(composed.encode()).hexdigest(),
        data_days=tuple(days),
        vocabulary_digests={table: _vocabulary_digest(dataset.path / "vocab" / table, days[-1]) for table in tables},
        code_version=code_version(),
    )


def check_context(checkpoint: Checkpoint, context: Context) -> None:
    """Raises `CheckpointError` where a vocabulary is not the one the checkpoint's rows belong to."""
    for table, digest in checkpoint.manifest.context.vocabulary_digests.items():
        if context.vocabulary_digests.get(table, digest) != digest:
            raise CheckpointError(
                f"vocabulary {table!r} is not the one that {checkpoint.path} was trained with (ingested anew?): "
                "its rows would stand for other ids; train from the beginning with another run.name"
            )


def _vocabulary_digest(folder: Path, last_day: str) -> str:
    """Over the files that hold ids known by the end of `last_day`."""
    files = sorted(file for file in folder.glob("*.parquet") if file.stem <= last_day)
    return hashlib.sha256("".join(f"{file.name} {sha256_of(file)}\n" for file in files).encode()).hexdigest()
