"""What a prepared dataset holds: the features of its events, moments, examples and profiles.

A source declares a `Schema`; ingest writes it into the dataset's manifest; the loader, the model and the
export read it back. Every id in prepared data is the *row* of a vocabulary, or, for the tables in `raw_ids`, which have
no vocabulary, the *key* of the raw id (`stack.data.keys`). Row 0 and key 0 mean "unknown or missing", so that a feature
can always be looked up. Columns of keys are int64 where those of rows are int32.

Columns of one timeline (one user, one day), for a schema with event features `item` and `tags`, profile
feature `age`, query feature `shop` and the example group `impression`::

    user                 int32          row of the user in the vocabulary "user"
    num_carried          int32          how many of the events are history from earlier days
    event_time           list<int64>    epoch seconds, never decreasing
    event_item           list<int32>
    event_tags           list<list<int32>>            (multi-valued)
    profile_age          int32
    moment_time          list<int64>    when examples were shown; never decreasing
    moment_position      list<int32>    number of events of this row that are strictly earlier
    query_shop           list<int32>    one per moment
    impression_moment    list<int32>    index into the moments of this row
    impression_item      list<int32>    the candidate
    impression_dense     list<float>    row-major (examples x dense features)
    impression_clicked   list<float>    a label; one list for each label of the group
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

PADDING_ROW = 0
"""The vocabulary row of an unknown or missing id; its embedding is the table's default."""


class Feature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One column of ids. Features that name the same `table` share an embedding table, and a vocabulary or none."""

    name: str
    table: str
    multi: bool = False


class Group(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Examples of one kind: candidates with dense features and labels, each at a moment.

    `candidate` may be empty (a question about the user alone); `dense` names the columns of the ranking
    features; `labels` names the target columns, among them sampling rates where examples were sampled.
    """

    name: str
    candidate: tuple[Feature, ...] = ()
    dense: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()


class RawIds(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table whose ids have no vocabulary. `text`: the log has them as text; otherwise they are 64-bit integers."""

    table: str
    text: bool


class Schema(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The features of a prepared dataset, in the order in which models concatenate them.

    `event` are the item features of an event (DUPN section 4.1: item, shop, brand, category, tags);
    `property` describe the behaviour itself (scenario, type; the time property comes from `event_time`).
    `raw_ids` are the tables without a vocabulary; where all have one it is left out of manifests, as it was before
    there were any, so that their digests stay.
    """

    event: tuple[Feature, ...]
    property: tuple[Feature, ...] = ()
    profile: tuple[Feature, ...] = ()
    query: tuple[Feature, ...] = ()
    groups: tuple[Group, ...] = ()
    raw_ids: tuple[RawIds, ...] | UnsetType = UNSET

    def without_vocabulary(self, table: str) -> RawIds | None:
        """What is known of the ids of a table that has no vocabulary; None for those that have one."""
        return next((raw for raw in self.raw_ids or () if raw.table == table), None)

    def group(self, name: str) -> Group:
        """The group called `name`; raises `KeyError` naming the groups there are."""
        for group in self.groups:
            if group.name == name:
                return group
        known = ", ".join(group.name for group in self.groups) or "none"
        raise KeyError(f"the dataset has no example group {name!r}; it has: {known}")

    def tables(self) -> tuple[str, ...]:
        """Names of all tables but `user`, sorted."""
        features = [*self.event, *self.property, *self.profile, *self.query]
        for group in self.groups:
            features.extend(group.candidate)
        return tuple(sorted({feature.table for feature in features} - {"user"}))


IMPRESSION_LABELS = ("clicked", "weight", "draw", "rate_uniform", "rate_popularity")
"""Labels of the group `impression`. `draw`: 0 observed, 1 a negative drawn uniformly, 2 drawn by popularity.
`rate_*`: how often, in expectation, this candidate is drawn as a negative at its moment under each draw; known for
positives too, so that either sampled distribution can be corrected (score - log rate) for every example."""
