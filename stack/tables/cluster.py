"""The machines a job is planned for: how many, what memory they have, how fast bytes move. Nothing is allocated."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum

import psutil

from stack.base.errors import ConfigError

GIB = 1 << 30


class Device(Enum):
    """What holds the tables and computes."""

    cpu = "cpu"
    cuda = "cuda"


@dataclass(kw_only=True)
class ClusterConfig:
    """The `cluster` group of the configuration. A GB is 10^9 bytes, a GiB 2^30."""

    name: str = "here"
    # shown in reports
    hosts: int = 1
    # machines
    devices_per_host: int | None = None
    # processes of a host, one for each GPU or share of its cores; null is this machine's cores
    device: Device = Device.cpu
    # cpu or cuda
    hbm_gib: float = 0.0
    # memory of each GPU; 0 for cpu
    ddr_gib: float | None = None
    # memory of a host, shared by its processes; null is this machine's
    hbm_gb_per_second: float = 0.0
    # reading a GPU's memory; 0 for cpu
    ddr_gb_per_second: float = 25.0
    # reading a host's memory, shared by its processes
    host_link_gb_per_second: float = 32.0
    # between a GPU and its host's memory, each way
    intra_host_gb_per_second: float = 5.0
    # between two processes of a host, each way
    inter_host_gb_per_second: float = 1.0
    # between two hosts, each way, for each process
    reserved_share: float = 0.2
    # of each memory, kept free of tables: the dense model, activations, batches, everything else

    def __post_init__(self) -> None:
        _at_least_one("cluster.hosts", self.hosts, "a job needs a machine")
        if self.devices_per_host is not None:
            _at_least_one("cluster.devices_per_host", self.devices_per_host, "a job needs a process on each host")
        positive = ["ddr_gb_per_second", "host_link_gb_per_second", "intra_host_gb_per_second"]
        positive.append("inter_host_gb_per_second")
        if self.ddr_gib is not None:
            positive.append("ddr_gib")
        if self.device is Device.cuda:
            positive += ["hbm_gib", "hbm_gb_per_second"]
        for field in positive:
            value = getattr(self, field)
            if not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"cluster.{field}={value} must be above 0 and finite")
        if self.device is Device.cpu and (self.hbm_gib or self.hbm_gb_per_second):
            raise ConfigError(
                f"cluster.hbm_gib={self.hbm_gib} and cluster.hbm_gb_per_second={self.hbm_gb_per_second} belong to "
                "cluster.device=cuda: a CPU has no HBM, set both to 0"
            )
        if not 0 <= self.reserved_share < 1:
            raise ConfigError(f"cluster.reserved_share={self.reserved_share} must be from 0 up to but not 1")

    def resolved(self) -> ClusterConfig:
        """The same with this machine's cores and memory where nothing was said."""
        return replace(self, devices_per_host=self.local_size, ddr_gib=self.host_bytes / GIB)

    @property
    def local_size(self) -> int:
        """Processes of a host."""
        return self.devices_per_host or psutil.cpu_count() or 1

    @property
    def world_size(self) -> int:
        """Processes of the job."""
        return self.hosts * self.local_size

    @property
    def host_bytes(self) -> float:
        """Memory of a host."""
        return psutil.virtual_memory().total if self.ddr_gib is None else self.ddr_gib * GIB

    @property
    def device_bytes(self) -> int:
        """What tables may take of each process's own memory: HBM of a GPU, a share of the host's for a CPU."""
        own = self.hbm_gib * GIB if self.device is Device.cuda else self.host_bytes / self.local_size
        return int(own * (1.0 - self.reserved_share))

    @property
    def overflow_bytes(self) -> int:
        """What tables may take of the host's memory beside a GPU, for each process; 0 for a CPU."""
        if self.device is Device.cpu:
            return 0
        return int(self.host_bytes / self.local_size * (1.0 - self.reserved_share))


def _at_least_one(name: str, value: int, reason: str) -> None:
    if value < 1:
        raise ConfigError(f"{name}={value} must be at least 1: {reason}")
