"""What export found when it compared a package with the trained model, read back for an audit's report."""

from __future__ import annotations

from pathlib import Path

import msgspec
from rich.table import Table

from stack.audits.findings import Finding, Level
from stack.audits.fragment import number, table
from stack.base.errors import PackageError
from stack.export.package import PARITY, Parity, read_manifest

_HEADINGS = ("format", "rows", "output", "compared", "largest difference", "allowed")


class OutputParity(msgspec.Struct, frozen=True, kw_only=True):
    """The largest absolute difference of one output, in one format with one type of row ("served": as the package keeps
    them). `num_compared`: lines, of moments where it is about the user alone."""

    graph_format: str
    rows: str
    output: str
    num_compared: int
    difference: float
    tolerance: float


class ParityReport(msgspec.Struct, frozen=True, kw_only=True):
    package: str
    outputs: tuple[OutputParity, ...]


def parity_section(package: Path) -> ParityReport:
    """Of a package's `parity.json`. Raises: `PackageError` where it cannot be read."""
    manifest = read_manifest(package)
    try:
        found = msgspec.json.decode((package / PARITY).read_bytes(), type=dict[str, dict[str, Parity]])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PackageError(f"{package / PARITY} cannot be read: {error}: export the package again") from error
    return ParityReport(
        package=manifest.digest,
        outputs=tuple(
            OutputParity(
                graph_format=name, rows=rows, output=output, difference=difference, tolerance=parity.tolerance,
                num_compared=parity.num_examples.get(output, parity.num_moments),
            )
            for name, by_rows in found.items()
            for rows, parity in by_rows.items()
            for output, difference in parity.max_abs_difference.items()
        ),
    )  # fmt: skip


def findings(report: ParityReport) -> list[Finding]:
    """Export refuses what differs, so there is one only where a package was made in another way."""
    found = [
        Finding(
            level=Level.critical, name=f"{one.output} of the package is not what was trained",
            measured=f"{one.difference:.3g} ({one.graph_format}, rows {one.rows})",
            allowed=f"export.tolerance={one.tolerance:g}", remedy="export the package again",
        )
        for one in report.outputs
        if not one.difference <= one.tolerance
    ]  # fmt: skip
    if not report.outputs:
        found.append(
            Finding(
                level=Level.critical, name="the package was compared with nothing", measured="no output",
                allowed="all outputs of all formats", remedy="export the package again",
            )
        )  # fmt: skip
    return found


def tables(report: ParityReport) -> list[Table]:
    shown = Table(title="The package against the trained model, as exported", title_justify="left")
    for heading in _HEADINGS:
        shown.add_column(heading, justify="left" if heading in ("format", "rows", "output") else "right")
    for one in report.outputs:
        shown.add_row(*_cells(one))
    return [shown]


def html(report: ParityReport) -> str:
    return (
        "<h2>Exported and trained alike</h2>"
        "<p>Largest difference of every output, on moments of a day not learnt: exact rows against the trained model, "
        "rounded ones against its modules on the same rounded rows.</p>"
        f"{table(_HEADINGS, map(_cells, report.outputs))}"
    )


def _cells(one: OutputParity) -> list[str]:
    return [
        one.graph_format, one.rows, one.output, f"{one.num_compared:,}", number(one.difference, 2),
        number(one.tolerance),
    ]  # fmt: skip
