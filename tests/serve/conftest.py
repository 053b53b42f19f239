"""A package and real servers of it, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stack.serve.client import Running, running_server
from tests.export.toy import write_toy_package

MAX_BODY = 3_000
OPTIONS = (
    "serve.workers=1", f"serve.max_body_bytes={MAX_BODY}", "serve.max_candidates=4", "serve.max_ids=3",
    "serve.body_timeout_seconds=1.0",
)  # fmt: skip


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy's, in a folder of its own; not to be changed."""
    return write_toy_package(tmp_path_factory.mktemp("toy") / "package")


@pytest.fixture(scope="module")
def server(package: Path) -> Iterator[Running]:
    """One worker, narrow limits."""
    with running_server(package, options=OPTIONS) as running:
        yield running
    assert running.process.returncode == 0
