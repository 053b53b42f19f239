from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.daily.worker import DAYS, first_training, learn_days
from tests.prepared import write_prepared
from tests.train.worker import Run


@pytest.fixture(scope="package")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight days of forty users."""
    return write_prepared(tmp_path_factory.mktemp("prepared") / "data", num_days=8)


@pytest.fixture(scope="package")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two days learnt by `stack train`; not to be changed."""
    run = Run(
        dataset=str(prepared), runs=str(tmp_path_factory.mktemp("runs")), name="trained", norm="batch", dropout=0.2,
        train={"save_every_steps": 3, "batch_size": 8, "max_refused_batches": 0},
    )  # fmt: skip
    first_training(run)
    return run


@pytest.fixture(scope="package")
def trained_managed(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same with items that take each other's rows."""
    run = replace(trained, runs=str(tmp_path_factory.mktemp("managed")), managed_rows=30, hashed_rows=8)
    first_training(run)
    return run


@pytest.fixture(scope="package")
def learnt(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """`trained`, and three days more; not to be changed."""
    run = copy_of(trained, tmp_path_factory.mktemp("learnt"))
    learn_days(run, DAYS[2], DAYS[4])
    return run


def copy_of(run: Run, folder: Path, *, dataset: Path | None = None) -> Run:
    """A run of its own with the same versions, on a copy of the dataset where one is given."""
    shutil.copytree(run.folder, folder / run.name)
    if dataset is not None:
        shutil.copytree(run.dataset, dataset)
    return replace(run, runs=str(folder), dataset=run.dataset if dataset is None else str(dataset))
