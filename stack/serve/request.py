"""What a request may hold: decoders made from a package's schema, so that every id, count and number is checked
while it is parsed and an unknown field is refused.

A body for `users:embed`, with event features `item` and multi-valued `tags`, and the property `type`::

    {"now": 1488600000,
     "events": {"time": [1488500000, 1488500060], "item": [17, 42], "tags": [["dairy"], []], "type": ["buy", null]},
     "profile": {"age": "25-34"},
     "query": {"shop": 366}}

`items:score` takes the same fields, or a `vector` in their place, and a group of candidates::

     "group": "impression",
     "candidates": {"item": [17, 99], "tags": [["dairy"], ["wine"]], "dense": {"price": [1.99, 7.0]}}

Ids are raw, as the log had them. A feature that is left out or null counts as unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct

from stack.data.schema import Feature, Group
from stack.export.package import PackageManifest
from stack.export.rows import MAX_TEXT_BYTES

MAX_SECONDS = 1 << 40
MAX_NUMBER = 1e30
MAX_VECTOR = 1 << 14
_Seconds = Annotated[int, Meta(ge=0, le=MAX_SECONDS)]
_Integer = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
_Text = Annotated[str, Meta(max_length=MAX_TEXT_BYTES)]
_Number = Annotated[float, Meta(ge=-MAX_NUMBER, le=MAX_NUMBER)]
_NOTHING = Raw(b"{}")
_ABSENT = Raw(b"")

RawId = int | str | None
Column = list[RawId] | list[list[RawId]] | None
"""One feature of many owners: a raw id each, or a list of them; None where the request leaves the feature out."""
Single = RawId | list[RawId]
"""One feature of one user or moment."""
T = TypeVar("T")


class RequestError(Exception):
    """A request that is refused: `status` is the HTTP status, the text is what the caller is told."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The largest counts in one request; `num_ids` is of one multi-valued feature of one event or candidate."""

    num_events: int
    num_candidates: int
    num_ids: int


@dataclass(frozen=True, kw_only=True)
class User:
    """A user at a moment: events strictly before `now`, in time order."""

    now: int
    time: list[int]
    events: dict[str, Column]
    profile: dict[str, Single]
    query: dict[str, Single]


@dataclass(frozen=True, kw_only=True)
class Score:
    """Candidates of a group for a user, or for a vector that `users:embed` gave earlier."""

    user: User | None
    vector: list[float] | None
    group: str
    num_candidates: int
    candidates: dict[str, Column]
    dense: dict[str, list[float]]


class _Envelope(Struct, kw_only=True, forbid_unknown_fields=True):
    now: _Seconds
    events: Raw
    profile: Raw = _NOTHING
    query: Raw = _NOTHING


class _ScoreEnvelope(Struct, kw_only=True, forbid_unknown_fields=True):
    group: str
    candidates: Raw
    vector: Annotated[list[_Number], Meta(max_length=MAX_VECTOR)] | None = None
    now: _Seconds | None = None
    events: Raw = _ABSENT
    profile: Raw = _NOTHING
    query: Raw = _NOTHING


class Decoder:
    """Bytes to checked requests for one package.

    Both methods raise `RequestError`: 400 where the body is no JSON, 422 where it does not fit.
    """

    def __init__(self, manifest: PackageManifest, limits: Limits) -> None:
        schema = manifest.schema
        columns = _Columns(manifest, limits)
        events = [("time", columns.of(_Seconds, limits.num_events)), *columns.lists((*schema.event, *schema.property))]
        self._events = _decoder("Events", events)
        self._profile = _decoder("Profile", columns.singles(schema.profile))
        self._query = _decoder("Query", columns.singles(schema.query))
        groups = [schema.group(graph.group) for graph in manifest.graphs.values() if graph.group]
        self._candidates = {group.name: _decoder("Candidates", columns.candidates(group)) for group in groups}
        self._num_candidates = limits.num_candidates
        self._embed = msgspec.json.Decoder(_Envelope)
        self._score = msgspec.json.Decoder(_ScoreEnvelope)

    def embed(self, body: bytes) -> User:
        """The body of `users:embed`."""
        envelope = _decode(self._embed, body)
        return self._user(envelope.now, envelope.events, envelope.profile, envelope.query)

    def score(self, body: bytes) -> Score:
        """The body of `items:score`."""
        envelope = _decode(self._score, body)
        if envelope.group not in self._candidates:
            raise RequestError(422, f"unknown group {envelope.group!r}: known: {', '.join(sorted(self._candidates))}")
        user = None
        has_events = bytes(envelope.events) != b""
        if envelope.vector is None:
            if envelope.now is None or not has_events:
                raise RequestError(422, "give `now` and `events` of the user, or a `vector` from users:embed")
            user = self._user(envelope.now, envelope.events, envelope.profile, envelope.query)
        elif envelope.now is not None or has_events:
            raise RequestError(422, "give either `now` and `events`, or a `vector`, not both")
        candidates = _fields(_decode(self._candidates[envelope.group], envelope.candidates, "candidates"))
        dense = _fields(candidates.pop("dense")) if candidates.get("dense") is not None else {}
        given = {name: column for name, column in {**candidates, **dense}.items() if column is not None}
        if not given:
            raise RequestError(422, "`candidates` are empty: give at least one column")
        num_candidates = _same_length("candidates", given)
        if not 1 <= num_candidates <= self._num_candidates:
            raise RequestError(422, f"{num_candidates} candidates: 1 to {self._num_candidates} are accepted")
        return Score(
            user=user,
            vector=envelope.vector,
            group=envelope.group,
            num_candidates=num_candidates,
            candidates=candidates,
            dense={name: column for name, column in dense.items() if column is not None},
        )

    def _user(self, now: int, events: Raw, profile: Raw, query: Raw) -> User:
        columns = _fields(_decode(self._events, events, "events"))
        _same_length("events", {name: column for name, column in columns.items() if column is not None})
        time: list[int] = columns.pop("time")
        if any(later < earlier for earlier, later in pairwise(time)):
            raise RequestError(422, "`events.time` decreases: give events in time order, oldest first")
        if time and time[-1] >= now:
            raise RequestError(422, "`events.time` holds an event at or after `now`: give only what came before")
        return User(
            now=now,
            time=time,
            events=columns,
            profile=_fields(_decode(self._profile, profile, "profile")),
            query=_fields(_decode(self._query, query, "query")),
        )


class _Columns:
    """Types of the columns a schema's features have in a request."""

    def __init__(self, manifest: PackageManifest, limits: Limits) -> None:
        self._text = {table: vocabulary.text for table, vocabulary in manifest.vocabularies.items()}
        self._limits = limits

    def of(self, kind: Any, num_owners: int) -> Any:
        return Annotated[list[kind], Meta(max_length=num_owners)]

    def lists(self, features: Iterable[Feature], *, num_owners: int | None = None) -> list[tuple[str, Any, None]]:
        most = self._limits.num_events if num_owners is None else num_owners
        return [(feature.name, self.of(self._one(feature), most) | None, None) for feature in features]

    def singles(self, features: Iterable[Feature]) -> list[tuple[str, Any, None]]:
        return [(feature.name, self._one(feature) | None, None) for feature in features]

    def candidates(self, group: Group) -> list[tuple[str, Any, None]]:
        most = self._limits.num_candidates
        columns = self.lists(group.candidate, num_owners=most)
        if group.dense:
            dense = [(name, self.of(_Number, most) | None, None) for name in group.dense]
            columns.append(("dense", _struct("Dense", dense) | None, None))
        return columns

    def _one(self, feature: Feature) -> Any:
        kind: Any = _Text if self._text[feature.table] else _Integer
        return self.of(kind, self._limits.num_ids) if feature.multi else kind | None


def _struct(name: str, fields: Sequence[tuple[Any, ...]]) -> Any:
    return msgspec.defstruct(name, fields, kw_only=True, forbid_unknown_fields=True)


def _decoder(name: str, fields: Sequence[tuple[Any, ...]]) -> msgspec.json.Decoder[Struct]:
    return msgspec.json.Decoder(_struct(name, fields))


def _decode(decoder: msgspec.json.Decoder[T], body: bytes | Raw, field: str = "") -> T:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        text = str(error)
        if field:
            text = text.replace("`$", f"`$.{field}") if "`$" in text else f"{text} - at `$.{field}`"
        raise RequestError(422, text) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(400, "the body is not JSON in UTF-8") from error


def _fields(struct: Struct) -> dict[str, Any]:
    return {name: getattr(struct, name) for name in struct.__struct_fields__}


def _same_length(where: str, columns: Mapping[str, Sequence[object]]) -> int:
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise RequestError(422, f"the columns of `{where}` differ in length: {told}")
    return next(iter(lengths.values()))
