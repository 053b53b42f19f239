"""What the last audit of a version says about its release: it stops export where a finding is critical."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from stack.audits.config import AuditConfig
from stack.audits.findings import Level
from stack.audits.report import FORMAT_VERSION, REPORT, AuditReport
from stack.base.errors import AuditError
from stack.export.config import Allow, AuditGate, ExportConfig
from stack.export.package import Finding
from stack.telemetry.console import say

_PARTS = tuple(part.value for part in AuditConfig().parts)
"""That are looked at where nobody says otherwise: an audit of others alone does not tell whether to release."""


def audit_findings(folder: Path, *, run: str, version: int, config: ExportConfig) -> tuple[Finding, ...]:
    """Of the report in `folder` where it is of this version: what the package is to say of itself, critical ones among
    them only where they are allowed (`export.allow`).

    Raises: `AuditError` where a critical finding is not allowed, or an audit of all that a version alone tells
    (`audit.parts` as they are) is required and there is none.
    """
    if config.audit is AuditGate.ignored:
        return ()
    report = _report_of(folder, run=run, version=version)
    missing = _PARTS if report is None else [part for part in _PARTS if part not in report.parts]
    if missing:
        of = "" if report is None else f" for {', '.join(missing)}"
        line = f"version {version} of {run} was not audited{of}: `stack audit run.name={run} audit.version={version}`"
        if config.audit is AuditGate.required:
            raise AuditError(f"{line} first, or set export.audit=if_audited")
        say(f"note: {line} tells whether it may be released")
    if report is None:
        return ()
    critical = [finding for finding in report.findings if finding.level is Level.critical]
    if critical and Allow.critical_findings not in config.allow:
        raise AuditError(
            f"version {version} of {run} is not exported: its audit of {report.created} has {len(critical)} critical "
            f"findings ({folder / REPORT}), the first: {critical[0].line}; mend it, or export it on record with "
            "export.allow=[critical_findings]"
        )
    for finding in critical:
        say(f"exported although {finding.line}", file=sys.stderr)
    return tuple(
        Finding(name=one.name, level=one.level.value, measured=one.measured, allowed=one.allowed)
        for one in report.findings
    )


def _report_of(folder: Path, *, run: str, version: int) -> AuditReport | None:
    """None where there is none of this version. Raises: `AuditError` where the file cannot be read."""
    path = folder / REPORT
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        if msgspec.json.decode(data, type=_Format).format_version != FORMAT_VERSION:
            return None  # of other code, which had other parts
        report = msgspec.json.decode(data, type=AuditReport)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise AuditError(f"{path} cannot be read ({error}): audit the version again") from error
    return report if (report.run, report.version) == (run, version) else None


class _Format(msgspec.Struct):
    format_version: int
