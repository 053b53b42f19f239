"""What cannot be planned is refused in one line, and the ways out fit when they are planned again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from stack.base.dist import World
from stack.base.errors import ConfigError
from stack.tables.choose import machines
from stack.tables.cluster import ClusterConfig, Device
from stack.tables.config import Communication, TableSpec
from stack.tables.placement import RowType, Sharding, TableOptimizer
from stack.tables.plan import NoRoomError, plan_tables
from stack.tables.plan_config import PlanConfig, Sweep
from stack.tables.plan_report import WayOut
from stack.tables.plan_request import Load
from stack.tables.remedy import ways_out
from tests.tables.planning import PAPER, cpus, gpus, request


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"hosts": 0}, "cluster.hosts=0 must be at least 1: a job needs a machine"),
        ({"devices_per_host": 0}, "cluster.devices_per_host=0 must be at least 1: a job needs a process on each host"),
        ({"ddr_gib": 0.0}, "cluster.ddr_gib=0.0 must be above 0 and finite"),
        ({"inter_host_gb_per_second": 0.0}, "cluster.inter_host_gb_per_second=0.0 must be above 0 and finite"),
        ({"device": Device.cuda, "hbm_gb_per_second": 1.0}, "cluster.hbm_gib=0.0 must be above 0 and finite"),
        ({"hbm_gib": 80.0}, "cluster.hbm_gib=80.0 and cluster.hbm_gb_per_second=0.0 belong to "
         "cluster.device=cuda: a CPU has no HBM, set both to 0"),
        ({"reserved_share": 1.0}, "cluster.reserved_share=1.0 must be from 0 up to but not 1"),
    ],
)  # fmt: skip
def test_a_cluster_that_cannot_be_is_refused(options: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ClusterConfig(**options)
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"rows": {"item": 0}}, "plan.rows: item=0: a table has at least 1 row"),
        ({"timelines": 0}, "plan.timelines=0 must be at least 1"),
        ({"sweep_doublings": 0}, "plan.sweep_doublings=0 must be at least 1"),
        ({"ids": {"item": 0.0}}, "plan.ids.item=0.0 must be above 0 and finite"),
        ({"ids_per_timeline": float("inf")}, "plan.ids_per_timeline=inf must be above 0 and finite"),
        (
            {"sweep": Sweep.rows, "compare": "plan.json"},
            "plan.compare=plan.json has no effect on a sweep: leave it out, or plan.sweep",
        ),
        ({"distinct_share": 1.1}, "plan.distinct_share=1.1 must be above 0 and at most 1"),
    ],
)
def test_options_of_a_plan_that_cannot_be_are_refused(options: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        PlanConfig(**options)
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("table", "cluster", "others", "line"),
    [
        ({"num_rows": 0}, gpus(), {}, "table 'a' has 0 rows: at least 1 is needed (plan.rows)"),
        (
            {"num_rows": 10**18},
            gpus(),
            {},
            "table 'a' of 1,000,000,000,000,000,000 x 32 is more than 1,152,921,504,606,846,976 bytes: give it fewer",
        ),
        ({}, gpus(), {"load": Load(ids={"b": 1.0})}, "plan.ids names 'b'; the tables are: a"),
        (
            {},
            cpus(),
            {"communication": Communication.bf16, "free": frozenset("a")},
            "tables.communication=bf16 is not possible on cpu: choose fp32, fp16 or int8",
        ),
        (
            {},
            cpus(),
            {"communication": Communication.int8},
            "tables.communication=int8 is not possible for table 'a', which is row_wise",
        ),
        (
            {},
            cpus(),
            {"stochastic_rounding": True, "free": frozenset("a")},
            "tables.stochastic_rounding=true is not possible on cpu, which rounds to the nearest: set it to false",
        ),
        ({"dim": 6}, gpus(), {}, "table 'a' has dim 6: it must be a positive multiple of 4 (FBGEMM)"),
        ({}, cpus(), {"optimizer": TableOptimizer.lamb}, "optim.tables=lamb is not possible on cpu: choose"),
        (
            {"dtype": RowType.bf16},
            cpus(),
            {},
            "tables.row_type of table 'a'=bf16 is not possible on cpu: choose fp32 or fp16",
        ),
        ({}, cpus(), {"host_memory": True}, "plan.host_memory=true is for cluster.device=cuda: a CPU's tables are in"),
        (
            {"dim": 4, "sharding": Sharding.column_wise},
            gpus(),
            {},
            "table 'a' of dim 4 has no columns to split: choose row_wise, or dim 8 or more",
        ),
        (
            {"num_rows": 10**6, "sharding": Sharding.data_parallel},
            gpus(),
            {},
            "table 'a' has 122.07 MiB, too much for tables.sharding=data_parallel with tables.data_parallel_mib=1",
        ),
    ],
)
def test_what_a_device_cannot_do_is_refused(
    table: dict[str, Any], cluster: ClusterConfig, others: dict[str, Any], line: str
) -> None:
    spec = TableSpec(**({"name": "a", "num_rows": 100, "dim": 32} | table))
    with pytest.raises(ConfigError) as caught:
        request([spec], cluster, **others)
    assert str(caught.value).startswith(line)


def test_no_tables_are_refused() -> None:
    with pytest.raises(ConfigError, match="there is no table to plan: give rows as plan.rows, or prepare a dataset"):
        request([], gpus())


def test_this_machine_is_what_it_is() -> None:
    here = ClusterConfig().resolved()
    assert here.devices_per_host is not None
    assert here.devices_per_host >= 1
    assert here.ddr_gib is not None
    assert here.device_bytes * here.devices_per_host == pytest.approx(here.ddr_gib * 0.8 * 2**30, rel=1e-6)


def test_a_job_is_planned_for_as_many_hosts_as_it_has() -> None:
    cluster = cpus(hosts=8, devices_per_host=2)
    assert machines(cluster, World(size=14, local_size=2), "cpu") == replace(cluster, hosts=7)
    here = machines(ClusterConfig(), World(size=6, local_size=3), "cpu")
    assert (here.hosts, here.local_size) == (2, 3)
    with pytest.raises(ConfigError, match="plans for cpus, whose hosts have 2 processes, this job has 4 on each: "):
        machines(cluster, World(size=16, local_size=4), "cpu")
    with pytest.raises(ConfigError, match="this job has cuda: choose the cluster that it runs on, e.g. cluster=h100x8"):
        machines(cluster, World(size=16, local_size=2), "cuda")


def test_the_refusal_names_the_table_what_it_needs_and_what_is_missing() -> None:
    with pytest.raises(NoRoomError) as caught:
        plan_tables(request(PAPER, cpus(ddr_gib=16.0)))
    # item 1e9 x (32 + 1) x 4 = 122.935 GiB, shop 0.931, brand 0.093, category 0.063, tags 0.011; 16 GiB are there
    assert str(caught.value) == (
        "the tables do not fit cpus: 'item' (1,000,000,000 x 32 fp32, rowwise_adagrad) needs 122.93 GiB in all and "
        "61.47 GiB on one process, all tables 124.03 GiB; 2 x 8.00 GiB are free for tables, 108.03 GiB are missing"
    )


def test_tables_that_would_fit_in_sum_are_refused_with_what_is_missing_on_the_fullest_process() -> None:
    whole = [
        TableSpec(name=name, num_rows=6_000_000, dim=24, sharding=Sharding.table_wise)  # 0.56 GiB
        for name in ("a", "b", "c")
    ]
    with pytest.raises(NoRoomError, match=r"all tables 1\.68 GiB; 2 x 1\.00 GiB are free for tables, 0\.12 GiB are"):
        plan_tables(request(whole, gpus()))


def test_memory_of_the_host_does_not_make_up_for_the_gpus() -> None:
    """Six GiB of rows and state would fit 4 + 4 GiB, but lie in the one or in the other, with a fifth as a cache."""
    cluster = gpus(devices_per_host=1, hbm_gib=4.0, ddr_gib=4.0)
    with pytest.raises(NoRoomError) as caught:
        plan_tables(request({"a": (6 * 2**30 // 132, 32)}, cluster, host_memory=True))
    line = "1 x 4.00 GiB of GPU and 4.00 GiB of host memory are free for tables, 2.00 GiB are missing"
    assert str(caught.value).endswith(line)


def test_tables_that_the_planner_finds_no_place_for_are_not_said_to_miss_nothing() -> None:
    with pytest.raises(NoRoomError) as caught:
        plan_tables(request({"a": (10**9, 32)}, cpus()))
    shortage = replace(caught.value.shortage, missing_bytes=0)
    assert str(NoRoomError(caught.value.request, shortage)).endswith(
        "free for tables, which would do in sum, but the planner finds no place for each: lower cluster.reserved_share"
    )


def test_rows_that_several_processes_would_hold_cannot_be_managed() -> None:
    table = TableSpec(name="a", num_rows=1000, dim=32, sharding=Sharding.column_wise)
    with pytest.raises(ConfigError, match="table 'a' has managed ids and is column_wise over 2 processes: "):
        plan_tables(request([table], cpus(), managed=frozenset("a")))


def ways(refused: Any) -> dict[str, WayOut]:
    with pytest.raises(NoRoomError) as caught:
        plan_tables(refused)
    return {" ".join(option.partition("=")[0] for option in way.options.split()): way for way in ways_out(caught.value)}


def test_ways_out_of_too_many_rows_on_gpus() -> None:
    """6.2 GiB of rows and state on 2 x 1 GiB of GPU and 4 GiB of host memory."""
    found = ways(request({"a": (50_000_000, 32), "b": (1_000_000, 8)}, gpus(ddr_gib=12.0)))
    assert {name: way.fits for name, way in found.items()} == {
        "plan.host_memory": True,
        "ids.modes.a ids.rows.a": True,
        "tables.dims.a": True,
        "cluster.hosts": True,
        "cluster.hosts tables.row_type": True,
        "tables.row_types.a": False,
        "tables.row_type": False,
    }
    assert found["tables.dims.a"].options == "tables.dims.a=8"  # 50e6 x 9 x 4 = 1.68 GiB; 12 would be 2.42
    # 6.18 GiB over 1 GiB of 2 processes a host; in fp16 3.20 GiB
    assert found["cluster.hosts"].options == "cluster.hosts=4"
    assert found["cluster.hosts tables.row_type"].options == "cluster.hosts=2 tables.row_type=fp16"
    # On each process 5e6 rows take 132 bytes of weights and state, 16 of key, count and time; the map's index takes
    # 2^24 x 4 bytes (above 3 x 5e6), its waiting room 2^24 x 12 (above 2 x 5e6): 1,008 MB, and 18 MB of b. 5.5e6: 1,100
    assert found["ids.modes.a ids.rows.a"].options == "ids.modes.a=managed ids.rows.a=10000000"
    missing = found["tables.row_types.a"].missing_bytes
    assert missing is not None
    assert missing == pytest.approx(50_000_000 * (64 + 4) + 1_000_000 * 36 - 2 * 2**30, rel=1e-4)
    for way in found.values():
        assert (way.fullest_bytes is not None) is way.fits
        assert (way.step_ms is not None) is way.fits
        assert way.fullest_bytes is None or 0 < way.fullest_bytes <= 2**30


def test_the_way_out_of_a_whole_table_on_one_process_is_rows_on_each() -> None:
    whole = TableSpec(name="a", num_rows=9_000_000, dim=32, sharding=Sharding.table_wise)  # 1.11 GiB
    found = ways(request([whole], gpus()))
    assert (found["tables.shardings.a"].options, found["tables.shardings.a"].fits) == (
        "tables.shardings.a=row_wise",
        True,
    )
    assert plan_tables(request([replace(whole, sharding=Sharding.row_wise)], gpus())).plan.tables[0].shards[1].rank == 1
    assert not found["cluster.hosts"].fits  # more machines do not split a table that must stay whole


def test_what_a_tables_options_forbid_is_no_way_out_and_does_not_hide_the_others() -> None:
    columns = TableSpec(name="a", num_rows=100_000_000, dim=8, sharding=Sharding.column_wise)  # 3.7 GiB over 2 x 1
    found = ways(request([columns], cpus()))
    assert "tables.dims.a" not in found  # one block of four columns is not split
    assert "ids.modes.a ids.rows.a" not in found  # a managed row is held by one process
    assert found["tables.row_type"].missing_bytes
    assert not found["tables.shardings.a"].fits


def test_the_way_out_of_int8_is_what_can_be_summed_on_the_way() -> None:
    """Left with whole tables, 1.23 GiB of one do not fit 2 x 1 GiB."""
    found = ways(request({"a": (10_000_000, 32)}, gpus(), communication=Communication.int8))
    assert (found["tables.communication"].options, found["tables.communication"].fits) == (
        "tables.communication=fp16",
        True,
    )


def test_the_way_out_of_a_heavy_optimizer_is_one_number_a_row() -> None:
    found = ways(request({"a": (10_000_000, 32)}, gpus(), optimizer=TableOptimizer.adam))
    assert found["optim.tables"].options == "optim.tables=rowwise_adagrad"
    assert found["optim.tables"].fits
