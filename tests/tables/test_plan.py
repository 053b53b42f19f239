"""Plans of TorchRec's planner against bytes counted by hand, and what it would do without a sound."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from stack.tables.cluster import ClusterConfig
from stack.tables.config import Communication, TableSpec
from stack.tables.layout import check_plan
from stack.tables.placement import Kernel, RowType, Shard, Sharding, TableOptimizer
from stack.tables.plan import NoRoomError, plan_tables, weights_and_state
from stack.tables.plan_plots import draw_plan
from stack.tables.plan_report import report_of
from stack.tables.plan_request import Load
from tests.tables.planning import GIB, PAPER, cpus, gpus, request, rows_and_state_by_rank

SOME = [
    TableSpec(name="a", num_rows=1001, dim=32, sharding=Sharding.row_wise),
    TableSpec(name="b", num_rows=500, dim=24, sharding=Sharding.table_wise, dtype=RowType.fp16),
]


@pytest.mark.parametrize("optimizer", TableOptimizer)
@pytest.mark.parametrize("sharding", [Sharding.row_wise, Sharding.table_wise, Sharding.column_wise, Sharding.grid])
@pytest.mark.parametrize("dtype", [RowType.fp32, RowType.fp16])
def test_bytes_of_rows_and_state_are_those_counted_by_hand(
    optimizer: TableOptimizer, sharding: Sharding, dtype: RowType
) -> None:
    table = TableSpec(name="a", num_rows=1001, dim=32, sharding=sharding, dtype=dtype)
    planned = plan_tables(request([table], gpus(2), optimizer=optimizer))
    report = report_of(planned)
    (use,) = report.tables
    assert sum(rows_and_state_by_rank(planned.plan)) == use.weight_bytes + use.state_bytes
    assert use.weight_bytes == 1001 * 32 * (4 if dtype is RowType.fp32 else 2)
    # what is not rows or state is the ids (8 bytes) and vectors (fp32) of 10 bags from each of 4 processes
    for rank, held in zip(report.ranks, rows_and_state_by_rank(planned.plan), strict=True):
        blocks = [shard for shard in planned.plan.tables[0].shards if shard.rank == rank.rank]
        num_ids = {Sharding.row_wise: 10, Sharding.grid: 20}.get(sharding, 40)
        buffers = sum(num_ids * 8 + 40 * shard.num_columns * 4 for shard in blocks)
        assert rank.device_bytes == held + buffers
        assert rank.device_free_bytes == GIB - rank.device_bytes


@pytest.mark.parametrize("sharding", Sharding)
@pytest.mark.parametrize("cluster", [gpus(2), cpus(2)], ids=["cuda", "cpu"])
def test_every_sharding_gives_a_plan_that_training_can_follow(sharding: Sharding, cluster: ClusterConfig) -> None:
    table = TableSpec(name="a", num_rows=1001, dim=32, sharding=sharding)
    plan = plan_tables(request([table], cluster)).plan
    check_plan(
        plan, {"a": table}, world_size=4, local_size=2, device=cluster.device.value,
        optimizer=TableOptimizer.rowwise_adagrad,
    )  # fmt: skip
    assert plan.tables[0].kernel is (Kernel.dense if sharding is Sharding.data_parallel else Kernel.fused)
    assert plan.tables[0].sharding is sharding


def test_blocks_and_ranks_are_those_of_the_sharding_asked_for() -> None:
    plan = plan_tables(request(SOME, cpus())).plan
    rows, whole = plan.tables
    assert [(shard.rank, shard.first_row, shard.num_rows) for shard in rows.shards] == [(0, 0, 501), (1, 501, 500)]
    (shard,) = whole.shards
    assert shard == Shard(rank=shard.rank, first_row=0, num_rows=500, first_column=0, num_columns=24)
    assert (plan.device, plan.world_size, plan.local_size) == ("cpu", 2, 2)


def test_more_rows_than_any_memory_are_planned_because_none_is_allocated() -> None:
    planned = plan_tables(request({"a": (10**13, 128)}, gpus(64, devices_per_host=8, hbm_gib=12_000.0)))
    weights, state = weights_and_state(planned.placed[0], TableOptimizer.rowwise_adagrad)
    assert (weights, state) == (10**13 * 512, 10**13 * 4)


def test_the_papers_tables_lie_on_64_gpus_with_rows_in_gpu_memory_alone() -> None:
    cluster = gpus(8, devices_per_host=8, hbm_gib=74.5, reserved_share=0.2)
    planned = plan_tables(request(PAPER, cluster))
    assert {table.kernel for table in planned.plan.tables} == {Kernel.fused}
    by_rank = rows_and_state_by_rank(planned.plan)
    assert sum(by_rank) == sum(rows * (dim + 1) * 4 for rows, dim in PAPER.values())
    assert max(by_rank) < 74.5 * 0.8 * GIB


def test_rows_go_to_host_memory_only_when_that_is_asked_for() -> None:
    tables = {"a": (20_000_000, 32)}  # 2.5 GiB over 2 x 1 GiB
    with pytest.raises(NoRoomError, match="the tables do not fit gpus: 'a'"):
        plan_tables(request(tables, gpus()))
    planned = plan_tables(request(tables, gpus(), host_memory=True))
    assert planned.plan.tables[0].kernel is Kernel.fused_uvm_caching
    in_host = sum(piece.host_bytes for piece in planned.placed[0].pieces)
    assert in_host == 20_000_000 * (32 + 1) * 4  # rows and their state; the cache is in GPU memory beside them
    assert 0 < max(rank.device_bytes for rank in report_of(planned).ranks) < GIB


def test_small_tables_are_not_made_data_parallel_unless_asked() -> None:
    planned = plan_tables(request({f"t{k}": (50, 16) for k in range(4)}, gpus(8, devices_per_host=8)))
    assert {table.sharding for table in planned.plan.tables} <= {
        Sharding.row_wise,
        Sharding.table_wise,
        Sharding.table_row_wise,
    }
    one = TableSpec(name="t", num_rows=50, dim=16, sharding=Sharding.data_parallel)
    report = report_of(plan_tables(request([one], gpus())))
    assert report.tables[0].weight_bytes == 2 * 50 * 16 * 4
    # each copy: weights, their gradient, one number a row, 10 ids and vectors
    assert [rank.device_bytes for rank in report.ranks] == [2 * 50 * 16 * 4 + 50 * 4 + 10 * 8 + 10 * 16 * 4] * 2


def test_vectors_in_fp16_take_half_the_time_and_int8_leaves_whole_tables() -> None:
    asked = request({"a": (10_000, 32)}, gpus(2))
    in_fp32, in_fp16 = (
        report_of(plan_tables(replace(asked, communication=one))).tables[0]
        for one in (Communication.fp32, Communication.fp16)
    )
    assert in_fp16.sharding is in_fp32.sharding
    assert in_fp16.times.vectors_ms == pytest.approx(in_fp32.times.vectors_ms / 2)
    assert in_fp16.times.ids_ms == in_fp32.times.ids_ms
    in_int8 = replace(asked, communication=Communication.int8)
    assert in_int8.shardings(asked.tables[0]) == (Sharding.table_wise,)
    assert plan_tables(in_int8).plan.tables[0].sharding is Sharding.table_wise


def test_column_wise_and_grid_are_not_chosen_unless_asked() -> None:
    """Their row-wise state is kept for each block of columns: a model that learns differently."""
    asked = request({"a": (10, 128)}, gpus(2))
    assert asked.shardings(asked.tables[0]) == (Sharding.row_wise, Sharding.table_wise, Sharding.table_row_wise)


@pytest.mark.parametrize("cluster", [gpus(), cpus()], ids=["cuda", "cpu"])
def test_the_reserved_share_is_kept_free_on_every_device(cluster: ClusterConfig) -> None:
    room = cluster.device_bytes * 2
    tables = {"a": (int(room * 0.7) // (33 * 4), 32)}
    assert plan_tables(request(tables, cluster)).plan.world_size == 2
    with pytest.raises(NoRoomError):
        plan_tables(request(tables, replace(cluster, reserved_share=0.4)))


def test_a_hosts_memory_is_shared_by_its_processes() -> None:
    tables = [TableSpec(name="a", num_rows=6_000_000, dim=32, sharding=Sharding.table_wise)]  # 0.74 GiB
    assert plan_tables(request(tables, cpus(devices_per_host=1))).plan.tables
    with pytest.raises(NoRoomError, match="0.74 GiB on one process, all tables 0.74 GiB; 2 x 0.50 GiB are free"):
        plan_tables(request(tables, cpus(devices_per_host=2)))


def test_bandwidths_are_heeded_each_where_it_counts() -> None:
    table = [TableSpec(name="a", num_rows=1000, dim=32)]

    def times(cluster: ClusterConfig) -> tuple[float, float]:
        (use,) = report_of(plan_tables(request(table, cluster))).tables
        return use.times.lookup_ms, use.times.ids_ms

    lookup, ids = times(gpus())
    assert times(gpus(hbm_gb_per_second=2000.0)) == pytest.approx((lookup / 2, ids))
    assert times(gpus(intra_host_gb_per_second=50.0)) == pytest.approx((lookup, ids * 2))
    lookup, ids = times(gpus(2))
    assert times(gpus(2, inter_host_gb_per_second=5.0)) == pytest.approx((lookup, ids * 2))
    lookup, ids = times(cpus())
    assert times(cpus(ddr_gb_per_second=50.0)) == pytest.approx((lookup / 2, ids))
    # by hand: 10 ids (8 bytes) and 20 vectors (fp32) from each of 2 processes, read and written at half of 25 GB/s
    assert ids == pytest.approx(2 * 10 * 8 / 5e6)


def test_one_process_exchanges_nothing() -> None:
    (use,) = report_of(plan_tables(request({"a": (100, 32)}, cpus(devices_per_host=1)))).tables
    assert (use.times.vectors_ms, use.times.ids_ms) == (0.0, 0.0)
    assert use.times.lookup_ms > 0


def test_planning_says_nothing_on_the_side(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    with caplog.at_level(logging.WARNING):
        plan_tables(request(SOME, gpus()))
        plan_tables(request([TableSpec(name="a", num_rows=50, dim=16, sharding=Sharding.data_parallel)], gpus()))
        with pytest.raises(NoRoomError):
            plan_tables(request({"a": (10**9, 32)}, gpus()))
    loud = [record for record in caplog.records if not record.name.endswith("NullHandler")]  # TorchRec's go nowhere
    assert [record.message for record in loud if record.levelno >= logging.WARNING] == []
    assert capfd.readouterr() == ("", "")


def test_the_ids_of_a_step_are_distinct_and_no_more_than_rows() -> None:
    load = Load(num_timelines=100, ids_per_timeline=10.0, ids={"b": 2.5}, distinct_share=0.5)
    found = [
        load.num_ids(TableSpec(name=name, num_rows=rows, dim=4)) for name, rows in (("a", 9999), ("a", 7), ("b", 999))
    ]
    assert found == [500, 7, 125]


def test_the_slowest_process_gives_the_step_and_its_largest_part_the_bound() -> None:
    report = report_of(plan_tables(request(SOME, gpus(2, inter_host_gb_per_second=0.001))))
    times = [rank.times.total_ms for rank in report.ranks]
    assert (report.step_ms, report.slowest_rank) == (max(times), times.index(max(times)))
    assert report.bound == "exchanging vectors and gradients (0.001 GB/s between hosts, 100 inside)"
    alone = report_of(plan_tables(request(SOME, gpus(devices_per_host=1, hbm_gb_per_second=3.0))))
    assert alone.bound == "updating rows (GPU memory, 3 GB/s)"
    assert alone.step_ms == pytest.approx(sum(use.times.total_ms for use in alone.tables))


@pytest.mark.parametrize(("hbm_gib", "top"), [(1.0, 1.05), (100.0, 1.05 * 0.615)])
def test_the_picture_shows_the_bars_also_where_there_is_far_more_room(
    monkeypatch: pytest.MonkeyPatch, hbm_gib: float, top: float
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    table = TableSpec(name="a", num_rows=10_000_000, dim=32)  # 0.615 GiB on each of two
    draw_plan(report_of(plan_tables(request([table], gpus(hbm_gib=hbm_gib)))), Path("unused"))
    (axes,) = drawn[0].axes
    assert axes.get_ylim() == pytest.approx((0.0, top), rel=1e-3)
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([0.615, 0.615], rel=1e-3)
    assert len(axes.lines) == (hbm_gib == 1.0)
