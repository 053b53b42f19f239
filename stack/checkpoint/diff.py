"""What is different between two versions: rows of tables, keys, dense tensors, and what each says of itself.

Rows that lie in a file which both versions read are not looked at: between neighbours only deltas are read. Changes are
measured in double precision.

Legend: N rows compared at a time, D columns.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stack.checkpoint.chain import Layer
from stack.checkpoint.load import Checkpoint
from stack.checkpoint.manifest import WEIGHT, KeyKind, VersionManifest
from stack.checkpoint.rows import LiveKeys, TableReader

_BLOCK_ROWS = 262_144


@dataclass(frozen=True, kw_only=True)
class Moved:
    """A row (of managed ids: a key), how far its weights moved (L2), and from what length."""

    key: int
    distance: float
    length: float


@dataclass(frozen=True, kw_only=True)
class TableDiff:
    """`num_changed`: rows (managed ids: keys) that both have, with other weights; `num_added`, `num_dropped`: that only
    the second, only the first has. `relative`: L2 of the changes of those that changed, over that of their weights in
    the first. `only_in`: 1 or 2 where only that version has the table."""

    num_rows: int
    num_changed: int = 0
    num_added: int = 0
    num_dropped: int = 0
    relative: float | None = None
    moved: tuple[Moved, ...] = ()
    only_in: int | None = None
    managed: bool = False


@dataclass(frozen=True, kw_only=True)
class DenseDiff:
    """`relative`: L2 of the change over that of the first; None where it is in one only, or of another shape."""

    name: str
    relative: float | None
    what: str = ""


@dataclass(frozen=True, kw_only=True)
class VersionDiff:
    """`facts`: by name what manifests say differently, the first and the second; dense tensors that differ, those that
    changed most first."""

    first: int
    second: int
    facts: Mapping[str, tuple[str, str]]
    tables: Mapping[str, TableDiff]
    dense: tuple[DenseDiff, ...]
    num_dense: int


def diff(first: Checkpoint, second: Checkpoint, *, num_moved: int = 5) -> VersionDiff:
    """Raises: `CheckpointError` where a file of either is damaged."""
    names = sorted(first.manifest.tables.keys() | second.manifest.tables.keys())
    dense = _dense(first.dense(), second.dense())
    return VersionDiff(
        first=first.manifest.version,
        second=second.manifest.version,
        facts=_facts(first.manifest, second.manifest),
        tables={name: _table(first, second, name, num_moved=num_moved) for name in names},
        dense=tuple(one for one in dense if one.relative != 0.0),
        num_dense=len(dense),
    )


@dataclass(kw_only=True)
class _Sums:
    """What was found so far."""

    num_moved: int
    num_changed: int = 0
    square_change: float = 0.0
    square_before: float = 0.0
    most: list[tuple[float, int, float]] = field(default_factory=list)

    def add(self, key_N: Tensor, before_ND: Tensor, after_ND: Tensor) -> None:
        other = (before_ND.double() != after_ND.double()).any(1)
        key_N, before, after = key_N[other], before_ND[other].double(), after_ND[other].double()
        self.num_changed += len(key_N)
        square_N, length_N = (after - before).square().sum(1), before.square().sum(1)
        self.square_change += float(square_N.sum())
        self.square_before += float(length_N.sum())
        at = torch.topk(square_N, min(self.num_moved, len(square_N))).indices
        for distance, key, length in zip(
            square_N[at].sqrt().tolist(), key_N[at].tolist(), length_N[at].sqrt().tolist(), strict=True
        ):
            heapq.heappush(self.most, (distance, key, length))
        self.most = heapq.nlargest(self.num_moved, self.most)

    def told(self, *, num_rows: int, num_added: int, num_dropped: int, managed: bool = False) -> TableDiff:
        relative = None
        if self.num_changed:
            relative = (self.square_change / self.square_before) ** 0.5 if self.square_before else float("inf")
        moved = tuple(Moved(key=key, distance=distance, length=length) for distance, key, length in self.most)
        return TableDiff(
            num_rows=num_rows, num_changed=self.num_changed, num_added=num_added, num_dropped=num_dropped,
            relative=relative, moved=moved, managed=managed,
        )  # fmt: skip


def _table(first: Checkpoint, second: Checkpoint, name: str, *, num_moved: int) -> TableDiff:
    sides = [checkpoint.manifest.tables.get(name) for checkpoint in (first, second)]
    before, after = sides
    if before is None or after is None:
        there = after or before
        assert there is not None
        return TableDiff(num_rows=there.num_rows, only_in=1 if after is None else 2)
    if before.keys is not after.keys or before.shape.dim != after.shape.dim:
        return TableDiff(num_rows=after.num_rows, num_dropped=before.num_rows, num_added=after.num_rows)
    sums = _Sums(num_moved=num_moved)
    one, two = first.readers[name], second.readers[name]
    if after.keys is KeyKind.id:
        return _managed(one, two, sums, num_rows=after.num_rows)
    columns = (0, after.dim)
    for row_N in _candidates(one, two, num_rows=min(before.num_rows, after.num_rows)):
        values = [reader.taken(row_N, columns=columns, states=())[WEIGHT] for reader in (one, two)]
        sums.add(row_N, *values)
    return sums.told(
        num_rows=after.num_rows,
        num_added=max(after.num_rows - before.num_rows, 0),
        num_dropped=max(before.num_rows - after.num_rows, 0),
    )


def _candidates(one: TableReader, two: TableReader, *, num_rows: int) -> Iterator[Tensor]:
    """Rows that may differ, ascending, some at a time: those in runs that only one of the versions reads."""
    shared = _shared(one.layers, two.layers)
    own = [(reader, layer) for reader in (one, two) for layer in reader.layers[shared:]]
    if any(layer.entry.whole for _, layer in own):
        for first in range(0, num_rows, _BLOCK_ROWS):
            yield torch.arange(first, min(first + _BLOCK_ROWS, num_rows))
        return
    rows = [reader.keys_of(layer) for reader, layer in own]
    if rows:
        found = torch.cat(rows).sort().values
        new = torch.cat([torch.ones(1, dtype=torch.bool), found[1:] != found[:-1]])[: len(found)]
        yield from torch.split(found[new & (found < num_rows)], _BLOCK_ROWS)


def _shared(one: Sequence[Layer], two: Sequence[Layer]) -> int:
    """How many of the oldest runs are the same files."""
    count = 0
    for left, right in zip(one, two, strict=False):
        if (left.folder, left.entry) != (right.folder, right.entry):
            break
        count += 1
    return count


def _managed(one: TableReader, two: TableReader, sums: _Sums, *, num_rows: int) -> TableDiff:
    before, after = one.live, two.live
    at = torch.searchsorted(before.key_N, after.key_N).clamp_(max=len(before.key_N) - 1)
    both = before.key_N[at] == after.key_N
    shared = _shared(one.layers, two.layers)
    old_M, new_M = at[both], both.nonzero().squeeze(1)
    moved = (before.layer_N[old_M] >= shared) | (after.layer_N[new_M] >= shared)
    for old, new in zip(torch.split(old_M[moved], _BLOCK_ROWS), torch.split(new_M[moved], _BLOCK_ROWS), strict=True):
        sums.add(after.key_N[new], _of_keys(one, before, old), _of_keys(two, after, new))
    num_both = int(both.sum())
    return sums.told(
        num_rows=num_rows,
        num_added=len(after.key_N) - num_both,
        num_dropped=len(before.key_N) - num_both,
        managed=True,
    )


def _of_keys(reader: TableReader, live: LiveKeys, at: Tensor) -> Tensor:
    """Weights of some of the live keys, in their order."""
    row, order = torch.sort(live.row_N[at])
    found = reader.taken(row, columns=(0, reader.layers[-1].entry.dim), states=())[WEIGHT]
    return torch.empty_like(found).index_copy_(0, order, found)


def _dense(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[DenseDiff]:
    found = []
    for name in sorted(before.keys() | after.keys()):
        if name not in before or name not in after:
            found.append(
                DenseDiff(name=name, relative=None, what=f"only in the {'first' if name in before else 'second'}")
            )
        elif before[name].shape != after[name].shape:
            what = f"{list(before[name].shape)} -> {list(after[name].shape)}"
            found.append(DenseDiff(name=name, relative=None, what=what))
        else:
            old, new = before[name].double(), after[name].double()
            change, length = float((new - old).norm()), float(old.norm())
            found.append(
                DenseDiff(name=name, relative=change / length if length else (float("inf") if change else 0.0))
            )
    return sorted(found, key=lambda one: float("-inf") if one.relative is None else -one.relative)


def _facts(first: VersionManifest, second: VersionManifest) -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}

    def compare(name: str, one: object, other: object) -> None:
        if one != other:
            found[name] = (str(one), str(other))

    for name in ("step", "complete", "world_size"):
        compare(name, getattr(first, name), getattr(second, name))
    compare("days", _days(first), _days(second))
    if first.context.schema != second.context.schema:
        found["schema"] = ("one", "another")
    for name in ("config_digest", "code_version"):
        compare(name, getattr(first.context, name), getattr(second.context, name))
    for table in sorted(first.shardings.keys() | second.shardings.keys()):
        compare(f"sharding of {table}", first.shardings.get(table, ""), second.shardings.get(table, ""))
    one, other = first.context.vocabulary_digests, second.context.vocabulary_digests
    for table in sorted(one.keys() | other.keys()):
        compare(f"vocabulary of {table}", one.get(table, "")[:12], other.get(table, "")[:12])
    for name in sorted(first.metrics.keys() | second.metrics.keys()):
        compare(name, _number(first.metrics.get(name)), _number(second.metrics.get(name)))
    return found


def _days(version: VersionManifest) -> str:
    days = version.context.data_days
    return f"{days[0]} to {days[-1]}, {len(days)} days" if len(days) > 1 else "".join(days)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
