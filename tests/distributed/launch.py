"""Runs programs as real processes beside each other: ranks that talk over gloo, or whole launches of torchrun."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]
TIMEOUT_SECONDS = 240
END_SECONDS = 40
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def run_ranks(module: str, *arguments: str | Path, world_size: int, local_size: int | None = None) -> list[str]:
    """stdout of `python -m module arguments` by rank; fails with the first failing rank's stderr.

    `local_size`: ranks of a host (None: one host). Hosts are only told apart by the variables that a launcher sets.
    """
    local_size = local_size or world_size
    command = [sys.executable, "-m", module, *map(str, arguments)]
    with kept_port() as port:
        variables = [
            {
                "RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "LOCAL_RANK": str(rank % local_size),
                "LOCAL_WORLD_SIZE": str(local_size),
                "GROUP_RANK": str(rank // local_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            for rank in range(world_size)
        ]
        return run_together([command] * world_size, variables)


@contextlib.contextmanager
def kept_port() -> Iterator[int]:
    """A port that nobody else is given in the block: bound, but without a listener, so that rank 0 can listen there."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def run_together(commands: Sequence[Sequence[str]], variables: Sequence[Mapping[str, str]] | None = None) -> list[str]:
    """stdout of commands that run at the same time; fails with the stderr of the first in order that failed.

    None of them is left when this returns or raises.
    """
    with contextlib.ExitStack() as ends:
        running = [
            ends.enter_context(_running(command, own))
            for command, own in zip(commands, variables or [{}] * len(commands), strict=True)
        ]
        for number, (process, _, errors) in enumerate(running):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=TIMEOUT_SECONDS)
            status = process.returncode  # None: not over in time
            assert status == 0, f"{number} of {commands[number]} ended with {status}:\n{_text(errors)}"
        return [_text(output) for _, output, _ in running]


@contextlib.contextmanager
def _running(
    command: Sequence[str], variables: Mapping[str, str]
) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes], IO[bytes]]]:
    """The process and what it writes, in files: a full pipe would stop it. Ended with the block."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    with (
        tempfile.TemporaryFile() as output,
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=errors) as process,
    ):
        try:
            yield process, output, errors
        finally:
            process.terminate()  # torchrun ends its own; after SIGKILL they would stay
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
            process.kill()


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()
