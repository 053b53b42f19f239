from __future__ import annotations

from pathlib import Path

import pytest

from tests.prepared import write_prepared


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four days of forty users."""
    return write_prepared(tmp_path_factory.mktemp("prepared") / "data")
