"""Two processes follow TorchRec's plan and learn what they learn otherwise; different plans are noticed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stack.tables.placement import Sharding
from stack.tables.plan_file import load_plan
from tests.distributed.launch import TORCHRUN, run_ranks, run_together
from tests.prepared import write_prepared

OPTIONS = ("model=mean", "tasks=ctr", "train.max_steps=3", "train.batch_size=16", "train.num_threads=1")


def trained(folder: Path, name: str, *words: str) -> list[float]:
    """Losses of `stack train` in two processes."""
    given = ("train", f"data.out={folder / 'data'}", f"run.dir={folder}", f"run.name={name}", *OPTIONS, *words)
    run_together([[*TORCHRUN, "-m", "stack", *given]])
    return [json.loads(line)["loss"] for line in (folder / name / "steps.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_learn_the_same_by_torchrecs_plan(tmp_path: Path) -> None:
    write_prepared(tmp_path / "data")
    planned = trained(tmp_path, "planned", "tables.planner=torchrec")
    plan = load_plan(tmp_path / "planned" / "plan.json")
    assert (plan.world_size, plan.local_size) == (2, 2)
    assert Sharding.table_wise in {table.sharding for table in plan.tables}  # which the options alone would not give
    assert planned == pytest.approx(trained(tmp_path, "fixed"), rel=1e-6)


def test_ranks_with_different_plans_notice_it_all() -> None:
    assert run_ranks("tests.distributed.same_worker", world_size=2) == ["True False"] * 2
