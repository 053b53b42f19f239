"""A plan for people: what each table takes and where it goes, what each process holds, and ways out."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from stack.tables.cluster import GIB
from stack.tables.plan_file import Difference, spans
from stack.tables.plan_report import PlanReport, RankUse, Refusal


def plan_tables_shown(report: PlanReport) -> list[Table]:
    """A table of tables and a table of processes."""
    return [_of_tables(report), _of_processes(report)]


def plan_line(report: PlanReport) -> str:
    """The step as estimated, and what bounds it."""
    times = report.ranks[report.slowest_rank].times
    return (
        f"Estimated step (tables alone, {report.num_timelines:,} timelines and {report.num_bags:,} ids a table on each "
        f"process): {report.step_ms:.2f} ms = rows read {times.lookup_ms:.2f} + updated {times.update_ms:.2f} + "
        f"vectors exchanged {times.vectors_ms:.2f} + ids exchanged {times.ids_ms:.2f}; bound by {report.bound}.\n"
        f"Times and buffers are of {report.estimated_by}."
    )


def ways_table(refusal: Refusal) -> Table:
    """The ways out of a refusal."""
    table = Table(title="Ways out (each was planned again)", title_justify="left")
    table.add_column("change")
    table.add_column("options")
    table.add_column("fits")
    table.add_column("GiB on the fullest process", justify="right")
    table.add_column("estimated step, ms", justify="right")
    for way in refusal.ways:
        if way.fits:
            table.add_row(way.what, way.options, "yes", _gib(way.fullest_bytes or 0), f"{way.step_ms:.2f}")
        else:
            table.add_row(way.what, way.options, f"no, {_gib(way.missing_bytes or 0)} GiB are missing", "-", "-")
    return table


def differences_table(found: Sequence[Difference], *, title: str) -> Table:
    """What changed between two plans."""
    table = Table(title=title, title_justify="left")
    for heading in ("table", "what", "before", "now"):
        table.add_column(heading)
    for one in found:
        table.add_row(one.table or "(whole plan)", one.what, one.before, one.now)
    return table


def _of_tables(report: PlanReport) -> Table:
    title = f"Tables over {report.world_size} x {report.device.value} ({report.cluster})"
    table = Table(title=title, title_justify="left")
    sizes = {"weights GiB": "weight_bytes", "state GiB": "state_bytes"}
    if any(one.map_bytes for one in report.tables):
        sizes["id map GiB"] = "map_bytes"
    sizes["buffers GiB (est.)"] = "buffer_bytes"
    for heading in ("table", "rows", "dim", "dtype", "optimizer", *sizes):
        table.add_column(heading, justify="right" if heading in ("rows", "dim", *sizes) else "left")
    for heading in ("sharding", "kernel", "ranks", "step ms (est.)"):
        table.add_column(heading, justify="right" if "ms" in heading else "left")
    for one in report.tables:
        table.add_row(
            one.name, f"{one.num_rows:,}", str(one.dim), one.dtype.value, one.optimizer.value,
            *(_gib(getattr(one, size)) for size in sizes.values()),
            one.sharding.value, one.kernel.value, spans(one.ranks), f"{one.times.total_ms:.2f}",
        )  # fmt: skip
    table.add_section()
    sums = [sum(getattr(one, size) for one in report.tables) for size in sizes.values()]
    table.add_row("all", f"{sum(one.num_rows for one in report.tables):,}", "", "", "", *map(_gib, sums))
    return table


def _of_processes(report: PlanReport) -> Table:
    """One line for consecutive processes that hold parts of the same tables; the fullest and slowest speak for them."""
    title = f"Processes: {_gib(report.room_bytes)} GiB for tables on each"
    table = Table(title=title, title_justify="left")
    in_host = any(rank.host_bytes for rank in report.ranks)
    for heading in ("ranks", "hold parts of"):
        table.add_column(heading)
    for heading in ("GiB used", "GiB free", *(("GiB in host memory", "GiB free there") if in_host else ())):
        table.add_column(heading, justify="right")
    table.add_column("step ms (est.)", justify="right")
    for group in _alike(report.ranks):
        fullest = max(group, key=lambda rank: rank.device_bytes)
        host = max(group, key=lambda rank: rank.host_bytes)
        beside = (_gib(host.host_bytes), _gib(host.host_free_bytes)) if in_host else ()
        table.add_row(
            spans(rank.rank for rank in group),
            ", ".join(fullest.device_bytes_by_table) or "-",
            _gib(fullest.device_bytes),
            _gib(fullest.device_free_bytes),
            *beside,
            f"{max(rank.times.total_ms for rank in group):.2f}",
        )
    return table


def _alike(ranks: Sequence[RankUse]) -> list[list[RankUse]]:
    groups: list[list[RankUse]] = []
    for rank in ranks:
        if groups and groups[-1][-1].device_bytes_by_table.keys() == rank.device_bytes_by_table.keys():
            groups[-1].append(rank)
        else:
            groups.append([rank])
    return groups


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:,.2f}"
