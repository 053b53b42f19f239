"""Plans on disk: written whole, refused in one line where they are damaged; what differs between two."""

from __future__ import annotations

from pathlib import Path

import pytest

from stack.base.errors import ConfigError
from stack.tables.config import TableSpec
from stack.tables.placement import Plan, TableOptimizer
from stack.tables.plan import plan_tables
from stack.tables.plan_file import Difference, differences, load_plan, save_plan, spans
from tests.tables.planning import cpus, request

SPECS = [TableSpec(name="item", num_rows=1000, dim=32), TableSpec(name="shop", num_rows=50, dim=8)]


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_tables(request(SPECS, cpus())).plan


def test_a_plan_comes_back_as_it_was_saved(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "plans" / "plan.json"
    save_plan(path, plan)
    assert load_plan(path) == plan
    assert [file.name for file in path.parent.iterdir()] == ["plan.json"]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (None, "cannot be read (No such file or directory): `stack plan plan.out=...` writes one"),
        (b'{"format_version": 1, "dev', "is damaged (Input data was truncated): plan again"),
        (b"\x00\x01", "is damaged (JSON is malformed: invalid character (byte 0)): plan again"),
        (b'{"format_version": 2}', "has format 2, this code reads 1: plan again"),
        (b'{"format_version": 1}', "is damaged (Object missing required field `device`): plan again"),
        (b'{"fits": false}', "is damaged (Object missing required field `format_version`): plan again"),
    ],
)
def test_a_file_that_is_no_plan_is_refused_in_one_line(tmp_path: Path, data: bytes | None, text: str) -> None:
    path = tmp_path / "plan.json"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        load_plan(path)
    assert str(caught.value) == f"the plan {path} {text}"


def test_differences_name_the_table_and_what_changed(plan: Plan) -> None:
    assert differences(plan, plan) == []
    larger = [TableSpec(name="item", num_rows=2000, dim=32), TableSpec(name="brand", num_rows=50, dim=8)]
    now = plan_tables(request(larger, cpus(2), optimizer=TableOptimizer.sgd)).plan
    assert differences(plan, now) == [
        Difference(table="", what="processes", before="2", now="4"),
        Difference(table="", what="optimizer", before="rowwise_adagrad", now="sgd"),
        Difference(table="brand", what="table", before="-", now="planned"),
        Difference(table="item", what="rows", before="1,000", now="2,000"),
        Difference(table="item", what="ranks", before="0-1", now="0-3"),
        Difference(table="item", what="blocks", before="2", now="4"),
        Difference(table="shop", what="table", before="planned", now="-"),
    ]


def test_ranks_are_written_as_spans() -> None:
    assert [spans(ranks) for ranks in ([], [3], [0, 1, 2], [0, 2, 3, 7])] == ["", "3", "0-2", "0, 2-3, 7"]
