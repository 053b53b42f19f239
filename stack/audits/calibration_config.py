"""Options of an audit of calibration (`stack.audits.calibration`)."""

from __future__ import annotations

from dataclasses import dataclass

from stack.base.errors import ConfigError


@dataclass(kw_only=True)
class CalibrationConfig:
    """What is allowed, and in how many parts scores are looked at."""

    buckets: int = 10
    # parts of the rows by score, each with as many predicted positives
    allowed_ratio: float = 1.1
    # predicted over observed of a part may be up to this, or down to its inverse, whatever its error
    false_alarms: float = 0.01
    # chance that a task which is calibrated is found off in any part
    off_is_critical: bool = False
    # a part that is off stops a release

    def __post_init__(self) -> None:
        if self.buckets < 2:
            raise ConfigError(f"audit.calibration.buckets={self.buckets} must be at least 2")
        if not self.allowed_ratio >= 1:
            raise ConfigError(f"audit.calibration.allowed_ratio={self.allowed_ratio} must be 1 or more")
        if not 0 < self.false_alarms < 1:
            raise ConfigError(f"audit.calibration.false_alarms={self.false_alarms} must be above 0 and below 1")
