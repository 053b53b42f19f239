"""Training on ids without a vocabulary: as with one where it should be; served from raw ids as it was trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stack.base.dist import process_group
from stack.base.errors import ConfigError
from stack.data.dataset import Dataset
from stack.data.loader import Loader
from stack.data.schema import Schema
from stack.export.config import ExportConfig
from stack.export.export import Trained, export
from stack.export.package import IdKind
from stack.export.quantize import RowType
from stack.export.requests import held_out_requests
from stack.export.tables import trained_ids
from stack.ids.config import IdMode, IdsConfig, ManagedConfig
from stack.ids.hashing import HashVariant
from stack.train.build import Setup
from stack.train.id_state import id_maps
from stack.train.planning import specs_of
from stack.train.trained import open_run
from stack.train.verb import train
from tests.export.recorded import Asked
from tests.prepared import FIRST_ITEM, write_prepared
from tests.train.worker import Run, losses, setup_of

CPU = torch.device("cpu")
ENOUGH = {"item": 250, "brand": 25}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset `prepared`, with items and brands by their keys."""
    return write_prepared(tmp_path_factory.mktemp("raw") / "data", raw_ids=True)


def setup_with(dataset: Path, runs: Path, *, name: str, ids: IdsConfig) -> Setup:
    setup = setup_of(Run(dataset=str(dataset), runs=str(runs), name=name, train={"max_steps": 8}))
    return replace(setup, ids=ids)


def test_managed_keys_with_a_row_for_each_learn_what_direct_rows_learn(
    prepared: Path, raw: Path, tmp_path: Path
) -> None:
    """First values belong to rows, and ids have other rows here than there: so all begin at (almost) zero."""
    everything = IdsConfig(
        modes=dict.fromkeys(ENOUGH, IdMode.managed), rows=ENOUGH, managed=ManagedConfig(admit_after=1)
    )
    found = {}
    for name, dataset, ids in (("direct", prepared, IdsConfig()), ("keys", raw, everything)):
        setup = setup_with(dataset, tmp_path, name=name, ids=ids)
        setup.tables.init_range = 1e-9
        train(setup)
        found[name] = losses(setup.run.folder)
    assert len(found["direct"]) == 8
    for direct, keys in zip(found["direct"], found["keys"], strict=True):
        assert keys["losses"] == pytest.approx(direct["losses"], rel=1e-5)
        assert keys["num_examples"] == direct["num_examples"]


def test_ids_without_a_vocabulary_cannot_be_direct(raw: Path, tmp_path: Path) -> None:
    text = (
        "table 'brand' has no vocabulary (ingest.raw_ids), so its ids cannot be direct: set ids.modes.brand to managed "
        "or hashed, and ids.rows.brand to its number of rows"
    )
    setup = setup_with(raw, tmp_path, name="direct", ids=IdsConfig(modes={"item": IdMode.hashed}, rows={"item": 9}))
    for verb in (train, specs_of):
        with pytest.raises(ConfigError) as caught:
            verb(setup)
        assert str(caught.value) == text
    assert not (setup.run.folder / "checkpoints" / "manifests").exists()
    hashed = replace(setup, ids=IdsConfig(modes=dict.fromkeys(ENOUGH, IdMode.hashed), rows=ENOUGH))
    assert {spec.name: spec.num_rows for spec in specs_of(hashed) if spec.name in ENOUGH} == ENOUGH


@pytest.mark.parametrize("hash_", [pytest.param(HashVariant.modulo, marks=pytest.mark.long), HashVariant.double])
def test_served_scores_of_raw_ids_are_the_trained_ones(
    prepared: Path, raw: Path, tmp_path: Path, hash_: HashVariant
) -> None:
    """Items, whole numbers above 2^40, are managed in a quarter of the rows that they would need; brands, texts, are
    hashed into less than half."""
    ids = IdsConfig(
        modes={"item": IdMode.managed, "brand": IdMode.hashed}, rows={"item": 50, "brand": 8}, hash=hash_,
        managed=ManagedConfig(admit_after=1),
    )  # fmt: skip
    setup = setup_with(raw, tmp_path, name="run", ids=ids)
    setup.train.max_steps, setup.train.to_day = 2, Dataset(raw).days()[0]
    train(setup)
    day = Dataset(raw).days()[1]
    body = first_request(Dataset(prepared), Dataset(prepared).schema, day)
    for part in ("events", "candidates"):
        body[part]["item"] = [FIRST_ITEM + int(text.removeprefix("item-")) for text in body[part]["item"]]
    with process_group(device=CPU):
        run = open_run(setup, version=None, device=CPU)
        maps = trained_ids(id_maps(run.model), run.dataset.schema)
        trained = Trained(name="run", model=run.user_model, checkpoint=run.checkpoint, dataset=run.dataset, ids=maps)
        package = setup.run.folder / "package"
        manifest = export(trained, folder=package, config=ExportConfig(tolerance=1e-5, row_type=RowType.fp32))
        batch = next(iter(Loader(run.dataset, days=[day], global_batch_size=64, shuffle=False, num_prefetch=0)))
        with torch.no_grad():
            score_E = run.user_model(batch)["ctr"].score_E
    moment_E = batch.groups["impression"].moment_E
    moment = next(moment for moment in moment_E.tolist() if batch.moment_position_M[moment] > 0)
    asked = Asked(package)
    assert asked.manifest == manifest
    _, scores, unknown = asked.score(body)
    np.testing.assert_allclose(scores["ctr"], score_E[moment_E == moment].sigmoid(), rtol=0, atol=1e-5)
    assert {name for name in unknown if not name.endswith(".item")} == set(), "a hash knows every id"
    assert unknown["candidates.item"] > 0, "49 rows do not hold 199 items"
    assert (manifest.ids["brand"].kind, manifest.tables["brand"].num_rows) == (IdKind.hash, 8)
    assert (manifest.ids["item"].kind, manifest.tables["item"].num_rows) == (IdKind.key, 49)
    assert sorted(path.name for path in (package / "ids").iterdir()) == ["scenario", "type"]
    without = first_request(run.dataset, manifest.schema, day)
    assert without["candidates"]["item"] == body["candidates"]["item"]
    assert not {"brand"} & (without["candidates"].keys() | without["events"].keys()), "texts cannot be told from hashes"
    assert len(asked.assert_answers_as_recorded()) == 16


def first_request(dataset: Dataset, schema: Schema, day: str) -> dict[str, Any]:
    return next(held_out_requests(dataset, schema, day=day, group="impression", max_events=100))
