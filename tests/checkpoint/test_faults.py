"""Kills and errors of the system at every call of saving, compacting and pruning: a reader sees the old or the new, and
trying again comes to the same as if nothing had happened."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.launch import ROOT

NEEDED_CALLS = {
    "first": {"write", "fsync", "mkdir", "link", "rename", "unlink"},
    "save": {"write", "fsync", "mkdir", "link", "unlink"},
    "compact": {"write", "fsync", "mkdir", "link", "unlink"},
    "prune": {"fsync", "mkdir", "link", "rename", "unlink", "rmdir"},
}


def _count(folder: Path, *options: str) -> list[dict[str, Any]]:
    """Rows of `tests.checkpoint.count_faults`; in memory where there is such a file system."""
    memory = Path("/dev/shm")
    place = memory if memory.is_dir() else folder
    done = subprocess.run(
        [sys.executable, "-m", "tests.checkpoint.count_faults", "--json", "--folder", str(place), *options],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if "strace cannot be used here" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.stdout.startswith("["), done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    assert not [wrong for row in rows for wrong in row["wrong"]]
    for action, calls in NEEDED_CALLS.items():
        assert calls <= {row["call"] for row in rows if row["action"] == action}, action
    for row in rows:
        assert row["old"] + row["new"] + row["between"] == row["points"], row
        assert not row["between"] or row["action"] == "prune", row
    assert sum(row["new"] for row in rows) > 20
    assert sum(row["old"] for row in rows) > 20
    return rows


def _strace() -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")


@pytest.mark.slow
def test_the_kernel_disturbs_every_kind_of_call(tmp_path: Path) -> None:
    _strace()
    _count(tmp_path, "--quick", "--injector", "strace", "--fault", "kill", "--fault", "EIO")


@pytest.mark.slow
def test_functions_of_the_system_fail_or_kill_or_lose_their_answer(tmp_path: Path) -> None:
    faults = ("ENOSPC", "lost") if shutil.which("strace") else ("kill", "ENOSPC", "EIO", "lost")
    _count(tmp_path, "--quick", "--injector", "python", *(word for one in faults for word in ("--fault", one)))


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("injector", ["strace", "python"])
def test_every_single_call_can_fail(tmp_path: Path, injector: str) -> None:
    if injector == "strace":
        _strace()
    rows = _count(tmp_path, "--injector", injector)
    assert sum(row["points"] for row in rows) > 500
