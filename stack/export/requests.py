"""Requests out of prepared data, in raw ids and times as the log had them: what an application would have asked at a
moment. Export records some with their answers; the demo and the load test ask them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stack.data.batch import Batch, Ids
from stack.data.dataset import Dataset, Vocabulary
from stack.data.keys import UNKNOWN_KEY
from stack.data.loader import Loader
from stack.data.schema import Feature, Schema
from stack.export.fields import MAX_CANDIDATES, MAX_IDS
from stack.export.lookup import MAX_TEXT_BYTES
from stack.export.moments import by_moment, taken
from stack.model import USER_FEATURE


def held_out_requests(
    dataset: Dataset, schema: Schema, *, day: str, group: str, max_events: int
) -> Iterator[dict[str, Any]]:
    """Bodies of `items:score` for the moments of `day` that have examples of `group`, those with a history first; none
    that a server would refuse. `schema` is the package's: the features it reads."""
    loader = Loader(dataset, days=[day], global_batch_size=64, shuffle=False, groups=[group], num_prefetch=0)
    asker = Asker(dataset, schema)
    for batch in loader:
        for moment, example_E in sorted(
            by_moment(batch.groups[group]), key=lambda one: batch.moment_position_M[one[0]] == 0
        ):
            body = asker.request(batch, moment, max_events) | asker.candidates(batch, example_E, group)
            if is_servable(body):
                yield body


def is_servable(body: Mapping[str, Any]) -> bool:
    """Whether a server with its options as they come accepts a body that `Asker` made."""
    candidates = dict(body.get("candidates", {}))
    dense = candidates.pop("dense", {})
    if "group" in body:
        num_candidates = max(map(len, (*candidates.values(), *dense.values())), default=0)
        if not 1 <= num_candidates <= MAX_CANDIDATES:
            return False
    singles = ([value] for place in ("profile", "query") for value in body[place].values())
    owners = [one for column in (*body["events"].values(), *candidates.values(), *singles) for one in column]
    bags = [one if isinstance(one, list) else [one] for one in owners]
    return all(len(bag) <= MAX_IDS for bag in bags) and all(
        len(raw) <= MAX_TEXT_BYTES for bag in bags for raw in bag if isinstance(raw, str)
    )


class Asker:
    """Turns the rows of batches back into the raw ids of requests. Texts that have no vocabulary cannot be: such
    features are left out, in `lost` by table."""

    def __init__(self, dataset: Dataset, schema: Schema) -> None:
        self._dataset = dataset
        self._schema = schema
        self._vocabularies: dict[str, Vocabulary] = {}
        self.lost = {raw.table for raw in dataset.schema.raw_ids or () if raw.text}

    def request(self, batch: Batch, moment: int, max_events: int) -> dict[str, Any]:
        """The body of `users:embed`: a user at a moment."""
        schema = self._schema
        row = int(batch.moment_row_M[moment])
        first = int(batch.num_events_B[:row].sum())
        end = first + int(batch.moment_position_M[moment])
        event_T = np.arange(max(first, end - max_events), end)
        events = self._columns((*schema.event, *schema.property), {**batch.event, **batch.property}, event_T)
        profile = {**batch.profile, USER_FEATURE.name: batch.user_B}
        return {
            "now": int(batch.moment_time_M[moment]),
            "events": {"time": batch.event_time_T[event_T].tolist(), **events},
            "profile": self._singles(schema.profile, profile, row),
            "query": self._singles(schema.query, batch.query, moment),
        }

    def candidates(self, batch: Batch, example_E: NDArray[np.int64], group: str) -> dict[str, Any]:
        """What the body of `items:score` has beside a user: some examples of a group."""
        described, examples = self._schema.group(group), batch.groups[group]
        candidates = self._columns(described.candidate, examples.ids, example_E)
        if described.dense:
            dense_EF = examples.dense_EF[example_E]
            candidates["dense"] = {name: dense_EF[:, index].tolist() for index, name in enumerate(described.dense)}
        return {"group": group, "candidates": candidates}

    def _columns(
        self, features: Sequence[Feature], ids: Mapping[str, Ids], owners: NDArray[np.int64]
    ) -> dict[str, Any]:
        return {
            feature.name: self._raw(feature, ids[feature.name], owners)
            for feature in features
            if feature.table not in self.lost
        }

    def _singles(self, features: Sequence[Feature], ids: Mapping[str, Ids], owner: int) -> dict[str, Any]:
        columns = self._columns(features, ids, np.array([owner]))
        return {name: column[0] for name, column in columns.items()}

    def _raw(self, feature: Feature, ids: Ids, owners: NDArray[np.int64]) -> list[Any]:
        some = taken(ids, owners)
        if not isinstance(some, tuple):
            return self.raw_ids(feature.table, some.tolist())
        values_N, lengths = some
        bags = np.split(values_N, np.cumsum(lengths)[:-1]) if len(lengths) else []
        return [[raw for raw in self.raw_ids(feature.table, bag.tolist()) if raw is not None] for bag in bags]

    def raw_ids(self, table: str, ids: list[int]) -> list[str | int | None]:
        """Of rows of the vocabulary, or of keys; None for those that stand for none."""
        if self._dataset.schema.without_vocabulary(table) is not None:
            return [None if key == UNKNOWN_KEY else key for key in ids]
        if table not in self._vocabularies:
            self._vocabularies[table] = self._dataset.vocabulary(table)
        return self._vocabularies[table].raw_ids(ids)
