"""A trained run opened again: its model with the rows of a checkpoint, for evaluation and export."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torchrec.distributed.model_parallel import DistributedModelParallel

from stack.checkpoint.chain import chain_of
from stack.checkpoint.config import Change
from stack.checkpoint.load import Checkpoint, open_version
from stack.data.dataset import Dataset
from stack.model import UserModel
from stack.tables.config import Planner
from stack.tables.shard import dense_module
from stack.train.build import Setup, build_sharded_model
from stack.train.restore import check_vocabularies, restore_model


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """The model in evaluation mode; `user_model` is the same without its wrappers. `place`: where its chain is. `days`
    are those trained on."""

    name: str
    place: Path | str
    model: DistributedModelParallel
    user_model: UserModel
    checkpoint: Checkpoint
    dataset: Dataset

    @property
    def days(self) -> tuple[str, ...]:
        return self.checkpoint.manifest.context.data_days

    @property
    def step(self) -> int:
        return self.checkpoint.manifest.step


def open_run(setup: Setup, *, version: str | None, device: torch.device, dataset: Path | None = None) -> TrainedRun:
    """The run that `setup` describes, at a version (`Chain.finished`; None: the newest). Needs a process group.

    `dataset`: data to use it on that may have been ingested apart from those it was trained on: rows go where their ids
    are there. Raises: `CheckpointError` where there is no such version, or the data are not those it was trained on.
    """
    chain = chain_of(setup.chain_place)
    checkpoint = open_version(chain, chain.finished(version))
    if setup.checkpoint.verify:
        checkpoint.verify()
    data = Dataset(dataset or setup.dataset)
    if dataset is None:
        check_vocabularies(checkpoint, data)
    alone = replace(setup, tables=replace(setup.tables, planner=Planner.fixed, plan=None))  # its plan was for training
    last_day = checkpoint.manifest.context.data_days[-1]
    model = build_sharded_model(alone, data, last_day=last_day, device=device).eval()
    moves = () if dataset is None else (Change.vocabulary, Change.fewer_rows)
    restore_model(model, checkpoint, dataset=data, allow=moves)
    user_model = dense_module(model)
    assert isinstance(user_model, UserModel)
    return TrainedRun(
        name=setup.run.name, place=setup.chain_place, model=model, user_model=user_model, checkpoint=checkpoint,
        dataset=data,
    )  # fmt: skip
