"""A real Prometheus that has the example, `stack dashboard` over it as a process, and a browser."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tools.dashboards.browser import Page, browser, missing_browser
from tools.dashboards.history import running_example
from tools.monitor.asked import Asked
from tools.monitor.programs import missing_programs

AHEAD_SECONDS = 1800.0
"""The example goes on for so long, that a slow machine may take."""
FINE_SECONDS, NIGHTS = 3600.0 + AHEAD_SECONDS, 2


@pytest.fixture(scope="session")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address; one hour of trainings and serving, two nights, one alert that fires for each of two runs."""
    if missing := missing_programs():
        pytest.skip(f"there is no {', '.join(missing)}: make monitoring (as root, on Debian or Ubuntu)")
    folder = tmp_path_factory.mktemp("example")
    with running_example(
        folder, until=time.time() + AHEAD_SECONDS, fine_seconds=FINE_SECONDS, nights=NIGHTS
    ) as address:
        yield address


@pytest.fixture(scope="session")
def asked(prometheus: str) -> Asked:
    return Asked(prometheus.removeprefix("http://"))


@pytest.fixture(scope="session")
def site(prometheus: str) -> Iterator[str]:
    """Where the page of `stack dashboard` is. It stops as it should when it is told to."""
    options = ["dashboard.port=0", f"dashboard.prometheus={prometheus}", "dashboard.scrape_seconds=15"]
    command = [sys.executable, "-m", "stack", "dashboard", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("dashboard at http://127.0.0.1:"), line
        yield line.removeprefix("dashboard at ").partition(",")[0]
        process.terminate()
        assert process.stdout.read() == "stopped\n"
        assert process.wait() == 0


@pytest.fixture(scope="session")
def tab() -> Iterator[Page]:
    if missing_browser():
        pytest.skip("there is no chromium: make monitoring (as root, on Debian or Ubuntu)")
    with browser() as page:
        yield page
