"""What all tests run under, alone or beside another worker of pytest-xdist (`make test`)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

TOGETHER = ("export", "daily", "dashboard")
"""Folders whose tests share what takes long to make: one worker has all of each. Others are handed out by file."""

SHARED = "PYTEST_XDIST_WORKER" in os.environ

# before torch is imported: threads that spin while they wait take the core of the other worker
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if SHARED:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def _place(nodeid: str) -> str:
    """What one worker has all of."""
    path = nodeid.partition("::")[0]
    folder = path.split("/")[1]
    return folder if folder in TOGETHER else path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first, or a worker would be left with it at the end."""
    if not SHARED:
        return
    num = Counter(_place(item.nodeid) for item in items)
    slow = {*TOGETHER, *(_place(item.nodeid) for item in items if item.get_closest_marker("slow"))}

    def turn(item: pytest.Item) -> tuple[bool, int, str]:
        place = _place(item.nodeid)
        return place not in slow, -num[place], place

    items.sort(key=turn)


class ByFile(LoadScopeScheduling):
    """xdist's own groups (`--dist loadgroup`) are not seen: 3.8 tells them by a field that pytest 9.2 does not read."""

    def _split_scope(self, nodeid: str) -> str:
        return _place(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    config.option.loadscopereorder = False  # the items are in their order
    return ByFile(config, log)


@pytest.fixture(scope="session", autouse=True)
def usual_umask() -> Iterator[None]:
    """Packages that others could write to are refused, and under a developer's umask of 002 tests would write such."""
    before = os.umask(0o022)
    yield
    os.umask(before)
