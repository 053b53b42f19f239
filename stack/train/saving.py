"""A training state to a checkpoint and back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec.distributed.model_parallel import DistributedModelParallel

from stack.base.errors import CheckpointError
from stack.base.files import sha256_of
from stack.base.version import code_version
from stack.checkpoint.crew import Crew
from stack.checkpoint.load import Checkpoint
from stack.checkpoint.manifest import Context, Lineage, LoopState
from stack.checkpoint.save import ChainWriter, Facts
from stack.checkpoint.snapshot import State
from stack.data.dataset import Dataset
from stack.ids.config import IdMode
from stack.tables.shard import dense_module, dense_parameters, dense_tensors, shardings, table_shards
from stack.tables.touched import TouchedRows
from stack.telemetry.console import say
from stack.towers.behavior import PropertyEncoder
from stack.train.id_state import Restored, id_maps, restore_tables
from stack.train.optim import optimizer_state, restore_optimizer_state
from stack.train.periodic import Moment
from stack.train.ranks import from_first, totals


class Saver:
    """Writes versions of a model and its optimizers into a run's chain. `metrics` is read at each save: what they tell
    beside the mean losses since `first_step`."""

    def __init__(
        self,
        writer: ChainWriter,
        *,
        model: DistributedModelParallel,
        optimizer: torch.optim.Optimizer,
        touched: TouchedRows,
        context: Context,
        lineage: Lineage,
        first_step: int,
        metrics: Mapping[str, float | None],
        dataset: Dataset,
    ) -> None:
        self._writer = writer
        self._model = model
        self._optimizer = optimizer
        self._touched = touched
        self._context = context
        self._lineage = lineage
        self._first_step = first_step
        self._metrics = metrics
        self._shardings = shardings(model)
        self._raw = raw_keys(model, dataset)

    def save(self, moment: Moment) -> None:
        """Takes a version of this moment. Raises `CheckpointError` where the one before could not be written."""
        maps = id_maps(self._model)
        managed = {} if maps is None else maps.state()
        gone = {} if maps is None else maps.drain_gone()
        changed = self._touched.take()
        self._writer.save(
            State(
                tables=tuple(sorted(self._shardings)),
                shards=table_shards(self._model),
                changed={name: rows for name, rows in changed.items() if name not in managed},
                maps=managed,
                gone={name: keys for name, keys in gone.items() if maps is not None and maps.tracks_changes(name)},
                raw=self._raw,
                dense=dense_tensors(self._model),
                optimizer=optimizer_state(self._optimizer, dense_parameters(self._model)),
                loop=LoopState(
                    step=moment.step,
                    first_step=self._first_step,
                    epoch=moment.cursor.epoch,
                    cursor=moment.cursor,
                    numbers=dict(moment.tally.numbers()),
                ),
            ),
            Facts(
                step=moment.step,
                complete=moment.step == moment.num_steps,
                context=self._context,
                lineage=self._lineage,
                shardings=self._shardings,
                metrics={
                    **self._metrics,
                    **{f"loss/{name}": loss for name, loss in moment.tally.mean_losses().items()},
                },
            ),
        )

    def finish(self) -> None:
        """Waits until the last version is out. Raises `CheckpointError` where it could not be written."""
        self._writer.wait()

    def close(self) -> None:
        """Lets the last version be written, without the other processes."""
        self._writer.close()


class RawKeys:
    """The 64-bit keys of a vocabulary's rows; read when first asked for, and kept."""

    def __init__(self, dataset: Dataset, table: str) -> None:
        self._dataset = dataset
        self._table = table

    def __call__(self, row_K: Tensor) -> Tensor:
        return self._keys[row_K]

    @cached_property
    def _keys(self) -> Tensor:
        return torch.from_numpy(self._dataset.keys(self._table))


def raw_keys(model: nn.Module, dataset: Dataset) -> dict[str, RawKeys]:
    """Those of the tables whose rows, or whose managed keys, are rows of a vocabulary."""
    maps = id_maps(model)
    hashed = {name for name, one in (maps.specs if maps else {}).items() if one.mode is IdMode.hashed}
    return {
        name: RawKeys(dataset, name)
        for name in shardings(model)
        if name not in hashed and dataset.schema.without_vocabulary(name) is None
    }


def crew(*, patience_seconds: float) -> Crew:
    """The processes of this job."""
    return Crew(
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        totals=lambda values: totals(torch.tensor(values, dtype=torch.float64)),
        from_first=from_first,
        patience_seconds=patience_seconds,
    )


def restore_model(model: DistributedModelParallel, checkpoint: Checkpoint) -> Restored:
    """Fills tables and dense tensors from a checkpoint, whatever number of processes wrote it. Rows that
    properties have got since keep their first values.

    Raises:
        CheckpointError: the model is not as in the checkpoint; names the first tensor that differs.
    """
    restored = restore_tables(model, table_shards(model), checkpoint)
    if restored.merged:
        say(
            f"row-wise optimizer state of {', '.join(restored.merged)} was saved for other blocks of columns than this "
            "job has: each block goes on with the mean of those it came from, so the steps differ from an "
            "uninterrupted run"
        )
    saved, wanted = checkpoint.dense(), dense_tensors(model)
    growing = _growing(model)
    for name in sorted(saved.keys() | wanted.keys()):
        shapes = [tuple(tensors[name].shape) if name in tensors else None for tensors in (saved, wanted)]
        if shapes[0] != shapes[1] and not (name in growing and _grown(shapes[0], shapes[1])):
            raise CheckpointError(
                f"{checkpoint.name}: {name!r} has shape {shapes[0]} there and {shapes[1]} in the model: "
                "use the configuration and data it was saved with"
            )
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor[: len(saved[name])].copy_(saved[name]) if name in growing else tensor.copy_(saved[name])
    return restored


def _growing(model: DistributedModelParallel) -> set[str]:
    """The dense tensors with a row for each value of a property: later days bring new values."""
    encoders = {
        name: module for name, module in dense_module(model).named_modules() if isinstance(module, PropertyEncoder)
    }
    return {f"{name}.columns.{column}.weight" for name, one in encoders.items() for column in range(len(one.columns))}


def _grown(old: tuple[int, ...] | None, new: tuple[int, ...] | None) -> bool:
    return old is not None and new is not None and old[1:] == new[1:] and old[:1] < new[:1]


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


def check_context(checkpoint: Checkpoint, dataset: Dataset) -> None:
    """Raises `CheckpointError` where a vocabulary, as it was after the checkpoint's days, is not the one that its rows
    belong to."""
    saved = checkpoint.manifest.context
    for table, digest in saved.vocabulary_digests.items():
        if _vocabulary_digest(dataset.path / "vocab" / table, saved.data_days[-1]) != digest:
            raise CheckpointError(
                f"vocabulary {table!r} is not the one that {checkpoint.name} was trained with (ingested anew?): "
                "its rows would stand for other ids; train from the beginning with another run.name"
            )


def _vocabulary_digest(folder: Path, last_day: str) -> str:
    """Over the files that hold ids known by the end of `last_day`."""
    files = sorted(file for file in folder.glob("*.parquet") if file.stem <= last_day)
    return hashlib.sha256("".join(f"{file.name} {sha256_of(file)}\n" for file in files).encode()).hexdigest()
