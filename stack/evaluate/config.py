"""What `stack evaluate` can be told."""

from __future__ import annotations

from dataclasses import dataclass

from stack.base.errors import ConfigError
from stack.data.days import day_number


@dataclass(kw_only=True)
class EvaluateConfig:
    version: str | None = None
    # the version to evaluate, by its number or by the last day it was trained on; null is the newest
    first_day: str | None = None
    # first held-out day, YYYY-MM-DD; null is the day after the last trained one
    last_day: str | None = None
    # last held-out day; null is the last prepared one
    timelines_per_batch: int = 256
    # users and days scored in one forward pass; memory grows with it
    baselines: bool = True
    # fit baselines on the training days; false leaves those that need no fitting
    baseline_rows: int = 1_500_000
    # examples that baselines learn from: the latest training days that reach it
    num_replicates: int = 200
    # bootstrap replicates of each interval
    seed: int = 0
    # seed of the bootstrap and of the learners
    plots: bool = True
    # draw reliability.png and gauc.png into the run folder

    def __post_init__(self) -> None:
        limits = {"timelines_per_batch": 1, "baseline_rows": 1, "num_replicates": 20, "seed": 0}
        for name, least in limits.items():
            if getattr(self, name) < least:
                raise ConfigError(f"evaluate.{name}={getattr(self, name)} must be at least {least}")
        for name, day in (("evaluate.first_day", self.first_day), ("evaluate.last_day", self.last_day)):
            if day is not None:
                day_number(day, what=name)
