"""Training with hashed and managed ids over two processes against one."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest
import torch

from stack.base.dist import process_group
from stack.checkpoint.load import Checkpoint
from stack.data.dataset import Dataset
from stack.ids.managed import MapState
from stack.tables.shard import table_shards
from stack.train.build import build_sharded_model
from stack.train.id_state import id_maps
from stack.train.restore import restore_model
from tests.distributed.test_training import last_checkpoint, run_one_and_two
from tests.prepared import write_prepared
from tests.train.worker import Run, losses, setup_of

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")


def pair(folder: Path, run: Run) -> tuple[Run, Run]:
    """The run by one process, and by two."""
    data = write_prepared(folder / "data")
    runs = [
        msgspec.structs.replace(run, name=name, dataset=str(data), runs=str(folder), through_verb=False)
        for name in ("one", "two")
    ]
    run_one_and_two(*runs)
    return runs[0], runs[1]


def state_of(checkpoint: Checkpoint) -> MapState:
    return checkpoint.map_state("item")


def test_two_processes_with_hashed_ids_have_the_losses_of_one(tmp_path: Path) -> None:
    one, two = pair(tmp_path, Run(hashed_rows=8))
    steps = list(zip(losses(one.folder), losses(two.folder), strict=True))
    assert len(steps) >= 8
    for ours, theirs in steps:
        for name, loss in ours["losses"].items():
            if loss is not None:
                assert math.isclose(loss, theirs["losses"][name], abs_tol=2e-6), (ours["step"], name)


def test_managed_ids_are_the_same_over_two_processes_and_load_into_one(tmp_path: Path) -> None:
    """Rows for all: then who has one does not depend on the number of processes. First values of rows do, so losses
    are not compared."""
    one, two = pair(tmp_path, Run(managed_rows=400))
    ours, theirs = last_checkpoint(one), last_checkpoint(two)
    states = [state_of(checkpoint) for checkpoint in (ours, theirs)]
    assert len(theirs.manifest.tables["item"].parts) == 2
    for name in ("key_N", "count_N", "last_N", "waiting_key_W", "waiting_count_W"):
        assert torch.equal(getattr(states[0], name), getattr(states[1], name)), name
    assert states[0].key_N.shape[0] > 100

    setup = setup_of(msgspec.structs.replace(two, managed_rows=700))
    dataset = Dataset(setup.dataset)
    with process_group(device=CPU):
        model = build_sharded_model(setup, dataset, last_day=dataset.days()[-1], device=CPU).eval()
        restore_model(model, theirs, dataset=dataset)
        maps = id_maps(model)
        assert maps is not None
        rows = maps("item", states[1].key_N)
        (weight,) = (shard.weight_ND.clone() for shard in table_shards(model) if shard.name == "item")
    saved = theirs.table_rows("item", 0, 400).weight_ND
    assert torch.equal(weight[rows], saved[states[1].row_N])
