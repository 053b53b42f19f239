"""A run with every task and a small one, exported once for all tests. Not to be changed.

Tracing logs thousands of records for pytest to keep; without them it takes a third of the time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from stack.data.dataset import Dataset
from stack.export.config import ExportConfig
from stack.export.export import Trained, export
from stack.export.quantize import RowType
from stack.layers.norm import Norm
from stack.tasks import Enabled, ShopConfig, TasksConfig
from stack.tasks.next_item import NextItemConfig
from stack.towers.behavior import Behavior, PropertyUse
from stack.towers.config import Attention, ModelConfig
from tests.export.toy import write_toy_package
from tests.export.trained import ctr_alone, trained_run
from tests.prepared import write_prepared

PUBLISHED = ExportConfig(tolerance=1e-5, parity_timelines=6, row_type=RowType.fp32, num_requests=24)
SMALL = ExportConfig(
    tolerance=1e-5, row_type=RowType.int8, row_types={"tags": RowType.int4, "shop": RowType.fp16}, max_auc_loss=0.1
)


@pytest.fixture(autouse=True, scope="session")
def _quiet_tracer() -> Iterator[None]:
    logger = logging.getLogger("torch")
    before = logger.level
    logger.setLevel(logging.WARNING)
    yield
    logger.setLevel(before)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Dataset(write_prepared(tmp_path_factory.mktemp("data") / "prepared", num_days=2, num_users=24))


@pytest.fixture(scope="session")
def published(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The published model (attention by query, LSTM) with batch norm and all six tasks."""
    tasks = TasksConfig(
        shop=ShopConfig(enabled=Enabled.always), next_item=NextItemConfig(num_outputs=16, temperature=None)
    )
    tasks.ctr.dense_features = tasks.follow.dense_features = True
    config = ModelConfig(norm=Norm.batch, query=False)
    return trained_run(tmp_path_factory.mktemp("run"), dataset, config, tasks=tasks)


@pytest.fixture(scope="session")
def package(published: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "package"
    export(published, folder=folder, config=PUBLISHED)
    return folder


@pytest.fixture(scope="session")
def small(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The smallest model, with two tasks about items: click, and next item by cosine."""
    config = ModelConfig(
        behavior=Behavior.mean, attention=Attention.none, query=False, property=PropertyUse.none, num_states=16
    )
    tasks = ctr_alone(next_item=NextItemConfig(num_outputs=8, temperature=0.07))
    return trained_run(tmp_path_factory.mktemp("small"), dataset, config, tasks=tasks)


@pytest.fixture(scope="session")
def small_package(small: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of rows of three types."""
    folder = tmp_path_factory.mktemp("exported") / "small"
    export(small, folder=folder, config=SMALL)
    return folder


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package worked out by hand."""
    return write_toy_package(tmp_path_factory.mktemp("toy") / "package")
