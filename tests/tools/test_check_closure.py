"""The closure check on invented distributions, and on what is installed here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from packaging.version import Version

from tools.check_closure import Installed, faults, installed, unpinned, wrong_pins

ROOT = Path(__file__).parents[2]


def _one(version: str, *requires: str) -> Installed:
    return Installed(version=Version(version), requires=requires)


def test_a_missing_requirement_and_a_wrong_version_are_each_one_line() -> None:
    found = {"a": _one("1.0", "b>=2", "c"), "b": _one("1.9")}
    assert faults(found) == ["a 1.0 requires b>=2: 1.9 is installed", "a 1.0 requires c: not installed"]


def test_markers_that_do_not_hold_here_ask_for_nothing() -> None:
    assert faults({"a": _one("1.0", 'b; python_version < "3.0"', 'c; extra == "more"')}) == []


def test_an_extra_counts_where_another_distribution_asks_for_it() -> None:
    found = {"a": _one("1.0", "b[more]"), "b": _one("1.0", 'c; extra == "more"')}
    assert faults(found) == ['b 1.0 requires c; extra == "more": not installed']


def test_the_cpu_package_stands_in_for_torchrec_alone() -> None:
    cpu = {"fbgemm-gpu-cpu": _one("1.8.0")}
    assert faults({"torchrec": _one("1.8.0", "fbgemm-gpu"), **cpu}) == []
    assert faults({"other": _one("1.0", "fbgemm-gpu"), **cpu}) == ["other 1.0 requires fbgemm-gpu: not installed"]
    assert faults({"torchrec": _one("1.8.0", "fbgemm-gpu")}) == ["torchrec 1.8.0 requires fbgemm-gpu: not installed"]


def test_a_cuda_build_of_torch_on_a_cpu_machine_is_explained() -> None:
    (line,) = faults({"torch": _one("2.13.0", "nvidia-nccl-cu13==2.29.7")})
    assert line.endswith(
        "not installed (this is the CUDA build of torch: see docs/dependencies.md for how to get the CPU build)"
    )


def test_pins_match_the_public_version_and_comments_are_passed_over() -> None:
    found = {"torch": _one("2.13.0+cpu"), "rich": _one("15.0.0")}
    lines = wrong_pins(found, ["# a comment", "", "torch==2.13.0", "rich==14.0.0  # why", "tqdm==4.70.1"])
    assert lines == ["rich==14.0.0: 15.0.0 is installed", "tqdm==4.70.1: not installed"]


def test_what_a_pin_requires_must_be_a_pin() -> None:
    found = {"a": _one("1.0", "b"), "b": _one("1.0", "c"), "c": _one("1.0")}
    assert unpinned(found, ["a==1.0", "b==1.0  # why", "c==1.0"]) == []
    assert unpinned(found, ["a==1.0", "b==1.0"]) == ["b 1.0 requires c: installed, but no pin"]
    assert unpinned(found, ["c==1.0"]) == []


def test_of_two_with_a_name_the_one_that_an_import_finds_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """setuptools, imported, appends a folder with copies of others' distributions to the path."""
    copy = tmp_path / "rich-0.1.dist-info"
    copy.mkdir()
    (copy / "METADATA").write_text("Metadata-Version: 2.1\nName: rich\nVersion: 0.1\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    assert str(installed()["rich"].version) != "0.1"


def test_nothing_is_missing_in_this_environment() -> None:
    found = installed()
    assert faults(found) == []
    every = []
    for name in ("cpu", "build", "launch", "s3", "dev"):
        pins = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
        assert wrong_pins(found, pins) == []
        every += pins
    assert unpinned(found, every) == []


def test_the_cuda_file_differs_from_the_cpu_file_only_by_what_cuda_needs() -> None:
    def pins(name: str) -> set[str]:
        lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
        return {line for line in lines if not line.startswith("#")}

    assert pins("cpu") - pins("cuda") == {"fbgemm-gpu-cpu==1.8.0"}
    assert all(
        line.startswith(("nvidia-", "cuda-", "triton", "fbgemm-gpu==1.8.0")) for line in pins("cuda") - pins("cpu")
    )


@pytest.mark.parametrize("name", ["cpu", "cuda", "build", "launch", "dev", "clients"])
def test_requirements_are_exact_sorted_pins_without_hosts(name: str) -> None:
    lines = [line for line in (ROOT / "requirements" / f"{name}.txt").read_text().splitlines() if line[0] != "#"]
    assert lines == sorted(set(lines), key=lambda line: line.partition("==")[0])
    assert all(line.count("==") == 1 and not set(line) & set(" /:;@*<>") for line in lines)
