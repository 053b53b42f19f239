"""Ways out where tables do not fit. Each is planned again: a way that is said to fit has been seen to fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from stack.base.errors import ConfigError
from stack.ids.config import MAX_ROWS, MIN_ROWS
from stack.tables.cluster import Device
from stack.tables.config import Communication, TableSpec
from stack.tables.layout import COLUMN_UNIT
from stack.tables.placement import RowType, Sharding, TableOptimizer
from stack.tables.plan import NoRoomError, Planned, Shortage, plan_tables
from stack.tables.plan_report import WayOut, fullest_bytes, step_ms
from stack.tables.plan_request import Request

MOST_HOSTS = 1024
"""Of the way out by more machines."""
_MOST_TIMES = 4  # the hosts that the bytes alone would need
_TRIES = 20


@dataclass(frozen=True, kw_only=True)
class _Change:
    """What to try: for people, as options, and as a request, which may turn out to be one that is refused."""

    what: str
    options: str
    request: Callable[[], Request]


def ways_out(refused: NoRoomError) -> list[WayOut]:
    """Single changes, then fp16 with more hosts; those that fit come before those that do not. What the tables' other
    options forbid (a single block of columns, managed ids in columns) is no way out and left out."""
    request, shortage = refused.request, refused.shortage
    half = _in_fp16(request)
    ways = [_try(change) for change in _changes(request, shortage)]
    ways += [_fewer_rows(request, shortage), _smaller_dim(request, shortage)]
    ways.append(_more_hosts(request, shortage, also=None))
    if half is not None:
        try:
            plan_tables(half.request())
        except NoRoomError as error:
            ways.append(_more_hosts(half.request(), error.shortage, also=half))
    return sorted((way for way in ways if way is not None), key=lambda way: not way.fits)


def _changes(request: Request, shortage: Shortage) -> Iterator[_Change]:
    name = shortage.table.name
    tight = [t for t in request.tables if t.name not in request.free and t.sharding is not Sharding.row_wise]
    if tight:
        names = {table.name for table in tight}
        freed = tuple(replace(t, sharding=Sharding.row_wise) if t.name in names else t for t in request.tables)
        yield _Change(
            what=f"{', '.join(sorted(names))} row-wise",
            options=" ".join(f"tables.shardings.{one}=row_wise" for one in sorted(names)),
            request=partial(replace, request, tables=freed),
        )
    if request.communication is Communication.int8:
        yield _Change(
            what="rows of a table on all processes, which vectors in int8 forbid",
            options="tables.communication=fp16",
            request=partial(replace, request, communication=Communication.fp16),
        )
    if request.optimizer not in (TableOptimizer.rowwise_adagrad, TableOptimizer.sgd):
        yield _Change(
            what="one number of optimizer state a row",
            options="optim.tables=rowwise_adagrad",
            request=partial(replace, request, optimizer=TableOptimizer.rowwise_adagrad),
        )
    if shortage.table.dtype is RowType.fp32 and len(request.tables) > 1:
        yield _Change(
            what=f"{name} in fp16",
            options=f"tables.row_types.{name}=fp16",
            request=partial(replace, request, tables=_changed(request, replace(shortage.table, dtype=RowType.fp16))),
        )
    half = _in_fp16(request)
    if half is not None:
        yield half
    if request.cluster.device is Device.cuda and not request.host_memory:
        yield _Change(
            what="rows in host memory, a fifth of them cached on the GPU",
            options="plan.host_memory=true",
            request=partial(replace, request, host_memory=True),
        )


def _in_fp16(request: Request) -> _Change | None:
    if all(table.dtype is not RowType.fp32 for table in request.tables):
        return None
    halved = tuple(replace(t, dtype=RowType.fp16) if t.dtype is RowType.fp32 else t for t in request.tables)
    return _Change(
        what="all tables in fp16", options="tables.row_type=fp16", request=partial(replace, request, tables=halved)
    )


def _fewer_rows(request: Request, shortage: Shortage) -> WayOut | None:
    """The most rows of the table with which all fit, in two digits: managed ids keep the rows that are used."""
    table = shortage.table
    rows = min(_rows_with_room(shortage), MAX_ROWS)
    for _ in range(_TRIES):
        rows = _two_digits(rows)
        if rows < MIN_ROWS:
            return None
        smaller = replace(table, num_rows=rows)
        way = _try(
            _Change(
                what=f"{table.name} with managed ids in {rows:,} rows ({rows / table.num_rows:.1%} of its rows)",
                options=f"ids.modes.{table.name}=managed ids.rows.{table.name}={rows}",
                request=partial(
                    replace, request, tables=_changed(request, smaller), managed=request.managed | {table.name}
                ),
            )
        )
        if way is None or way.fits:
            return way
        rows = int(rows * 0.95)
    return None


def _smaller_dim(request: Request, shortage: Shortage) -> WayOut | None:
    """The largest width of the table with which all fit, or the smallest there is."""
    table = shortage.table
    way = None
    for dim in range(table.dim - COLUMN_UNIT, 0, -COLUMN_UNIT):
        narrow = replace(table, dim=dim)
        if dim > COLUMN_UNIT and narrow.weight_bytes > shortage.room_bytes * request.cluster.world_size:
            continue
        tried = _try(
            _Change(
                what=f"{table.name} with dim {dim}",
                options=f"tables.dims.{table.name}={dim}",
                request=partial(replace, request, tables=_changed(request, narrow)),
            )
        )
        if tried is None:
            break
        way = tried
        if way.fits:
            break
    return way


def _more_hosts(request: Request, shortage: Shortage, *, also: _Change | None) -> WayOut | None:
    """The fewest hosts found with which all fit; searched, since buffers grow with the number of processes."""
    least = -(-shortage.needed_bytes // max(1, shortage.room_bytes * request.cluster.local_size))
    hosts = min(max(request.cluster.hosts + 1, least), MOST_HOSTS)
    while True:
        what = f"{hosts} hosts of {request.cluster.local_size} processes"
        way = _try(
            _Change(
                what=what if also is None else f"{what}, {also.what}",
                options=f"cluster.hosts={hosts}" + (f" {also.options}" if also is not None else ""),
                request=partial(replace, request, cluster=replace(request.cluster, hosts=hosts)),
            )
        )
        if way is None or way.fits or hosts >= min(MOST_HOSTS, _MOST_TIMES * max(least, request.cluster.hosts)):
            return way
        hosts = min(MOST_HOSTS, hosts + max(1, hosts // 8))


def _try(change: _Change) -> WayOut | None:
    """None where the change cannot be asked for."""
    try:
        planned = plan_tables(change.request())
    except NoRoomError as error:
        missing = error.shortage.missing_bytes
        return WayOut(what=change.what, options=change.options, fits=False, missing_bytes=missing)
    except ConfigError:
        return None
    return _fits(change.what, change.options, planned)


def _fits(what: str, options: str, planned: Planned) -> WayOut:
    return WayOut(what=what, options=options, fits=True, fullest_bytes=fullest_bytes(planned), step_ms=step_ms(planned))


def _changed(request: Request, table: TableSpec) -> tuple[TableSpec, ...]:
    """The request's tables with the one of that name replaced."""
    return tuple(table if one.name == table.name else one for one in request.tables)


def _rows_with_room(shortage: Shortage) -> int:
    """A first guess: the table gives up what is missing, in all and on one process."""
    table = shortage.table
    in_all = 1.0 - shortage.missing_bytes / shortage.table_bytes
    on_one = shortage.room_bytes / shortage.piece_bytes
    return int(table.num_rows * max(0.0, min(in_all, on_one, 1.0)))


def _two_digits(rows: int) -> int:
    """Rounded down to two digits: 83,456 is 83,000."""
    unit = int(10 ** max(0, len(str(rows)) - 2))
    return rows // unit * unit
