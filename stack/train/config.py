"""What a training run can be told."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from stack.base.errors import ConfigError
from stack.data.days import day_number


class Pipeline(Enum):
    """How far ahead of its step a batch is begun, apart from its loading."""

    none = "none"
    """Not at all."""
    sparse_dist = "sparse_dist"
    """TorchRec's TrainPipelineSparseDist: ids go to the processes that hold their rows while the batch before is
    computed. The same losses."""


@dataclass(kw_only=True)
class TrainConfig:
    """The `train` group of the configuration."""

    from_day: str | None = None
    # first day to learn from, YYYY-MM-DD; null is the first prepared one
    to_day: str | None = None
    # last day to learn from; later days stay unseen. null is the last prepared one
    num_epochs: int = 1
    # passes over the days
    batch_size: int = 128
    # timelines (users and days) of a step, over all processes
    days_per_block: int = 1
    # consecutive days whose timelines are shuffled together; blocks follow in time order
    num_prefetch: int = 4
    # batches made ahead
    pipeline: Pipeline = Pipeline.none
    # sparse_dist sends the next batch's ids to their rows while a batch is computed; the losses are the same
    max_steps: int | None = None
    # stop after so many steps; null is to the end of the days
    save_every_steps: int = 500
    # between saves; one more at the end
    log_every_steps: int = 50
    # between lines for people and points of TensorBoard's curves; steps.jsonl has every step
    frozen_norms: bool = False
    # normalise by the statistics learnt before, and leave them as they are: after `stack audit --fix rebuild`, so that
    # the sample does not bend them again
    max_refused_batches: int = 10
    # batches that are not finite (data, batch norm or loss): not learnt from, counted; above this number it is the end
    resume: bool = True
    # go on from the run folder's last checkpoint; false refuses a folder that is not empty
    num_threads: int = 0
    # of torch in each process; 0 is the machine's cores over the number of processes on it
    collective_timeout_seconds: float = 1800.0
    # how long processes wait for each other within training before they name who is missing and end

    def __post_init__(self) -> None:
        least = {
            "num_epochs": 1, "batch_size": 1, "days_per_block": 1, "num_prefetch": 0, "save_every_steps": 1,
            "log_every_steps": 1, "max_refused_batches": 0, "num_threads": 0,
        }  # fmt: skip
        for name, limit in least.items():
            if getattr(self, name) < limit:
                raise ConfigError(f"train.{name}={getattr(self, name)} must be at least {limit}")
        if not self.collective_timeout_seconds > 0:
            raise ConfigError(f"train.collective_timeout_seconds={self.collective_timeout_seconds} must be above 0")
        if self.max_steps is not None and self.max_steps < 1:
            raise ConfigError(f"train.max_steps={self.max_steps} must be at least 1, or null")
        for name, day in (("train.from_day", self.from_day), ("train.to_day", self.to_day)):
            if day is not None:
                day_number(day, what=name)
        if self.from_day is not None and self.to_day is not None and self.from_day > self.to_day:
            raise ConfigError(f"train.from_day={self.from_day} must not be after train.to_day={self.to_day}")
