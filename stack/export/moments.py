"""Moments of prepared data as requests to a package: each sees the events of its row before it, profile and query.

Legend: T events, B and M moments (one user each), L events of the longest, E examples, K chosen owners.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from stack.data.batch import Batch, Examples, Ids, Jagged
from stack.data.schema import Feature, Schema
from stack.export.runner import Bags, Candidates, Keys, Users
from stack.model import USER_FEATURE

KeysOf = Mapping[str, Callable[[NDArray[np.int64]], NDArray[np.int64]]]
"""By table: the package's keys of what prepared data hold (`stack.export.tables.ExportedTable.keys_of`)."""


def users_of(batch: Batch, schema: Schema, keys_of: KeysOf) -> Users:
    """The moments of a batch. `schema` is the package's: the features it reads."""
    row_M, position_M = batch.moment_row_M.cpu().numpy(), batch.moment_position_M.cpu().numpy()
    num_events_B = batch.num_events_B.cpu().numpy()
    num_events = int(num_events_B.sum())
    first_M = (np.cumsum(num_events_B) - num_events_B)[row_M]
    place_1L = np.arange(int(position_M.max(initial=0)))[None]
    index_ML = np.where(place_1L < position_M[:, None], first_M[:, None] + place_1L, num_events)
    profile = {**batch.profile, USER_FEATURE.name: batch.user_B}
    properties = {feature.name: _numbers(batch.property[feature.name]) for feature in schema.property}
    return Users(
        event=_keys(schema.event, batch.event, np.arange(num_events), keys_of),
        property=properties,
        event_time_T=batch.event_time_T.cpu().numpy(),
        event_index_BL=index_ML,
        num_events_B=position_M,
        profile=_keys(schema.profile, profile, row_M, keys_of),
        query=_keys(schema.query, batch.query, np.arange(batch.num_moments), keys_of),
        now_B=batch.moment_time_M.cpu().numpy(),
    )


def candidates_of(
    examples: Examples, features: Iterable[Feature], example_E: NDArray[np.int64], keys_of: KeysOf
) -> Candidates:
    """Some examples of a group as the candidates of one request."""
    return Candidates(
        ids=_keys(features, examples.ids, example_E, keys_of), dense_EF=examples.dense_EF.cpu().numpy()[example_E]
    )


def by_moment(examples: Examples) -> list[tuple[int, NDArray[np.int64]]]:
    """Each moment that has examples, and which they are."""
    moment_E = examples.moment_E.cpu().numpy()
    return [(int(moment), np.flatnonzero(moment_E == moment)) for moment in np.unique(moment_E)]


def taken(ids: Ids, owner_K: NDArray[np.int64]) -> NDArray[np.int64] | tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What some owners have of a feature: an id each, or the ids of all in one piece and how many each has."""
    if not isinstance(ids, Jagged):
        return np.asarray(ids.cpu().numpy()[owner_K])
    lengths = ids.lengths.cpu().numpy()
    ends = np.cumsum(lengths)
    lengths_K = lengths[owner_K]
    start_K = (ends - lengths)[owner_K] - (np.cumsum(lengths_K) - lengths_K)
    index_N = np.arange(int(lengths_K.sum())) + np.repeat(start_K, lengths_K)
    return ids.values_N.cpu().numpy()[index_N], lengths_K


def _keys(
    features: Iterable[Feature], ids: Mapping[str, Ids], owner_K: NDArray[np.int64], keys_of: KeysOf
) -> dict[str, Keys]:
    found: dict[str, Keys] = {}
    for feature in features:
        of = keys_of[feature.table]
        some = taken(ids[feature.name], owner_K)
        found[feature.name] = Bags(keys_N=of(some[0]), lengths_G=some[1]) if isinstance(some, tuple) else of(some)
    return found


def _numbers(ids: Ids) -> NDArray[np.int64]:
    assert not isinstance(ids, Jagged), "properties hold one id each"
    return np.asarray(ids.cpu().numpy())
