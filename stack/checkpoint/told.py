"""Tables for people out of what the verbs of `stack checkpoint` found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.markup import escape
from rich.table import Table

from stack.checkpoint.diff import VersionDiff
from stack.checkpoint.listing import VersionFacts, VersionRow
from stack.checkpoint.retain import Pruning
from stack.checkpoint.rows_of import RowShown
from stack.checkpoint.verify import Report, Standing

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_TOLD_VALUES = 8
_TOLD_TENSORS = 8


def size(num_bytes: float) -> str:
    unit = 0
    while num_bytes >= 1024 and unit < len(_UNITS) - 1:
        num_bytes, unit = num_bytes / 1024, unit + 1
    return f"{num_bytes:,.0f} B" if unit == 0 else f"{num_bytes:,.1f} {_UNITS[unit]}"


def age(seconds: float | None) -> str:
    if seconds is None:
        return ""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def of_versions(rows: Sequence[VersionRow], *, url: str) -> Table:
    right = {"version", "step", "rows written", "size", "age", "world"}
    table = _table(f"checkpoints in {url}", "version", "day", "what", "kind", "step", "rows written", "size", "age",
                   "world", "figures", "marks", right=right)  # fmt: skip
    for row in rows:
        day = (row.day or "") + (f" ({row.num_days} days)" if row.num_days > 1 else "")
        known = bool(row.created)
        table.add_row(
            str(row.version), day, ("finished" if row.complete else "on the way") if known else "",
            ("base" if row.base else "delta") if known else "", f"{row.step:,}" if known else "",
            f"{row.num_rows:,}" if known else "", size(row.num_bytes) if known else "", age(row.age_seconds),
            str(row.world_size or ""), _figures(row), escape(", ".join(row.marks)),
        )  # fmt: skip
    return table


def of_facts(facts: VersionFacts) -> list[Table]:
    row = facts.row
    told = _table(f"version {row.version}", "what", "is")
    days = (
        f"{facts.days[0]} to {facts.days[-1]}, {len(facts.days)} days" if len(facts.days) > 1 else "".join(facts.days)
    )
    reads = "cannot be read any more" if facts.restore_bytes is None else f"{size(facts.restore_bytes)} to restore"
    for what, value in (
        ("days", days),
        ("training", f"{'finished' if row.complete else 'on the way'}, step {row.step:,}, {row.verb}"),
        ("written", f"{row.created}, {age(row.age_seconds)} ago, by {row.world_size} processes"),
        ("builds on", "nothing" if facts.parent is None else f"version {facts.parent}"),
        ("files", f"{facts.num_files} in data/{facts.data}, {size(row.num_bytes)}; {reads}"),
        ("digest", facts.digest),
        ("configuration", facts.config_digest),
        ("code", facts.code_version),
        ("marks", ", ".join(row.marks) or "none"),
    ):
        told.add_row(what, escape(value))
    for line in facts.overridden:
        told.add_row("learnt although", escape(line))
    for name, figure in sorted(row.metrics.items()):
        told.add_row(escape(name), _number(figure))
    tables = _table("tables", "table", "rows", "width", "type", "ids", "this version", "rows written", "size", "runs",
                    "sharding", "optimizer state", right={"rows", "width", "rows written", "size", "runs"})  # fmt: skip
    for one in facts.tables:
        tables.add_row(
            escape(one.table), f"{one.num_rows:,}", str(one.dim), one.dtype, "managed" if one.managed else "rows",
            "whole" if one.base else "delta", f"{one.num_written:,}", size(one.num_bytes), str(one.num_runs),
            one.sharding, ", ".join(one.state),
        )  # fmt: skip
    return [told, tables]


def of_row(shown: RowShown, *, version: int) -> list[Table]:
    told = _table(f"table {shown.table}, version {version}", "what", "is")
    told.add_row("key", str(shown.key))
    told.add_row("row", " ".join(filter(None, ("" if shown.row is None else str(shown.row), shown.note))))
    if shown.count is not None:
        told.add_row("seen", f"in {shown.count:,} steps, last in step {shown.last:,}")
    norm = sum(value * value for value in shown.weights) ** 0.5
    told.add_row("weights", f"{_values(shown.weights)}; length {norm:.4g}")
    for name, values in shown.state.items():
        told.add_row(escape(name), _values(values))
    written = _table("written by", "version", "day", "what", right={"version"})
    for one in shown.written:
        what = "its files were pruned: not known" if one.did == "unknown" else one.did
        written.add_row(str(one.version), one.day, what)
    return [told, written]


def of_report(report: Report, *, url: str) -> list[Table]:
    found = _table(f"findings in {url}", "kind", "file", "what is wrong", "breaks versions")
    for one in report.findings:
        found.add_row(one.kind.value, escape(one.name), escape(one.what), ranges(one.breaks))
    return [found] if report.findings else []


def verdict(report: Report) -> str:
    """The last line of `verify`."""
    count = {kind: [n for n, one in report.versions.items() if one is kind] for kind in Standing}
    good = ranges(count[Standing.good]) or "none"
    told = [f"good: {good}"]
    told += [f"damaged: {ranges(count[Standing.damaged])}"] if count[Standing.damaged] else []
    told += [f"pruned: {ranges(count[Standing.pruned])}"] if count[Standing.pruned] else []
    last = "there is no good version" if report.last_good is None else f"last good version: {report.last_good}"
    return f"read {report.num_files:,} files, {size(report.num_bytes)}; versions {'; '.join(told)}; {last}"


def of_pruning(pruning: Pruning, *, dry_run: bool) -> list[Table]:
    kept = _table("kept", "version", "why", right={"version"})
    for number, why in pruning.kept.items():
        kept.add_row(str(number), escape(why))
    gone = _table("would be deleted" if dry_run else "deleted", "folder", "what it is")
    for data, what in pruning.folders.items():
        gone.add_row(f"data/{data}", what)
    for data in pruning.abandoned:
        gone.add_row(f"data/{data}", "left by a writer that died")
    for name in pruning.set_aside:
        gone.add_row(name, "left by a sweep that died")
    return [kept, gone]


def of_diff(found: VersionDiff) -> list[Table]:
    told = []
    if found.facts:
        facts = _table("facts", "what", f"version {found.first}", f"version {found.second}")
        for name, (one, other) in found.facts.items():
            facts.add_row(escape(name), escape(one), escape(other))
        told.append(facts)
    tables = _table("tables", "table", "rows", "changed", "added", "gone", "relative change", "moved most",
                    right={"rows", "changed", "added", "gone", "relative change"})  # fmt: skip
    for name, table in found.tables.items():
        if table.only_in is not None:
            alone = (found.first, found.second)[table.only_in - 1]
            tables.add_row(escape(name), f"{table.num_rows:,}", "", "", "", "", f"only in version {alone}")
            continue
        most = ", ".join(f"{row.key} by {row.distance:.3g} of {row.length:.3g}" for row in table.moved)
        changed, added, gone = (f"{n:,}" for n in (table.num_changed, table.num_added, table.num_dropped))
        relative = "" if table.relative is None else f"{table.relative:.2%}"
        tables.add_row(escape(name), f"{table.num_rows:,}", changed, added, gone, relative, most)
    told.append(tables)
    dense = _table(f"dense tensors: {len(found.dense)} of {found.num_dense} differ", "tensor", "relative change",
                   right={"relative change"})  # fmt: skip
    for tensor in found.dense[:_TOLD_TENSORS]:
        dense.add_row(escape(tensor.name), escape(tensor.what) if tensor.relative is None else f"{tensor.relative:.2%}")
    if len(found.dense) > _TOLD_TENSORS:
        dense.add_row(f"and {len(found.dense) - _TOLD_TENSORS} that changed less", "")
    return [*told, *([dense] if found.dense else [])]


def ranges(numbers: Iterable[int]) -> str:
    """`1 to 3, 7`."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in spans)


def _table(title: str, *columns: str, right: Iterable[str] = ()) -> Table:
    table = Table(title=escape(title), title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def _figures(row: VersionRow) -> str:
    """The first loss and the first AUC; `show` has all."""
    losses = [name for name in sorted(row.metrics) if name.startswith("loss/")][:1]
    aucs = [name for name in sorted(row.metrics) if name.endswith("/auc")][:1]
    told = [f"{name} {_number(row.metrics[name])}" for name in losses]
    return escape(", ".join([*told, *(f"auc {_number(row.metrics[name])}" for name in aucs)]))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _values(values: Sequence[float]) -> str:
    told = " ".join(f"{value:.4g}" for value in values[:_TOLD_VALUES])
    return f"{told} ... ({len(values)} numbers)" if len(values) > _TOLD_VALUES else told
