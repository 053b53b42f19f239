"""Ids sent ahead over two processes: the same bytes as without, whatever the ranks have, and nobody waits for ever."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from stack.data.dataset import Dataset
from stack.data.loader import Loader
from tests.distributed.launch import run_ranks
from tests.prepared import write_prepared
from tests.train.test_pipeline import files
from tests.train.worker import Run, losses

pytestmark = pytest.mark.long

KEEP_ALL = {"keep_last": 20}
RUNS = {
    "poisoned": Run(norm="batch", dropout=0.2, poisoned_step=3, checkpoint=KEEP_ALL),
    # One timeline a step over two ranks: one of them has nothing.
    "uneven": Run(checkpoint=KEEP_ALL, train={"batch_size": 1, "num_epochs": 1, "max_steps": 12}),
    "managed": Run(managed_rows=30, hashed_rows=8, checkpoint=KEEP_ALL),
}
STOPPED = Run(name="stopped", pipeline="sparse_dist", stopped_after=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs, one after the other in the same two processes."""
    made = tmp_path_factory.mktemp("runs")
    write_prepared(made / "data")
    runs = [
        msgspec.structs.replace(run, name=f"{name}-{pipeline}", pipeline=pipeline)
        for name, run in RUNS.items()
        for pipeline in ("none", "sparse_dist")
    ]
    placed = [
        msgspec.structs.replace(run, dataset=str(made / "data"), runs=str(made), through_verb=False)
        for run in [*runs, STOPPED]
    ]
    run_ranks("tests.train.worker", *(msgspec.json.encode(run).decode() for run in placed), world_size=2)
    return made


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_to_the_same_bytes_with_and_without(folder: Path, name: str) -> None:
    plain, ahead = (
        msgspec.structs.replace(RUNS[name], runs=str(folder), name=f"{name}-{pipeline}")
        for pipeline in ("none", "sparse_dist")
    )
    expected = losses(plain.folder)
    assert len(expected) >= 12
    assert losses(ahead.folder) == expected
    assert files(ahead) == files(plain)
    for rank in (0, 1):
        buffers = [json.loads((run.folder / f"buffers-{rank}.json").read_bytes()) for run in (plain, ahead)]
        assert buffers[0] == buffers[1]


def test_the_runs_have_what_they_are_for(folder: Path) -> None:
    refused = [record["step"] for record in losses(folder / "poisoned-sparse_dist") if record["refused"]]
    assert refused == [4]
    sizes = [[batch.num_timelines for batch in _loader(folder, rank)] for rank in (0, 1)]
    assert any(one != other for one, other in zip(*sizes, strict=True))
    assert 0 in sizes[0][:12]
    assert 0 in sizes[1][:12]


def test_when_one_rank_is_asked_to_stop_all_end_with_the_last_batch_begun(folder: Path) -> None:
    """The seventh step agrees to stop; by then batches eight and nine are begun."""
    records = losses(folder / "stopped")
    assert [record["step"] for record in records] == list(range(1, 10))
    stopped = msgspec.structs.replace(STOPPED, runs=str(folder))
    assert set(files(stopped)) == {5, 9}


def _loader(folder: Path, rank: int) -> Loader:
    data = Dataset(folder / "data")
    return Loader(data, days=data.days(), global_batch_size=1, rank=rank, world_size=2, num_prefetch=0)
