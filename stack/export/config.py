"""Options of `stack export`."""

from __future__ import annotations

from dataclasses import dataclass

from stack.base.errors import ConfigError


@dataclass(kw_only=True)
class ExportConfig:
    version: str | None = None
    # the version to export, by its number or by the last day it was trained on; null is the newest
    overwrite: bool = False
    # replace the package that is there; otherwise refuse
    tolerance: float = 1e-4
    # largest absolute difference of any output (vector, logits) from the trained model; above it nothing is written
    parity_timelines: int = 64
    # timelines of a held-out day on which package and model are compared
    max_events: int = 512
    # events accepted in one request; more are refused by the server

    def __post_init__(self) -> None:
        if self.tolerance <= 0:
            raise ConfigError(f"export.tolerance={self.tolerance} must be above 0")
        for name in ("parity_timelines", "max_events"):
            value: int = getattr(self, name)
            if value < 1:
                raise ConfigError(f"export.{name}={value} must be at least 1")
