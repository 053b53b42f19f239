"""The committed configuration, and the programs that read it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools.monitor.copies import COMMITTED
from tools.monitor.programs import missing_programs

Tool = Callable[..., str]


@pytest.fixture(scope="session")
def programs() -> None:
    """Skips what needs Prometheus and its like where they cannot be had; `make test` installs them where it can."""
    if missing := missing_programs():
        pytest.skip(f"there is no {', '.join(missing)}: make monitoring (as root, on Debian or Ubuntu)")


@pytest.fixture(scope="session")
def tool(programs: None) -> Tool:
    """Runs a program that must end well; what it said."""

    def run(*words: str | Path, given: str | None = None) -> str:
        ended = subprocess.run(words, input=given, capture_output=True, text=True, check=False)
        said = ended.stdout + ended.stderr
        assert ended.returncode == 0, said
        return said

    return run


def committed(name: str) -> Any:
    return yaml.safe_load((COMMITTED / name).read_text())


def alerts() -> dict[str, dict[str, Any]]:
    """Each alert of the committed rules by its name."""
    return {rule["alert"]: rule for group in committed("alerts.yml")["groups"] for rule in group["rules"]}


def records() -> list[str]:
    return [rule["record"] for group in committed("rules.yml")["groups"] for rule in group["rules"]]
