"""Batches to steps: one after the other, or with the ids of the next batches on their way while one is computed.

With `train.pipeline=sparse_dist` TorchRec's pipeline runs three batches at once; what each step computes is the same::

    step t          batch t               batch t + 1                      batch t + 2
    begins          --                    ids sent (numbers of them)       loaded, its distinct ids found
    forward         looked up, computed   :                                number of bags agreed on
    between         --                    ids sent                         :
    backward        tables, dense         :                                :

Ids do not depend on weights; a row is read in the forward pass of its own batch, when all before have been learnt from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.distributed.types import ShardedModule
from torchrec.streamable import Pipelineable

from stack.base.errors import ConfigError
from stack.base.tensors import tensors_in
from stack.data.batch import Batch, to_device
from stack.data.loader import Cursor
from stack.model import AskedBatch, UserModel
from stack.tables.collection import Tables
from stack.tables.shard import dense_module
from stack.train.config import Pipeline, TrainConfig
from stack.train.step import Computed, Own, Stepper, StepResult


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A batch as it comes from the loader: `cursor` is that of the batch after it, `day` the first of its block."""

    batch: Batch
    cursor: Cursor
    day: str


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a batch became; its cursor and day, whatever the loader has handed out since."""

    result: StepResult
    own: Own
    cursor: Cursor
    day: str


class Steps(ABC):
    """Makes a step of every batch, in order."""

    def __init__(self, stepper: Stepper, *, device: torch.device) -> None:
        self.stepper = stepper
        self.device = device

    @abstractmethod
    def run(self, loaded: Iterable[Loaded], *, first_step: int, asked_to_stop: Callable[[], bool]) -> Iterator[Done]:
        """Each batch once it was learnt from. Ends with the batches, or soon after a rank was asked to stop: then with
        the last batch that was begun. All ranks must have equally many batches."""


class OneByOne(Steps):
    """`train.pipeline=none`."""

    def run(self, loaded: Iterable[Loaded], *, first_step: int, asked_to_stop: Callable[[], bool]) -> Iterator[Done]:
        for step, one in enumerate(loaded, first_step):
            done = self._done(one, step=step, asked_to_stop=asked_to_stop())
            yield done
            if done.result.stop:
                return

    def _done(self, one: Loaded, *, step: int, asked_to_stop: bool) -> Done:
        batch = to_device(one.batch, self.device)
        computed = self.stepper.compute(batch, step=step, asked_to_stop=asked_to_stop)
        return Done(result=self.stepper.learn(computed), own=computed.own, cursor=one.cursor, day=one.day)


class SparseDist(Steps):
    """`train.pipeline=sparse_dist`.

    Where ids are managed, asking for a batch gives rows to ids and takes them from others. Batches are asked for in
    order and their rows are reset with their lookup, so that changes nothing; but a checkpoint must not hold maps that
    are ahead of their rows. So before every `save_every_steps`-th step no new batch is begun until all are done.
    """

    def __init__(self, stepper: Stepper, *, device: torch.device, save_every_steps: int) -> None:
        """Raises `ConfigError` where no table is sharded."""
        super().__init__(stepper, device=device)
        model = dense_module(stepper.model)
        assert isinstance(model, UserModel)
        assert isinstance(model.tables, Tables)
        if not model.tables.sharded:
            raise ConfigError(
                "train.pipeline=sparse_dist has no ids to send where all tables are data_parallel: "
                "set train.pipeline=none"
            )
        self._model = model
        managed = model.tables.ids is not None and model.tables.ids.managed_names
        self._drain_every_steps = save_every_steps if managed else None

    def run(self, loaded: Iterable[Loaded], *, first_step: int, asked_to_stop: Callable[[], bool]) -> Iterator[Done]:
        pipeline = _SparseDist(self.stepper, device=self.device, first_step=first_step, asked_to_stop=asked_to_stop)
        batches = iter(loaded)
        step, last_step, stopping = first_step, -1, False

        def staged(num_batches: int | None) -> Iterator[_Staged]:
            for one in islice(batches, num_batches):
                yield _Staged(one, self._model.ask(to_device(one.batch, self.device)))
                if stopping:
                    return

        try:
            while step != last_step and not stopping:
                last_step = step
                for done in pipeline.through(staged(self._num_until_drained(step))):
                    step, stopping = step + 1, stopping or done.result.stop
                    yield done
        finally:
            pipeline.let_go()

    def _num_until_drained(self, step: int) -> int | None:
        return None if self._drain_every_steps is None else self._drain_every_steps - step % self._drain_every_steps


def steps_of(config: TrainConfig, stepper: Stepper, *, device: torch.device) -> Steps:
    """The choice of `train.pipeline`."""
    if config.pipeline is Pipeline.none:
        return OneByOne(stepper, device=device)
    return SparseDist(stepper, device=device, save_every_steps=config.save_every_steps)


class _Staged(Pipelineable):  # type: ignore[misc]  # TorchRec has no types
    """A batch in TorchRec's hands. Tracing finds that the model reads `ids` of its argument, so it is here as well."""

    def __init__(self, loaded: Loaded, batch: AskedBatch) -> None:
        self.loaded = loaded
        self.batch = batch
        self.ids = batch.ids

    def to(self, device: torch.device, non_blocking: bool = False) -> _Staged:
        """It was asked for where it is used."""
        return self

    def record_stream(self, stream: torch.Stream) -> None:
        for tensor in tensors_in(self.batch):
            tensor.record_stream(stream)


class _SparseDist(TrainPipelineSparseDist):  # type: ignore[misc]
    """TorchRec's pipeline around our own step."""

    def __init__(
        self, stepper: Stepper, *, device: torch.device, first_step: int, asked_to_stop: Callable[[], bool]
    ) -> None:
        super().__init__(stepper.model, stepper.optimizer, device, custom_model_fwd=self._compute)
        self._stepper = stepper
        self._step = first_step
        self._asked_to_stop = asked_to_stop
        self._result: StepResult | None = None
        self._own: Own | None = None

    def through(self, staged: Iterator[_Staged]) -> Iterator[Done]:
        """A step for each batch, until none is left in the pipeline."""
        while True:
            try:
                loaded: Loaded = self.progress(staged)
            except StopIteration:  # how TorchRec says that all is done
                return
            assert self._result is not None
            assert self._own is not None
            yield Done(result=self._result, own=self._own, cursor=loaded.cursor, day=loaded.day)

    def let_go(self) -> None:
        """The model looks up by itself again; batches that were begun are dropped, and the loader with them."""
        self.detach()
        self.reset()
        self._dataloader_iter = None

    def _compute(self, staged: _Staged) -> tuple[Computed, Loaded]:
        computed = self._stepper.compute(staged.batch, step=self._step, asked_to_stop=self._asked_to_stop())
        self._step += 1
        return computed, staged.loaded

    def _backward(self, losses: Computed) -> None:
        """`losses` is what `_compute` gave first."""
        self._result, self._own = self._stepper.learn(losses), losses.own

    def _optimizer_step(self) -> None:
        """Done by `learn`, and not at all where a batch is refused."""

    def _pipeline_model(self, *arguments: object, **named: object) -> None:
        super()._pipeline_model(*arguments, **named)
        model: DistributedModelParallel = self._model
        num_sharded = sum(isinstance(part, ShardedModule) for part in model.modules())
        # TorchRec says in its log what it cannot pipeline, and goes on without.
        assert len(self._pipelined_modules) == num_sharded, "the model cannot be traced down to its tables"
