"""Processes of one job: who am I, and the process group they talk through. The only reader of the environment.

A job runs as one process, or as the processes that torchrun (or torchx) starts. torch is imported inside the
functions that need it, so that asking for the rank costs nothing.
"""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from stack.base.errors import MachineError
from stack.base.roll_call import failed_in_collective, missing_error, missing_ranks

if TYPE_CHECKING:
    import torch
    from torch.distributed import Store  # type: ignore[attr-defined]  # not in the stubs' __all__


@dataclass(frozen=True, kw_only=True)
class World:
    """The place of this process in the job, as the launcher tells it."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    attempt: int = 0
    launched: bool = False

    @property
    def first(self) -> bool:
        """Whether this is the process that speaks and writes for all."""
        return self.rank == 0


def world() -> World:
    """Reads the launcher's variables; a process started by hand is alone in its world.

    Raises: `MachineError` where only a part of the variables is set, or a value is no number or out of range.
    """
    if "WORLD_SIZE" not in os.environ and "RANK" not in os.environ:
        return World()
    found = World(
        rank=_number("RANK"),
        size=_number("WORLD_SIZE"),
        local_rank=_number("LOCAL_RANK", default="0"),
        local_size=_number("LOCAL_WORLD_SIZE", default=os.environ.get("WORLD_SIZE")),
        attempt=_number("TORCHELASTIC_RESTART_COUNT", default="0"),
        launched=True,
    )
    if not 0 <= found.rank < found.size:
        raise MachineError(
            f"RANK={found.rank} must be below WORLD_SIZE={found.size}: start the processes with torchrun"
        )
    return found


def home_cache() -> str:
    """Folder for files that may be deleted at any time: `$XDG_CACHE_HOME` or `~/.cache`."""
    return os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")


def java_home() -> str | None:
    """The Java that Spark will start, where `$JAVA_HOME` names one."""
    return os.environ.get("JAVA_HOME") or None


def completion_line() -> str:
    """The command line that a shell asks to complete, as far as it is typed."""
    return os.environ.get("COMP_LINE", "")


def replace_completion_line(line: str) -> None:
    """Changes what Hydra's completion will read as the command line."""
    os.environ["COMP_LINE"] = line


def share_cores() -> None:
    """Lets compute threads sleep while they wait for each other; call before torch is imported.

    By default they spin, and beside other busy processes two threads on two cores took 4,308 ms for a training step of
    535 ms on one; sleeping they took 790 ms. What the user's environment says goes first.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def own_device() -> torch.device:
    """This process's accelerator (`cuda:<local rank>`), or the CPU where there is none."""
    import torch

    return torch.device("cuda", world().local_rank) if torch.cuda.is_available() else torch.device("cpu")


@contextmanager
def process_group(
    *, device: torch.device, timeout_seconds: float = 1800.0, collective_timeout_seconds: float | None = None
) -> Iterator[World]:
    """Joins the job's process group (nccl and gloo on CUDA, gloo on CPU) and leaves it at the end of the block.

    `timeout_seconds` is how long processes wait for each other to start, `collective_timeout_seconds` (None: as long)
    how long for each other afterwards. Raises `MachineError` where they do not meet, and naming the missing ranks where
    a collective of gloo fails; NCCL ends the process itself.

    Alone in its world, a process gets a group of one with a store of its own: no port, no network. Under a launcher
    that keeps one store over restarts, the store is prefixed by the number of the restart: without the prefix
    a restarted rank reads the address of a dead one ("connectFullMesh failed ... Connection refused").

    Gloo's threads end with the last reference to the group, and must end before Python does: one that lets go of a
    tensor while the interpreter shuts down aborts a process that has done its work ("terminate called without an
    active exception", pytorch issue 190489). So the two modules of torch that keep, as a default argument, whichever
    group there is when they are first imported are imported here, before there is one; and what is left in reference
    cycles (DDP, torchrec) is collected at exit.
    """
    import torch
    import torch.distributed as dist
    import torch.distributed.nn.functional
    import torch.distributed.optim.zero_redundancy_optimizer
    from torch.distributed.distributed_c10d import _set_pg_timeout

    here = world()
    os.environ.setdefault("LOCAL_WORLD_SIZE", str(here.local_size))  # torchrec would guess
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store = _meet(here, backend, timeout_seconds=timeout_seconds)
    atexit.unregister(gc.collect)  # once is enough, of however many groups
    atexit.register(gc.collect)
    try:
        if collective_timeout_seconds is not None and here.size > 1:
            dist.barrier()
            _set_pg_timeout(timedelta(seconds=collective_timeout_seconds))
        yield here
    except RuntimeError as error:
        if here.size == 1 or not failed_in_collective(error):
            raise
        missing = missing_ranks(store, rank=here.rank, world_size=here.size)
        if not missing:
            raise
        waited = timeout_seconds if collective_timeout_seconds is None else collective_timeout_seconds
        raise missing_error(missing, world_size=here.size, timeout_seconds=waited) from error
    finally:
        dist.destroy_process_group()


def _meet(here: World, backend: str, *, timeout_seconds: float) -> Store:
    """Makes the group, once all processes are there; the store through which they met."""
    import torch.distributed as dist
    from torch.distributed import HashStore, PrefixStore  # type: ignore[attr-defined]  # not in the stubs' __all__
    from torch.distributed.rendezvous import rendezvous

    timeout = timedelta(seconds=timeout_seconds)
    if not here.launched:
        alone: Store = HashStore()
        dist.init_process_group(backend, store=alone, rank=0, world_size=1, timeout=timeout)
        return alone
    address, port = os.environ.get("MASTER_ADDR"), _number("MASTER_PORT")
    if not address:
        raise MachineError("the environment variable MASTER_ADDR is not set: start the processes with torchrun")
    try:
        shared, _, _ = next(iter(rendezvous("env://", timeout=timeout)))
        store: Store = PrefixStore(_generation(here), shared)
        dist.init_process_group(backend, store=store, rank=here.rank, world_size=here.size, timeout=timeout)
    except RuntimeError as error:
        if not failed_in_collective(error):
            raise
        raise MachineError(
            f"rank {here.rank} of {here.size} has not met all others at {address}:{port} within {timeout_seconds:g} s: "
            "one of them did not start (its log says why), or cannot be reached from here"
        ) from error
    return store


def _generation(here: World) -> str:
    """A name that all processes of this start of the job have in common, and those of earlier starts have not.

    torchrun's agents count restarts each for itself, and an agent that takes a lost one's place begins at 0. So on
    several hosts each start must have a store of its own. (torch also leaves such an agent waiting for the address of
    the shared store, which the others do not tell again.)
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return "start"
    if _number("GROUP_WORLD_SIZE", default="1") > 1 and _number("TORCHELASTIC_MAX_RESTARTS", default="0"):
        raise MachineError(
            "torchrun on several hosts with restarts shares one store between starts, and a restart would hang: set "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun, or start with `stack launch`, which does"
        )
    return f"attempt-{here.attempt}"


def _number(name: str, *, default: str | None = None) -> int:
    text = os.environ.get(name, default)
    if text is None or not text.isdecimal():
        raise MachineError(
            f"the environment variable {name}={text!r} must be a whole number: start the processes with torchrun"
        )
    return int(text)
