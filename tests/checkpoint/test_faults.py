"""Kills and errors of the system at every call of saving, compacting and pruning: a reader sees the old or the new, and
trying again comes to the same as if nothing had happened."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stack.base.errors import CheckpointError
from stack.checkpoint.chain import chain_of
from stack.checkpoint.retain import prune
from stack.checkpoint.verify import verify
from tests.checkpoint.chains import DELTAS, Toy, check
from tests.checkpoint.fault_worker import KEEP
from tests.distributed.launch import ROOT

NEEDED_CALLS = {
    "first": {"write", "fsync", "mkdir", "link", "rename", "unlink"},
    "save": {"write", "fsync", "mkdir", "link", "unlink"},
    "compact": {"write", "fsync", "mkdir", "link", "unlink"},
    "prune": {"fsync", "mkdir", "link", "rename", "unlink", "rmdir"},
}


def _run(module: str, folder: Path, *options: str) -> list[dict[str, Any]]:
    """Rows that a program tells; in memory where there is such a file system."""
    memory = Path("/dev/shm")
    place = memory if memory.is_dir() else folder
    done = subprocess.run(
        [sys.executable, "-m", f"tests.checkpoint.{module}", "--json", "--folder", str(place), *options],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if "strace cannot be used here" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.stdout.startswith("["), done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    assert not [wrong for row in rows for wrong in row["wrong"]]
    return rows


def _count(folder: Path, *options: str) -> list[dict[str, Any]]:
    rows = _run("count_faults", folder, *options)
    for action, calls in NEEDED_CALLS.items():
        assert calls <= {row["call"] for row in rows if row["action"] == action}, action
    for row in rows:
        assert row["old"] + row["new"] + row["between"] == row["points"], row
        assert not row["between"] or row["action"] == "prune", row
    assert sum(row["new"] for row in rows) > 10
    assert sum(row["old"] for row in rows) > 10
    return rows


def _strace() -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")


@pytest.mark.slow
def test_the_kernel_disturbs_every_kind_of_call(tmp_path: Path) -> None:
    _strace()
    _count(tmp_path, "--quick", "--injector", "strace", "--fault", "kill")


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


def _kill_ranks(folder: Path, *options: str) -> int:
    rows = _run("kill_ranks", folder, *options)
    assert {(row["world_size"], row["rank"]) for row in rows} == {(n, rank) for n in (2, 4) for rank in range(n)}
    assert all(row["old"] + row["new"] == row["points"] for row in rows)
    assert sum(row["old"] for row in rows) > 5
    return sum(row["points"] for row in rows)


@pytest.mark.slow
def test_any_of_two_or_four_processes_can_be_killed_while_they_save(tmp_path: Path) -> None:
    _kill_ranks(tmp_path, "--quick")


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_any_of_two_or_four_processes_can_be_killed_at_every_call(tmp_path: Path) -> None:
    assert _kill_ranks(tmp_path) > 150


def _lose_power(folder: Path, *options: str) -> int:
    if not Path("/dev/shm").is_dir():
        pytest.skip("it needs a file system in memory (/dev/shm), which never uses the number of a file again")
    rows = _run("lose_power", folder, *options)
    assert {row["action"] for row in rows} == {*NEEDED_CALLS}
    assert all(row["old"] + row["new"] + row["between"] == row["points"] for row in rows)
    assert all(row["old"] and row["new"] for row in rows)
    return sum(row["points"] for row in rows)


@pytest.mark.slow
def test_what_was_not_flushed_can_be_lost_with_the_power(tmp_path: Path) -> None:
    _lose_power(tmp_path, "--every", "9")


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_power_can_go_before_every_call(tmp_path: Path) -> None:
    assert _lose_power(tmp_path) > 500


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "none", str(place)], capture_output=True, text=True
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_full_keeps_what_there_is_and_pruning_makes_room(small_disk: Path) -> None:
    chain = chain_of(small_disk, for_writing=True)
    toy = Toy(tables={"item": (700, 8)})
    whole = replace(DELTAS, max_deltas=0)
    toys = []

    def days() -> None:
        for _ in range(9):
            toy.train()
            toys.append(toy.copy())
            toy.save(chain, options=whole)

    with pytest.raises(CheckpointError, match="was not written: .*No space left on device.*older versions are as"):
        days()
    assert len(chain.numbers()) == len(toys) - 1 > 2
    for number in chain.numbers():
        check(chain, chain.manifest(number), toys[number - 1])
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "rest").write_bytes(b"1" * 300_000)  # not a byte is left
    with pytest.raises(CheckpointError, match="was not written"):
        toy.save(chain, options=whole)
    prune(chain, KEEP)  # marks take no room
    (small_disk / "rest").unlink()
    saved = toy.save(chain, options=whole)
    assert saved.version == len(toys)
    check(chain, saved, toy)
    prune(chain, KEEP)
    assert not verify(chain).findings
