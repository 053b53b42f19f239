"""Options of an audit of tables (`stack.audits.tables`)."""

from __future__ import annotations

from dataclasses import dataclass

from stack.base.errors import ConfigError


@dataclass(kw_only=True)
class TablesAuditConfig:
    """What is allowed, and how much is looked at."""

    growth_days: int = 28
    # days up to the last one learnt whose new ids are told
    kept_ids: int = 1 << 20
    # ids of a table whose lookups are counted one by one (16 bytes each); above, counts are close
    outlier_z: float = 10.0
    # robust deviations of a row's log norm from the median, from which it is an outlier
    max_outlier_share: float = 0.001
    # of the learnt rows
    max_collision_share: float = 0.1
    # of a hashed table's ids may share their vector with another
    max_full_share: float = 0.95
    # of a managed table's rows may have an id
    max_hottest_share: float = 0.5
    # of a table's lookups may go to one id
    hottest_from_rows: int = 1000
    # smaller tables always have a hottest id, and are not judged

    def __post_init__(self) -> None:
        for name in ("max_outlier_share", "max_collision_share", "max_full_share", "max_hottest_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"audit.tables.{name}={getattr(self, name)} must be a share, from 0 to 1")
        if not self.outlier_z > 0:
            raise ConfigError(f"audit.tables.outlier_z={self.outlier_z} must be above 0")
        for name, least in (("growth_days", 0), ("kept_ids", 1000), ("hottest_from_rows", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"audit.tables.{name}={getattr(self, name)} must be at least {least:,}")
