"""Telemetry of a process that trains: what it counts, and where that is scraped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry

from stack.base.dist import World
from stack.base.run import RunConfig
from stack.telemetry.config import TelemetryConfig
from stack.telemetry.exporter import Target, exported
from stack.telemetry.metrics import TrainMetrics
from stack.telemetry.mishaps import Mishaps


class Telemetry:
    """Of one process, over all that it trains."""

    def __init__(self, config: TelemetryConfig) -> None:
        self.config = config
        self.registry = CollectorRegistry()
        self.metrics = TrainMetrics(self.registry)
        self.mishaps = Mishaps(self.metrics.errors)

    @contextmanager
    def shown(self, run: RunConfig, world: World) -> Iterator[None]:
        """Prometheus can scrape this process for as long as the block takes; not where telemetry is off."""
        config = self.config
        if not config.enabled:
            yield
            return
        target = Target(folder=config.targets_folder(run.dir), run=run.name, role="train", number=world.rank)
        port = config.port and config.port + world.local_rank
        with exported(
            self.registry, target, address=config.address, port=port, world_size=world.size, mishaps=self.mishaps
        ):
            yield
