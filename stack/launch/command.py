"""From `stack launch <verb> ...` to the torchx command that does it."""

from __future__ import annotations

import importlib.util
import os
import shlex
import sys
from pathlib import Path

from stack.base.errors import MachineError
from stack.launch.checks import check_for_torchx, check_job, check_machine
from stack.launch.config import LaunchConfig, Scheduler
from stack.launch.request import Place, Request
from stack.tables.cluster import ClusterConfig, Device
from stack.telemetry.console import say

LOGS = "logs"
MIB_PER_GIB = 1024

_AGENT_VERBS = ("train", "daily")
_LOOPBACK = "127.0.0.1"


def run_torchx(request: Request, *, launch: LaunchConfig, cluster: ClusterConfig, place: Place) -> None:
    """Shows the torchx command and becomes it: signals and the exit status are torchx's own. Does not return."""
    if importlib.util.find_spec("torchx") is None:
        raise MachineError("stack launch needs torchx: pip install --no-deps -r requirements/launch.txt")
    words = torchx_words(request, launch=launch, cluster=cluster, place=place)
    check_for_torchx(launch)
    if not (request.dry_run or launch.dry_run):
        check_machine(launch.scheduler)
    say(f"$ torchx {shlex.join(words)}")
    os.execv(sys.executable, [sys.executable, "-m", "torchx.cli.main", *words])


def torchx_words(request: Request, *, launch: LaunchConfig, cluster: ClusterConfig, place: Place) -> list[str]:
    """The words after `torchx`.

    Raises: `ConfigError` where the job cannot be as it was asked for.
    """
    check_job(request.verb, launch=launch, cluster=cluster, place=place)
    scheduler_args = _scheduler_args(launch, place)
    words = ["run", "--scheduler", launch.scheduler.value]
    words += ["--scheduler_args", _pairs(scheduler_args)] if scheduler_args else []
    words += ["--dryrun"] if request.dry_run or launch.dry_run else []
    words += ["--workspace", "", f"{components_file()}:{request.verb}"]
    words += [f"--{name}={value}" for name, value in _arguments(request.verb, launch, cluster, place).items()]
    return [*words, "--", *_forwarded(request)]


def components_file() -> Path:
    """The file of components: inside the package when it is installed from a wheel, in `launch/` in a checkout."""
    inside = Path(__file__).parent / "components.py"
    return inside if inside.is_file() else Path(__file__).parents[2] / "launch" / "components.py"


def _arguments(verb: str, launch: LaunchConfig, cluster: ClusterConfig, place: Place) -> dict[str, str | int]:
    """The component's own arguments."""
    alone = verb not in _AGENT_VERBS
    gpus = 0 if cluster.device is Device.cpu or verb in ("ingest", "serve") else 1 if alone else cluster.local_size
    memory_gib = cluster.host_bytes / 2**30 if launch.memory_gib is None else launch.memory_gib
    arguments: dict[str, str | int] = {
        "name": f"stack-{verb}" if not launch.rendezvous else f"stack-{verb}-{place.name}",
        "cpu": launch.cpus_per_process * (1 if alone else cluster.local_size),
        "gpu": gpus,
        "memory_mib": int(memory_gib * MIB_PER_GIB),
        "instance_type": launch.instance_type,
        "image": launch.image,
        "env": shlex.join(f"{name}={value}" for name, value in launch.env.items()),
        "mounts": ",".join(launch.mounts),
        "retries": _retries(launch),
        "python": launch.python or ("python" if launch.scheduler.runs_images else sys.executable),
    }
    if verb == "serve":
        arguments |= {"replicas": cluster.hosts, "port": place.serve_port}
    if not alone:
        arguments |= {
            "processes": cluster.local_size,
            "max_restarts": launch.max_restarts,
            "log_dir": str(place.folder / LOGS),
            "shutdown_seconds": launch.shutdown_seconds,
            "local_addr": launch.local_addr or (_LOOPBACK if _all_here(launch) else ""),
        }
        arguments |= {"hosts": cluster.hosts, "min_hosts": launch.min_hosts or 0}
        arguments |= {"rendezvous": launch.rendezvous, "port": launch.port}
    return {name: value for name, value in arguments.items() if value != ""}


def _retries(launch: LaunchConfig) -> int:
    """What torchx is to be told: AWS Batch, and Volcano where there are any, read it as the number of all starts."""
    first = launch.scheduler is Scheduler.aws_batch or (launch.scheduler is Scheduler.kubernetes and launch.retries > 0)
    return launch.retries + first


def _scheduler_args(launch: LaunchConfig, place: Place) -> dict[str, str]:
    """Those given; a local job leaves its stream in the run folder."""
    if launch.scheduler is Scheduler.local_cwd:
        return {"log_dir": str(place.folder / LOGS)} | launch.scheduler_args
    return dict(launch.scheduler_args)


def _forwarded(request: Request) -> list[str]:
    """The options that the verb itself is to read; those that describe the launch stay here."""
    here = {"launch"} if request.verb in _AGENT_VERBS else {"launch", "cluster"}
    return [option for option in request.options if option.lstrip("+~").split("=")[0].split(".")[0] not in here]


def _all_here(launch: LaunchConfig) -> bool:
    """Whether all processes of the job are on this machine."""
    here = launch.rendezvous.rpartition(":")[0] in ("", "localhost", _LOOPBACK)
    return launch.scheduler is Scheduler.local_cwd and here


def _pairs(values: dict[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in values.items())
