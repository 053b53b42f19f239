"""Training with managed and hashed ids: resumed as uninterrupted, into other numbers of rows, and into a package."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from stack.base.dist import process_group
from stack.base.errors import CheckpointError, ConfigError
from stack.checkpoint.load import Checkpoint
from stack.data.dataset import Dataset
from stack.export.config import ExportConfig
from stack.export.export import Trained, export
from stack.export.package import IdKind, open_package
from stack.export.quantize import RowType
from stack.export.tables import trained_ids
from stack.ids.managed import MapState
from stack.serve.predictor import Predictor
from stack.tables.shard import table_shards
from stack.train.build import build_sharded_model
from stack.train.id_state import id_maps
from stack.train.restore import restore_model
from stack.train.trained import open_run
from stack.train.verb import train
from tests.train.worker import Run, losses, setup_of, versions

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def whole(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of 16 steps whose items (199 of them) have 59 rows to share out, so that some are evicted."""
    run = Run(
        dataset=str(prepared), runs=str(tmp_path_factory.mktemp("runs")), name="whole", norm="batch", dropout=0.2,
        managed_rows=60, hashed_rows=8, checkpoint={"keep_last": 10},
    )  # fmt: skip
    train(setup_of(run))
    return run


def saved(run: Run, step: int) -> Checkpoint:
    return versions(run)[step]


def state_of(checkpoint: Checkpoint) -> MapState:
    return checkpoint.map_state("item")


def test_the_run_admits_and_evicts(whole: Run) -> None:
    first, last = (set(state_of(saved(whole, step)).key_N.tolist()) for step in (5, 16))
    assert len(last) == 59
    assert first - last, "some were evicted"


def test_the_log_of_ids_adds_up(whole: Run) -> None:
    lines = [msgspec.json.decode(line) for line in (whole.folder / "ids.jsonl").read_bytes().splitlines()]
    assert [(line["step"], line["table"]) for line in lines] == [(5, "item"), (10, "item"), (15, "item")]
    held = 0
    for line in lines:
        held += line["num_admitted"] - line["num_evicted"]
        assert held == line["num_held"] == round(line["occupancy"] * 59)
        assert 0.0 < line["hit_share"] < 1.0
    assert sum(line["num_evicted"] for line in lines) > 0
    assert len(state_of(saved(whole, 15)).key_N) == held


def test_tensorboard_shows_what_the_log_of_ids_tells_beside_the_losses(whole: Run) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lines = [msgspec.json.decode(line) for line in (whole.folder / "ids.jsonl").read_bytes().splitlines()]
    ids = EventAccumulator(str(whole.folder / "tensorboard" / "ids")).Reload()
    for what in ("num_held", "num_evicted", "hit_share"):
        points = [(point.step, point.value) for point in ids.Scalars(f"ids/item/{what}")]
        assert points == [(line["step"], pytest.approx(line[what])) for line in lines]
    losses = EventAccumulator(str(whole.folder / "tensorboard")).Reload()
    assert [point.step for point in losses.Scalars("loss/ctr")] == [5, 10, 15]


def test_resumed_equals_uninterrupted_in_every_loss_and_every_byte(whole: Run) -> None:
    resumed = msgspec.structs.replace(whole, name="resumed")
    shutil.copytree(whole.folder, resumed.folder)
    for version in (2, 3, 4):  # of steps 10, 15 and 16
        (resumed.folder / "checkpoints" / "manifests" / f"{version:08d}.json").unlink()
    train(setup_of(resumed))
    assert losses(resumed.folder) == losses(whole.folder)
    assert saved(resumed, 16).manifest.files == saved(whole, 16).manifest.files
    assert (resumed.folder / "ids.jsonl").read_bytes() == (whole.folder / "ids.jsonl").read_bytes()
    assert any(name.startswith("ids/item/") for name in saved(whole, 16).manifest.files)


@pytest.mark.parametrize("rows", [40, 60, 150])
def test_a_checkpoint_loads_by_key_into_other_numbers_of_rows(whole: Run, rows: int) -> None:
    checkpoint = saved(whole, 16)
    state = state_of(checkpoint)
    setup = setup_of(msgspec.structs.replace(whole, managed_rows=rows))
    dataset = Dataset(setup.dataset)
    with process_group(device=CPU):
        model = build_sharded_model(setup, dataset, last_day=dataset.days()[-1], device=CPU).eval()
        (fresh,) = (shard.weight_ND.clone() for shard in table_shards(model) if shard.name == "item")
        restore_model(model, checkpoint, dataset=dataset)
        maps = id_maps(model)
        assert maps is not None
        now = maps("item", state.key_N)
        (shard,) = (shard for shard in table_shards(model) if shard.name == "item")
        weight, momentum = shard.weight_ND.clone(), shard.state["momentum1"].clone()
    kept = now > 0
    assert int(kept.sum()) == min(rows - 1, 59)
    old = checkpoint.table_rows("item", 0, 60)
    assert torch.equal(weight[now[kept]], old.weight_ND[state.row_N[kept]])
    assert torch.equal(momentum[now[kept]], old.state["momentum1"][state.row_N[kept]])
    assert torch.equal(weight[0], old.weight_ND[0]), "row 0 is still that of unknown ids"
    free = torch.ones(rows, dtype=torch.bool)
    free[now] = False
    free[0] = False
    assert torch.equal(weight[free], fresh[free]), "rows without an id are as new"
    assert float(momentum[free].abs().sum()) == 0.0


def test_a_checkpoint_without_managed_ids_is_refused_where_they_are_asked_for(whole: Run, prepared: Path) -> None:
    plain = Run(dataset=str(prepared), runs=whole.runs, name="plain", train={"max_steps": 1})
    train(setup_of(plain))
    setup = setup_of(msgspec.structs.replace(plain, managed_rows=200))
    with (
        process_group(device=CPU),
        pytest.raises(
            CheckpointError,
            match="the ids of table 'item' are managed here and were not in version 1 of .* .ids.modes.item.: use the",
        ),
    ):
        open_run(setup, version=None, device=CPU)


def test_a_managed_table_without_rows_is_refused(prepared: Path, tmp_path: Path) -> None:
    run = Run(dataset=str(prepared), runs=str(tmp_path), name="none", managed_rows=50)
    setup = setup_of(run)
    setup.ids.rows.clear()
    with pytest.raises(ConfigError, match="table 'item' is managed and has no number of rows: set ids.rows.item"):
        train(setup)
    assert not (run.folder / "plan.json").exists()


@pytest.mark.slow
def test_a_package_of_managed_and_hashed_ids_equals_the_trained_model(whole: Run) -> None:
    """`export` compares both on a day of data and refuses a difference."""
    with process_group(device=CPU):
        run = open_run(setup_of(whole), version=None, device=CPU)
        ids = trained_ids(id_maps(run.model), run.dataset.schema)
        trained = Trained(name="whole", model=run.user_model, checkpoint=run.checkpoint, dataset=run.dataset, ids=ids)
        folder = whole.folder / "package"
        manifest = export(trained, folder=folder, config=ExportConfig(row_type=RowType.fp32, max_auc_loss=0.1))
        maps = id_maps(run.model)
        assert maps is not None
        row_N, brand_N2 = maps("item", torch.arange(200)), maps("brand", torch.arange(20))
        items = run.checkpoint.table_rows("item", 0, 60).weight_ND[row_N].numpy()
        brands = run.checkpoint.table_rows("brand", 0, 8).weight_ND[brand_N2].sum(1).numpy()
    assert open_package(folder) == manifest
    assert manifest.parity.worst <= manifest.parity.tolerance
    assert (manifest.ids["item"].kind, manifest.ids["brand"].kind) == (IdKind.key, IdKind.key)
    assert manifest.tables["item"].num_rows == manifest.ids["item"].num_ids == 59, "items without a row are left out"
    assert manifest.tables["brand"].num_rows == 19, "a row for each brand: the sum of its two"
    predictor = Predictor(folder, manifest)
    served = predictor.vectors("item", [f"item-{row}" if row else None for row in range(200)])
    np.testing.assert_array_equal(served, items)
    assert len(np.unique(served, axis=0)) == 60
    np.testing.assert_array_equal(
        predictor.vectors("brand", [f"brand-{row}" if row else None for row in range(20)]), brands
    )
    np.testing.assert_array_equal(predictor.vectors("brand", ["never seen"]), brands[:1])
