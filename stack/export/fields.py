"""What a request may hold, told for those who write one: part of a package's manifest, readable without our code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from stack.data.schema import Feature, Schema
from stack.export.package import Field, Ids

MAX_CANDIDATES = 10_000
"""Of one request, unless a server is told otherwise (`serve.max_candidates`)."""
MAX_IDS = 64
"""In one multi-valued feature of one event or candidate (`serve.max_ids`)."""
_UNKNOWN = "the default row"


def fields_of(schema: Schema, ids: Mapping[str, Ids], *, max_events: int) -> tuple[Field, ...]:
    """All inputs, by their place in the body of a request: `events.item`, `candidates.impression.dense.price`."""

    def of(place: str, features: Sequence[Feature], per: str, most: int) -> Iterator[Field]:
        for feature in features:
            yield Field(
                name=f"{place}.{feature.name}",
                dtype="text" if ids[feature.table].text else "int64",
                per=per,
                multi=feature.multi,
                max_length=MAX_IDS if feature.multi else most,
                default=_UNKNOWN,
            )

    def candidates() -> Iterator[Field]:
        for group in schema.groups:
            yield from of(f"candidates.{group.name}", group.candidate, "candidate", MAX_CANDIDATES)
            for name in group.dense:
                yield Field(
                    name=f"candidates.{group.name}.dense.{name}", dtype="float32", per="candidate", multi=False,
                    max_length=MAX_CANDIDATES, default="0",
                )  # fmt: skip

    return (
        Field(name="now", dtype="int64", per="request", multi=False, max_length=1, default="required"),
        Field(name="events.time", dtype="int64", per="event", multi=False, max_length=max_events, default="required"),
        *of("events", (*schema.event, *schema.property), "event", max_events),
        *of("profile", schema.profile, "user", 1),
        *of("query", schema.query, "request", 1),
        *candidates(),
    )
