"""The parts of an audit: what each found, in the forms in which it is told.

Whoever has the means to measure a part makes its section (`stack.verbs`: tables need a checkpoint, skew a package); the
audit puts them together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import msgspec
from rich.table import Table

from stack.audits.findings import Finding


class Part(Enum):
    """What an audit looks at."""

    normalisation = "normalisation"
    """What layers have learnt against live traffic, and what the difference costs."""
    calibration = "calibration"
    """Whether probabilities come true, by slice and by score."""
    data = "data"
    """The days of traffic against the days before them, column by column."""
    tables = "tables"
    """Rows learnt, shared, out of line, not finite; the hottest ids."""
    skew = "skew"
    """Requests that a server recorded, replayed on prepared data (`audit.skew_log`, `audit.package`)."""
    parity = "parity"
    """What export found when it compared a package with the trained model (`audit.package`)."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """One part: `report` for machines, `tables` for the terminal, `html` for the page."""

    report: msgspec.Struct
    findings: Sequence[Finding]
    tables: Sequence[Table]
    html: str


Sections = Mapping[Part, Callable[[tuple[str, ...]], Section]]
"""How parts are looked at, given the days of traffic."""


class PartReport(msgspec.Struct, frozen=True, kw_only=True):
    """A part in `audit.json`: its findings, and its own report as it is (null: the figures of normalisation are those
    of the whole)."""

    findings: tuple[Finding, ...]
    report: msgspec.Raw = msgspec.Raw(b"null")


def part_report(section: Section) -> PartReport:
    return PartReport(
        findings=tuple(section.findings), report=msgspec.Raw(msgspec.json.encode(section.report))
    )  # fmt: skip
