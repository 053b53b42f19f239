"""What saving, keeping and restoring checkpoints can be told."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum

from stack.base.errors import ConfigError


class Change(Enum):
    """A difference between a version and the model that goes on from it."""

    new_table = "new_table"
    """A table that the version does not have, or with other ids: it begins at its first values."""
    lost_table = "lost_table"
    """A table that the model does not have: its rows are left behind."""
    fewer_rows = "fewer_rows"
    """A table with fewer rows: those beyond are left behind."""
    vocabulary = "vocabulary"
    """Ids have other rows (the log was ingested anew): rows go where their ids are now."""
    dense = "dense"
    """Dense tensors with other shapes begin at their first values."""


@dataclass(kw_only=True)
class CheckpointConfig:
    """The `checkpoint` group of the configuration."""

    store: str | None = None
    # where the chain is; null is the folder `checkpoints` of the run, else a folder or s3://bucket/folder
    asynchronous: bool = True
    # write while training goes on, from a copy of what is written; false keeps training waiting and copies nothing
    max_snapshot_gib: float = 4.0
    # the largest copy on a rank; what is larger is written from the tables themselves while training waits
    whole_share: float = 0.5
    # a table is written whole where at least this share of its rows has changed
    max_deltas: int = 64
    # a table is written whole after so many deltas: restoring reads all of them
    part_mib: int = 256
    # the largest file of a table
    verify: bool = True
    # read every file's digest before restoring from it; false trusts the disk
    fall_back: bool = False
    # where the newest version is damaged, go on from the last good one; false refuses
    start_from: str | None = None
    # a run without versions begins with the numbers of another chain's: its folder or address, `@` and a version or day
    allow: list[Change] = field(default_factory=list)
    # differences to the version gone on from that are not refused: new_table, lost_table, fewer_rows, vocabulary, dense
    keep_last: int = 2
    # saves in mid-training: how many of the last training's to keep; what later versions build on stays as well
    keep_days: int | None = None
    # finished trainings: how many to keep; null is all
    keep_weekly: int = 0
    # and of those before them, how many of each seventh
    lease_seconds: float = 3600.0
    # how long a reader or writer that says nothing is believed to live

    def __post_init__(self) -> None:
        for name, least in (("max_deltas", 0), ("part_mib", 1), ("keep_last", 1), ("keep_weekly", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"checkpoint.{name}={getattr(self, name)} must be at least {least}")
        if self.keep_days is not None and self.keep_days < 1:
            raise ConfigError(f"checkpoint.keep_days={self.keep_days} must be at least 1, or null")
        if not 0 < self.whole_share <= 1:
            raise ConfigError(f"checkpoint.whole_share={self.whole_share} must be above 0 and at most 1")
        if not self.max_snapshot_gib >= 0:
            raise ConfigError(f"checkpoint.max_snapshot_gib={self.max_snapshot_gib} must be 0 or more")
        if not (self.lease_seconds > 0 and math.isfinite(self.lease_seconds)):
            raise ConfigError(f"checkpoint.lease_seconds={self.lease_seconds} must be above 0 and finite")
