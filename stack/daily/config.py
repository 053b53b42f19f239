"""What `stack daily` can be told."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum

from stack.base.errors import ConfigError
from stack.data.days import day_number


class IngestDays(Enum):
    """Which days are ingested first."""

    missing = "missing"
    """Those after the last prepared one."""
    never = "never"


class Allow(Enum):
    """What is refused unless it is asked for by name."""

    gap = "gap"
    """Days between the last learnt one and this one are left out."""
    out_of_order = "out_of_order"
    """A day before the last learnt one is learnt on top of it."""
    future = "future"
    """A day after today."""
    quarantined = "quarantined"
    """A day that was refused with these very inputs is learnt all the same. What it was refused for is overridden, and
    kept with its version; what nobody was told yet is not, and numbers that are not finite never are."""


@dataclass(kw_only=True)
class DailyConfig:
    """The `daily` group of the configuration."""

    day: str | None = None
    # the day to learn, YYYY-MM-DD; `stack daily day=...` is short for daily.day
    from_day: str | None = None
    # first of several days, `--from`; null is the day after the last learnt one
    to_day: str | None = None
    # last of several days, `--to`
    ingest: IngestDays = IngestDays.missing
    # missing: days after the last prepared one are ingested first; never: they must be there
    num_epochs: int = 1
    # passes over a day
    replay_days: int = 0
    # older days of which a share is mixed into each day, against forgetting
    replay_share: float = 0.1
    # of the timelines of each of these days, drawn anew for each day and pass
    rate_share: float = 0.3
    # constant share of the full learning rates; warm-up and decay belong to `stack train`
    max_volume_ratio: float = 5.0
    # a day with so many times the examples of the median earlier day, or as many times fewer, is quarantined
    max_loss_ratio: float = 2.0
    # so is one whose losses (of training, or of the version before on this day) are so many times those of other days
    allow: list[Allow] = field(default_factory=list)
    # gap, out_of_order, future, quarantined
    audit: bool = False
    # audit the newest version at the end (`stack audit`); what is critical ends with status 2, before any export
    export: bool = False
    # a package at the end, as `stack export` makes it; of one process alone

    def __post_init__(self) -> None:
        days = {"daily.day": self.day, "daily.from_day": self.from_day, "daily.to_day": self.to_day}
        for name, day in days.items():
            if day is not None:
                day_number(day, what=name)
        if self.day is not None and (self.from_day is not None or self.to_day is not None):
            raise ConfigError(f"daily.day={self.day} is one day: leave it out, or leave out --from and --to")
        if self.from_day is not None and self.to_day is not None and self.from_day > self.to_day:
            raise ConfigError(f"--from {self.from_day} is after --to {self.to_day}: swap them")
        for name, least in (("num_epochs", 1), ("replay_days", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"daily.{name}={getattr(self, name)} must be at least {least}")
        if not 0 < self.replay_share <= 1:
            raise ConfigError(f"daily.replay_share={self.replay_share} must be above 0 and at most 1")
        if not (self.rate_share > 0 and math.isfinite(self.rate_share)):
            raise ConfigError(f"daily.rate_share={self.rate_share} must be above 0 and finite")
        for name in ("max_volume_ratio", "max_loss_ratio"):
            if not getattr(self, name) > 1:
                raise ConfigError(f"daily.{name}={getattr(self, name)} must be above 1")
