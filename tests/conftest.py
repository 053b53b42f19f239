"""What all tests run under."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def usual_umask() -> Iterator[None]:
    """Packages that others could write to are refused, and under a developer's umask of 002 tests would write such."""
    before = os.umask(0o022)
    yield
    os.umask(before)
