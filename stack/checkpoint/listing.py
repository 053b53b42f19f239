"""What `list` and `show` say of versions, as data; damaged manifests are listed too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from stack.checkpoint.chain import Chain
from stack.checkpoint.load import Checkpoint
from stack.checkpoint.manifest import KeyKind, VersionManifest
from stack.checkpoint.read_all import Seen, read_all


@dataclass(frozen=True, kw_only=True)
class VersionRow:
    """A version in a list. `marks`: newest, pruned, compacted, superseded by, restores, off the line, damaged."""

    version: int
    day: str | None = None
    num_days: int = 0
    complete: bool = False
    base: bool = False
    verb: str = ""
    num_rows: int = 0
    num_bytes: int = 0
    created: str = ""
    age_seconds: float | None = None
    step: int = 0
    world_size: int = 0
    metrics: Mapping[str, float | None]
    marks: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """A table of a version: the whole of it, and the run that this version wrote."""

    table: str
    num_rows: int
    dim: int
    dtype: str
    state: tuple[str, ...]
    managed: bool
    base: bool
    num_written: int
    num_bytes: int
    num_runs: int
    sharding: str


@dataclass(frozen=True, kw_only=True)
class VersionFacts:
    """A version in full. `overridden`: lines of what its day was refused for before it was learnt all the same."""

    row: VersionRow
    days: tuple[str, ...]
    parent: int | None
    digest: str
    code_version: str
    config_digest: str
    data: str
    num_files: int
    restore_bytes: int | None
    tables: tuple[TableRow, ...]
    overridden: tuple[str, ...] = ()


def versions(chain: Chain, *, now: datetime | None = None) -> list[VersionRow]:
    """All versions, the oldest first."""
    seen = read_all(chain)
    now = now or datetime.now(UTC)
    return [_row(seen, number, now) for number in seen.numbers]


def facts(chain: Chain, version: VersionManifest, checkpoint: Checkpoint | None) -> VersionFacts:
    """`checkpoint` None: the version cannot be read any more."""
    seen = read_all(chain)
    sizes = {} if checkpoint is None else checkpoint.files()
    tables = []
    for name, entry in version.tables.items():
        parts = {part.file for part in entry.parts}
        tables.append(
            TableRow(
                table=name,
                num_rows=entry.num_rows,
                dim=entry.dim,
                dtype=entry.shape.dtype,
                state=entry.shape.state,
                managed=entry.keys is KeyKind.id,
                base=entry.whole,
                num_written=entry.num_written,
                num_bytes=sum(file.num_bytes for one, file in version.files.items() if one in parts),
                num_runs=0 if checkpoint is None else len(checkpoint.layers[name]),
                sharding=version.shardings.get(name, ""),
            )
        )
    return VersionFacts(
        row=_row(seen, version.version, datetime.now(UTC)),
        days=version.context.data_days,
        parent=None if version.parent is None else version.parent.version,
        digest=version.digest,
        code_version=version.context.code_version,
        config_digest=version.context.config_digest,
        data=version.data,
        num_files=len(version.files),
        restore_bytes=None if checkpoint is None else sum(entry.num_bytes for entry in sizes.values()),
        tables=tuple(tables),
        overridden=version.lineage.overridden or (),
    )


def _row(seen: Seen, number: int, now: datetime) -> VersionRow:
    manifest = seen.versions.get(number)
    marks = tuple(_marks(seen, number))
    if manifest is None:
        return VersionRow(version=number, metrics={}, marks=marks)
    days = manifest.context.data_days
    return VersionRow(
        version=number,
        day=days[-1] if days else None,
        num_days=len(days),
        complete=manifest.complete,
        base=manifest.whole,
        verb=manifest.lineage.verb,
        num_rows=sum(entry.num_written for entry in manifest.tables.values()),
        num_bytes=manifest.num_bytes,
        created=manifest.created,
        age_seconds=(now - datetime.fromisoformat(manifest.created)).total_seconds(),
        step=manifest.step,
        world_size=manifest.world_size,
        metrics=manifest.metrics,
        marks=marks,
    )


def _marks(seen: Seen, number: int) -> list[str]:
    marks = []
    manifest = seen.versions.get(number)
    line = _line(seen)
    if number == seen.numbers[-1]:
        marks.append("newest")
    if manifest is None:
        marks.append("DAMAGED MANIFEST")
    elif number not in line:
        marks.append("off the line")
    if manifest is not None and manifest.lineage.restores is not None:
        marks.append(f"is {manifest.lineage.restores.version} again")
    if manifest is not None and manifest.lineage.repairs is not None:
        marks.append(f"mends {manifest.lineage.repairs.version}")
    if manifest is not None and manifest.lineage.overridden:
        marks.append("findings overridden")
    by = [
        other.version
        for other in seen.versions.values()
        if other.lineage.supersedes is not None and other.lineage.supersedes.version == number
    ]
    marks += [f"superseded by {one}" for one in by[-1:]]
    if number in seen.compacted:
        marks.append("compacted")
    if number in seen.pruned:
        marks.append("pruned")
    return marks


def _line(seen: Seen) -> set[int]:
    """What the newest version builds on, as far as manifests can be read."""
    line: set[int] = set()
    number: int | None = max(seen.versions, default=None)
    while number is not None and number not in line:
        line.add(number)
        manifest = seen.versions.get(number)
        number = None if manifest is None or manifest.parent is None else manifest.parent.version
    return line
