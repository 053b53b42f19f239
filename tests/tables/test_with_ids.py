"""Which rows tables get from their ids, and who manages them."""

from __future__ import annotations

import pytest

from stack.base.errors import ConfigError
from stack.ids.config import IdMode, IdsConfig
from stack.tables.config import Sharding, TableOptimizer, TableSpec
from stack.tables.layout import fixed_plan
from stack.tables.placement import Plan
from stack.tables.with_ids import managed_blocks, specs_with_ids

MANAGED = IdsConfig(modes={"item": IdMode.managed}, rows={"item": 10})


def plan_of(sharding: Sharding, *, world_size: int, local_size: int | None = None) -> Plan:
    specs, _ = specs_with_ids([TableSpec(name="item", num_rows=500, dim=8, sharding=sharding)], MANAGED)
    return fixed_plan(
        specs, world_size=world_size, local_size=local_size or world_size, device="cpu", optimizer=TableOptimizer.sgd
    )


def test_tables_have_the_rows_of_their_ids_and_direct_ones_their_own() -> None:
    specs = [TableSpec(name="item", num_rows=500, dim=8), TableSpec(name="shop", num_rows=7, dim=4)]
    with_ids, maps = specs_with_ids(specs, MANAGED)
    assert [spec.num_rows for spec in with_ids] == [10, 7]
    assert [(one.mode, one.num_rows) for one in maps] == [(IdMode.managed, 10), (IdMode.direct, 7)]


@pytest.mark.parametrize(
    ("sharding", "bounds"),
    [
        (Sharding.row_wise, (0, 3, 6, 9, 10)),
        (Sharding.table_wise, (0, 10, 10, 10, 10)),
        (Sharding.table_row_wise, (0, 5, 10, 10, 10)),
    ],
)
def test_whoever_holds_rows_manages_them(sharding: Sharding, bounds: tuple[int, ...]) -> None:
    plan = plan_of(sharding, world_size=4, local_size=2)
    _, maps = specs_with_ids([TableSpec(name="item", num_rows=500, dim=8)], MANAGED)
    for rank in range(4):
        blocks = managed_blocks(plan, maps, rank=rank)["item"]
        assert blocks.bounds == bounds
        assert blocks.rank == rank


@pytest.mark.parametrize("sharding", [Sharding.column_wise, Sharding.data_parallel])
def test_rows_that_several_processes_hold_cannot_be_managed(sharding: Sharding) -> None:
    _, maps = specs_with_ids([TableSpec(name="item", num_rows=500, dim=8)], MANAGED)
    with pytest.raises(
        ConfigError,
        match=f"table 'item' has managed ids and is {sharding.value} over 2 processes: .* set tables.shardings.item to",
    ):
        managed_blocks(plan_of(sharding, world_size=2), maps, rank=0)
    assert managed_blocks(plan_of(sharding, world_size=1), maps, rank=0)["item"].bounds == (0, 10)
