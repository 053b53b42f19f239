"""A trained run opened again: its model with the rows of a checkpoint, for evaluation and export."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torchrec.distributed.model_parallel import DistributedModelParallel

from stack.base.errors import CheckpointError
from stack.checkpoint.load import Checkpoint, complete_checkpoints
from stack.data.dataset import Dataset
from stack.model import UserModel, places_of
from stack.tables.config import Planner
from stack.tables.shard import dense_module
from stack.train.build import Setup, build_sharded_model
from stack.train.run_folder import CHECKPOINTS, CONFIG
from stack.train.saving import check_context, context_of, restore_model


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """The model in evaluation mode; `user_model` is the same without its wrappers. `days` are those trained on."""

    name: str
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


def saved_configuration(folder: Path) -> str:
    """The composed configuration of a run, as YAML; raises `CheckpointError` where `folder` is not a run's."""
    path = folder / CONFIG
    if not path.is_file():
        raise CheckpointError(
            f"{folder} is not a run (no {CONFIG}): set run.dir and run.name, or run `stack train` first"
        )
    return path.read_text()


def open_run(setup: Setup, *, step: int | None, device: torch.device) -> TrainedRun:
    """The run that `setup` describes, at checkpoint `step` (None: the latest). Needs a process group.

    Raises: `CheckpointError` where there is no such checkpoint, or the data are not those it was trained on.
    """
    checkpoint = _checkpoint(setup.run.folder / CHECKPOINTS, step)
    dataset = Dataset(setup.dataset)
    days = checkpoint.manifest.context.data_days
    tables = places_of(setup.model, setup.tasks, dataset.schema).tables()
    check_context(checkpoint, context_of(dataset, days=days, tables=tables, composed=setup.composed))
    alone = replace(setup, tables=replace(setup.tables, planner=Planner.fixed, plan=None))  # its plan was for training
    model = build_sharded_model(alone, dataset, last_day=days[-1], device=device).eval()
    restore_model(model, checkpoint)
    user_model = dense_module(model)
    assert isinstance(user_model, UserModel)
    return TrainedRun(name=setup.run.name, model=model, user_model=user_model, checkpoint=checkpoint, dataset=dataset)


def _checkpoint(folder: Path, step: int | None) -> Checkpoint:
    complete, ignored = complete_checkpoints(folder)
    if not complete:
        why = f" ({ignored[-1]})" if ignored else ""
        raise CheckpointError(f"{folder} has no complete checkpoint{why}: run `stack train` first")
    if step is None:
        return complete[-1]
    steps = {checkpoint.manifest.step: checkpoint for checkpoint in complete}
    if step not in steps:
        raise CheckpointError(f"{folder} has no checkpoint of step {step}; it has: {', '.join(map(str, steps))}")
    return steps[step]
