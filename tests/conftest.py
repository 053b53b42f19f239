"""What all tests run under, alone or beside another worker of pytest-xdist (`make test`)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

TOGETHER = ("export", "daily", "dashboard")
"""Folders whose tests share what takes long to make: one worker has all of each. Others are handed out by file."""

# before torch is imported: threads that spin while they wait take the core of the other worker
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups for `--dist loadgroup`."""
    for item in items:
        place = item.path.relative_to(Path(__file__).parent)
        folder = place.parts[0]
        item.add_marker(pytest.mark.xdist_group(folder if folder in TOGETHER else str(place.with_suffix(""))))


@pytest.fixture(scope="session", autouse=True)
def usual_umask() -> Iterator[None]:
    """Packages that others could write to are refused, and under a developer's umask of 002 tests would write such."""
    before = os.umask(0o022)
    yield
    os.umask(before)
