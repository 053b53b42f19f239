"""From `stack launch <verb> ...` to the torchx command that does it."""

from __future__ import annotations

import importlib.util
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stack.base.errors import ConfigError, MachineError, UnknownNameError
from stack.launch.config import LaunchConfig, Scheduler
from stack.tables.cluster import ClusterConfig, Device
from stack.telemetry.console import say

VERBS = ("ingest", "train", "daily", "evaluate", "export", "serve")
DRY_RUN = "--dry-run"
LOGS = "logs"
MIB_PER_GIB = 1024

_AGENT_VERBS = ("train", "daily")
_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was typed: the verb to launch, the options that describe the job, and whether to show it only."""

    verb: str
    options: list[str]
    dry_run: bool


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the job is to find and leave things: its run folder and name, and the port of `stack serve`."""

    folder: Path
    name: str
    serve_port: int


def read_request(words: Sequence[str]) -> Request:
    """Takes the words after `stack launch` apart.

    Raises: `ConfigError` where there is no verb, or one that is not for launching.
    """
    verbs = [word for word in words if not word.startswith("-") and "=" not in word]
    flags = {"--multirun", "-m"} & set(words)
    if flags:
        raise ConfigError(
            f"stack launch starts one job at a time: leave out {flags.pop()}, or launch it for each value"
        )
    if not words or words[0] != (verbs or [""])[0]:
        raise ConfigError(f"stack launch needs a verb first, as in `stack launch train`; known: {', '.join(VERBS)}")
    if verbs[0] not in VERBS:
        raise UnknownNameError("verb to launch", verbs[0], VERBS)
    options = [word for word in words[1:] if word != DRY_RUN]
    return Request(verb=verbs[0], options=options, dry_run=DRY_RUN in words)


def run_torchx(request: Request, *, launch: LaunchConfig, cluster: ClusterConfig, place: Place) -> None:
    """Shows the torchx command and becomes it: signals and the exit status are torchx's own. Does not return."""
    if importlib.util.find_spec("torchx") is None:
        raise MachineError("stack launch needs torchx: pip install --no-deps -r requirements/launch.txt")
    words = torchx_words(request, launch=launch, cluster=cluster, place=place)
    _check_scheduler_args(launch)
    say(f"$ torchx {shlex.join(words)}")
    os.execv(sys.executable, [sys.executable, "-m", "torchx.cli.main", *words])


def torchx_words(request: Request, *, launch: LaunchConfig, cluster: ClusterConfig, place: Place) -> list[str]:
    """The words after `torchx`.

    Raises: `ConfigError` where the job cannot be as it was asked for.
    """
    _check(request.verb, launch, cluster)
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
        "memory_mib": int(memory_gib * MIB_PER_GIB),
        "instance_type": launch.instance_type,
        "image": launch.image,
        "env": _pairs(launch.env),
        "mounts": ",".join(launch.mounts),
        "retries": _retries(launch),
        "python": launch.python or ("python" if launch.scheduler.runs_images else sys.executable),
    }
    if verb not in ("ingest", "serve"):
        arguments["gpu"] = gpus
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
    if verb == "train":
        arguments |= {"hosts": cluster.hosts, "min_hosts": launch.min_hosts or 0}
        arguments |= {"rendezvous": launch.rendezvous, "port": launch.port}
    return {name: value for name, value in arguments.items() if value != ""}


def _retries(launch: LaunchConfig) -> int:
    """torchx gives AWS Batch the number as that of all attempts, the first among them."""
    return launch.retries + 1 if launch.scheduler is Scheduler.aws_batch else launch.retries


def _check(verb: str, launch: LaunchConfig, cluster: ClusterConfig) -> None:
    if launch.scheduler.runs_images and not launch.image:
        raise ConfigError(
            f"launch.scheduler={launch.scheduler.value} runs containers: give the image with launch.image=... "
            "(launch/Dockerfile makes one)"
        )
    if launch.mounts and not launch.scheduler.runs_images:
        raise ConfigError(f"launch.mounts has no effect with launch.scheduler={launch.scheduler.value}: leave it out")
    if verb == "daily" and cluster.hosts > 1:
        raise ConfigError(
            f"stack launch daily runs on one host, not cluster.hosts={cluster.hosts}: launch ingest, train, evaluate "
            "and export one after the other, or set cluster.hosts=1"
        )
    if launch.min_hosts is not None and launch.min_hosts > cluster.hosts:
        raise ConfigError(f"launch.min_hosts={launch.min_hosts} must be at most cluster.hosts={cluster.hosts}")
    if launch.rendezvous and (verb != "train" or launch.scheduler is not Scheduler.local_cwd):
        raise ConfigError("launch.rendezvous is for `stack launch train` with launch.scheduler=local_cwd: leave it out")


def _check_scheduler_args(launch: LaunchConfig) -> None:
    """Mounts and scheduler options as torchx itself reads them."""
    from torchx.runner import get_runner
    from torchx.specs import parse_mounts

    try:
        parse_mounts([word for mount in launch.mounts for word in mount.split(",")])
    except (KeyError, ValueError) as error:
        raise ConfigError(f"launch.mounts={launch.mounts}: {error.args[0]}") from error
    name = launch.scheduler.value
    with get_runner() as runner:
        known = dict(runner.scheduler_run_opts(name))
    for key in launch.scheduler_args:
        if key not in known:
            raise UnknownNameError(f"launch.scheduler_args of {name}", key, known)
    for key, option in known.items():
        if option.is_required and key not in launch.scheduler_args:
            raise ConfigError(f"launch.scheduler={name} needs launch.scheduler_args.{key}=...: {option.help.strip()}")


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
