"""A real Prometheus that has the example, `stack dashboard` over it as a process, and a browser."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tools.dashboards.browser import Page, browser, missing_browser
from tools.dashboards.history import running_example
from tools.monitor.asked import Asked
from tools.monitor.programs import missing_programs, stop

FINE_SECONDS, NIGHTS = 3600.0, 2
Serve = Callable[[str], str]


@pytest.fixture(scope="session")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address; one hour of trainings and serving, two nights, one alert that fires for each of two runs."""
    if missing := missing_programs():
        pytest.skip(f"there is no {', '.join(missing)}: make monitoring (as root, on Debian or Ubuntu)")
    folder = tmp_path_factory.mktemp("example")
    with running_example(folder, now=time.time(), fine_seconds=FINE_SECONDS, nights=NIGHTS) as address:
        yield address


@pytest.fixture(scope="session")
def asked(prometheus: str) -> Asked:
    return Asked(prometheus.removeprefix("http://"))


@pytest.fixture(scope="session")
def serve() -> Iterator[Serve]:
    """Starts `stack dashboard` over the Prometheus at an address; where the page is."""
    with ExitStack() as stack:

        def start(prometheus: str) -> str:
            options = ["dashboard.port=0", f"dashboard.prometheus={prometheus}", "dashboard.scrape_seconds=15"]
            process = subprocess.Popen(
                [sys.executable, "-m", "stack", "dashboard", *options], stdout=subprocess.PIPE, text=True
            )
            stack.callback(_end, process)
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("dashboard at http://127.0.0.1:"), line
            return line.removeprefix("dashboard at ").partition(",")[0]

        yield start


def _end(process: subprocess.Popen[str]) -> None:
    """It stops as it should when it is told to."""
    assert process.stdout is not None
    stop(process)
    said = process.stdout.read()
    process.stdout.close()
    assert process.returncode == 0
    assert said.splitlines()[-1] == "stopped"


@pytest.fixture(scope="session")
def site(prometheus: str, serve: Serve) -> str:
    return serve(prometheus)


@pytest.fixture(scope="session")
def tab() -> Iterator[Page]:
    if missing_browser():
        pytest.skip("there is no chromium: make monitoring (as root, on Debian or Ubuntu)")
    with browser() as page:
        yield page
