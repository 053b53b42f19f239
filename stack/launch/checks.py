"""What `stack launch` refuses before torchx sees it: options without effect, jobs of no use, tools that are missing."""

from __future__ import annotations

import importlib.util
import math
import shutil
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from stack.base.errors import ConfigError, MachineError, UnknownNameError
from stack.launch.config import LaunchConfig, Scheduler
from stack.launch.request import Place
from stack.tables.cluster import ClusterConfig

if TYPE_CHECKING:
    from torchx.specs import runopts

_HEEDED_BY: Mapping[str, Collection[Scheduler]] = {
    "image": [one for one in Scheduler if one.runs_images],
    "mounts": [one for one in Scheduler if one.runs_images],
    "instance_type": [Scheduler.kubernetes, Scheduler.aws_batch],
    "retries": [one for one in Scheduler if one is not Scheduler.local_cwd],
    "min_hosts": [one for one in Scheduler if one is not Scheduler.slurm],  # it ends all of a job that loses a host
    "rendezvous": [Scheduler.local_cwd],
}
"""Options that some schedulers do not heed, and those that do."""

_OF_TRAINING = ("min_hosts", "rendezvous")
_TRAINING = ("train", "daily")
_LOOPBACK = ("localhost", "127.", "::1")


def check_job(verb: str, *, launch: LaunchConfig, cluster: ClusterConfig, place: Place) -> None:
    """Raises `ConfigError` where the job would not be as it was asked for."""
    scheduler = launch.scheduler
    if scheduler.runs_images and not launch.image:
        raise ConfigError(
            f"launch.scheduler={scheduler.value} runs containers: give the image with launch.image=... "
            "(launch/Dockerfile makes one)"
        )
    for name in _OF_TRAINING:
        if getattr(launch, name) and verb not in _TRAINING:
            raise ConfigError(f"launch.{name} is for `stack launch train` and `daily`, not {verb}: leave it out")
    for name, schedulers in _HEEDED_BY.items():
        if getattr(launch, name) and scheduler not in schedulers:
            raise ConfigError(f"launch.{name} has no effect with launch.scheduler={scheduler.value}: leave it out")
    if scheduler is Scheduler.local_cwd and set("=,") & set(str(place.folder)):
        raise ConfigError(f"run.dir: the run folder {place.folder} must have no '=' or ',': torchx splits there")
    _check_hosts(verb, launch, cluster)
    if place.num_buckets is not None:
        _check_processes(verb, launch, cluster, num_buckets=place.num_buckets)
    if verb == "serve":
        _check_server(launch, cluster, place)


def _check_hosts(verb: str, launch: LaunchConfig, cluster: ClusterConfig) -> None:
    if launch.min_hosts is not None and launch.min_hosts > cluster.hosts:
        raise ConfigError(f"launch.min_hosts={launch.min_hosts} must be at most cluster.hosts={cluster.hosts}")
    many = cluster.hosts > 1 and verb in (*_TRAINING, "serve")
    if launch.instance_type and launch.scheduler is Scheduler.aws_batch and not many:
        raise ConfigError(
            "launch.instance_type is heeded by torchx on AWS Batch for jobs of several hosts alone: leave it out, and "
            "let the queue's compute environment choose"
        )
    if launch.local_addr and many and launch.scheduler is not Scheduler.local_cwd:
        raise ConfigError(
            f"launch.local_addr={launch.local_addr} would be the address of all cluster.hosts={cluster.hosts}: "
            "leave it out"
        )


def _check_processes(verb: str, launch: LaunchConfig, cluster: ClusterConfig, *, num_buckets: int) -> None:
    """Trainers read whole buckets, equally many each."""
    hosts = range(launch.min_hosts or cluster.hosts, cluster.hosts + 1)
    sizes = [number * cluster.local_size for number in hosts]
    for size in sizes:
        if num_buckets % size:
            raise ConfigError(
                f"{size} processes (hosts x cluster.devices_per_host={cluster.local_size}) do not divide the "
                f"{num_buckets} buckets of the data: take a divisor, or ingest with "
                f"ingest.num_buckets={math.lcm(*sizes)}"
            )


def _check_server(launch: LaunchConfig, cluster: ClusterConfig, place: Place) -> None:
    if launch.scheduler.runs_images and place.serve_host.startswith(_LOOPBACK):
        raise ConfigError(
            f"serve.host={place.serve_host} is reached from inside its container alone: say serve.host=0.0.0.0, "
            "and keep strangers out (the routes ask for no password)"
        )
    if launch.scheduler.runs_images and place.serve_port == 0:
        raise ConfigError("serve.port=0 takes a port that nobody outside the container knows: choose one")
    if launch.scheduler is Scheduler.local_cwd and cluster.hosts > 1 and place.serve_port:
        raise ConfigError(
            f"cluster.hosts={cluster.hosts} servers on this machine cannot share serve.port={place.serve_port}: "
            "set cluster.hosts=1, or serve.port=0 for a free one each"
        )


def check_for_torchx(launch: LaunchConfig) -> None:
    """Mounts and scheduler options as torchx itself reads them. Raises `ConfigError`."""
    from torchx.runner import get_runner
    from torchx.specs import parse_mounts

    try:
        parse_mounts([word for mount in launch.mounts for word in mount.split(",")])
    except (KeyError, ValueError) as error:
        raise ConfigError(f"launch.mounts={launch.mounts}: {error.args[0]}") from error
    name = launch.scheduler.value
    with get_runner() as runner:
        options = runner.scheduler_run_opts(name)
    known = dict(options)
    for key, value in launch.scheduler_args.items():
        if key not in known:
            raise UnknownNameError(f"launch.scheduler_args of {name}", key, known)
        _check_value(key, value, options)
    for key, option in known.items():
        if option.is_required and key not in launch.scheduler_args:
            raise ConfigError(f"launch.scheduler={name} needs launch.scheduler_args.{key}=...: {option.help.strip()}")


def _check_value(key: str, value: str, options: runopts) -> None:
    """That torchx gets the value as it was given."""
    kind = options.get(key).opt_type
    if not value or "=" in value or value != value.strip():
        raise ConfigError(
            f"launch.scheduler_args.{key}={value!r} must not be empty, have '=', or begin or end with a space: "
            "torchx splits and strips there"
        )
    try:
        options.cfg_from_str(f"{key}={value}")
        typed = kind is not bool or value.lower() in ("true", "false")
    except (ValueError, IndexError):
        typed = False
    if not typed:
        raise ConfigError(f"launch.scheduler_args.{key}={value!r} must be of type {kind.__name__}")


def check_machine(scheduler: Scheduler) -> None:
    """Raises `MachineError` where this machine has not what torchx starts jobs of this scheduler with."""
    missing = _missing(scheduler)
    if missing:
        raise MachineError(f"launch.scheduler={scheduler.value} needs {missing}; --dry-run shows the job without")


def _missing(scheduler: Scheduler) -> str:
    if scheduler is Scheduler.slurm and shutil.which("sbatch") is None:
        return "Slurm's `sbatch` on this machine: launch from a login node"
    if scheduler is Scheduler.aws_batch and importlib.util.find_spec("boto3") is None:
        return "boto3: pip install boto3"
    if scheduler is Scheduler.kubernetes:
        from kubernetes import config

        try:
            config.load_kube_config()
        except config.ConfigException as error:
            return f"a cluster that `kubectl` reaches ({error})"
    if scheduler is Scheduler.local_docker:
        import docker

        try:
            docker.from_env().ping()
        except docker.errors.DockerException:
            return "a Docker daemon that answers: start it, or set DOCKER_HOST"
    return ""
