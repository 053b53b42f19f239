"""Export asks the last audit of the version whether it may."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from stack.audits.config import AuditConfig
from stack.audits.findings import Finding, Level
from stack.audits.report import FORMAT_VERSION, REPORT, AuditReport
from stack.audits.sections import Part, PartReport
from stack.base.errors import AuditError, ConfigError
from stack.export.audited import audit_findings
from stack.export.config import Allow, AuditGate, ExportConfig
from stack.export.export import Trained, export

CRITICAL = Finding(
    level=Level.critical, name="drift between ranks", measured="0.3", allowed="none", remedy="train anew"
)
WARNING = Finding(level=Level.warning, name="volume", measured="2", allowed="1", remedy="look")


def write_report(
    folder: Path, *findings: Finding, run: str = "demo", version: int = 5, form: int = FORMAT_VERSION,
    parts: Sequence[Part] = tuple(AuditConfig().parts),
) -> None:  # fmt: skip
    report = AuditReport(
        format_version=form, run=run, version=version, step=9, dataset="d", created="2026-11-28", code_version="c",
        days=("2026-11-27",), reference_days=(), traffic="live", num_timelines=5, steps_per_day=10.0, rank_spread=None,
        level=Level.ok, findings=findings, layers=(), effects=(),
        parts={part.value: PartReport(findings=()) for part in parts},
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / REPORT).write_bytes(msgspec.json.encode(report))


def asked(folder: Path, **options: object) -> list[tuple[str, str]]:
    found = audit_findings(folder, run="demo", version=5, config=ExportConfig(**options))  # type: ignore[arg-type]
    return [(one.name, one.level) for one in found]


def test_a_critical_finding_stops_export_and_says_how_to_go_on(tmp_path: Path) -> None:
    write_report(tmp_path, CRITICAL, WARNING)
    with pytest.raises(
        AuditError, match="version 5 of demo is not exported: its audit of 2026-11-28 has 1 critical"
    ) as told:
        asked(tmp_path)
    assert "drift between ranks: 0.3, allowed is none: train anew; mend it, or export it on record with " in str(
        told.value
    )
    assert str(told.value).endswith("export.allow=[critical_findings]")


def test_what_is_allowed_is_on_record_and_warnings_always_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_report(tmp_path, CRITICAL, WARNING)
    recorded = asked(tmp_path, allow=[Allow.critical_findings])
    assert recorded == [("drift between ranks", "critical"), ("volume", "warning")]
    assert "exported although drift between ranks: 0.3" in capsys.readouterr().err
    write_report(tmp_path, WARNING)
    assert asked(tmp_path) == [("volume", "warning")]
    assert asked(tmp_path, audit=AuditGate.ignored) == []


@pytest.mark.parametrize("other", [{"version": 4}, {"run": "else"}, {"form": FORMAT_VERSION - 1}, None])
def test_an_audit_of_something_else_is_none(
    tmp_path: Path, other: dict[str, object] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if other is not None:
        write_report(tmp_path, CRITICAL, **other)  # type: ignore[arg-type]
    assert asked(tmp_path) == []
    assert "note: version 5 of demo was not audited: `stack audit run.name=demo audit.version=5` tells" in (
        capsys.readouterr().out
    )
    with pytest.raises(AuditError, match="was not audited: .* first, or set export.audit=if_audited"):
        asked(tmp_path, audit=AuditGate.required)


def test_an_audit_of_some_parts_does_not_stand_for_one_of_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_report(tmp_path, WARNING, parts=[Part.parity, Part.data])
    assert asked(tmp_path) == [("volume", "warning")]
    assert "note: version 5 of demo was not audited for normalisation, calibration, tables: `stack audit" in (
        capsys.readouterr().out
    )
    with pytest.raises(AuditError, match="was not audited for normalisation, calibration, tables: .* first, or set"):
        asked(tmp_path, audit=AuditGate.required)
    write_report(tmp_path, CRITICAL, parts=[Part.data])
    with pytest.raises(AuditError, match="version 5 of demo is not exported"):
        asked(tmp_path)


def test_a_report_that_is_cut_off_is_no_report_without_findings(tmp_path: Path) -> None:
    write_report(tmp_path, WARNING)
    (tmp_path / REPORT).write_bytes((tmp_path / REPORT).read_bytes()[:-40])
    with pytest.raises(AuditError, match="cannot be read .*: audit the version again"):
        asked(tmp_path)


def test_the_package_says_what_it_was_exported_in_spite_of(small: Trained, tmp_path: Path) -> None:
    version = small.checkpoint.manifest.version
    write_report(tmp_path / "audit", CRITICAL, run=small.name, version=version)
    config = ExportConfig(parity_timelines=2, quality_timelines=2, num_requests=1)
    with pytest.raises(AuditError, match="is not exported"):
        export(small, folder=tmp_path / "package", config=config, audit=tmp_path / "audit")
    assert not (tmp_path / "package").exists()
    config.allow = [Allow.critical_findings]
    manifest = export(small, folder=tmp_path / "package", config=config, audit=tmp_path / "audit")
    assert (manifest.audits[0].name, manifest.audits[0].level) == (CRITICAL.name, "critical")
    assert b"drift between ranks" in (tmp_path / "package" / "audits.json").read_bytes()


def test_a_delta_cannot_require_what_it_does_not_ask() -> None:
    with pytest.raises(ConfigError, match="export.audit=required is for packages: a delta has rows alone"):
        ExportConfig(delta_of="package", audit=AuditGate.required)
