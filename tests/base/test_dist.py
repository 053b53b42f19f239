"""Who this process is, and the group it talks through: alone, two processes, and after a restart."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed

from stack.base.dist import World, _generation, own_device, process_group, world
from stack.base.errors import MachineError
from tests.distributed.launch import ROOT, kept_port

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT")
SUM_OF_RANKS = """
import sys, torch, torch.distributed
from stack.base.dist import process_group
with process_group(device=torch.device("cpu"), timeout_seconds=60) as here:
    if here.attempt == 0 and here.rank == 1:
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
    value = torch.tensor(10.0 + here.rank)
    torch.distributed.all_reduce(value)
    sys.stdout.write(f"rank {here.rank} of {here.size}, attempt {here.attempt}: {value.item()}\\n")
"""

THREADS_AT_EXIT = """
import atexit, pathlib, sys
def tell():  # the first to register is the last to run
    sys.stdout.write(" ".join(path.read_text().strip() for path in pathlib.Path("/proc/self/task").glob("*/comm")))
atexit.register(tell)
import torch
from stack.base.dist import process_group
with process_group(device=torch.device("cpu")) as here:
    from stack.tables.placement import Sharding
    from tests.tables.worker import Case, build, train
    held = train(build(Case(sharding=Sharding.row_wise), here), here)
    tell()
    sys.stdout.write("\\n")
"""


@pytest.fixture(autouse=True)
def _by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*LAUNCHED, "LOCAL_WORLD_SIZE"):  # a group that was met in this process leaves the last
        monkeypatch.delenv(name, raising=False)


def test_a_process_started_by_hand_is_alone() -> None:
    assert world() == World(rank=0, size=1, local_rank=0, attempt=0, launched=False)


def test_the_launchers_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(LAUNCHED, ("3", "4", "1", "2"), strict=True):
        monkeypatch.setenv(name, value)
    assert world() == World(rank=3, size=4, local_rank=1, local_size=4, attempt=2, launched=True)
    assert not world().first


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "0"}, "WORLD_SIZE=None must be a whole number"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK='x' must be a whole number"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 must be below WORLD_SIZE=2"),
    ],
)
def test_half_set_or_wrong_variables_are_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(MachineError, match=message):
        world()


def test_a_launcher_that_names_no_meeting_place_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with (
        pytest.raises(MachineError, match="MASTER_ADDR is not set: start the processes with torchrun"),
        process_group(device=torch.device("cpu")),
    ):
        raise AssertionError("alone in a world of two")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_whose_peers_do_not_come_says_so(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    variables = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with kept_port() as port:
        monkeypatch.setenv("MASTER_PORT", str(port))
        line = f"rank {rank} of 2 has not met all others at 127.0.0.1:{port} within 2 s: one of them did not start"
        with (
            pytest.raises(MachineError, match=line),
            process_group(device=torch.device("cpu"), timeout_seconds=2.0),
        ):
            raise AssertionError("alone in a world of two")
    assert not torch.distributed.is_initialized()


def test_alone_the_group_is_one_process_without_a_port_and_ends_with_the_block() -> None:
    for _ in range(2):
        with process_group(device=torch.device("cpu")) as here:
            value = torch.tensor(3.0)
            torch.distributed.all_reduce(value)
            assert (here.size, value.item()) == (1, 3.0)
        assert not torch.distributed.is_initialized()


def test_no_thread_of_the_group_is_left_when_python_ends() -> None:
    done = subprocess.run([sys.executable, "-c", THREADS_AT_EXIT], capture_output=True, text=True, check=True)
    inside, at_exit = done.stdout.splitlines()
    assert "pt_gloo_runloop" in inside
    assert "gloo" not in at_exit


def test_the_device_is_the_cpu_where_there_is_no_gpu() -> None:
    assert own_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_two_processes_find_each_other_again_after_one_was_killed(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(SUM_OF_RANKS)
    with kept_port() as port:
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--nnodes=1", "--nproc-per-node=2", "--max-restarts=1"),
            *("--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", str(tmp_path / "job.py")),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [f"rank {rank} of 2, attempt 1: 21.0" for rank in (0, 1)]


def test_hosts_that_share_a_store_between_restarts_are_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = {"TORCHELASTIC_USE_AGENT_STORE": "True", "GROUP_WORLD_SIZE": "2", "TORCHELASTIC_MAX_RESTARTS": "3"}
    for name, value in shared.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(MachineError, match="a restart would hang: set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        _generation(World(rank=1, size=2, launched=True))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    assert _generation(World(rank=1, size=2, attempt=1, launched=True)) == "start"
