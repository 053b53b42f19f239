"""A plan on disk, and how two plans differ. A plan is checked against the job that follows it by `check_plan`
(`stack.tables.layout`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from stack.base.errors import ConfigError
from stack.base.files import write_bytes
from stack.tables.placement import Plan, TablePlan

FORMAT_VERSION = 1


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is not the same in two plans; `table` empty for what is of the whole plan."""

    table: str
    what: str
    before: str
    now: str


def save_plan(path: Path, plan: Plan) -> None:
    """Writes `plan.json`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, msgspec.json.format(msgspec.json.encode(plan)) + b"\n")


def load_plan(path: Path) -> Plan:
    """The plan that `save_plan` wrote.

    Raises:
        ConfigError: it is not there, damaged, or of another version.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"the plan {path} cannot be read ({error.strerror}): `stack plan plan.out=...` writes one"
        ) from error
    try:
        version = msgspec.json.decode(data, type=_Version).format_version
        if version != FORMAT_VERSION:
            raise ConfigError(f"the plan {path} has format {version}, this code reads {FORMAT_VERSION}: plan again")
        return msgspec.json.decode(data, type=Plan)
    except msgspec.DecodeError as error:
        raise ConfigError(f"the plan {path} is damaged ({error}): plan again") from error


def differences(before: Plan, now: Plan) -> list[Difference]:
    """What changed: the whole first, then tables by name; empty for equal plans."""
    found = _compare("", _facts(before), _facts(now))
    old, new = ({table.name: table for table in plan.tables} for plan in (before, now))
    for name in sorted(old.keys() | new.keys()):
        if name not in old or name not in new:
            words = ("planned", "-") if name in old else ("-", "planned")
            found.append(Difference(table=name, what="table", before=words[0], now=words[1]))
        else:
            found += _compare(name, _table_facts(old[name]), _table_facts(new[name]))
    return found


class _Version(msgspec.Struct):
    format_version: int


def _compare(table: str, before: Mapping[str, str], now: Mapping[str, str]) -> list[Difference]:
    return [
        Difference(table=table, what=what, before=before[what], now=now[what])
        for what in before
        if before[what] != now[what]
    ]


def _facts(plan: Plan) -> dict[str, str]:
    return {
        "device": plan.device,
        "processes": str(plan.world_size),
        "processes of a host": str(plan.local_size),
        "optimizer": plan.optimizer.value,
    }


def _table_facts(table: TablePlan) -> dict[str, str]:
    return {
        "rows": f"{table.num_rows:,}",
        "dim": str(table.dim),
        "dtype": table.dtype.value,
        "sharding": table.sharding.value,
        "kernel": table.kernel.value,
        "ranks": spans(sorted({shard.rank for shard in table.shards if shard.num_rows})),
        "blocks": str(len(table.shards)),
    }


def spans(ranks: Iterable[int]) -> str:
    """Ascending numbers as people write them: 0-7, 12."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
