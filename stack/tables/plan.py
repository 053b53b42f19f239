"""Does it fit, and where does each table go: a plan from TorchRec's planner, without a GPU and without allocating rows.

    Request (tables, cluster, optimizer, load of a step)
      -> plan_tables      Planned: the plan that training follows, and what it needs and costs on each process
      -> or NoRoomError   which table, how much is missing; `stack.tables.remedy` finds ways out

Bytes of weights and optimizer state are exact, as FBGEMM allocates them. Bytes of buffers and all times are estimates
of TorchRec's performance model from the bandwidths in the cluster's configuration; the dense model is not in them.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from stack.base.errors import ConfigError
from stack.tables.cluster import GIB
from stack.tables.config import TableSpec
from stack.tables.placement import Kernel, Plan, Shard, TableOptimizer, TablePlan
from stack.tables.plan_request import Request
from stack.tables.planner import NoPlacementError, Piece, Placed, place
from stack.tables.with_ids import check_held_once


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A plan, and what it was made for and from."""

    request: Request
    plan: Plan
    placed: tuple[Placed, ...]


@dataclass(frozen=True, kw_only=True)
class Shortage:
    """What is missing, where the tables take the least memory that the request allows: all in GPU memory or, if host
    memory was asked for, all there, whichever misses less.

    `needed_bytes` of all tables on all processes, and `table_bytes` of the largest, `piece_bytes` of it on one process;
    `device_room_bytes` and `host_room_bytes` of one process; `missing_bytes` over all processes, or on the fullest
    where they would fit in sum; 0 where they would fit there too, and the planner found no placement all the same.
    """

    table: TableSpec
    table_bytes: int
    piece_bytes: int
    needed_bytes: int
    device_room_bytes: int
    host_room_bytes: int
    missing_bytes: int

    @property
    def room_bytes(self) -> int:
        """Of one process, in its own memory and its host's."""
        return self.device_room_bytes + self.host_room_bytes


class NoRoomError(ConfigError):
    """The tables do not fit the cluster as asked."""

    def __init__(self, request: Request, shortage: Shortage) -> None:
        self.request = request
        self.shortage = shortage
        super().__init__(_summary(request, shortage))


def plan_tables(request: Request) -> Planned:
    """The fastest placement that fits, by TorchRec's estimate.

    Raises:
        NoRoomError: the tables do not fit.
        ConfigError: ids of a table are managed whose rows several processes would hold.
    """
    try:
        placed = place(request)
    except NoPlacementError as error:
        raise NoRoomError(request, shortage_of(request, error.options)) from None
    cluster = request.cluster
    plan = Plan(
        device=cluster.device.value,
        world_size=cluster.world_size,
        local_size=cluster.local_size,
        optimizer=request.optimizer,
        tables=tuple(
            TablePlan(
                name=one.table.name,
                num_rows=one.table.num_rows,
                dim=one.table.dim,
                dtype=one.table.dtype,
                sharding=one.sharding,
                kernel=one.kernel,
                shards=tuple(piece.shard for piece in one.pieces),
            )
            for one in placed
        ),
    )
    for name in sorted(request.managed):
        check_held_once(plan.table(name), world_size=plan.world_size)
    return Planned(request=request, plan=plan, placed=tuple(placed))


def shortage_of(request: Request, options: Iterable[Placed]) -> Shortage:
    """What is missing if every table took, of its `options`, the one that needs the least memory."""
    options = list(options)
    cluster = request.cluster
    rooms = cluster.device_bytes, cluster.overflow_bytes if request.host_memory else 0
    in_one = [_least(option for option in options if option.kernel is not Kernel.fused_uvm_caching)]
    if request.host_memory:
        in_one.append(_least(option for option in options if option.kernel is not Kernel.fused))
    missing, least = min(((_missing(one, cluster.world_size, rooms), one) for one in in_one), key=lambda pair: pair[0])
    largest = max(least, key=_total)
    return Shortage(
        table=largest.table,
        table_bytes=_total(largest),
        piece_bytes=_largest_piece(largest),
        needed_bytes=sum(map(_total, least)),
        device_room_bytes=rooms[0],
        host_room_bytes=rooms[1],
        missing_bytes=missing,
    )


def weights_and_state(placed: Placed, optimizer: TableOptimizer) -> tuple[int, int]:
    """Bytes of a table's weights and of its optimizer's state over all processes, every copy counted."""
    blocks = [block_of(placed.table, piece.shard) for piece in placed.pieces]
    return sum(block.weight_bytes for block in blocks), sum(block.state_bytes(optimizer) for block in blocks)


def block_of(table: TableSpec, shard: Shard) -> TableSpec:
    """A shard as a table of its own, to ask for its bytes."""
    return replace(table, num_rows=shard.num_rows, dim=shard.num_columns)


def _least(options: Iterable[Placed]) -> list[Placed]:
    """Of each table the option that needs the least memory."""
    least: dict[str, Placed] = {}
    for option in options:
        name = option.table.name
        if name not in least or _order(option) < _order(least[name]):
            least[name] = option
    return list(least.values())


def _missing(tables: Sequence[Placed], world_size: int, rooms: tuple[int, int]) -> int:
    """In processes' own memory and in their hosts', which do not make up for each other."""
    pieces = [piece for one in tables for piece in one.pieces]
    own, beside = [piece.device_bytes for piece in pieces], [piece.host_bytes for piece in pieces]
    return sum(_over(sizes, world_size, room) for sizes, room in zip((own, beside), rooms, strict=True))


def _over(sizes: Sequence[int], world_size: int, room: int) -> int:
    """Bytes above the room of all processes; or of the fullest, largest pieces laid first, where there is most room."""
    in_sum = sum(sizes) - room * world_size
    if in_sum > 0:
        return in_sum
    used = [0] * world_size
    for size in sorted(sizes, reverse=True):
        heapq.heapreplace(used, used[0] + size)
    return max(0, max(used) - room)


def _bytes(piece: Piece) -> int:
    return piece.device_bytes + piece.host_bytes


def _total(placed: Placed) -> int:
    return sum(map(_bytes, placed.pieces))


def _largest_piece(placed: Placed) -> int:
    return max(map(_bytes, placed.pieces))


def _order(placed: Placed) -> tuple[int, int]:
    return _largest_piece(placed), _total(placed)


def _summary(request: Request, shortage: Shortage) -> str:
    table, cluster = shortage.table, request.cluster
    room = gib(shortage.device_room_bytes)
    if shortage.host_room_bytes:
        room += f" of GPU and {gib(shortage.host_room_bytes)} of host memory"
    if shortage.missing_bytes:
        outcome = f"{gib(shortage.missing_bytes)} are missing"
    else:
        outcome = "which would do in sum, but the planner finds no place for each: lower cluster.reserved_share"
    return (
        f"the tables do not fit {cluster.name}: {table.name!r} ({table.num_rows:,} x {table.dim} {table.dtype.value}, "
        f"{request.optimizer.value}) needs {gib(shortage.table_bytes)} in all and {gib(shortage.piece_bytes)} on one "
        f"process, all tables {gib(shortage.needed_bytes)}; {cluster.world_size} x {room} are free "
        f"for tables, {outcome}"
    )


def gib(num_bytes: float) -> str:
    """For people: 2.13 GiB."""
    return f"{num_bytes / GIB:,.2f} GiB"
