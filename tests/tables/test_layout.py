"""Plans made without a planner, and plans that cannot be followed."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stack.base.errors import ConfigError
from stack.tables.config import RowType, Sharding, TableOptimizer, TableSpec, state_numbers_per_row
from stack.tables.layout import check_plan, column_blocks, fixed_plan
from stack.tables.placement import Kernel, Plan, Shard

SPECS = [
    TableSpec(name="item", num_rows=23, dim=12),
    TableSpec(name="shop", num_rows=7, dim=8, sharding=Sharding.table_wise),
    TableSpec(name="brand", num_rows=6, dim=8, sharding=Sharding.table_wise),
    TableSpec(name="tags", num_rows=5, dim=8, sharding=Sharding.table_wise),
]
BY_NAME = {spec.name: spec for spec in SPECS}
ROWWISE = TableOptimizer.rowwise_adagrad


def planned(specs: list[TableSpec] = SPECS, *, world_size: int = 2, local_size: int = 2) -> Plan:
    return fixed_plan(specs, world_size=world_size, local_size=local_size, device="cpu", optimizer=ROWWISE)


@given(
    sharding=st.sampled_from(Sharding),
    num_rows=st.integers(1, 50),
    dim=st.integers(1, 9).map(lambda units: 4 * units),
    num_hosts=st.integers(1, 3),
    local_size=st.integers(1, 4),
)
def test_blocks_hold_every_number_once_and_can_be_followed(
    sharding: Sharding, num_rows: int, dim: int, num_hosts: int, local_size: int
) -> None:
    spec = TableSpec(name="item", num_rows=num_rows, dim=dim, sharding=sharding)
    world_size = num_hosts * local_size
    plan = planned([spec], world_size=world_size, local_size=local_size)
    check_plan(plan, {"item": spec}, world_size=world_size, local_size=local_size, device="cpu", optimizer=ROWWISE)
    held = [
        (row, column)
        for shard in plan.table("item").shards
        for row in range(shard.first_row, shard.first_row + shard.num_rows)
        for column in range(shard.first_column, shard.first_column + shard.num_columns)
    ]
    copies = world_size if sharding is Sharding.data_parallel else 1
    assert len(held) == num_rows * dim * copies
    assert len(set(held)) == num_rows * dim


def test_whole_tables_go_to_where_there_is_least_the_largest_first() -> None:
    ranks = {table.name: [shard.rank for shard in table.shards] for table in planned().tables}
    assert ranks == {"item": [0, 1], "shop": [0], "brand": [1], "tags": [1]}


def test_blocks_of_columns_are_multiples_of_four_and_no_more_than_there_are() -> None:
    assert column_blocks(28, 4) == [(0, 8), (8, 8), (16, 8), (24, 4)]
    assert column_blocks(8, 4) == [(0, 4), (4, 4)]
    assert column_blocks(32, 1) == [(0, 32)]


@pytest.mark.parametrize(
    ("optimizer", "num_blocks", "numbers"),
    [
        (TableOptimizer.sgd, 1, 0),
        (TableOptimizer.rowwise_adagrad, 1, 1),
        (TableOptimizer.rowwise_adagrad, 4, 4),
        (TableOptimizer.adagrad, 4, 32),
        (TableOptimizer.adam, 1, 64),
        (TableOptimizer.lamb, 1, 64),
        (TableOptimizer.partial_rowwise_adam, 2, 34),
    ],
)
def test_bytes_are_those_of_weights_in_their_type_and_state_in_fp32(
    optimizer: TableOptimizer, num_blocks: int, numbers: int
) -> None:
    assert state_numbers_per_row(optimizer, dim=32, num_blocks=num_blocks) == numbers
    for dtype, size in ((RowType.fp32, 4), (RowType.fp16, 2)):
        spec = TableSpec(name="item", num_rows=1000, dim=32, dtype=dtype)
        assert spec.num_bytes(optimizer, num_blocks=num_blocks) == 1000 * (32 * size + 4 * numbers)


def changed(plan: Plan, **changes: object) -> Plan:
    """The plan with another first table."""
    return msgspec.structs.replace(plan, tables=(msgspec.structs.replace(plan.tables[0], **changes), *plan.tables[1:]))


def cut(*blocks: tuple[int, int, int, int, int]) -> tuple[Shard, ...]:
    return tuple(
        Shard(rank=rank, first_row=row, num_rows=rows, first_column=column, num_columns=columns)
        for rank, row, rows, column, columns in blocks
    )


@pytest.mark.parametrize(
    ("plan", "text"),
    [
        (planned(world_size=4), "the plan is for processes=4, this job has 2: plan again, or start it so"),
        (planned(local_size=1), "the plan is for processes per host=1, this job has 2"),
        (msgspec.structs.replace(planned(), device="cuda"), "the plan is for device=cuda, this job has cpu"),
        (
            msgspec.structs.replace(planned(), optimizer=TableOptimizer.sgd),
            "the plan is for optim.tables=sgd, this job has rowwise_adagrad, whose state takes other memory",
        ),
        (planned(SPECS[:3]), "the plan has the tables brand, item, shop; the model has brand, item, shop, tags"),
        (changed(planned(), num_rows=24), "'item' has 24 rows of 12 in fp32; the model's has 23 rows of 12 in fp32"),
        (changed(planned(), dim=8), "'item' has 23 rows of 8 in fp32; the model's has 23 rows of 12 in fp32"),
        (changed(planned(), dtype=RowType.fp16), "'item' has 23 rows of 12 in fp16; the model's has"),
        (changed(planned(), kernel=Kernel.fused_uvm), "cannot be followed: the kernel fused_uvm needs CUDA"),
        (changed(planned(), kernel=Kernel.dense), "cannot be followed: row_wise with the kernel dense"),
        (
            changed(planned(), shards=cut((0, 0, 10, 0, 12), (1, 10, 13, 0, 12))),
            "its rows are cut at [(0, 10), (10, 13)]; TorchRec looks for them at [(0, 12), (12, 11)]",
        ),
        (
            changed(planned(), shards=cut((1, 0, 12, 0, 12), (0, 12, 11, 0, 12))),
            "row_wise over 2 processes cannot be on ranks [1, 0]",
        ),
        (changed(planned(), shards=cut((0, 0, 12, 0, 12))), "row_wise over 2 processes cannot be on ranks [0]"),
        (changed(planned(), shards=cut((0, 0, 12, 0, 8), (1, 12, 11, 0, 8))), "blocks of columns end at 8 of 12"),
        (
            changed(planned(), sharding=Sharding.column_wise, shards=cut((0, 0, 23, 0, 6), (1, 0, 23, 6, 6))),
            "do not follow on each other in fours",
        ),
        (
            changed(planned(), shards=cut((0, 0, 23, 0, 8), (1, 0, 23, 8, 4))),
            "row_wise has whole rows, but it is cut into columns",
        ),
    ],
)  # fmt: skip
def test_a_plan_that_cannot_be_followed_is_refused_in_one_line(plan: Plan, text: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_plan(plan, BY_NAME, world_size=2, local_size=2, device="cpu", optimizer=ROWWISE)
    assert text in str(error.value)
    assert "plan again" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("world_size", "local_size"), [(0, 1), (2, 0), (3, 2)])
def test_hosts_must_be_equally_full(world_size: int, local_size: int) -> None:
    with pytest.raises(ConfigError, match="both must be at least 1, and hosts equally full"):
        planned(world_size=world_size, local_size=local_size)
