"""Exported equals trained, on held-out moments; and what export refuses."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from stack.base.errors import PackageError
from stack.data.dataset import Dataset
from stack.data.loader import Loader
from stack.export.config import ExportConfig
from stack.export.engines import open_engine
from stack.export.export import Trained, export
from stack.export.moments import users_of
from stack.export.package import USER_VECTOR, GraphFormat, IdKind, Link, PackageManifest, open_package, read_manifest
from stack.export.parity import Differences, package_answers, trained_answers
from stack.export.quantize import RowType
from stack.export.requests import held_out_requests
from stack.export.runner import Runner
from stack.export.sealed import MANIFEST
from stack.export.sign import Algorithm, check, make_keys, read_signature
from stack.export.stores import open_stores
from stack.export.tables import ExportedTable, exported_tables
from stack.export.user_half import link_of
from stack.layers.norm import Norm
from stack.serve.predictor import Predictor
from stack.serve.worker import prove
from stack.tasks import TASKS, CtrConfig, Enabled, PowerConfig
from stack.towers.behavior import Behavior, PropertyUse
from stack.towers.config import Attention, ModelConfig
from tests.export.conftest import PUBLISHED, SMALL
from tests.export.recorded import Asked
from tests.export.trained import ctr_alone, damage, trained_run
from tests.serve.in_process import service_of

BOTH = ModelConfig(
    behavior=Behavior.mean, norm=Norm.batch, attention=Attention.both, property=PropertyUse.none, user_id=True
)
"""Beside the published and the small one: scorers need states, the query is in the vector, users have rows; `test_onnx`
compares the graphs of all encoders."""


def exported(trained: Trained, manifest: PackageManifest) -> dict[str, ExportedTable]:
    return exported_tables(
        trained.model.places.tables(), schema=manifest.schema, dataset=trained.dataset, checkpoint=trained.checkpoint,
        ids=trained.ids,
    )  # fmt: skip


def runner_of(package: Path) -> Runner:
    manifest = read_manifest(package)
    return Runner(
        manifest, engine=open_engine(package, manifest, GraphFormat.onnx), tables=open_stores(package, manifest)
    )


def assert_the_server_gives_the_trained_scores(trained: Trained, package: Path) -> None:
    """Requests in raw ids, decoded and answered as in serving, against the model on the same moments."""
    asked = Asked(package)
    day = trained.dataset.days()[-1]
    batch = next(iter(Loader(trained.dataset, days=[day], global_batch_size=64, shuffle=False, num_prefetch=0)))
    with torch.inference_mode():
        score_E = trained.model(batch)["ctr"].score_E
    moment_E = batch.groups["impression"].moment_E
    moments = [moment for moment in dict.fromkeys(moment_E.tolist()) if batch.moment_position_M[moment] > 0]
    assert len(moments) > 5
    bodies = held_out_requests(trained.dataset, asked.manifest.schema, day=day, group="impression", max_events=100)
    for moment, body in zip(moments[:5], bodies, strict=False):
        _, scores, unknown = asked.score(body)
        np.testing.assert_allclose(scores["ctr"], score_E[moment_E == moment].sigmoid(), rtol=0, atol=1e-5)
        assert unknown == {}


def test_all_outputs_of_the_package_equal_the_trained_model(published: Trained, package: Path) -> None:
    manifest = open_package(package)
    tasks = {"ctr", "rank", "power", "follow", "shop", "next_item"}
    parity = manifest.parity
    assert set(parity.max_abs_difference) == {USER_VECTOR, *tasks, "rank_weights", "next_item_vector"}
    assert parity.tolerance == 1e-5
    assert parity.worst < 1e-5
    assert parity.num_examples["ctr"] == 5 * parity.num_moments == 5 * parity.num_examples["power"]
    assert set(manifest.graphs) == {"user_half"} | {f"score_{task}" for task in tasks - {"power"}}
    assert {task.name for task in manifest.tasks} == tasks | {"rank_weights"}
    assert not manifest.scorer_needs_states
    assert_the_server_gives_the_trained_scores(published, package)


def test_a_model_whose_scorers_need_states_is_exported_as_it_was_trained(dataset: Dataset, tmp_path: Path) -> None:
    trained = trained_run(tmp_path, dataset, BOTH, tasks=ctr_alone())
    manifest = export(trained, folder=tmp_path / "package", config=PUBLISHED)
    assert open_package(tmp_path / "package") == manifest
    assert set(manifest.parity.max_abs_difference) == {USER_VECTOR, "ctr"}
    assert manifest.parity.worst < 1e-5
    assert manifest.parity.num_examples["ctr"] >= 30
    assert manifest.scorer_needs_states
    assert manifest.query_in_vector
    assert manifest.tables["user"].num_rows == 59
    assert_the_server_gives_the_trained_scores(trained, tmp_path / "package")


def test_a_package_that_scores_no_candidate_is_tried_with_its_users(dataset: Dataset, tmp_path: Path) -> None:
    power_alone = replace(ctr_alone(), ctr=CtrConfig(enabled=Enabled.never), power=PowerConfig())
    trained = trained_run(tmp_path, dataset, tasks=power_alone)
    manifest = export(trained, folder=tmp_path / "package", config=PUBLISHED)
    assert manifest.schema.groups == ()
    assert set(manifest.parity.max_abs_difference) == {USER_VECTOR, "power"}
    service = service_of(Predictor(tmp_path / "package", manifest))
    recorded = service.versions[3].predictor.recorded()
    assert len(recorded) == manifest.parity.num_moments == 12
    for one in recorded:
        assert set(one.body) == {"now", "events", "profile", "query"}
        prove(service, service.versions[3], one, exact=True, rests=0.0)
    other = msgspec.structs.replace(recorded[0], vector=recorded[-1].vector)
    with pytest.raises(PackageError, match="answers a recorded request with another vector"):
        prove(service, service.versions[3], other, exact=True, rests=0.0)


@pytest.fixture
def graphs_at_hand(small_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The small package's graphs, made again from the same run, are those it has: seconds less."""

    def copied(program: object, file: Path, **_: object) -> None:
        assert isinstance(program, torch.export.ExportedProgram)
        shutil.copyfile(small_package / "graphs" / file.name, file)

    monkeypatch.setattr("stack.export.graphs.save_onnx", copied)


def test_every_registered_task_says_how_it_is_answered() -> None:
    assert {name: link_of(task) for name, task in TASKS.items()} == {
        "ctr": Link.SIGMOID, "follow": Link.SIGMOID, "shop": Link.SIGMOID, "power": Link.SOFTMAX,
        "rank": Link.IDENTITY, "next_item": Link.IDENTITY,
    }  # fmt: skip


def test_parity_finds_a_model_that_is_not_the_packages(published: Trained, package: Path) -> None:
    manifest = open_package(package)
    keys_of = {name: table.keys_of for name, table in exported(published, manifest).items()}
    batch = next(iter(Loader(published.dataset, days=["2016-07-19"], global_batch_size=4, num_prefetch=0)))
    groups = {name: published.model.task(name).group for name in published.model.tasks}
    ours = package_answers(runner_of(package), manifest, batch, keys_of, groups)
    assert len(ours["power"]) == batch.groups["price"].num_examples, "what is said of the user, of each example"
    same = Differences()
    same.add(batch, ours, trained_answers(published.model, batch)[0])
    assert same.result(1e-5, what="itself").num_moments == batch.num_moments
    other = copy.deepcopy(published.model)
    damage(other)
    differences = Differences()
    differences.add(batch, ours, trained_answers(other, batch)[0])
    text = r"export refused: output '\w+' of the package \(onnx\) differs .*, export.tolerance is 0.0001; nothing was"
    with pytest.raises(PackageError, match=text):
        differences.result(1e-4, what="onnx")
    with pytest.raises(PackageError, match="parity cannot be checked: the day after training holds no moment: ingest"):
        Differences().result(1e-4, what="onnx")


def test_a_number_that_is_not_one_is_a_difference(published: Trained, package: Path) -> None:
    batch = next(iter(Loader(published.dataset, days=["2016-07-19"], global_batch_size=4, num_prefetch=0)))
    theirs = trained_answers(published.model, batch)[0]
    ours = {name: value.copy() for name, value in theirs.items()}
    ours["rank"][0] = np.nan
    differences = Differences()
    differences.add(batch, ours, theirs)
    differences.add(batch, theirs, theirs)
    with pytest.raises(PackageError, match="output 'rank' of the package .onnx. differs from the trained model by nan"):
        differences.result(1e9, what="onnx")


@pytest.mark.usefixtures("graphs_at_hand")
def test_a_refused_export_writes_nothing(small: Trained, tmp_path: Path) -> None:
    config = replace(SMALL, tolerance=1e-30)
    with pytest.raises(PackageError, match=r"export refused: .* export.tolerance is 1e-30; nothing was written"):
        export(small, folder=tmp_path / "package", config=config)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("graphs_at_hand")
def test_a_package_is_replaced_only_when_asked_and_signed_when_a_key_is_given(
    small: Trained, small_package: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(small_package, tmp_path / "package")
    (folder / "leftover").touch()
    with pytest.raises(PackageError, match=r"package exists: .* set export.overwrite=true"):
        export(small, folder=folder, config=SMALL)
    secret, public = make_keys(tmp_path / "keys", Algorithm.ed25519)
    again = export(small, folder=folder, config=replace(SMALL, overwrite=True, sign_key=str(secret)))
    assert open_package(folder) == again
    assert not (folder / "leftover").exists()
    check((folder / MANIFEST).read_bytes(), read_signature(folder), [public])
    before = read_manifest(small_package)
    for name, file in before.files.items():
        if not name.startswith("index/"):  # it tells how long it took
            assert again.files[name] == file, "the same run gives the same bytes"


REFUSED: dict[str, tuple[ExportConfig, str]] = {
    "unknown table": (
        replace(SMALL, row_types={"itme": RowType.int8}),
        "export.row_types names the table 'itme'; the run has: .*item",
    ),
    "no key": (replace(SMALL, sign_key="/none/key.pem"), "/none/key.pem"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_an_option_names_and_is_not_there_is_refused_before_graphs_are_written(
    name: str, small: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("graphs take minutes")

    monkeypatch.setattr("stack.export.graphs.save_onnx", never)
    config, text = REFUSED[name]
    with pytest.raises(PackageError, match=text):
        export(small, folder=tmp_path / "package", config=config)
    assert list(tmp_path.iterdir()) == []


def test_a_run_whose_name_no_package_can_have_is_refused(small: Trained, tmp_path: Path) -> None:
    for name in ("a" * 65, "../up", ".hidden", "a/b"):
        with pytest.raises(PackageError, match=rf"run '{name[:80]}' cannot be a package's name: it must match "):
            export(replace(small, name=name), folder=tmp_path / "package", config=SMALL)


def test_a_user_has_the_same_vector_in_any_company(published: Trained, package: Path) -> None:
    manifest, runner = open_package(package), runner_of(package)
    days = published.dataset.days()[-1:]
    batch = next(iter(Loader(published.dataset, days=days, global_batch_size=8, num_prefetch=0)))
    keys_of = {name: table.keys_of for name, table in exported(published, manifest).items()}
    users = users_of(batch, manifest.schema, keys_of)
    assert users.event_index_BL is not None
    together_MR = runner.user_half(users)[USER_VECTOR]
    for moment in range(batch.num_moments):
        one, num_events = slice(moment, moment + 1), int(users.num_events_B[moment])
        alone = replace(
            users,
            event_index_BL=users.event_index_BL[one, :num_events],
            num_events_B=users.num_events_B[one],
            profile={name: keys[one] for name, keys in users.profile.items()},  # type: ignore[index]
            query={name: keys[one] for name, keys in users.query.items()},  # type: ignore[index]
            now_B=users.now_B[one],
        )
        np.testing.assert_allclose(runner.user_half(alone)[USER_VECTOR][0], together_MR[moment], rtol=0, atol=1e-5)


def test_every_table_has_the_rows_of_its_ids_and_every_property_a_list(published: Trained, package: Path) -> None:
    manifest = open_package(package)
    trained = published.checkpoint.manifest.tables
    assert {name: (table.num_rows, table.dim) for name, table in manifest.tables.items()} == {
        name: (table.num_rows - 1, table.dim) for name, table in trained.items()
    }
    assert all(manifest.ids[name].num_ids == table.num_rows for name, table in manifest.tables.items())
    assert {name for name, ids in manifest.ids.items() if ids.kind is IdKind.list} == {"scenario", "type"}
    predictor = Predictor(package, manifest)
    weight = published.checkpoint.table_rows("item", 0, 200).weight_ND.numpy()
    found = predictor.vectors("item", ["item-1", "item-199", "item-200", None])
    np.testing.assert_array_equal(found, weight[[1, 199, 0, 0]])


def test_rows_are_kept_as_each_table_was_asked_for(small_package: Path) -> None:
    manifest = open_package(small_package)
    types = {name: table.row_type for name, table in manifest.tables.items()}
    assert (types.pop("tags"), types.pop("shop")) == (RowType.int4, RowType.fp16)
    assert set(types.values()) == {RowType.int8}
    sizes = {name: manifest.files[f"rows/{name}/rows.npy"].num_bytes - 128 for name in ("item", "tags", "shop")}
    assert sizes == {"item": 199 * (32 + 8), "tags": 29 * (14 + 4), "shop": 8 * 24 * 2}
