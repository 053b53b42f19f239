"""What a plan needs and costs, as plain data: `report.json`, and what the tables and pictures are drawn from."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from stack.tables.cluster import ClusterConfig, Device
from stack.tables.placement import Kernel, Plan, RowType, Sharding, TableOptimizer
from stack.tables.plan import Planned, weights_and_state
from stack.tables.plan_request import Request
from stack.tables.planner import Piece, Placed

MODEL = (
    "TorchRec's performance model with the bandwidths of the cluster's configuration, which are peaks of data sheets "
    "or assumed: estimates, not measurements; the dense model is not in them"
)


class Times(msgspec.Struct, frozen=True, kw_only=True):
    """Estimated milliseconds of a step: rows read, rows updated, vectors and gradients exchanged, ids exchanged."""

    lookup_ms: float
    update_ms: float
    vectors_ms: float
    ids_ms: float

    @property
    def total_ms(self) -> float:
        """One after the other."""
        return self.lookup_ms + self.update_ms + self.vectors_ms + self.ids_ms


class TableUse(msgspec.Struct, frozen=True, kw_only=True):
    """One table over all processes. `map_bytes`: of managed ids. `times` on the process where it takes longest."""

    name: str
    num_rows: int
    dim: int
    dtype: RowType
    optimizer: TableOptimizer
    sharding: Sharding
    kernel: Kernel
    ranks: tuple[int, ...]
    weight_bytes: int
    state_bytes: int
    map_bytes: int
    buffer_bytes: int
    times: Times


class RankUse(msgspec.Struct, frozen=True, kw_only=True):
    """One process: bytes by table, in its own memory and in the host's beside a GPU, and what is left for tables."""

    rank: int
    device_bytes_by_table: dict[str, int]
    device_bytes: int
    device_free_bytes: int
    host_bytes: int
    host_free_bytes: int
    times: Times


class WayOut(msgspec.Struct, frozen=True, kw_only=True):
    """A change that was planned again: `step_ms` and `fullest_bytes` where it fits, `missing_bytes` where not."""

    what: str
    options: str
    fits: bool
    fullest_bytes: int | None = None
    step_ms: float | None = None
    missing_bytes: int | None = None


class PlanReport(msgspec.Struct, frozen=True, kw_only=True):
    """A plan that fits. `bound`: what takes most of the slowest process's step."""

    format_version: int = 1
    fits: bool = True
    cluster: str
    device: Device
    world_size: int
    local_size: int
    room_bytes: int
    num_timelines: int
    num_bags: int
    tables: tuple[TableUse, ...]
    ranks: tuple[RankUse, ...]
    slowest_rank: int
    step_ms: float
    bound: str
    estimated_by: str = MODEL
    plan: Plan


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Tables that do not fit, and the ways out that were tried."""

    format_version: int = 1
    fits: bool = False
    summary: str
    ways: tuple[WayOut, ...]


def report_of(planned: Planned) -> PlanReport:
    """Adds up a plan by table and by process."""
    request, cluster = planned.request, planned.request.cluster
    ranks = _ranks(planned)
    slowest = max(ranks, key=lambda one: one.times.total_ms)
    return PlanReport(
        cluster=cluster.name,
        device=cluster.device,
        world_size=cluster.world_size,
        local_size=cluster.local_size,
        room_bytes=cluster.device_bytes,
        num_timelines=request.load.num_timelines,
        num_bags=request.num_bags,
        tables=tuple(_table(placed, request) for placed in planned.placed),
        ranks=ranks,
        slowest_rank=slowest.rank,
        step_ms=slowest.times.total_ms,
        bound=_bound(slowest.times, cluster, in_host=slowest.host_bytes > 0),
        plan=planned.plan,
    )


def fullest_bytes(planned: Planned) -> int:
    """Of a process's own memory, where most is used."""
    return max(rank.device_bytes for rank in _ranks(planned))


def total_bytes(planned: Planned) -> int:
    """Of all processes, in their own memory and their hosts'."""
    return sum(piece.device_bytes + piece.host_bytes for placed in planned.placed for piece in placed.pieces)


def step_ms(planned: Planned) -> float:
    """Estimate for the slowest process."""
    return max(rank.times.total_ms for rank in _ranks(planned))


def _table(placed: Placed, request: Request) -> TableUse:
    weights, state = weights_and_state(placed, request.optimizer)
    shards = [piece.shard for piece in placed.pieces]
    maps = sum(
        request.map_bytes(placed.table.name, first_row=shard.first_row, num_rows=shard.num_rows) for shard in shards
    )
    held: dict[int, list[Piece]] = {}
    for piece in placed.pieces:  # by rank
        if piece.shard.num_rows:
            held.setdefault(piece.shard.rank, []).append(piece)
    total = sum(piece.device_bytes + piece.host_bytes for piece in placed.pieces)
    return TableUse(
        name=placed.table.name,
        num_rows=placed.table.num_rows,
        dim=placed.table.dim,
        dtype=placed.table.dtype,
        optimizer=request.optimizer,
        sharding=placed.sharding,
        kernel=placed.kernel,
        ranks=tuple(held),
        weight_bytes=weights,
        state_bytes=state,
        map_bytes=maps,
        buffer_bytes=total - weights - state - maps,
        times=max(map(_times, held.values()), key=lambda times: times.total_ms),
    )


def _ranks(planned: Planned) -> tuple[RankUse, ...]:
    cluster = planned.request.cluster
    held: list[list[tuple[str, Piece]]] = [[] for _ in range(cluster.world_size)]
    for one in planned.placed:
        for piece in one.pieces:
            held[piece.shard.rank].append((one.table.name, piece))
    return tuple(_rank(rank, pieces, cluster) for rank, pieces in enumerate(held))


def _rank(rank: int, held: Sequence[tuple[str, Piece]], cluster: ClusterConfig) -> RankUse:
    by_table: dict[str, int] = {}
    for name, piece in held:
        by_table[name] = by_table.get(name, 0) + piece.device_bytes
    used = sum(by_table.values())
    in_host = sum(piece.host_bytes for _, piece in held)
    return RankUse(
        rank=rank,
        device_bytes_by_table={name: num_bytes for name, num_bytes in by_table.items() if num_bytes},
        device_bytes=used,
        device_free_bytes=cluster.device_bytes - used,
        host_bytes=in_host,
        host_free_bytes=cluster.overflow_bytes - in_host,
        times=_times([piece for _, piece in held]),
    )


def _times(pieces: Sequence[Piece]) -> Times:
    return Times(
        lookup_ms=sum(piece.lookup_ms for piece in pieces),
        update_ms=sum(piece.update_ms for piece in pieces),
        vectors_ms=sum(piece.vectors_ms for piece in pieces),
        ids_ms=sum(piece.ids_ms for piece in pieces),
    )


def _bound(times: Times, cluster: ClusterConfig, *, in_host: bool) -> str:
    if cluster.device is Device.cuda:
        memory = f"GPU memory, {cluster.hbm_gb_per_second:,.0f} GB/s"
        if in_host:
            memory += f", behind it the host's, {cluster.host_link_gb_per_second:g} GB/s"
    else:
        memory = f"host memory, {cluster.ddr_gb_per_second:,.0f} GB/s for {cluster.local_size} processes"
    if cluster.hosts > 1:
        wires = f"{cluster.inter_host_gb_per_second:g} GB/s between hosts, {cluster.intra_host_gb_per_second:g} inside"
    else:
        wires = f"{cluster.intra_host_gb_per_second:g} GB/s inside the host"
    shares = {
        f"reading rows ({memory})": times.lookup_ms,
        f"updating rows ({memory})": times.update_ms,
        f"exchanging vectors and gradients ({wires})": times.vectors_ms,
        f"exchanging ids ({wires})": times.ids_ms,
    }
    return max(shares, key=lambda name: shares[name])
