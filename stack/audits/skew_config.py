"""Options of replaying recorded requests (`stack.export.skew`), which are asked for with an audit's."""

from __future__ import annotations

from dataclasses import dataclass

from stack.base.errors import ConfigError


@dataclass(kw_only=True)
class SkewConfig:
    """How a log is joined with prepared data, and what may differ."""

    tolerance: float = 1e-5
    # largest absolute difference of an answer, where all features are equal
    dense_tolerance: float = 1e-6
    # of ranking features: absolute below 1, else relative
    within_seconds: int = 0
    # a request may be of the user's nearest moment this far away; the difference is one of the feature `now`
    critical_share: float = 0.01
    # of the requests in which a feature may differ; any are warned of
    requests: int = 2_000
    # most of a log that are replayed, from its beginning; they are held in memory, 100 KB or so each

    def __post_init__(self) -> None:
        for name in ("tolerance", "dense_tolerance", "within_seconds"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"audit.skew.{name}={getattr(self, name)} must be 0 or more")
        if not 0 <= self.critical_share <= 1:
            raise ConfigError(f"audit.skew.critical_share={self.critical_share} must be a share, from 0 to 1")
        if self.requests < 1:
            raise ConfigError(f"audit.skew.requests={self.requests} must be at least 1")
