"""Runs a test's module as several real processes that talk over gloo, as torchrun would start them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TIMEOUT_SECONDS = 120


def run_ranks(module: str, *arguments: str | Path, world_size: int, local_size: int | None = None) -> list[str]:
    """stdout of `python -m module arguments` by rank; fails with the first failing rank's stderr.

    `local_size`: ranks of a host (None: one host). Hosts are only told apart by the variables that a launcher sets.
    """
    local_size = local_size or world_size
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(world_size):
        environment = os.environ | {
            "RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "LOCAL_RANK": str(rank % local_size),
            "LOCAL_WORLD_SIZE": str(local_size),
            "GROUP_RANK": str(rank // local_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", module, *map(str, arguments)]
        processes.append(
            subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    outputs = []
    try:
        for rank, process in enumerate(processes):
            output, errors = process.communicate(timeout=TIMEOUT_SECONDS)
            assert process.returncode == 0, f"rank {rank} of {module} exited with {process.returncode}:\n{errors}"
            outputs.append(output)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return outputs
