"""How often the ids of a table are looked up: totals, and the hottest, in bounded memory. Ranks, never ids.

Legend: N ids of a call, K ids kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from stack.data.batch import Batch, Ids, Jagged
from stack.data.keys import UNKNOWN_KEY
from stack.model import USER_FEATURE, Places

Ints = NDArray[np.int64]
HOTTEST = (1, 10, 100)
"""So many of the hottest ids, whose share of the lookups is told."""


class LookupCount:
    """Of one table. `limit`: rows of a direct table, where ids from there on are new and read row 0.

    At most `num_kept` ids keep a count (Misra and Gries 1982, in batches, as Agarwal et al. 2013 merge them): when
    there are more, all lose the count of the one after the last that stays. Counts are then too low by at most `error`
    lookups, which is at most total / (num_kept + 1); with fewer ids they are exact.
    """

    def __init__(self, *, num_kept: int, limit: int | None = None) -> None:
        assert num_kept >= max(HOTTEST)
        self.total = self.missing = self.new = self.error = 0
        self._num_kept, self._limit = num_kept, limit
        self._key_K: Ints = np.empty(0, dtype=np.int64)
        self._count_K: Ints = np.empty(0, dtype=np.int64)

    def add(self, key_N: Ints) -> None:
        known_N = key_N[key_N != UNKNOWN_KEY]
        self.total += len(key_N)
        self.missing += len(key_N) - len(known_N)
        if self._limit is not None:
            self.new += int((known_N >= self._limit).sum())
        key, count = np.unique(known_N, return_counts=True)
        self._key_K, place = np.unique(np.concatenate([self._key_K, key]), return_inverse=True)
        both = np.concatenate([self._count_K, count])
        # exact up to 2^53 lookups
        self._count_K = np.bincount(place.reshape(-1), both, len(self._key_K)).astype(np.int64)
        if len(self._key_K) > self._num_kept:
            self._drop()

    def _drop(self) -> None:
        cut = int(np.partition(self._count_K, len(self._count_K) - self._num_kept - 1)[-self._num_kept - 1])
        self.error += cut
        left_K = self._count_K - cut
        self._key_K, self._count_K = self._key_K[left_K > 0], left_K[left_K > 0]

    @property
    def num_distinct(self) -> int | None:
        """Different ids that were looked up; None where there were more than are kept."""
        return len(self._key_K) if self.error == 0 else None

    def shares(self) -> tuple[float, ...]:
        """The part of all lookups of known ids that went to the hottest id, the 10 and the 100 hottest."""
        known = self.total - self.missing
        if not known:
            return tuple(0.0 for _ in HOTTEST)
        hottest_K = np.sort(self._count_K)[::-1][: max(HOTTEST)]
        return tuple(float(hottest_K[:number].sum()) / known for number in HOTTEST)


def count_lookups(
    batches: Iterable[Batch], places: Places, *, num_kept: int, limits: Mapping[str, int]
) -> dict[str, LookupCount]:
    """By table, of all that a model looks up for these timelines: events carried over from earlier days among them.
    `limits`: rows of the direct tables."""
    found = {name: LookupCount(num_kept=num_kept, limit=limits.get(name)) for name in places.tables()}
    for batch in batches:
        for table, ids in _asked(batch, places):
            value = ids.values_N if isinstance(ids, Jagged) else ids
            found[table].add(value.cpu().numpy())
    return found


def _asked(batch: Batch, places: Places) -> Iterator[tuple[str, Ids]]:
    profile = batch.profile | {USER_FEATURE.name: batch.user_B}
    for features, columns in ((places.event, batch.event), (places.profile, profile), (places.query, batch.query)):
        for feature in features:
            yield feature.table, columns[feature.name]
    for group, features in places.candidate.items():
        for feature in features:
            yield feature.table, batch.groups[group].ids[feature.name]
