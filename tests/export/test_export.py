"""Exported equals trained, on held-out moments; and what export refuses."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from stack.base.errors import PackageError
from stack.data.dataset import Dataset
from stack.data.loader import Loader
from stack.export.config import ExportConfig
from stack.export.export import Trained, export
from stack.export.package import PARITY, USER_VECTOR, Parity, open_package
from stack.export.parity import ParityCheck, users_of
from stack.export.rows import VocabularyReader
from stack.export.runner import Runner
from stack.export.user_half import link_of
from stack.layers.norm import Norm
from stack.serve.client import held_out_request
from stack.serve.predictor import Predictor
from stack.serve.request import Decoder, Limits
from stack.tasks import TASKS, Enabled, FollowConfig, PowerConfig, RankConfig, ShopConfig, TasksConfig
from stack.towers.behavior import Behavior, PropertyUse
from stack.towers.config import Attention, ModelConfig
from tests.export.trained import damage, trained_run
from tests.prepared import write_prepared

CONFIG = ExportConfig(tolerance=1e-5, parity_timelines=6)
CTR_ALONE = TasksConfig(
    rank=RankConfig(enabled=Enabled.never),
    power=PowerConfig(enabled=Enabled.never),
    follow=FollowConfig(enabled=Enabled.never),
)
by_target = partial(ModelConfig, attention=Attention.target, query=False, property=PropertyUse.lstm)
MODELS = {
    "query, transformer": ModelConfig(behavior=Behavior.transformer, norm=Norm.layer),
    "query, mean": ModelConfig(behavior=Behavior.mean, property=PropertyUse.none, user_id=True),
    "query, cnn_max": ModelConfig(behavior=Behavior.cnn_max, property=PropertyUse.attention, query=False),
    "target, lstm": by_target(behavior=Behavior.lstm, norm=Norm.batch),
    "target, transformer": by_target(behavior=Behavior.transformer),
    "target, mean": by_target(behavior=Behavior.mean),
    "target, cnn_max": by_target(behavior=Behavior.cnn_max),
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Dataset(write_prepared(tmp_path_factory.mktemp("data") / "prepared", num_days=2, num_users=24))


@pytest.fixture(scope="module")
def trained(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The published model (attention by query, LSTM) with batch norm and all five tasks."""
    tasks = TasksConfig(shop=ShopConfig(enabled=Enabled.always))
    tasks.ctr.dense_features = tasks.follow.dense_features = True
    config = ModelConfig(norm=Norm.batch, query=False)
    return trained_run(tmp_path_factory.mktemp("run"), dataset, config, tasks=tasks)


@pytest.fixture(scope="module")
def package(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "package"
    export(trained, folder=folder, config=CONFIG)
    return folder


def assert_the_server_gives_the_trained_scores(trained: Trained, package: Path) -> None:
    """A request in raw ids, decoded and answered as in serving, against the model on the same moment."""
    predictor = Predictor(package)
    predictor.warm_up()
    day = trained.dataset.days()[-1]
    manifest = predictor.manifest
    body = held_out_request(trained.dataset, manifest.schema, day=day, group="impression", max_events=100)
    decoder = Decoder(manifest, Limits(num_events=100, num_candidates=100, num_ids=10))
    answer = predictor.score(decoder.score(msgspec.json.encode(body)))
    batch = next(iter(Loader(trained.dataset, days=[day], global_batch_size=64, shuffle=False, num_prefetch=0)))
    with torch.inference_mode():
        score_E = trained.model(batch)["ctr"].score_E
    moment_E = batch.groups["impression"].moment_E
    moment = next(moment for moment in moment_E.tolist() if batch.moment_position_M[moment] > 0)
    np.testing.assert_allclose(answer.scores["ctr"], score_E[moment_E == moment].sigmoid(), rtol=0, atol=1e-5)
    assert answer.unknown == {}


def test_all_outputs_of_the_package_equal_the_trained_model(trained: Trained, package: Path) -> None:
    manifest = open_package(package)
    parity = manifest.parity
    assert parity == msgspec.json.decode((package / PARITY).read_bytes(), type=Parity)
    assert set(parity.max_abs_difference) == {USER_VECTOR, "ctr", "rank", "power", "follow", "shop"}
    assert parity.worst < 1e-5
    assert parity.num_examples["ctr"] == 5 * parity.num_moments == 5 * parity.num_examples["power"]
    assert set(manifest.graphs) == {"user_half", "scorer_impression", "scorer_follow", "scorer_shop"}
    assert not manifest.scorer_needs_states
    assert_the_server_gives_the_trained_scores(trained, package)


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model_is_exported_as_it_was_trained(name: str, dataset: Dataset, tmp_path: Path) -> None:
    trained = trained_run(tmp_path, dataset, MODELS[name], tasks=copy.deepcopy(CTR_ALONE))
    manifest = export(trained, folder=tmp_path / "package", config=CONFIG)
    assert open_package(tmp_path / "package") == manifest
    assert set(manifest.parity.max_abs_difference) == {USER_VECTOR, "ctr"}
    assert manifest.parity.worst < 1e-5
    assert manifest.parity.num_examples["ctr"] >= 30
    assert manifest.scorer_needs_states == MODELS[name].attention.by_target
    assert manifest.query_in_vector == MODELS[name].query
    assert_the_server_gives_the_trained_scores(trained, tmp_path / "package")


def test_every_registered_task_says_how_it_is_answered() -> None:
    assert {link_of(task).value for task in TASKS.values()} == {"sigmoid", "softmax", "identity"}


def test_parity_finds_a_model_that_is_not_the_packages(trained: Trained, package: Path) -> None:
    manifest = open_package(package)
    other = copy.deepcopy(trained.model)
    damage(other)
    check = ParityCheck(Runner(package, manifest), manifest, other)
    check.add(next(iter(Loader(trained.dataset, days=["2016-07-19"], global_batch_size=4, num_prefetch=0))))
    with pytest.raises(
        PackageError, match=r"export refused: output '\w+' of the package differs .* is 0.0001; nothing"
    ):
        check.result(tolerance=1e-4)


def test_a_refused_export_writes_nothing(dataset: Dataset, tmp_path: Path) -> None:
    trained = trained_run(tmp_path, dataset, tasks=copy.deepcopy(CTR_ALONE))
    with pytest.raises(PackageError, match=r"export refused: .* export.tolerance is 1e-30; nothing was written"):
        export(trained, folder=tmp_path / "package", config=replace(CONFIG, tolerance=1e-30))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def test_a_package_is_replaced_only_when_asked(trained: Trained, package: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(package, tmp_path / "package")
    (folder / "leftover").touch()
    with pytest.raises(PackageError, match=r"package exists: .* set export.overwrite=true"):
        export(trained, folder=folder, config=CONFIG)
    again = export(trained, folder=folder, config=replace(CONFIG, overwrite=True))
    assert open_package(folder) == again


def test_a_user_has_the_same_vector_in_any_company(trained: Trained, package: Path) -> None:
    manifest = open_package(package)
    runner = Runner(package, manifest)
    days = trained.dataset.days()[-1:]
    batch = next(iter(Loader(trained.dataset, days=days, global_batch_size=8, num_prefetch=0)))
    users = users_of(batch, manifest.schema)
    together_MR = runner.user_half(users)[USER_VECTOR]
    for moment in range(batch.num_moments):
        one, num_events = slice(moment, moment + 1), int(users.num_events_B[moment])
        alone = replace(
            users,
            event_index_BL=users.event_index_BL[one, :num_events],
            num_events_B=users.num_events_B[one],
            profile={name: rows[one] for name, rows in users.profile.items()},
            query={name: rows[one] for name, rows in users.query.items()},
            now_B=users.now_B[one],
        )
        torch.testing.assert_close(runner.user_half(alone)[USER_VECTOR][0], together_MR[moment], rtol=0, atol=1e-5)


def test_every_table_has_a_vocabulary_of_its_rows(trained: Trained, package: Path) -> None:
    manifest = open_package(package)
    tables = trained.checkpoint.manifest.tables
    known = {name: vocabulary.num_ids + 1 for name, vocabulary in manifest.vocabularies.items()}
    assert {name: table.num_rows for name, table in tables.items()} == {name: known[name] for name in tables}
    assert not any(word in (package / "manifest.json").read_bytes() for word in (b"raw_ids", b'"hash"')), "as before"
    reader = VocabularyReader(package / "vocab", "item")
    assert reader.rows(["item-1", "item-199", "item-200", None]).tolist() == [1, 199, 0, 0]
