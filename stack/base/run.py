"""The run folder: `<dir>/<name>/` holds what one training run leaves behind."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from stack.base.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(kw_only=True)
class RunConfig:
    dir: str = "runs"
    # folder of all runs
    name: str = "default"
    # folder of this run below `dir`: letters, digits, '.', '_', '-'
    seed: int = 0
    # every random draw of the run derives from it; 0 or more

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"run.name={self.name!r} must be letters, digits, '.', '_' or '-', and begin with a letter or digit"
            )
        if self.seed < 0:
            raise ConfigError(f"run.seed={self.seed} must be 0 or more")

    @property
    def folder(self) -> Path:
        """`<dir>/<name>`; not created."""
        return Path(self.dir) / self.name
