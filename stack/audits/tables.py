"""What is in the embedding tables of a version: rows learnt and never learnt, shared, broken, out of line.

Tables are read once, a bounded number of rows at a time, and may be larger than memory. Which rows were ever learnt
the optimizer's state tells: it is zero until a row gets its first gradient, under every rule that keeps one. Plain SGD
keeps none, and weights alone cannot tell. (A gradient below 1e-22 leaves a state of 0, too: its square is no fp32.)

Norms are counted in bins of a sixty-fourth of an octave, so medians are known to 1.1%. A row is an outlier where
0.6745 (log norm - median) / MAD, the robust z of the learnt rows' log norms (Iglewicz and Hoaglin 1993), is beyond a
limit.

Legend: N rows of a block, D width, B bins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from stack.audits.lookups import LookupCount, count_lookups
from stack.audits.tables_config import TablesAuditConfig
from stack.data.batch import Batch
from stack.data.dataset import Dataset
from stack.ids.config import IdMode
from stack.ids.hashing import HashedRows, measured_collisions
from stack.ids.maps import IdMaps
from stack.model import Places
from stack.tables.rows import TableShard

_LOWEST_OCTAVE, _HIGHEST_OCTAVE, _PER_OCTAVE = -160, 136, 64
_NUM_BINS = (_HIGHEST_OCTAVE - _LOWEST_OCTAVE) * _PER_OCTAVE
_MAD_TO_SIGMA = 0.6745
_MOST_HASHED = 1 << 22
"""More ids than these are not hashed one by one: what a hash of so many comes to is known."""
_DRAWN_PER_OCTAVE = 4

Ints = NDArray[np.int64]
TableParts = Callable[[str], Iterator[TableShard]]
"""All rows of a table in order, with their optimizer state, in blocks: `Checkpoint.table_parts`."""


@dataclass(frozen=True, kw_only=True)
class AuditedTable:
    """`num_ids`: of the vocabulary on the last day learnt; None where there is none. `held_N`: rows that an id has, of
    a managed table. `growth`: new ids of the vocabulary by day."""

    name: str
    num_rows: int
    mode: IdMode
    num_ids: int | None
    hashed: HashedRows | None
    held_N: Ints | None
    growth: Mapping[str, int]


class NormBin(msgspec.Struct, frozen=True, kw_only=True):
    """Rows with a norm from `low` to `high`."""

    low: float
    high: float
    num_learnt: int
    num_never: int


class TableReport(msgspec.Struct, frozen=True, kw_only=True):
    """One table. `num_held`: rows that an id has, null but of managed tables. `num_learnt`: rows with optimizer state;
    null where the optimizer keeps none. `norm_*` are of the rows learnt (of all, where that is not known); `num_zero`
    are those of them without any length. `collision_share`: of the ids, that have their vector in common with another;
    null where no number of ids is known, `collision_measured` false where it is the expected one. `missing_share` and
    `new_share`: of the lookups, those that name no id, and those of ids that came after the version; both read row 0.
    `hottest`: share of the other lookups that the hottest id, 10 and 100 of them get. `growth`: new ids by day."""

    name: str
    mode: IdMode
    num_rows: int
    dim: int
    num_ids: int | None
    num_held: int | None
    num_learnt: int | None
    num_not_finite: int
    num_zero: int
    norm_p50: float | None
    norm_p99: float | None
    norm_max: float | None
    num_low: int
    num_high: int
    collision_share: float | None
    collision_measured: bool
    num_lookups: int
    num_distinct: int | None
    missing_share: float
    new_share: float
    hottest: tuple[float, ...]
    hottest_error: float
    growth: dict[str, int]
    norms: tuple[NormBin, ...]

    @property
    def num_candidates(self) -> int:
        """Rows that could have been learnt."""
        return self.num_rows if self.num_held is None else self.num_held

    @property
    def learnt_share(self) -> float | None:
        return None if self.num_learnt is None else self.num_learnt / max(self.num_candidates, 1)

    @property
    def full_share(self) -> float | None:
        return None if self.num_held is None else self.num_held / max(self.num_rows - 1, 1)

    @property
    def num_outliers(self) -> int:
        return self.num_low + self.num_high


class TablesReport(msgspec.Struct, frozen=True, kw_only=True):
    """All tables of one version; `days` are those whose lookups were counted."""

    days: tuple[str, ...]
    tables: tuple[TableReport, ...]


def tables_report(
    num_rows: Mapping[str, int],
    parts: TableParts,
    *,
    dataset: Dataset,
    places: Places,
    maps: IdMaps | None,
    last_day: str,
    batches: Iterable[Batch],
    days: Sequence[str],
    config: TablesAuditConfig,
) -> TablesReport:
    """The whole audit of a version: what is known of its tables, lookups of `batches` (timelines of `days`), and one
    reading of all rows. `num_rows`: of each table as the version has it; `last_day`: the last one learnt."""
    tables = audited_tables(
        num_rows, dataset=dataset, maps=maps, last_day=last_day, growth_days=config.growth_days
    )  # fmt: skip
    limits = {table.name: table.num_rows for table in tables if table.mode is IdMode.direct}
    lookups = count_lookups(batches, places, num_kept=config.kept_ids, limits=limits)
    return audit_tables(tables, parts, lookups, days=days, config=config)


def audited_tables(
    num_rows: Mapping[str, int], *, dataset: Dataset, maps: IdMaps | None, last_day: str, growth_days: int
) -> list[AuditedTable]:
    """What is known of tables before they are read. `num_rows`: of each as the version has it; `maps`: of its ids, None
    where all are rows already; `last_day`: the last one learnt."""
    states = {} if maps is None else maps.state()
    found = []
    for name in sorted(num_rows):
        mode = IdMode.direct if maps is None else maps.specs[name].mode
        has_vocabulary = dataset.schema.without_vocabulary(name) is None
        found.append(
            AuditedTable(
                name=name, num_rows=num_rows[name], mode=mode,
                num_ids=dataset.num_rows(last_day)[name] - 1 if has_vocabulary else None,
                hashed=maps.hashed(name) if maps is not None and mode is IdMode.hashed else None,
                held_N=states[name].row_N.cpu().numpy() if name in states else None,
                growth=growth_of(dataset, name, last_day, growth_days) if has_vocabulary else {},
            )
        )  # fmt: skip
    return found


def growth_of(dataset: Dataset, table: str, last_day: str, num_days: int) -> dict[str, int]:
    """Ids that the vocabulary saw first on each of the days up to `last_day`."""
    days = [day for day in dataset.days() if day <= last_day]
    sizes = [dataset.num_rows(day)[table] for day in days]
    new = {day: size - before for day, size, before in zip(days, sizes, [1, *sizes[:-1]], strict=True)}
    return dict(list(new.items())[-num_days:]) if num_days else {}


def audit_tables(
    tables: Iterable[AuditedTable],
    parts: TableParts,
    lookups: Mapping[str, LookupCount],
    *,
    days: Sequence[str],
    config: TablesAuditConfig,
) -> TablesReport:
    """Reads every table once. `lookups`: as counted on `days` (`stack.audits.lookups`)."""
    found = tuple(_report(table, parts, lookups.get(table.name), config) for table in tables)
    return TablesReport(days=tuple(days), tables=found)


def _report(
    table: AuditedTable, parts: TableParts, count: LookupCount | None, config: TablesAuditConfig
) -> TableReport:
    scan = _Scan(table)
    for shard in parts(table.name):
        scan.add(shard)
    share, measured = _collisions(table, count)
    count = count or LookupCount(num_kept=config.kept_ids)
    total = max(count.total, 1)
    judged_B = scan.never_B if scan.learnt_B is None else scan.learnt_B
    low, high = outliers(judged_B, config.outlier_z)
    return TableReport(
        name=table.name, mode=table.mode, num_rows=table.num_rows, dim=scan.dim, num_ids=table.num_ids,
        num_held=None if table.held_N is None else len(table.held_N),
        num_learnt=None if scan.learnt_B is None else scan.num_learnt, num_not_finite=scan.num_not_finite,
        num_zero=scan.num_zero, norm_p50=_quantile(judged_B, 0.5), norm_p99=_quantile(judged_B, 0.99),
        norm_max=_quantile(judged_B, 1.0), num_low=low, num_high=high, collision_share=share,
        collision_measured=measured, num_lookups=count.total, num_distinct=count.num_distinct,
        missing_share=count.missing / total, new_share=count.new / total, hottest=count.shares(),
        hottest_error=count.error / total, growth=dict(table.growth), norms=tuple(_drawn(scan)),
    )  # fmt: skip


class _Scan:
    """Adds blocks up. `learnt_B` and `never_B` count rows by their norm's bin; without optimizer state `learnt_B` is
    None, and all rows are in the other. Of a managed table only rows that an id has count."""

    def __init__(self, table: AuditedTable) -> None:
        self._held_N = None if table.held_N is None else np.sort(table.held_N)
        self.dim = self.num_learnt = self.num_not_finite = self.num_zero = 0
        self.learnt_B: Ints | None = None
        self.never_B: Ints = np.zeros(_NUM_BINS, dtype=np.int64)

    def add(self, shard: TableShard) -> None:
        self.dim = shard.dim
        weight_ND, state = shard.weight_ND.float(), shard.state
        finite_N = torch.isfinite(weight_ND).all(dim=1)
        learnt_N = torch.zeros_like(finite_N)
        for value in state.values():
            wide_N = value.reshape(len(finite_N), -1)
            learnt_N |= (wide_N != 0).any(dim=1)
            finite_N &= torch.isfinite(wide_N).all(dim=1)
        if state and self.learnt_B is None:
            self.learnt_B = np.zeros(_NUM_BINS, dtype=np.int64)
        norm_N = torch.linalg.vector_norm(weight_ND.double(), dim=1).numpy()
        self._count(norm_N, finite_N.numpy(), learnt_N.numpy(), self._counted(shard, len(norm_N)))

    def _counted(self, shard: TableShard, num_rows: int) -> NDArray[np.bool_]:
        counted_N = np.ones(num_rows, dtype=bool)
        if self._held_N is not None:
            bounds = np.searchsorted(self._held_N, [shard.first_row, shard.first_row + num_rows])
            counted_N[:] = False
            counted_N[self._held_N[bounds[0] : bounds[1]] - shard.first_row] = True
        return counted_N

    def _count(
        self, norm_N: NDArray[np.float64], finite_N: NDArray[np.bool_], learnt_N: NDArray[np.bool_],
        counted_N: NDArray[np.bool_],
    ) -> None:  # fmt: skip
        self.num_not_finite += int((counted_N & ~finite_N).sum())
        self.num_learnt += int((counted_N & learnt_N).sum())
        judged_N = counted_N & finite_N & (learnt_N if self.learnt_B is not None else True)
        self.num_zero += int((judged_N & (norm_N == 0)).sum())
        for counts_B, chosen_N in ((self.learnt_B, learnt_N), (self.never_B, ~learnt_N)):
            if counts_B is not None:
                some_N = norm_N[chosen_N & counted_N & finite_N & (norm_N > 0)]
                bin_N = np.floor((np.log2(some_N) - _LOWEST_OCTAVE) * _PER_OCTAVE).astype(np.int64)
                counts_B += np.bincount(np.clip(bin_N, 0, _NUM_BINS - 1), minlength=_NUM_BINS)


def outliers(counts_B: Ints, limit: float) -> tuple[int, int]:
    """Rows far below and far above the median norm, in robust deviations of its logarithm."""
    if not counts_B.any():
        return 0, 0
    center_B = np.arange(_NUM_BINS)
    median = _weighted_median(center_B, counts_B)
    # where most norms are in one bin they are known no better than to half of one
    deviation = max(_weighted_median(np.abs(center_B - median), counts_B), 0.5)
    z_B = _MAD_TO_SIGMA * (center_B - median) / deviation
    return int(counts_B[z_B < -limit].sum()), int(counts_B[z_B > limit].sum())


def _weighted_median(value_B: Ints, counts_B: Ints) -> float:
    order = np.argsort(value_B, kind="stable")
    reached = np.cumsum(counts_B[order])
    return float(value_B[order][np.searchsorted(reached, reached[-1] / 2)])


def _quantile(counts_B: Ints, share: float) -> float | None:
    """The middle of the bin in which the quantile is."""
    if not counts_B.any():
        return None
    reached_B = np.cumsum(counts_B)
    place = int(np.searchsorted(reached_B, share * reached_B[-1]))
    return float(2 ** (_LOWEST_OCTAVE + (place + 0.5) / _PER_OCTAVE))


def _drawn(scan: _Scan) -> Iterator[NormBin]:
    """Quarters of octaves, from the first that has rows to the last."""
    width = _PER_OCTAVE // _DRAWN_PER_OCTAVE
    learnt_B = np.zeros_like(scan.never_B) if scan.learnt_B is None else scan.learnt_B
    coarse = [counts_B.reshape(-1, width).sum(axis=1) for counts_B in (learnt_B, scan.never_B)]
    used = np.flatnonzero(coarse[0] + coarse[1])
    for place in range(used[0], used[-1] + 1) if len(used) else ():
        low, high = (2 ** (_LOWEST_OCTAVE + (place + end) / _DRAWN_PER_OCTAVE) for end in (0, 1))
        yield NormBin(low=low, high=high, num_learnt=int(coarse[0][place]), num_never=int(coarse[1][place]))


def _collisions(table: AuditedTable, count: LookupCount | None) -> tuple[float | None, bool]:
    """Share of ids whose vector is another's as well, and whether that was measured. Without a vocabulary ids are those
    that were looked up: the expected share for as many."""
    if table.hashed is None:
        return 0.0, True
    num_ids = table.num_ids if table.num_ids is not None else count.num_distinct if count is not None else None
    if num_ids is None:
        return None, False
    if table.num_ids is None or num_ids > _MOST_HASHED:
        return table.hashed.expected_collisions(num_ids), False
    return measured_collisions(table.hashed.rows(np.arange(1, num_ids + 1, dtype=np.int64))), True
