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

import torch
from torch import nn
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
from stack.train.config import Pipeline
from stack.train.step import Computed, Stepper, StepResult


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
    cursor: Cursor
    day: str


class Steps(ABC):
    """Makes a step of every batch, in order."""

    def __init__(self, stepper: Stepper, *, device: torch.device) -> None:
        self.stepper = stepper
        self.device = device

    @abstractmethod
    def run(self, loaded: Iterable[Loaded], *, first_step: int, asked_to_stop: Callable[[], bool]) -> Iterator[Done]:
        """Each batch when it is learnt from. May take a few batches more than it has given; those are lost where the
        caller stops. Every rank must call for equally many."""


class OneByOne(Steps):
    """`train.pipeline=none`."""

    def run(self, loaded: Iterable[Loaded], *, first_step: int, asked_to_stop: Callable[[], bool]) -> Iterator[Done]:
        for step, one in enumerate(loaded, first_step):
            result = self.stepper(to_device(one.batch, self.device), step=step, asked_to_stop=asked_to_stop())
            yield Done(result=result, cursor=one.cursor, day=one.day)


class SparseDist(Steps):
    """`train.pipeline=sparse_dist`.

    Raises:
        ConfigError: nothing is distributed, or the tables' ids are managed.
    """

    def __init__(self, stepper: Stepper, *, device: torch.device) -> None:
        super().__init__(stepper, device=device)
        check_sparse_dist(stepper.model)

    def run(self, loaded: Iterable[Loaded], *, first_step: int, asked_to_stop: Callable[[], bool]) -> Iterator[Done]:
        pipeline = _SparseDist(self.stepper, device=self.device, first_step=first_step, asked_to_stop=asked_to_stop)
        model = dense_module(self.stepper.model)
        assert isinstance(model, UserModel)
        staged = (_Staged(one, model.ask(to_device(one.batch, self.device))) for one in loaded)
        try:
            while True:
                try:
                    done = pipeline.progress(staged)
                except StopIteration:  # how TorchRec says that all is done
                    return
                yield done
        finally:
            pipeline.detach()  # the model looks up by itself again
            pipeline.reset()
            staged.close()


def steps_of(pipeline: Pipeline, stepper: Stepper, *, device: torch.device) -> Steps:
    """The choice of `train.pipeline`."""
    kinds: dict[Pipeline, type[Steps]] = {Pipeline.none: OneByOne, Pipeline.sparse_dist: SparseDist}
    return kinds[pipeline](stepper, device=device)


def check_sparse_dist(model: nn.Module) -> None:
    """Refuses what TorchRec's pipeline cannot run ahead of.

    Raises:
        ConfigError: no table is sharded; or ids are managed, whose maps would be batches ahead of the weights that a
            checkpoint keeps them with.
    """
    tables = [part for part in model.modules() if isinstance(part, Tables)]
    for part in tables:
        if part.ids is not None and part.ids.managed_names:
            raise ConfigError(
                f"train.pipeline=sparse_dist gives rows to ids up to two batches ahead, and a checkpoint must not hold "
                f"the managed ids of {', '.join(part.ids.managed_names)} ahead of their rows: set train.pipeline=none"
            )
    if not any(part.sharded for part in tables):
        raise ConfigError(
            "train.pipeline=sparse_dist has nothing to do where all tables are data_parallel: set train.pipeline=none"
        )


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

    def progress(self, staged: Iterator[_Staged]) -> Done:
        """The next batch's step. Raises `StopIteration` after the last one."""
        loaded: Loaded = super().progress(staged)
        assert self._result is not None
        return Done(result=self._result, cursor=loaded.cursor, day=loaded.day)

    def _compute(self, staged: _Staged) -> tuple[Computed, Loaded]:
        computed = self._stepper.compute(staged.batch, step=self._step, asked_to_stop=self._asked_to_stop())
        self._step += 1
        return computed, staged.loaded

    def _backward(self, losses: Computed) -> None:
        """`losses` is what `_compute` gave first."""
        self._result = self._stepper.learn(losses)

    def _optimizer_step(self) -> None:
        """Done by `learn`, and not at all where a batch is refused."""

    def _pipeline_model(self, *arguments: object, **named: object) -> None:
        super()._pipeline_model(*arguments, **named)
        model: DistributedModelParallel = self._model
        num_sharded = sum(isinstance(part, ShardedModule) for part in model.modules())
        # TorchRec says in its log what it cannot pipeline, and goes on without.
        assert len(self._pipelined_modules) == num_sharded, "the model cannot be traced down to its tables"
