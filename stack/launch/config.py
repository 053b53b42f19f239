"""What `stack launch` can be told besides the machines, which are the `cluster` group."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum

from stack.base.errors import ConfigError

_ENDPOINT = re.compile(r"[^:\s]+:([1-9][0-9]*)")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LAST_PORT = 65_535


class Scheduler(Enum):
    """Who starts the processes."""

    local_cwd = "local_cwd"
    """This machine, in the current folder."""
    local_docker = "local_docker"
    """This machine, in containers."""
    slurm = "slurm"
    kubernetes = "kubernetes"
    """With Volcano, which starts all processes of a job or none."""
    aws_batch = "aws_batch"

    @property
    def runs_images(self) -> bool:
        """Whether jobs run in containers."""
        return self in (Scheduler.local_docker, Scheduler.kubernetes, Scheduler.aws_batch)


@dataclass(kw_only=True)
class LaunchConfig:
    """The `launch` group of the configuration."""

    scheduler: Scheduler = Scheduler.local_cwd
    # local_cwd, local_docker, slurm, kubernetes or aws_batch
    scheduler_args: dict[str, str] = field(default_factory=dict)
    # what torchx knows of the scheduler, `torchx runopts <scheduler>`: partition, queue, namespace, log_dir, ...
    image: str = ""
    # container image with `stack` in it, for schedulers that run images
    env: dict[str, str] = field(default_factory=dict)
    # environment variables of the job
    mounts: list[str] = field(default_factory=list)
    # into containers, each as type=bind,src=/on/host,dst=/in/container or type=volume,src=<name>,dst=...[,readonly]
    cpus_per_process: int = 4
    # cores of each process of the job, where the scheduler hands them out
    memory_gib: float | None = None
    # of each host; null is cluster.ddr_gib
    instance_type: str = ""
    # kind of machine (p5.48xlarge), for kubernetes and aws_batch; empty is any
    max_restarts: int = 3
    # of training from its last checkpoint after a process failed, without the scheduler's help
    retries: int = 0
    # of the whole job, by the scheduler; local_cwd has none
    min_hosts: int | None = None
    # training goes on with so many hosts while others are missing; null waits for all, as Slurm always does
    rendezvous: str = ""
    # host:port of the first host, where nobody starts the hosts together: each call then starts one of cluster.hosts
    port: int = 29_500
    # on the first host, through which the hosts of a job find each other
    local_addr: str = ""
    # this host's address as the others see it; empty is its host name, or loopback with local_cwd
    shutdown_seconds: int = 300
    # between SIGTERM and SIGKILL: the time that training has to save
    python: str = ""
    # the interpreter; empty is this one, or `python` in an image
    dry_run: bool = False
    # show the full job and start nothing; the flag --dry-run is the same

    def __post_init__(self) -> None:
        least = {"cpus_per_process": 1, "max_restarts": 0, "retries": 0, "port": 1, "shutdown_seconds": 1}
        for name, limit in least.items():
            if getattr(self, name) < limit:
                raise ConfigError(f"launch.{name}={getattr(self, name)} must be at least {limit}")
        if self.port > _LAST_PORT:
            raise ConfigError(f"launch.port={self.port} must be at most {_LAST_PORT}")
        if self.min_hosts is not None and self.min_hosts < 1:
            raise ConfigError(f"launch.min_hosts={self.min_hosts} must be at least 1, or null")
        if self.memory_gib is not None and not self.memory_gib > 0:
            raise ConfigError(f"launch.memory_gib={self.memory_gib} must be above 0, or null")
        if self.rendezvous and not _is_endpoint(self.rendezvous):
            raise ConfigError(
                f"launch.rendezvous={self.rendezvous!r} must be host:port, the port up to {_LAST_PORT}: node1:29500"
            )
        for key, value in self.scheduler_args.items():
            if "," in value:
                raise ConfigError(f"launch.scheduler_args.{key}={value!r} must not have a comma: torchx splits there")
        for key in self.env:
            if not _VARIABLE.fullmatch(key):
                raise ConfigError(
                    f"launch.env has {key!r}, which no variable can be called: letters, digits and '_' alone"
                )


def _is_endpoint(text: str) -> bool:
    found = _ENDPOINT.fullmatch(text)
    return found is not None and int(found[1]) <= _LAST_PORT
