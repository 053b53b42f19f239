"""The report for machines, `audit.json`, as types. `null` stands for a figure that is not defined.

::

    {"format_version": 2, "run": ..., "version": ..., "days": [...], "traffic": "live", "level": "warning",
     "findings": [{"level": "warning", "name": ..., "measured": ..., "allowed": ..., "remedy": ...}],
     "layers": [{"name": "ctr.head.activate.0", "drift": "far off", "channels": [{"shift": .1, ...}], ...}],
     "effects": [{"task": "ctr", "slice": "all", "logit_rmse": ..., "learnt": {"auc": ...}, "live": {"auc": ...}}],
     "parts": {"normalisation": {"findings": [...]}, "tables": {"findings": [...], "report": {...}}, ...}}
"""

from __future__ import annotations

import msgspec

from stack.audits.drivers import Driver
from stack.audits.effect import Effect
from stack.audits.findings import Drift, Finding, Level
from stack.audits.live import LogReport
from stack.audits.rebuild import Repair
from stack.audits.sections import PartReport

FORMAT_VERSION = 2
REPORT, PAGE = "audit.json", "audit.html"


class Channel(msgspec.Struct, frozen=True, kw_only=True):
    """Of one layer: what was learnt, and the traffic's shift (in learnt deviations) and variance ratio, with their
    standard errors."""

    mean: float | None
    variance: float | None
    shift: float | None
    shift_error: float | None
    ratio: float | None
    ratio_error: float | None
    far: float | None


class DayDrift(msgspec.Struct, frozen=True, kw_only=True):
    """A layer on one earlier day: 95% of its channels are off by up to `shift` deviations; mean divergence in nats."""

    day: str
    shift: float | None
    kl: float | None


class LayerReport(msgspec.Struct, frozen=True, kw_only=True):
    """One layer: figures over its channels that are neither dead nor broken. `num_requests`: independent requests that
    weigh as much as those seen. `horizon`: batches that the running statistics remember, 1 / momentum. `allowed_*`:
    the larger of the limit and of what days differ by among each other. `logit_rmse`: change of the task's scores
    where this layer alone has live statistics; null for scores that are several. `drivers`: the inputs that make it
    drift, where they are known."""

    name: str
    task: str
    kind: str
    drift: Drift
    num_channels: int
    num_dead: int
    num_broken: int
    num_not_finite: int
    num_batches: int
    horizon: float
    num_rows: int
    num_requests: float
    shift_p50: float | None
    shift_p95: float | None
    shift_max: float | None
    shift_error: float | None
    ratio_p5: float | None
    ratio_p95: float | None
    kl_mean: float | None
    w2_p50: float | None
    far_max: float | None
    allowed_shift: float
    allowed_ratio: float
    allowed_kl: float
    logit_rmse: float | None
    drivers: tuple[Driver, ...]
    channels: tuple[Channel, ...]
    trend: tuple[DayDrift, ...]


class Repaired(msgspec.Struct, frozen=True, kw_only=True):
    """What was mended in version `of` to make the version that the report is about: findings and effects before, and by
    task what calibration did, on users that had no part in it."""

    of: int
    days: tuple[str, ...]
    level: Level
    findings: tuple[Finding, ...]
    effects: tuple[Effect, ...]
    tasks: tuple[Repair, ...]


class AuditReport(msgspec.Struct, frozen=True, kw_only=True):
    """About one version on some days of traffic. `parts`: what was looked at (`stack.audits.sections.Part`), with the
    findings of each; `findings` are all of them, and `layers` and `effects` those of normalisation. `steps_per_day`:
    that a day was worth in training; `rank_spread`: by how much the processes that trained it had other statistics at
    the last save, null where that was not told. `log`: the recorded requests that normalisation was looked at on, where
    `traffic` is `log`: `num_timelines` are theirs, while `days` are what all else was looked at on."""

    format_version: int
    run: str
    version: int
    step: int
    dataset: str
    created: str
    code_version: str
    days: tuple[str, ...]
    reference_days: tuple[str, ...]
    traffic: str
    num_timelines: int
    steps_per_day: float
    rank_spread: float | None
    level: Level
    findings: tuple[Finding, ...]
    layers: tuple[LayerReport, ...]
    effects: tuple[Effect, ...]
    parts: dict[str, PartReport]
    repaired: Repaired | None = None
    log: LogReport | None = None
