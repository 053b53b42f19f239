"""Tracing logs thousands of records for pytest to keep; without them it takes a third of the time."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def _quiet_tracer() -> Iterator[None]:
    logger = logging.getLogger("torch")
    before = logger.level
    logger.setLevel(logging.WARNING)
    yield
    logger.setLevel(before)
