"""What the benches of loading, encoding and training measure, and the opened model and loader for it."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torchrec.distributed.model_parallel import DistributedModelParallel

from stack.base.dist import own_device, process_group
from stack.base.run import RunConfig
from stack.base.seed import seed_everything
from stack.data.dataset import Dataset
from stack.data.loader import Loader
from stack.model import enabled_tasks
from stack.tables.config import TablesConfig
from stack.tasks import TASKS, TasksConfig
from stack.towers.config import ModelConfig
from stack.train.build import Setup, build_sharded_model
from stack.train.config import TrainConfig
from stack.train.memory import keep_freed_memory
from stack.train.optim import OptimConfig


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The last `num_days` days of a prepared dataset, in batches of `batch_size` timelines; the default model.

    `num_batches` bounds the encoding bench, which holds its batches in memory. `num_threads` 0: all cores.
    """

    dataset: Path
    num_days: int
    batch_size: int
    num_batches: int
    num_threads: int

    @property
    def max_history(self) -> int:
        return Dataset(self.dataset).manifest.max_history

    def days(self) -> tuple[str, ...]:
        return Dataset(self.dataset).days()[-self.num_days :]

    def setup(self, folder: Path) -> Setup:
        days = self.days()
        return Setup(
            dataset=self.dataset,
            model=ModelConfig(),
            tasks=TasksConfig(),
            tables=TablesConfig(),
            optim=OptimConfig(),
            train=TrainConfig(from_day=days[0], to_day=days[-1], batch_size=self.batch_size),
            run=RunConfig(dir=str(folder), name="bench"),
            composed="",
        )

    def arguments(self) -> list[str]:
        """The same workload as command-line arguments."""
        return [
            str(self.dataset),
            f"--days={self.num_days}",
            f"--batch-size={self.batch_size}",
            f"--batches={self.num_batches}",
            f"--threads={self.num_threads}",
        ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", type=Path, help="a prepared dataset")
    parser.add_argument("--days", type=int, default=28, help="the last days of it")
    parser.add_argument("--batch-size", type=int, default=128, help="timelines in a batch")
    parser.add_argument("--batches", type=int, default=4, help="batches of the encoding bench")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 is all cores")


def workload_of(arguments: argparse.Namespace) -> Workload:
    return Workload(
        dataset=arguments.dataset,
        num_days=arguments.days,
        batch_size=arguments.batch_size,
        num_batches=arguments.batches,
        num_threads=arguments.threads,
    )


def build_loader(workload: Workload, dataset: Dataset) -> Loader:
    """The training job's loader over the workload's days."""
    trained, _ = enabled_tasks(TasksConfig(), dataset.schema)
    groups = sorted({TASKS[name].group for name in trained})
    return Loader(dataset, days=workload.days(), global_batch_size=workload.batch_size, groups=groups)


@contextmanager
def opened(workload: Workload) -> Iterator[tuple[DistributedModelParallel, Loader]]:
    """The default model, freshly initialised, and the loader, on this machine's device in a process group of one."""
    keep_freed_memory()
    torch.set_num_threads(workload.num_threads or os.cpu_count() or 1)
    device = own_device()
    dataset = Dataset(workload.dataset)
    with tempfile.TemporaryDirectory() as folder, process_group(device=device):
        setup = workload.setup(Path(folder))
        seed_everything(setup.run.seed)
        model = build_sharded_model(setup, dataset, last_day=workload.days()[-1], device=device)
        yield model, build_loader(workload, dataset)
