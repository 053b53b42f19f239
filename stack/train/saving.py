"""A training state to versions of a chain."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torchrec.distributed.model_parallel import DistributedModelParallel

from stack.base.version import code_version
from stack.checkpoint.crew import Crew
from stack.checkpoint.manifest import Context, Lineage, LoopState
from stack.checkpoint.save import ChainWriter, Facts
from stack.checkpoint.snapshot import State
from stack.data.dataset import Dataset
from stack.tables.shard import dense_parameters, dense_tensors, shardings, table_shards
from stack.tables.touched import TouchedRows
from stack.train.id_state import id_maps
from stack.train.meter import SaveMeter
from stack.train.norm_spread import RANK_SPREAD, rank_spread
from stack.train.optim import optimizer_state
from stack.train.periodic import Moment
from stack.train.ranks import from_first, totals
from stack.train.vocabularies import raw_keys, vocabulary_digests


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
        meter: SaveMeter,
    ) -> None:
        self._writer = writer
        self._meter = meter
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
        self._meter.asked()
        with self._meter.failures():
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
                        RANK_SPREAD: rank_spread(self._model),
                        **{f"loss/{name}": loss for name, loss in moment.tally.mean_losses().items()},
                    },
                ),
            )

    def finish(self) -> None:
        """Waits until the last version is out. Raises `CheckpointError` where it could not be written."""
        with self._meter.failures():
            self._writer.wait()

    def close(self) -> None:
        """Lets the last version be written, without the other processes."""
        self._writer.close()


def crew(*, patience_seconds: float) -> Crew:
    """The processes of this job."""
    return Crew(
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        totals=lambda values: totals(torch.tensor(values, dtype=torch.float64)),
        from_first=from_first,
        patience_seconds=patience_seconds,
    )


def context_of(dataset: Dataset, *, days: Sequence[str], vocabularies: Sequence[str], composed: str) -> Context:
    """What the numbers of a checkpoint belong to."""
    return Context(
        schema=dataset.schema,
        config_digest=hashlib.sha256(composed.encode()).hexdigest(),
        data_days=tuple(days),
        vocabulary_digests=vocabulary_digests(dataset, vocabularies, last_day=days[-1]),
        code_version=code_version(),
    )
