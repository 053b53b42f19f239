"""The tiny source is known to all tests of ingest."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.data.tiny_log import registered


@pytest.fixture(autouse=True)
def tiny_source() -> Iterator[None]:
    with registered():
        yield
