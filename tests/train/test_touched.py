"""What training changed, through the whole step: with a refused batch, and with ids sent ahead."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stack.base.dist import process_group
from stack.tables.shard import table_shards
from stack.tables.touched import track_touched
from stack.train.build import build_loop
from tests.tables.touched_worker import changed, snapshot
from tests.train.worker import Poisoned, Run, setup_of

CPU = torch.device("cpu")


@pytest.mark.parametrize("pipeline", ["none", "sparse_dist"])
def test_rows_taken_are_those_that_training_changed(prepared: Path, tmp_path: Path, pipeline: str) -> None:
    run = Run(dataset=str(prepared), runs=str(tmp_path), name=pipeline, pipeline=pipeline)
    with process_group(device=CPU):
        loop = build_loop(setup_of(run), device=CPU, checkpoint=None)
        touched = track_touched(loop.stepper.model)
        before = snapshot(loop.stepper.model)
        replace(loop, loader=Poisoned(loop.loader, 1), periodics=[], num_steps=3).run()
        taken = {name: rows.tolist() for name, rows in touched.take().items()}
        assert taken == changed(loop.stepper.model, before)
        for periodic in loop.periodics:
            periodic.close()
        sizes = {one.name: one.num_rows for one in table_shards(loop.stepper.model)}
        assert 20 < len(taken["item"]) < sizes["item"]
