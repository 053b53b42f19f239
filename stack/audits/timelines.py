"""The traffic that an audit looks at: timelines of some days, the same each time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stack.audits.config import AuditConfig
from stack.base.errors import DataError
from stack.data.batch import Batch
from stack.data.dataset import Dataset
from stack.data.loader import Loader
from stack.telemetry.progress import progress


@dataclass(frozen=True, kw_only=True)
class Timelines:
    """Timelines of some days, the same each time they are gone through: all, or as many drawn at random."""

    dataset: Dataset
    days: tuple[str, ...]
    most: int
    per_batch: int
    seed: int

    @classmethod
    def of(cls, dataset: Dataset, days: tuple[str, ...], most: int, config: AuditConfig) -> Timelines:
        """At most so many, in batches of the size that the options say."""
        return cls(dataset=dataset, days=days, most=most, per_batch=config.timelines_per_batch, seed=config.seed)

    def count(self) -> int:
        """How many there are; reads them."""
        return sum(batch.num_timelines for batch in self)

    def __iter__(self) -> Iterator[Batch]:
        left = self.most
        loader = Loader(
            self.dataset, days=self.days, global_batch_size=min(self.per_batch, self.most), seed=self.seed,
            days_per_block=len(self.days), num_prefetch=2,
        )  # fmt: skip
        for batch in progress(
            loader, total=min(loader.num_steps, -(-self.most // self.per_batch)), description="audit"
        ):
            yield batch
            left -= batch.num_timelines
            if left <= 0:
                return


def traffic_days(dataset: Dataset, training_days: Sequence[str], config: AuditConfig) -> tuple[str, ...]:
    """The days of traffic. Raises: `DataError` where they are not prepared, or nobody was there on any of them."""
    last_learnt = max(training_days)
    first = config.first_day or next((day for day in dataset.days() if day > last_learnt), last_learnt)
    last = config.last_day or first
    days = tuple(day for day in dataset.days() if first <= day <= last)
    if not days:
        raise DataError(
            f"{dataset.path} has no day from audit.first_day={first} to audit.last_day={last}: it has "
            f"{dataset.days()[0]} to {dataset.days()[-1]}"
        )
    if not any(sum(dataset.num_timelines(day)) for day in days):
        raise DataError(
            f"{dataset.path} has no timeline on {span(days)}: an audit of nothing would find nothing; ingest its log, "
            "or choose other days with audit.first_day and audit.last_day"
        )
    return days


def days_before(dataset: Dataset, day: str, number: int) -> tuple[str, ...]:
    """The last `number` prepared days before a day."""
    earlier = tuple(one for one in dataset.days() if one < day)
    return earlier[-number:] if number else ()


def span(days: Sequence[str]) -> str:
    """For people."""
    return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
