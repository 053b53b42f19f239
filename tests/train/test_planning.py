"""`stack plan`: the paper's tables on 64 GPUs, the refusal of a laptop with ways out that hold, files, and datasets."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from stack.__main__ import main
from stack.tables.placement import Plan, Sharding, TableOptimizer
from stack.tables.plan_file import load_plan, save_plan
from tests.tables.planning import GIB, PAPER

PNG = b"\x89PNG"


def answer(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> tuple[str, str]:
    """stdout and stderr of `stack plan <words>`."""
    capsys.readouterr()
    assert main(["plan", *words]) == status
    shown = capsys.readouterr()
    return shown.out, shown.err


def test_the_papers_tables_are_planned_on_64_gpus(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out, err = answer(capsys, "model=dupn_paper", "cluster=h100x64", f"plan.out={tmp_path}")
    assert err == ""
    assert "Tables over 64 x cuda (h100x64)" in out
    assert "1,000,000,000" in out
    assert "119.21" in out  # GiB of the items' weights: 1e9 x 32 x 4 bytes
    assert "estimates, not measurements" in out
    fixed = re.search(r"tables\.planner=fixed has all tables row_wise, estimated at ([0-9.]+) ms a step", out)
    assert fixed is not None
    assert float(fixed[1]) > 100.0  # each process exchanges vectors with 63 others
    report = json.loads((tmp_path / "report.json").read_text())
    assert {(one["name"], one["num_rows"], one["dim"]) for one in report["tables"]} == {
        (name, rows, dim) for name, (rows, dim) in PAPER.items()
    }
    assert [one["state_bytes"] for one in report["tables"]] == [rows * 4 for rows, _ in PAPER.values()]
    assert len(report["ranks"]) == report["world_size"] == 64
    assert all(0 <= one["device_bytes"] <= 74.5 * 0.8 * GIB for one in report["ranks"])
    assert load_plan(tmp_path / "plan.json").world_size == 64
    assert (tmp_path / "plan.png").read_bytes()[:4] == PNG


def test_a_laptop_is_refused_and_every_way_out_does_what_it_says(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    laptop = ("model=dupn_paper", "cluster=laptop")
    out, err = answer(capsys, *laptop, f"plan.out={tmp_path}", status=2)
    assert err.startswith(
        "stack: the tables do not fit laptop: 'item' (1,000,000,000 x 32 fp32, rowwise_adagrad) needs"
    )
    assert err.endswith("GiB are missing\n")
    assert err.count("\n") == 1
    assert "Ways out (each was planned again)" in out
    assert not (tmp_path / "plan.json").exists()
    refusal = json.loads((tmp_path / "report.json").read_text())
    assert refusal["fits"] is False
    tried = {way["options"]: way["fits"] for way in refusal["ways"]}
    assert sum(tried.values()) >= 3
    assert {True, False} == set(tried.values())
    for options, fits in tried.items():
        again, _ = answer(capsys, *laptop, *options.split(), status=0 if fits else 2)
        assert ("Estimated step" in again) is fits


def test_a_plan_is_compared_with_a_saved_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    small = ("cluster=cpu_hosts", "plan.rows.item=1000000")
    answer(capsys, *small, f"plan.out={tmp_path}")
    saved = f"plan.compare={tmp_path / 'plan.json'}"
    assert f"no difference from {tmp_path}" in answer(capsys, *small, saved)[0]
    out, _ = answer(capsys, *small, "plan.rows.item=2000000", "plan.rows.shop=10", saved)
    assert "1,000,000" in out
    assert "planned" in out
    _, err = answer(capsys, *small, f"plan.compare={tmp_path / 'report.json'}", status=2)
    assert err.startswith(f"stack: the plan {tmp_path}/report.json is damaged (Object missing required field")


def test_what_training_would_do_is_told_where_it_is_not_what_is_planned(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("cluster=cpu_hosts", "plan.rows.item=1000000")
    told = "Training does not follow this of its own accord: tables.planner=fixed has "
    assert f"{told}all tables row_wise, estimated at " in answer(capsys, *words)[0]
    out, _ = answer(capsys, *words, "plan.rows.shop=100", "plan.rows.tags=9", "tables.shardings.shop=grid")
    assert f"{told}item, tags row_wise, shop grid, estimated at " in out
    in_whole = answer(capsys, *words, "tables.sharding=table_wise", "tables.shardings.item=row_wise")[0]
    assert "Training does not" not in in_whole  # nothing is left to choose
    for same in ("tables.planner=torchrec", "plan.choose=false", "tables.sharding=table_row_wise"):
        assert "Training does not" not in answer(capsys, *words, same)[0]
    out, _ = answer(capsys, "cluster=cpu_hosts", "plan.rows.item=2000000000", "tables.sharding=table_wise")
    assert f"{told}all tables table_wise, which does not fit" in out
    out, _ = answer(capsys, *words, "tables.communication=int8")
    assert (
        f"{told}all tables row_wise, which is refused (tables.communication=int8 is not possible for table 'item'"
        in out
    )


@pytest.mark.parametrize("what", ["rows", "ranks", "batch"])
def test_a_sweep_is_shown_and_drawn(capsys: pytest.CaptureFixture[str], tmp_path: Path, what: str) -> None:
    words = ("model=dupn_paper", "cluster=h100x8", f"plan.sweep={what}", "plan.sweep_doublings=2")
    out, _ = answer(capsys, *words, f"plan.out={tmp_path}")
    assert f"Growing {what} on h100x8" in out
    assert (tmp_path / "sweep.png").read_bytes()[:4] == PNG
    points = json.loads((tmp_path / "sweep.json").read_text())["points"]
    assert [point["value"] for point in points] == sorted(point["value"] for point in points)
    assert not (tmp_path / "plan.json").exists()


def test_tables_come_from_the_prepared_dataset_unless_rows_are_given(
    capsys: pytest.CaptureFixture[str], prepared: Path, tmp_path: Path
) -> None:
    words = (f"data.out={prepared}", "cluster=laptop", f"plan.out={tmp_path}")
    answer(capsys, *words, "model.user_id=true")
    planned = {table.name: table.num_rows for table in load_plan(tmp_path / "plan.json").tables}
    assert (planned["item"], planned["shop"], planned["user"]) == (200, 9, 60)
    answer(capsys, *words, "plan.rows.item=7", "tables.headroom=1.0")
    assert {table.name: table.num_rows for table in load_plan(tmp_path / "plan.json").tables} == {"item": 14}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["cluster.hosts=0"], "cluster.hosts=0 must be at least 1: a job needs a machine"),
        (
            ["cluster=h100x8", "cluster.devices_per_host=0"],
            "cluster.devices_per_host=0 must be at least 1: a job needs",
        ),
        (["plan.rows.item=0"], "plan.rows: item=0: a table has at least 1 row"),
        (["plan.rows.item=-5"], "plan.rows: item=-5: a table has at least 1 row"),
        (
            ["tables.shardings.item=diagonal"],
            "tables.shardings.item: Invalid value 'diagonal', expected one of [row_wise,",
        ),
        (["tables.shardings.itme=row_wise"], "tables.shardings names 'itme'; "),
        (["optim.tables=adam", "cluster=laptop"], "optim.tables=adam is not possible on cpu: choose rowwise_adagrad,"),
        (["tables.row_type=bf16", "cluster=laptop"], "tables.row_type of table 'item'=bf16 is not possible on cpu"),
        (["plan.host_memory=true", "cluster=laptop"], "plan.host_memory=true is for cluster.device=cuda: a CPU's"),
        (["plan.out=README.md"], "plan.out=README.md cannot be written (File exists): choose another folder, or make"),
        (["tables.plan=old.json"], "tables.plan=old.json is for training, which follows it as it is: leave it out to"),
        (["plan.ids.itme=3"], "plan.ids names 'itme'; the tables are: item, shop, brand, category, tags"),
        (["plan.compare=nowhere.json"], "the plan nowhere.json cannot be read (No such file or directory)"),
        (["plan.sweep=days"], "plan.sweep: Invalid value 'days', expected one of [rows, ranks, batch]"),
        (["data.out=nowhere", "plan.rows={}"], "there is no prepared dataset at nowhere (no dataset.json): run `stack"),
    ],
)
def test_what_cannot_be_planned_is_one_line(capsys: pytest.CaptureFixture[str], words: list[str], line: str) -> None:
    model = () if "plan.rows={}" in words else ("model=dupn_paper",)
    out, err = answer(capsys, *model, *words, status=2)
    assert out == ""
    assert err.startswith(f"stack: {line}")
    assert err.count("\n") == 1


def trained(prepared: Path, folder: Path, name: str, *words: str) -> tuple[list[float], Path]:
    """Losses of two steps and the plan of a run."""
    options = ("model=mean", "tasks=ctr", "train.max_steps=2", "train.batch_size=16", "train.num_threads=1")
    assert main(["train", f"data.out={prepared}", f"run.dir={folder}", f"run.name={name}", *options, *words]) == 0
    steps = [json.loads(line) for line in (folder / name / "steps.jsonl").read_text().splitlines()]
    return [step["loss"] for step in steps], folder / name / "plan.json"


def test_training_follows_torchrecs_planner_or_a_pinned_plan_and_keeps_the_plan(
    capsys: pytest.CaptureFixture[str], prepared: Path, tmp_path: Path
) -> None:
    fixed, _ = trained(prepared, tmp_path, "fixed")
    chosen, plan = trained(prepared, tmp_path, "chosen", "tables.planner=torchrec")
    # a small table that the options leave row-wise, and one that they name
    named = ("tables.planner=torchrec", "tables.shardings.shop=column_wise", "tables.dims.shop=24")
    pinned, again = trained(prepared, tmp_path, "pinned", f"tables.plan={plan}")
    assert pinned == chosen == fixed
    assert load_plan(again) == load_plan(plan)
    trained(prepared, tmp_path, "named", *named)
    assert load_plan(tmp_path / "named" / "plan.json").table("shop").sharding is Sharding.column_wise
    # a run that followed a plan is resumed without it, and evaluated in one process
    assert trained(prepared, tmp_path, "chosen", "train.max_steps=2")[0] == chosen


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["tables.plan=other.json"], "the plan other.json cannot be read (No such file or directory)"),
        (["tables.plan=plan.json"], "the plan is for processes=64, this job has 1: plan again, or start it so"),
        (
            ["tables.planner=torchrec", "cluster=h100x64"],
            "tables.planner=torchrec plans for cluster.device=cuda, this job has cpu: choose the cluster",
        ),
        (
            ["tables.planner=torchrec", "cluster=cpu_hosts"],
            "tables.planner=torchrec plans for cpu_hosts, whose hosts have 2 processes, this job has 1 on each: choose",
        ),
    ],
)
def test_a_plan_that_this_job_cannot_follow_is_one_line(
    capsys: pytest.CaptureFixture[str],
    prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    line: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    many = Plan(device="cpu", world_size=64, local_size=8, optimizer=TableOptimizer.rowwise_adagrad, tables=())
    save_plan(tmp_path / "plan.json", many)
    assert main(["train", f"data.out={prepared}", "run.name=x", *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"stack: {line}")
    assert err.count("\n") == 1
