"""What the benches of loading, encoding and training measure, and the opened model and loader for it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torchrec.distributed.model_parallel import DistributedModelParallel

from stack.base.dist import own_device, process_group
from stack.base.memory import keep_freed_memory
from stack.base.run import RunConfig
from stack.base.seed import seed_everything
from stack.data.dataset import Dataset
from stack.data.loader import Loader
from stack.job import CHOICES, Composer, Job, configs_folder
from stack.model import enabled_tasks
from stack.tasks import TASKS
from stack.train.build import Setup, build_sharded_model, training_days
from stack.verbs import setup_of


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A training job as `stack train` would do it, in a run folder that is thrown away.

    `num_batches` bounds the encoding bench, which holds its batches in memory. `overrides` made the setup.
    """

    setup: Setup
    num_batches: int
    overrides: tuple[str, ...]

    @property
    def dataset(self) -> Dataset:
        return Dataset(self.setup.dataset)

    def days(self) -> tuple[str, ...]:
        return training_days(self.dataset, self.setup.train)

    def in_folder(self, folder: Path) -> Setup:
        """The setup with its run in `folder`."""
        return replace(self.setup, run=RunConfig(dir=str(folder), name="bench", seed=self.setup.run.seed))

    def arguments(self) -> list[str]:
        """The same workload as command-line arguments."""
        return [*self.overrides, f"--batches={self.num_batches}"]


def workload_of(overrides: Sequence[str], *, num_batches: int) -> Workload:
    """Composes the job as the command line does; a dataset must have been prepared for it."""
    job: Job = Composer(root=Job, choices=CHOICES, folder=configs_folder()).compose(overrides)
    return Workload(setup=setup_of(job), num_batches=num_batches, overrides=tuple(overrides))


def build_loader(workload: Workload) -> Loader:
    """The training job's loader, one epoch."""
    dataset, setup = workload.dataset, workload.setup
    trained, _ = enabled_tasks(setup.tasks, dataset.schema)
    return Loader(
        dataset,
        days=workload.days(),
        global_batch_size=setup.train.batch_size,
        days_per_block=setup.train.days_per_block,
        seed=setup.run.seed,
        groups=sorted({TASKS[name].group for name in trained}),
        num_prefetch=setup.train.num_prefetch,
    )


def use_threads(workload: Workload) -> None:
    """Threads and memory as in a training job of one process."""
    keep_freed_memory()
    torch.set_num_threads(workload.setup.train.num_threads or os.cpu_count() or 1)


@contextmanager
def opened(workload: Workload) -> Iterator[tuple[DistributedModelParallel, Loader]]:
    """The model, freshly initialised, and the loader, on this machine's device in a process group of one."""
    use_threads(workload)
    device = own_device()
    with tempfile.TemporaryDirectory() as folder, process_group(device=device):
        setup = workload.in_folder(Path(folder))
        seed_everything(setup.run.seed)
        model = build_sharded_model(setup, workload.dataset, last_day=workload.days()[-1], device=device)
        yield model, build_loader(workload)
