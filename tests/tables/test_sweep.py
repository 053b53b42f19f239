"""Growing a job: bytes and times never fall while the sharding stays, and the edge is where it stops fitting."""

from __future__ import annotations

import itertools

import pytest

from stack.base.errors import ConfigError
from stack.tables.config import Sharding, TableSpec
from stack.tables.plan import NoRoomError, plan_tables
from stack.tables.plan_config import Sweep
from stack.tables.plan_request import Request
from stack.tables.sweep import SweepReport, sweep
from tests.tables.planning import GIB, gpus, request

ROWS = 5_000_000  # x (32 + 1) x 4 bytes is 0.61 GiB over 2 x 1 GiB


def row_wise() -> Request:
    return request([TableSpec(name="a", num_rows=ROWS, dim=32)], gpus())


def grows(values: list[float | int | None]) -> bool:
    return all(low is not None and high is not None and low <= high for low, high in itertools.pairwise(values))


def swept(what: Sweep) -> SweepReport:
    return sweep(row_wise(), what, num_doublings=3)


def test_more_rows_take_more_memory_until_they_do_not_fit() -> None:
    report = swept(Sweep.rows)
    assert [point.value for point in report.points] == [ROWS * 2**power // 8 for power in range(7)]
    assert [point.fits for point in report.points] == [True] * 5 + [False] * 2
    fitting = [point for point in report.points if point.fits]
    assert grows([point.total_bytes for point in fitting])
    assert grows([point.fullest_bytes for point in fitting])
    assert report.edge is not None
    # a process holds half of the rows: 1 GiB / (33 x 4) x 2, found to 2%
    assert 0.97 * 2 * GIB / 132 <= report.edge.value <= 2 * GIB / 132


def test_more_processes_hold_less_each_and_begin_to_fit() -> None:
    wide = request([TableSpec(name="a", num_rows=4 * ROWS, dim=32)], gpus())
    report = sweep(wide, Sweep.ranks, num_doublings=2)
    assert [(point.value, point.fits) for point in report.points] == [(2, False), (4, True), (8, True)]
    assert grows([-(point.fullest_bytes or 0) for point in report.points[1:]])
    assert report.edge is not None
    assert report.edge.value == 4


def test_a_larger_batch_takes_longer_and_fits_as_long_as_its_buffers_do() -> None:
    report = swept(Sweep.batch)
    assert [point.value for point in report.points] == [1, 2, 4, 8]  # one timeline cannot be halved
    assert grows([point.step_ms for point in report.points])
    assert grows([point.fullest_bytes for point in report.points])
    assert report.edge is None


def test_a_table_that_outgrows_its_own_options_is_where_it_stops() -> None:
    """A data-parallel table of 0.8 MiB of at most 1."""
    tables = [TableSpec(name="a", num_rows=ROWS, dim=32)]
    tables.append(TableSpec(name="b", num_rows=6_554, dim=32, sharding=Sharding.data_parallel))
    report = sweep(request(tables, gpus()), Sweep.rows, num_doublings=1)
    assert [point.fits for point in report.points] == [True, True, False]
    assert report.edge is not None
    assert report.edge.factor == pytest.approx(1 / 0.8, rel=0.03)


def test_what_cannot_be_planned_at_any_size_is_refused() -> None:
    columns = TableSpec(name="a", num_rows=1000, dim=32, sharding=Sharding.column_wise)
    with pytest.raises(ConfigError, match="table 'a' has managed ids and is column_wise"):
        sweep(request([columns], gpus(), managed=frozenset("a")), Sweep.rows, num_doublings=1)


def test_what_is_said_to_be_the_edge_fits_and_a_little_more_does_not() -> None:
    edge = swept(Sweep.rows).edge
    assert edge is not None
    assert edge.fits
    assert plan_tables(request([TableSpec(name="a", num_rows=edge.value, dim=32)], gpus()))
    with pytest.raises(NoRoomError):
        plan_tables(request([TableSpec(name="a", num_rows=round(edge.value * 1.03), dim=32)], gpus()))
