"""What jobs tell Prometheus, and where."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from stack.base.errors import ConfigError


@dataclass(kw_only=True)
class TelemetryConfig:
    """The `telemetry` group of the configuration."""

    enabled: bool = True
    # training opens a port in each process, and says in files where; daily and audit leave a file when they end
    address: str = "127.0.0.1"
    # to listen on: of this machine alone, or the one by which Prometheus reaches it, e.g. ${oc.env:POD_IP}
    port: int = 9101
    # of a machine's first process; the next ones' follow. 0: free ones
    targets: str | None = None
    # folder of files that tell Prometheus where to scrape (file_sd_configs); null: `targets` in run.dir
    textfile: str | None = None
    # folder of what jobs leave at their end, for node_exporter's textfile collector; null: `textfile` in run.dir
    window_steps: int = 50
    # steps over whose examples loss, AUC, normalised entropy and calibration are taken

    def __post_init__(self) -> None:
        try:
            everywhere = ipaddress.ip_address(self.address).is_unspecified
        except ValueError:
            everywhere = not self.address  # else the name of a host
        if everywhere:
            raise ConfigError(
                f"telemetry.address={self.address!r} is no address that Prometheus can be told: give the one by which "
                "it reaches this machine, or 127.0.0.1"
            )
        if not 0 <= self.port <= 65_535:
            raise ConfigError(f"telemetry.port={self.port} must be 0 (free ones) to 65535")
        if self.window_steps < 1:
            raise ConfigError(f"telemetry.window_steps={self.window_steps} must be at least 1")

    def targets_folder(self, runs: str) -> Path:
        """`runs`: the folder of all runs."""
        return Path(runs) / "targets" if self.targets is None else Path(self.targets)

    def textfile_folder(self, runs: str) -> Path:
        """`runs`: the folder of all runs."""
        return Path(runs) / "textfile" if self.textfile is None else Path(self.textfile)
