"""What `stack plan` can be told."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum

from stack.base.errors import ConfigError


class Sweep(Enum):
    """What grows while the rest stays."""

    rows = "rows"
    ranks = "ranks"
    batch = "batch"


@dataclass(kw_only=True)
class PlanConfig:
    """The `plan` group of the configuration."""

    rows: dict[str, int] = field(default_factory=dict)
    # tables to plan and their rows; empty takes the model's tables with the rows of the prepared dataset
    choose: bool = True
    # let the planner choose how the tables are spread that tables.shardings does not name; false takes tables.sharding
    host_memory: bool = False
    # cuda: rows may also lie in host memory, with a cache on the GPU; never chosen unless asked for
    timelines: int = 128
    # of a step on each process
    ids_per_timeline: float = 100.0
    # that a timeline asks of each table: its history
    ids: dict[str, float] = field(default_factory=dict)
    # exceptions from `ids_per_timeline`, by table name
    distinct_share: float = 1.0
    # of a step's ids that are fetched: equal ones are fetched once
    out: str | None = None
    # folder for plan.json, report.json and pictures
    compare: str | None = None
    # a plan.json to show the differences from
    sweep: Sweep | None = None
    # show how memory and time grow with rows, ranks or batch
    sweep_doublings: int = 4
    # of a sweep, up and down from what was asked

    def __post_init__(self) -> None:
        for name, value in [("timelines", self.timelines), ("sweep_doublings", self.sweep_doublings)]:
            if value < 1:
                raise ConfigError(f"plan.{name}={value} must be at least 1")
        ids = {f"ids.{name}": share for name, share in self.ids.items()}
        for name, share in {"ids_per_timeline": self.ids_per_timeline, **ids}.items():
            if not (share > 0 and math.isfinite(share)):
                raise ConfigError(f"plan.{name}={share} must be above 0 and finite")
        if not 0 < self.distinct_share <= 1:
            raise ConfigError(f"plan.distinct_share={self.distinct_share} must be above 0 and at most 1")
        for name, rows in self.rows.items():
            if rows < 1:
                raise ConfigError(f"plan.rows: {name}={rows}: a table has at least 1 row")
        if self.sweep is not None and self.compare is not None:
            raise ConfigError(f"plan.compare={self.compare} has no effect on a sweep: leave it out, or plan.sweep")
