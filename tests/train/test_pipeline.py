"""Training with ids sent ahead is training: the same losses, and the same bytes in every checkpoint."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch

from stack.base.dist import process_group
from stack.base.errors import ConfigError, DataError
from stack.base.tensors import tensors_in
from stack.data.batch import Jagged
from stack.data.loader import Cursor
from stack.tables.config import Sharding
from stack.tables.shard import dense_module
from stack.train.build import build_loop
from stack.train.config import Pipeline
from stack.train.loop import Loop
from stack.train.periodic import Moment, Periodic, RefusalLimit
from stack.train.steps import SparseDist
from stack.train.verb import STOPPED_STATUS, train
from tests.train.test_resume import _interrupt, _num_logged
from tests.train.worker import Poisoned, Run, losses, run_and_tell_buffers, setup_of, versions

CPU = torch.device("cpu")
RUNS = {
    "dropout and batch norm": Run(norm="batch", dropout=0.2, checkpoint={"keep_last": 10}),
    "a refused batch": Run(poisoned_step=4, checkpoint={"keep_last": 10}),
    "rows that change hands": Run(
        managed_rows=30, hashed_rows=8, checkpoint={"keep_last": 10}, train={"num_epochs": 3}
    ),
}


def files(run: Run) -> dict[int, object]:
    """Sizes and digests of all files of each checkpoint: rows, dense tensors, optimizer, ids, cursor."""
    return {step: checkpoint.manifest.files for step, checkpoint in versions(run).items()}


def pair(prepared: Path, runs: Path, run: Run) -> tuple[Run, Run]:
    """The run without and with the pipeline."""
    return tuple(
        msgspec.structs.replace(
            run, name=name, pipeline=name, dataset=str(prepared), runs=str(runs), through_verb=False
        )
        for name in ("none", "sparse_dist")
    )  # type: ignore[return-value]


@pytest.mark.parametrize("name", RUNS)
def test_losses_and_checkpoints_are_those_of_training_without(prepared: Path, tmp_path: Path, name: str) -> None:
    plain, ahead = pair(prepared, tmp_path, RUNS[name])
    run_and_tell_buffers([plain, ahead])
    expected = losses(plain.folder)
    assert len(expected) >= 16
    assert losses(ahead.folder) == expected
    assert len(files(plain)) >= 4
    assert files(ahead) == files(plain)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 16])
def test_it_ends_with_the_steps_asked_for_and_takes_no_batch_beyond(loop: Loop, num_steps: int) -> None:
    seen = Seen()
    replace(loop, periodics=[seen], num_steps=num_steps).run()
    assert [moment.step for moment in seen.moments] == list(range(1, num_steps + 1))
    assert loop.loader.num_steps_done == num_steps
    assert seen.moments[-1].cursor == loop.loader.cursor


def test_cursor_and_day_are_those_of_the_batch_computed_and_not_of_those_begun(loop: Loop) -> None:
    seen = Seen(loop)
    replace(loop, periodics=[seen]).run()
    assert [moment.day for moment in seen.moments] == [day for day in DAYS for _ in range(2)] * 2
    ahead = [loaded - moment.step for loaded, moment in zip(seen.num_loaded, seen.moments, strict=True)]
    assert ahead == [2] * 14 + [1, 0]
    assert seen.moments[0].cursor == Cursor(step=1)
    assert seen.moments[1].cursor == Cursor(block=1)


def test_the_model_looks_up_by_itself_before_and_after(loop: Loop) -> None:
    batch = next(iter(loop.loader))
    model = loop.stepper.model
    with torch.no_grad():
        before = model.eval()(batch)["ctr"].score_E
        model.train()
        steps = loop.steps.run(iter(()), first_step=0, asked_to_stop=lambda: False)
        assert list(steps) == []
        torch.testing.assert_close(model.eval()(batch)["ctr"].score_E, before, rtol=0, atol=0)
    model.train()
    replace(loop, periodics=[], num_steps=3).run()
    with torch.no_grad():
        assert not torch.equal(model.eval()(batch)["ctr"].score_E, before)
        dense_module(model).representation(batch)


def test_an_error_after_a_step_leaves_nothing_in_the_pipeline(loop: Loop) -> None:
    limited = replace(loop, loader=Poisoned(loop.loader, 1), periodics=[RefusalLimit(limit=0)])
    with pytest.raises(DataError, match=r"1 batches had numbers that are not finite"):
        limited.run()
    with torch.no_grad():
        assert loop.stepper.model(next(iter(loop.loader)))["ctr"].score_E.isfinite().all()


@pytest.mark.long
def test_killed_and_stopped_ahead_then_finished_without_equals_uninterrupted(prepared: Path, tmp_path: Path) -> None:
    run = Run(dataset=str(prepared), runs=str(tmp_path), norm="batch", dropout=0.2, managed_rows=30)
    run = msgspec.structs.replace(run, train={"num_epochs": 4})
    whole, broken = (msgspec.structs.replace(run, name=name) for name in ("whole", "broken"))
    ahead = msgspec.structs.replace(broken, pipeline="sparse_dist")
    train(setup_of(whole))
    assert _interrupt(ahead, signal.SIGKILL, after_step=8) == -signal.SIGKILL
    assert _interrupt(ahead, signal.SIGTERM, after_step=17) == STOPPED_STATUS
    assert max(versions(broken)) == _num_logged(broken.folder) < 32
    train(setup_of(broken))
    assert losses(broken.folder) == losses(whole.folder)
    assert versions(broken)[32].digest() == versions(whole)[32].digest()


def test_tables_that_nobody_shards_are_refused_by_name(prepared: Path, tmp_path: Path) -> None:
    setup = setup_of(Run(dataset=str(prepared), runs=str(tmp_path), name="r", pipeline="sparse_dist"))
    whole = replace(setup, tables=replace(setup.tables, sharding=Sharding.data_parallel))
    (tmp_path / "r").mkdir()
    with (
        process_group(device=CPU),
        pytest.raises(ConfigError, match=r"train\.pipeline=sparse_dist has no ids to send where all tables are"),
    ):
        build_loop(whole, device=CPU, checkpoint=None)


def test_some_tables_on_every_process_are_looked_up_beside_those_that_travel(prepared: Path, tmp_path: Path) -> None:
    found = []
    for pipeline in Pipeline:
        run = Run(dataset=str(prepared), runs=str(tmp_path), name=pipeline.value, pipeline=pipeline.value)
        setup = setup_of(run)
        mixed = replace(setup.tables, shardings={"shop": Sharding.data_parallel, "item": Sharding.table_wise})
        train(replace(setup, tables=mixed))
        found.append(losses(run.folder))
    assert found[0] == found[1]


def test_tensors_of_a_batch_are_found_wherever_they_are() -> None:
    tensors = [torch.tensor(value) for value in range(4)]
    jagged = Jagged(values_N=tensors[0], lengths=tensors[1])
    assert list(tensors_in([{"a": jagged, "b": "text"}, (tensors[2], None), {"c": [tensors[3]]}])) == tensors


DAYS = ("2016-07-18", "2016-07-19", "2016-07-20", "2016-07-21")


@pytest.fixture
def loop(prepared: Path, tmp_path: Path) -> Iterator[Loop]:
    """Sixteen steps with the pipeline."""
    run = Run(dataset=str(prepared), runs=str(tmp_path), name="r", pipeline="sparse_dist")
    (tmp_path / "r").mkdir()
    with process_group(device=CPU):
        made = build_loop(setup_of(run), device=CPU, checkpoint=None)
        assert isinstance(made.steps, SparseDist)
        yield made
        for periodic in made.periodics:
            periodic.close()


class Seen(Periodic):
    """Keeps every moment, and how many batches had been taken from the loader by then."""

    def __init__(self, loop: Loop | None = None) -> None:
        self.moments: list[Moment] = []
        self.num_loaded: list[int] = []
        self._loop = loop

    def after_step(self, moment: Moment) -> None:
        self.moments.append(moment)
        if self._loop is not None:
            self.num_loaded.append(self._loop.loader.num_steps_done)
