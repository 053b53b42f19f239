"""How a day's data is held against the days before it, and what is allowed."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from stack.base.errors import ConfigError


@dataclass(kw_only=True)
class DataAuditConfig:
    """The `audit_data` group of the configuration: what warns, and what (`critical_`) stops a release."""

    reference_days: int = 14
    # latest earlier days that a day is held against: two of each weekday
    min_reference_days: int = 3
    # with fewer, only what is wrong by itself is found (numbers that are not finite)
    sigmas: float = 4.0
    # standard deviations of the reference days that are allowed in any case, around their mean
    min_values: int = 250
    # of columns with fewer values on the day distributions are not judged, and a constant warns
    holidays: list[str] = field(default_factory=list)
    # days like no other, MM-DD or YYYY-MM-DD: they stop nothing but for what is wrong by itself, and no day is held
    # against them
    warn_missing: float = 0.05
    # share of unknown ids above the usual one
    critical_missing: float = 0.5
    warn_new: float = 0.1
    # share of ids that the day before did not have, above the usual one
    critical_new: float = 0.5
    warn_distance: float = 0.3
    # of a column of numbers: mean way from the usual distribution to the day's, in usual deviations (Wasserstein)
    critical_distance: float = 3.0
    warn_divergence: float = 0.4
    # of a column of ids: distance of Jensen and Shannon, 0 to 1
    critical_divergence: float = 0.9
    warn_rate: float = 1.25
    # odds of a label may be so many times the usual ones, or as many times fewer
    critical_rate: float = 3.0
    warn_volume: float = 2.0
    # so many times the usual timelines, events, moments or examples, or as many times fewer
    critical_volume: float = 5.0
    # of events and moments; `stack daily` has daily.max_volume_ratio for examples
    flipped: float = -0.5
    # a label has turned round where what tells it (rate, correlations with features, AUC) is at or below so many times
    # what it usually is

    def __post_init__(self) -> None:
        if not 1 <= self.min_reference_days <= self.reference_days:
            raise ConfigError(
                f"audit_data.min_reference_days={self.min_reference_days} must be at least 1 and at most "
                f"audit_data.reference_days={self.reference_days}"
            )
        if self.min_values < 1:
            raise ConfigError(f"audit_data.min_values={self.min_values} must be at least 1")
        if not self.sigmas > 0:
            raise ConfigError(f"audit_data.sigmas={self.sigmas:g} must be above 0")
        if not -1 < self.flipped < 0:
            raise ConfigError(f"audit_data.flipped={self.flipped:g} must be above -1 and below 0")
        for name in ("missing", "new", "distance", "divergence", "rate", "volume"):
            warn, critical = getattr(self, f"warn_{name}"), getattr(self, f"critical_{name}")
            least = 1.0 if name in ("rate", "volume") else 0.0
            if not least < warn <= critical:
                raise ConfigError(
                    f"audit_data.warn_{name}={warn:g} and audit_data.critical_{name}={critical:g} must be above "
                    f"{least:g}, the second not below the first"
                )
        for day in self.holidays:
            if re.fullmatch(r"(\d{4}-)?\d{2}-\d{2}", day) is None:
                raise ConfigError(f"audit_data.holidays has {day!r}: write it as MM-DD or YYYY-MM-DD")

    def is_holiday(self, day: str) -> bool:
        return day in self.holidays or day[5:] in self.holidays
