"""`parity.json` of a package, as an audit tells it."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from stack.audits.findings import Level
from stack.base.errors import PackageError
from stack.export.package import PARITY, Parity, read_manifest
from stack.export.parity_report import ParityReport, findings, html, parity_section, tables
from stack.telemetry.console import show
from tests.audits.test_page import read


@pytest.fixture
def written(toy: Path, tmp_path: Path) -> Path:
    """A package whose file says that one output of two is off."""
    folder = shutil.copytree(toy, tmp_path / "package")
    exact = Parity(
        tolerance=1e-4, num_moments=7, num_examples={"ctr": 30}, max_abs_difference={"ctr": 2e-6, "vector": 0.5}
    )
    served = msgspec.structs.replace(exact, max_abs_difference={"ctr": float("0.00009")})
    (folder / PARITY).write_bytes(msgspec.json.encode({"onnx": {"fp32": exact, "served": served}}))
    return folder


def test_every_output_of_every_format_and_type_of_row_is_told(
    written: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = parity_section(written)
    assert report.package == read_manifest(written).digest
    assert [(one.graph_format, one.rows, one.output, one.num_compared, one.difference) for one in report.outputs] == [
        ("onnx", "fp32", "ctr", 30, 2e-6), ("onnx", "fp32", "vector", 7, 0.5), ("onnx", "served", "ctr", 30, 9e-5),
    ]  # fmt: skip
    (found,) = findings(report)
    assert found.level is Level.critical
    assert found.line == (
        "vector of the package is not what was trained: 0.5 (onnx, rows fp32), allowed is export.tolerance=0.0001: "
        "export the package again"
    )
    assert msgspec.json.decode(msgspec.json.encode(report), type=ParityReport) == report
    assert "served" in read(html(report)).text
    show(tables(report)[0])
    assert "The package against the trained model, as exported" in capsys.readouterr().out


def test_a_package_that_was_compared_with_nothing_or_whose_file_is_damaged_is_told(written: Path) -> None:
    (written / PARITY).write_bytes(b"{}")
    (found,) = findings(parity_section(written))
    assert found.level is Level.critical
    assert found.name == "the package was compared with nothing"
    (written / PARITY).write_bytes(b"{")
    with pytest.raises(PackageError, match=r"parity.json cannot be read: .*: export the package again"):
        parity_section(written)
    (written / PARITY).unlink()
    with pytest.raises(PackageError, match=r"parity.json cannot be read"):
        parity_section(written)
