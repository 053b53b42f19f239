from __future__ import annotations

from pathlib import Path

import pytest

from stack.data.dataset import Dataset
from tests.prepared import write_prepared


@pytest.fixture(scope="package")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path: Path = tmp_path_factory.mktemp("evaluate") / "prepared"
    return Dataset(write_prepared(path, num_days=6, num_users=40))
