"""Traffic that a server recorded, in place of prepared days (`audit.live_log`): what came, without what came of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from stack.data.batch import Batch

LOG = "log"
"""What `AuditReport.traffic` says of it."""


class LogReport(msgspec.Struct, frozen=True, kw_only=True):
    """`num_requests`: those that are the traffic, of `num_lines`; `days` (UTC) are theirs. `skipped`: lines that
    cannot be traffic, by the reason; the others were not drawn."""

    path: str
    days: tuple[str, ...]
    num_lines: int
    num_requests: int
    skipped: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class LiveTraffic:
    """`batches`: one timeline and one moment for each request, candidates without labels, the same each time they are
    gone through."""

    report: LogReport
    batches: Iterable[Batch]
