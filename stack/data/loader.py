"""Batches of timelines in a seeded order that does not depend on the number of ranks, and can be resumed.

::

    epoch > block (consecutive days) > step

The timelines of a block are permuted within each bucket (hash of the user), and each step takes the same share of
every bucket. A rank owns whole buckets (rank, rank + world size, ...), so the *global* batch of a step, which is what
the loss averages over, is the same set of timelines for any world size; and every rank knows from the manifests how
many steps there are, without asking the others.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stack.base.errors import DataError
from stack.base.seed import derive
from stack.data.batch import Batch
from stack.data.collate import collate
from stack.data.dataset import Dataset
from stack.data.parquet import Block, Offsets, read_block
from stack.data.prefetch import prefetched
from stack.data.schema import Group


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """The next batch: `step` of `block` of `epoch`, all counted from 0. Plain integers, so that it can be JSON."""

    epoch: int = 0
    block: int = 0
    step: int = 0


class Loader:
    """Iterates over the timelines of `days` in the given order; every timeline exactly once an epoch.

    `global_batch_size` is in timelines over all ranks. A block of n timelines has ceil(n / global_batch_size) steps,
    as equal as the buckets allow: up to `num_buckets` - 1 timelines above that size. A rank may get an empty batch.
    With `shuffle` off, the order within a bucket is that of the files. Of a day in `shares` each epoch takes that share
    of every bucket's timelines (rounded up), drawn anew. Examples of groups that are not in `groups`
    (None = all) are not even read. `num_prefetch` batches are made ahead in a thread; 0 makes them when asked for.
    Memory: one block (`days_per_block` days) of the rank's buckets.

    Raises `DataError` if there are no days, a group is unknown, the cursor is beyond the end, or the ranks do not
    divide the buckets.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        days: Sequence[str],
        global_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        days_per_block: int = 1,
        num_epochs: int = 1,
        groups: Collection[str] | None = None,
        shares: Mapping[str, float] | None = None,
        num_prefetch: int = 4,
        cursor: Cursor | None = None,
    ) -> None:
        if not days:
            raise DataError(
                f"no days to load from {dataset.path}: choose some of {dataset.days()[0]} ... {dataset.days()[-1]}"
            )
        if dataset.num_buckets % world_size:
            raise DataError(
                f"{world_size} ranks do not divide the {dataset.num_buckets} buckets of {dataset.path}: "
                "use a divisor, or ingest with another number of buckets"
            )
        if min(global_batch_size, days_per_block, num_epochs) < 1:
            raise DataError(
                f"global_batch_size {global_batch_size}, days_per_block {days_per_block} and num_epochs {num_epochs} "
                "must be at least 1"
            )
        self._dataset = dataset
        self._rank, self._world_size = rank, world_size
        self._seed, self._shuffle, self._num_prefetch = seed, shuffle, num_prefetch
        self._num_epochs = num_epochs
        self._groups = _select_groups(dataset, groups)
        self._shares = dict(shares or {})
        self.blocks = tuple(
            tuple(days[start : start + days_per_block]) for start in range(0, len(days), days_per_block)
        )
        self._sizes: list[list[int]] = [
            [sum(sizes) for sizes in zip(*map(self._taken, block), strict=True)] for block in self.blocks
        ]
        self._steps: list[int] = [math.ceil(sum(sizes) / global_batch_size) for sizes in self._sizes]
        self.cursor = self._checked(cursor or Cursor())

    @property
    def num_steps(self) -> int:
        """Steps of all epochs; the same on every rank."""
        return sum(self._steps) * self._num_epochs

    @property
    def num_steps_done(self) -> int:
        """Steps before the cursor."""
        return self.cursor.epoch * sum(self._steps) + sum(self._steps[: self.cursor.block]) + self.cursor.step

    @property
    def num_timelines(self) -> int:
        """Timelines of one epoch over all ranks."""
        return sum(sum(sizes) for sizes in self._sizes)

    def __iter__(self) -> Iterator[Batch]:
        """The batches from `cursor` on. `cursor` always names the batch after the one last handed out, however many
        are made ahead: save it with the model and give it to the next loader."""
        batches = self._batches(self.cursor)
        if self._num_prefetch:
            batches = prefetched(batches, depth=self._num_prefetch)
        for after, batch in batches:
            self.cursor = after
            yield batch

    def _batches(self, start: Cursor) -> Iterator[tuple[Cursor, Batch]]:
        """Each batch with the cursor after it."""
        for epoch in range(start.epoch, self._num_epochs):
            first_block = start.block if epoch == start.epoch else 0
            for block in range(first_block, len(self.blocks)):
                first_step = start.step if (epoch, block) == (start.epoch, start.block) else 0
                if first_step == self._steps[block]:
                    continue
                data, orders = self._read(epoch, block)
                for step in range(first_step, self._steps[block]):
                    timelines_B = _share(orders, step, self._steps[block])
                    batch = collate(data, timelines_B, schema=self._dataset.schema, groups=self._groups)
                    yield self._after(epoch, block, step), batch

    def _after(self, epoch: int, block: int, step: int) -> Cursor:
        if step + 1 < self._steps[block]:
            return Cursor(epoch=epoch, block=block, step=step + 1)
        if block + 1 < len(self.blocks):
            return Cursor(epoch=epoch, block=block + 1)
        return Cursor(epoch=epoch + 1)

    def _read(self, epoch: int, block: int) -> tuple[Block, list[Offsets]]:
        """This rank's timelines of a block, and for each of its buckets their order as indices into them."""
        buckets = range(self._rank, self._dataset.num_buckets, self._world_size)
        files = [self._dataset.bucket_path(day, bucket) for bucket in buckets for day in self.blocks[block]]
        sizes_of_days = [self._dataset.num_rows(day) for day in self.blocks[block]]
        num_rows = {table: max(sizes[table] for sizes in sizes_of_days) for table in sizes_of_days[0]}
        data = read_block(files, schema=self._dataset.schema, groups=self._groups, num_rows=num_rows)
        sizes = [self._dataset.num_timelines(day)[bucket] for bucket in buckets for day in self.blocks[block]]
        if data.num_timelines != sum(sizes):
            raise DataError(
                f"days {self.blocks[block][0]} to {self.blocks[block][-1]} of {self._dataset.path} hold "
                f"{data.num_timelines} timelines in the buckets of rank {self._rank}, "
                f"their manifests say {sum(sizes)}: ingest them again"
            )
        firsts = iter(np.cumsum([0, *sizes]))
        orders = []
        for bucket in buckets:
            chosen = np.concatenate([next(firsts) + self._chosen(epoch, day, bucket) for day in self.blocks[block]])
            order = _permutation(self._seed, epoch, block, bucket, len(chosen)) if self._shuffle else slice(None)
            orders.append(chosen[order])
        return data, orders

    def _taken(self, day: str) -> list[int]:
        """Timelines of a day that an epoch takes, by bucket."""
        return [math.ceil(size * self._shares.get(day, 1.0)) for size in self._dataset.num_timelines(day)]

    def _chosen(self, epoch: int, day: str, bucket: int) -> Offsets:
        """Which timelines of a day's bucket an epoch takes, ascending."""
        size, taken = self._dataset.num_timelines(day)[bucket], self._taken(day)[bucket]
        if taken == size:
            return np.arange(size)
        draw = np.random.default_rng([derive(self._seed, "share", day), epoch, bucket])
        return np.sort(draw.permutation(size)[:taken])

    def _checked(self, cursor: Cursor) -> Cursor:
        end = Cursor(epoch=self._num_epochs)
        inside = (
            0 <= cursor.epoch < self._num_epochs
            and 0 <= cursor.block < len(self.blocks)
            and 0 <= cursor.step <= max(0, self._steps[cursor.block] - 1)
        )
        if not inside and cursor != end:
            raise DataError(
                f"{cursor} is not in {self._num_epochs} epochs of {len(self.blocks)} blocks: "
                "resume with the days, batch size and epochs it was saved with"
            )
        return cursor


def _select_groups(dataset: Dataset, names: Collection[str] | None) -> tuple[Group, ...]:
    known = {group.name for group in dataset.schema.groups}
    wanted = known if names is None else set(names)
    if wanted - known:
        have = ", ".join(sorted(known)) or "none"
        raise DataError(f"{dataset.path} has no example group {', '.join(sorted(wanted - known))}; it has: {have}")
    return tuple(group for group in dataset.schema.groups if group.name in wanted)


def _permutation(seed: int, epoch: int, block: int, bucket: int, size: int) -> Offsets:
    return np.random.default_rng([seed, epoch, block, bucket]).permutation(size)


def _share(orders: list[Offsets], step: int, num_steps: int) -> Offsets:
    """The timelines of a step: of every bucket the step's share of its order."""
    return np.concatenate(
        [order[len(order) * step // num_steps : len(order) * (step + 1) // num_steps] for order in orders]
    )
