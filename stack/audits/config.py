"""Options of `stack audit`: what is looked at, and what is allowed."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from enum import Enum

from stack.audits.calibration_config import CalibrationConfig
from stack.audits.sections import Part
from stack.audits.skew_config import SkewConfig
from stack.audits.tables_config import TablesAuditConfig
from stack.base.errors import ConfigError


class Traffic(Enum):
    """What the examples are taken to be a sample of."""

    live = "live"
    """All candidates: drawn negatives weigh 1 / rate, what was not drawn weighs 1."""
    weighted = "weighted"
    """What the log was filtered from: the column `weight` of impressions is 1 / the share of such that was kept."""
    sampled = "sampled"
    """The examples as training saw them: all weigh 1."""


class Fix(Enum):
    """What is done about what was found."""

    none = "none"
    """Nothing: an audit only looks."""
    rebuild = "rebuild"
    """Statistics are estimated anew, scores calibrated, and a new version is written."""


@dataclass(kw_only=True)
class AuditConfig:
    parts: list[Part] = field(default_factory=lambda: [Part.normalisation, Part.calibration, Part.data, Part.tables])
    # what is looked at: normalisation, calibration, data, tables, skew, parity
    version: str | None = None
    # the version to audit, by its number or by the last day it was trained on; null is the newest
    dataset: str | None = None
    # folder of prepared data to take traffic from, also if ingested apart: rows go where their ids are there; null is
    # the run's own
    first_day: str | None = None
    # first day of traffic, YYYY-MM-DD; null is the first prepared day after those learnt, or else the last one learnt
    last_day: str | None = None
    # last day of traffic; null is the first
    traffic: Traffic = Traffic.live
    # live: drawn negatives stand for all candidates that were not drawn; weighted: impressions for what the log was
    # filtered from, by its column `weight`; sampled: examples for themselves alone
    timelines: int = 4096
    # most timelines of these days, drawn at random
    timelines_per_batch: int = 64
    # in one forward pass; memory grows with it
    reference_days: int = 7
    # days before the traffic's, whose differences among each other are allowed in any case; 0: limits alone count
    reference_timelines: int = 512
    # most timelines of each of them
    seed: int = 0
    # of what is drawn
    warn_shift: float = 0.1
    # 95% of a layer's channels may be off by so many deviations
    critical_shift: float = 0.25
    # above it a layer is far off
    warn_ratio: float = 1.25
    # live variance over the learnt one may be up to this, or down to its inverse, in 95% of a layer's channels
    critical_ratio: float = 2.0
    # as critical_shift
    warn_kl: float = 0.02
    # mean divergence of a layer's channels, in nats
    critical_kl: float = 0.1
    # as critical_shift
    far_is_critical: bool = False
    # what is far off stops a release, whether it costs anything or not
    max_auc_cost: float = 0.002
    # AUC that learnt statistics may cost a task against live ones, on the same live rows
    max_log_loss_cost: float = 0.02
    # share of its log loss that they may cost
    warn_calibration: float = 1.1
    # predicted over observed on live rows may be up to this, or down to its inverse
    critical_calibration: float = 1.25
    # above it, with three standard errors to spare, probabilities cannot be used
    fix: Fix = Fix.none
    # rebuild: put the statistics of the reference days' live traffic into the layers, calibrate scores on half of the
    # users audited, and write that as a new version; `--fix rebuild` is the same
    fix_timelines: int = 4096
    # most timelines of the reference days that the new statistics are estimated from
    tables: TablesAuditConfig = field(default_factory=TablesAuditConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    skew: SkewConfig = field(default_factory=SkewConfig)
    skew_log: str | None = None
    # file or folder of requests that a server recorded, for the part skew
    live_log: str | None = None
    # file or folder of requests that a server recorded: they are the traffic of the part normalisation, at most as many
    # as audit.timelines, drawn at random; they have no labels, so what needs them is left out
    package: str | None = None
    # folder of the package that answered them, for the parts skew and parity, and for audit.live_log
    show: bool = False
    # open the page in a browser at the end
    out: str | None = None
    # folder to write the report to; null is `audit` in the run's folder, where export looks, and for an audit without
    # some of the usual parts `audit/parts` below it

    @property
    def whole(self) -> bool:
        """Whether it looks at all that a release needs."""
        return {Part.normalisation, Part.calibration, Part.data, Part.tables} <= set(self.parts)

    def __post_init__(self) -> None:
        if not self.parts:
            raise ConfigError(f"audit.parts is empty: choose of {', '.join(part.value for part in Part)}")
        if Part.skew in self.parts and (self.skew_log is None or self.package is None):
            raise ConfigError("audit.parts has skew, which needs audit.skew_log=FILE and audit.package=FOLDER")
        if Part.parity in self.parts and self.package is None:
            raise ConfigError("audit.parts has parity, which needs audit.package=FOLDER")
        if self.live_log is not None:
            if self.package is None:
                raise ConfigError(
                    f"audit.live_log={self.live_log} needs audit.package=FOLDER, the one that answered: it says how "
                    "ids are coded"
                )
            if Part.normalisation not in self.parts:
                raise ConfigError(
                    f"audit.live_log={self.live_log} is the traffic of the part normalisation: have it in audit.parts"
                )
        if self.fix is Fix.rebuild and self.dataset is not None:
            raise ConfigError(
                f"audit.dataset={self.dataset} is for looking: a repair (audit.fix) needs the run's own data"
            )
        if self.fix is Fix.rebuild and Part.normalisation not in self.parts:
            raise ConfigError("audit.fix=rebuild mends the normalisation: have it in audit.parts")
        for name in ("timelines", "timelines_per_batch", "reference_timelines", "fix_timelines"):
            if getattr(self, name) < 1:
                raise ConfigError(f"audit.{name}={getattr(self, name)} must be at least 1")
        if self.reference_days < 0:
            raise ConfigError(f"audit.reference_days={self.reference_days} must be 0 or more")
        for name in ("shift", "kl", "ratio", "calibration"):
            warn, critical = getattr(self, f"warn_{name}"), getattr(self, f"critical_{name}")
            least = 1.0 if name in ("ratio", "calibration") else 0.0
            if not least < warn <= critical:
                raise ConfigError(
                    f"audit.warn_{name}={warn:g} and audit.critical_{name}={critical:g} must be above {least:g}, "
                    "the second not below the first"
                )
        for name in ("max_auc_cost", "max_log_loss_cost"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"audit.{name}={getattr(self, name)} must be 0 or more")
        for name in ("first_day", "last_day"):
            day = getattr(self, name)
            try:
                if day is not None:
                    date.fromisoformat(day)
            except ValueError:
                raise ConfigError(f"audit.{name}={day} is no day: write it as 2017-11-20") from None
