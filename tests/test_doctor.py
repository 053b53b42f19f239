"""Each row of the doctor on invented machines, and the verb on this one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stack.doctor import (
    GIB,
    Finding,
    Status,
    check_compiler,
    check_devices,
    check_disk,
    check_memory,
    check_operators,
    check_python,
    check_spark,
    check_triple,
    doctor,
)

RIGHT = {"torch": "2.13.0+cpu", "torchrec": "1.8.0", "fbgemm-gpu": None, "fbgemm-gpu-cpu": "1.8.0"}


def test_this_machine_has_nothing_that_fails_and_machines_can_read_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(["--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["what"] for row in rows] == [
        "Python", "torch, torchrec, fbgemm", "fbgemm operators", "devices", "memory", "disk", "Spark", "C++ compiler",
    ]  # fmt: skip
    assert {row["status"] for row in rows} <= {"ok", "warn"}
    assert rows[2]["found"] == "load and run"


def test_another_python_fails() -> None:
    assert check_python((3, 11, 7)).status is Status.OK
    finding = check_python((3, 12, 1))
    assert (finding.status, finding.found) == (Status.FAIL, "3.12.1")
    assert finding.way_out.endswith("make demo PYTHON=python3.11")


@pytest.mark.parametrize(
    ("changes", "status", "found", "way_out"),
    [
        ({}, Status.OK, "torch 2.13.0+cpu, torchrec 1.8.0, fbgemm-gpu-cpu 1.8.0", ""),
        (
            {"torchrec": "1.7.0"},
            Status.WARN,
            "torch 2.13.0+cpu, torchrec 1.7.0, fbgemm-gpu-cpu 1.8.0",
            "not tested together (torch 2.13.0, torchrec 1.8.0, fbgemm 1.8.0 are)",
        ),
        ({"fbgemm-gpu-cpu": None}, Status.FAIL, "fbgemm-gpu missing", "install the tested closure"),
        ({"torch": None}, Status.FAIL, "torch missing", "install the tested closure"),
        (
            {"fbgemm-gpu": "1.8.0"},
            Status.FAIL,
            "fbgemm-gpu 1.8.0, fbgemm-gpu-cpu 1.8.0",
            "overwrite each other's files",
        ),
    ],
)
def test_the_triple_is_held_against_the_tested_ones(
    changes: dict[str, str | None], status: Status, found: str, way_out: str
) -> None:
    finding = check_triple(RIGHT | changes)
    assert finding.status is status
    assert found in finding.found
    assert way_out in finding.way_out


def test_operators_that_do_not_load_fail_with_the_loaders_first_line() -> None:
    def broken() -> None:
        raise OSError("undefined symbol: _ZN5torch\nand more")

    assert check_operators(broken) == Finding(
        what="fbgemm operators",
        found="undefined symbol: _ZN5torch",
        status=Status.FAIL,
        way_out="this build of fbgemm is for another torch: rm -r .venv && make demo",
    )


def test_a_gpu_that_torch_does_not_see_is_pointed_out() -> None:
    assert check_devices(list, driver=False) == Finding(what="devices", found="CPU only")
    assert check_devices(lambda: ["H100 (80 GiB)"], driver=True).found == "H100 (80 GiB)"
    finding = check_devices(list, driver=True)
    assert finding.status is Status.WARN
    assert finding.way_out.endswith("make demo CLOSURE=cuda")


def test_little_memory_or_disk_is_a_warning_with_the_figure() -> None:
    assert check_memory(6 * GIB, num_cores=2) == Finding(what="memory", found="6.0 GiB free, 2 cores")
    assert check_memory(6 * GIB - 1, num_cores=2).status is Status.WARN
    assert check_disk(5 * GIB, Path("/d")) == Finding(what="disk", found="5.0 GiB free in /d")
    assert check_disk(GIB, Path("/d")).way_out.startswith("the demo may write 5 GiB")


@pytest.mark.parametrize(
    ("pyspark", "java", "found", "way_out"),
    [
        ("4.3.0", 'openjdk version "17.0.1" 2021-10-19', "pyspark 4.3.0, Java 17", ""),
        ("4.3.0", 'java version "1.8.0_312"', "pyspark 4.3.0, Java 1", "install Java 17 or later"),
        ("4.3.0", None, "pyspark 4.3.0, Java missing", "only ingest.engine=spark needs it: install Java 17 or later"),
        (None, 'openjdk version "21" 2023', "pyspark missing, Java 21", "requirements/dev.txt"),
    ],
)
def test_spark_needs_pyspark_and_java_17(pyspark: str | None, java: str | None, found: str, way_out: str) -> None:
    finding = check_spark(pyspark, java)
    assert finding.found == found
    assert way_out in finding.way_out
    assert finding.status is (Status.WARN if way_out else Status.OK)


def test_a_missing_compiler_is_a_warning() -> None:
    assert check_compiler("g++ 12.2.0").status is Status.OK
    assert check_compiler(None).status is Status.WARN
