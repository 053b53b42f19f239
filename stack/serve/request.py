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

`tasks`, a list of names, has those alone scored. Ids are raw, as the log had them. A feature that is left out or null
counts as unknown.

`users:retrieve` takes a user in the same way, and `k`. A `user` (any name or number of theirs) with `now` and `events`
has the vector kept for a while; `user` alone asks with a vector that was kept, no older than `max_age_seconds`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct

from stack.data.schema import Feature, Group
from stack.export.lookup import MAX_TEXT_BYTES
from stack.export.package import PackageManifest, scorers_of

MAX_SECONDS = 1 << 40
MAX_NUMBER = 1e30
MAX_VECTOR = 1 << 14
MAX_AGE_SECONDS = 1e9
MAX_TOLD = 300
"""Characters of an answer that says what is wrong."""
MAX_ASKED = 1000
"""Items in one retrieval."""
_Seconds = Annotated[int, Meta(ge=0, le=MAX_SECONDS)]
_Integer = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
_Text = Annotated[str, Meta(max_length=MAX_TEXT_BYTES)]
_Number = Annotated[float, Meta(ge=-MAX_NUMBER, le=MAX_NUMBER)]
_Age = Annotated[float, Meta(ge=0, le=MAX_AGE_SECONDS)]
_Vector = Annotated[list[_Number], Meta(max_length=MAX_VECTOR)]
_UserName = _Integer | _Text
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
class Who:
    """Who a request is about: a user at a moment, a vector that `users:embed` gave, or, both None, the one that was
    kept under `name` for this `query`, no older than `max_age_seconds` (None: than the server keeps them)."""

    user: User | None = None
    vector: list[float] | None = None
    name: int | str | None = None
    query: dict[str, Single] = field(default_factory=dict)
    max_age_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Retrieve:
    """The `k` best items for a user."""

    who: Who
    k: int


@dataclass(frozen=True, kw_only=True)
class Score:
    """Candidates of a group for a user, and the tasks that are asked (None: all of the group)."""

    who: Who
    group: str
    tasks: list[str] | None
    num_candidates: int
    candidates: dict[str, Column]
    dense: dict[str, list[float]]


class _WhoEnvelope(Struct, kw_only=True, forbid_unknown_fields=True):
    user: _UserName | None = None
    max_age_seconds: _Age | None = None
    vector: _Vector | None = None
    now: _Seconds | None = None
    events: Raw = _ABSENT
    profile: Raw = _NOTHING
    query: Raw = _NOTHING


class _ScoreEnvelope(_WhoEnvelope, kw_only=True, forbid_unknown_fields=True):
    group: str
    tasks: Annotated[list[str], Meta(min_length=1, max_length=64)] | None = None
    candidates: Raw


class _RetrieveEnvelope(_WhoEnvelope, kw_only=True, forbid_unknown_fields=True):
    k: Annotated[int, Meta(ge=1, le=MAX_ASKED)] = 10


class Decoder:
    """Bytes to checked requests for one package.

    All methods raise `RequestError`: 400 where the body is no JSON, 422 where it does not fit.
    """

    def __init__(self, manifest: PackageManifest, limits: Limits) -> None:
        schema = manifest.schema
        self.limits = limits
        columns = _Columns(manifest, limits)
        events = [("time", columns.of(_Seconds, limits.num_events)), *columns.lists((*schema.event, *schema.property))]
        self._events = _decoder("Events", events)
        self._profile = _decoder("Profile", columns.singles(schema.profile))
        self._query = _decoder("Query", columns.singles(schema.query))
        self._candidates = {group.name: _decoder("Candidates", columns.candidates(group)) for group in schema.groups}
        self._tasks = {
            group.name: [task.name for task in manifest.tasks if task.graph in scorers_of(manifest, group.name)]
            for group in schema.groups
        }
        self._num_candidates = limits.num_candidates
        num_features = (
            len(schema.event) + len(schema.property) + max((len(g.candidate) for g in schema.groups), default=0)
        )
        owners = limits.num_events + limits.num_candidates
        self._most_lists = 1_000 + 4 * owners * (1 + num_features)  # ids may hold brackets, too
        self._embed = msgspec.json.Decoder(_WhoEnvelope)
        self._score = msgspec.json.Decoder(_ScoreEnvelope)
        self._retrieve = msgspec.json.Decoder(_RetrieveEnvelope)

    def embed(self, body: bytes) -> Who:
        """The body of `users:embed`; `user` is given."""
        who = self._who(_decode(self._embed, self._bounded(body)))
        if who.user is None:
            raise RequestError(422, "give `now` and `events` of the user")
        return who

    def retrieve(self, body: bytes) -> Retrieve:
        """The body of `users:retrieve`."""
        envelope = _decode(self._retrieve, self._bounded(body))
        return Retrieve(who=self._who(envelope), k=envelope.k)

    def score(self, body: bytes) -> Score:
        """The body of `items:score`."""
        envelope = _decode(self._score, self._bounded(body))
        if envelope.group not in self._candidates:
            known = ", ".join(sorted(self._candidates))
            raise RequestError(422, f"unknown group {envelope.group[:80]!r}: known: {known}")
        for task in envelope.tasks or ():
            if task not in self._tasks[envelope.group]:
                known = ", ".join(self._tasks[envelope.group])
                raise RequestError(422, f"unknown task {task[:80]!r} of group {envelope.group!r}: known: {known}")
        who = self._who(envelope)
        candidates = _fields(_decode(self._candidates[envelope.group], envelope.candidates, "candidates"))
        dense = _fields(candidates.pop("dense")) if candidates.get("dense") is not None else {}
        given = {name: column for name, column in {**candidates, **dense}.items() if column is not None}
        if not given:
            raise RequestError(422, "`candidates` are empty: give at least one column")
        num_candidates = _same_length("candidates", given)
        if not 1 <= num_candidates <= self._num_candidates:
            raise RequestError(422, f"{num_candidates} candidates: 1 to {self._num_candidates} are accepted")
        return Score(
            who=who,
            group=envelope.group,
            tasks=envelope.tasks,
            num_candidates=num_candidates,
            candidates=candidates,
            dense={name: column for name, column in dense.items() if column is not None},
        )

    def _bounded(self, body: bytes) -> bytes:
        """The body, unless it opens more lists than any request can need: they are made before they can be counted."""
        if body.count(b"[") > self._most_lists:
            raise RequestError(422, "the body holds more lists than a request of this package can have")
        return body

    def _who(self, envelope: _WhoEnvelope) -> Who:
        name, most = envelope.user, envelope.max_age_seconds
        has_events = bytes(envelope.events) != b""
        if envelope.vector is not None:
            if envelope.now is not None or has_events or name is not None:
                raise RequestError(422, "give either `now` and `events`, or a `vector`, or a `user`, not several")
            if {bytes(envelope.profile), bytes(envelope.query)} != {bytes(_NOTHING)}:
                raise RequestError(422, "a `vector` has the profile and the query in it: leave them out")
            return Who(vector=envelope.vector)
        if envelope.now is not None and has_events:
            user = self._user(envelope.now, envelope.events, envelope.profile, envelope.query)
            return Who(user=user, name=name, query=user.query, max_age_seconds=most)
        if envelope.now is not None or has_events:
            raise RequestError(422, "give both `now` and `events`, or neither")
        if name is None:
            raise RequestError(422, "give `now` and `events` of the user, or a `vector` from users:embed, or a `user`")
        if bytes(envelope.profile) != bytes(_NOTHING):
            raise RequestError(422, "a vector that was kept has the profile in it: leave it out")
        query = _fields(_decode(self._query, envelope.query, "query"))
        return Who(name=name, query=query, max_age_seconds=most)

    def _user(self, now: int, events: Raw, profile: Raw, query: Raw) -> User:
        columns = _fields(_decode(self._events, events, "events"))
        _same_length("events", {name: column for name, column in columns.items() if column is not None})
        time: list[int] = columns.pop("time")
        check_time_order(time, now)
        return User(
            now=now,
            time=time,
            events=columns,
            profile=_fields(_decode(self._profile, profile, "profile")),
            query=_fields(_decode(self._query, query, "query")),
        )


def check_time_order(time: Sequence[int], now: int) -> None:
    """Raises: `RequestError` 422 where events are not in time order, or one is not before `now`."""
    if any(later < earlier for earlier, later in pairwise(time)):
        raise RequestError(422, "`events.time` decreases: give events in time order, oldest first")
    if time and time[-1] >= now:
        raise RequestError(422, "`events.time` holds an event at or after `now`: give only what came before")


class _Columns:
    """Types of the columns a schema's features have in a request."""

    def __init__(self, manifest: PackageManifest, limits: Limits) -> None:
        self._text = {table: ids.text for table, ids in manifest.ids.items()}
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
        raise RequestError(422, _one_line(text)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(400, "the body is not JSON in UTF-8") from error


def _one_line(text: str) -> str:
    """What msgspec says may repeat what it was given, of any length."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_TOLD else f"{line[: MAX_TOLD - 3]}..."


def _fields(struct: Struct) -> dict[str, Any]:
    return {name: getattr(struct, name) for name in struct.__struct_fields__}


def _same_length(where: str, columns: Mapping[str, Sequence[object]]) -> int:
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise RequestError(422, f"the columns of `{where}` differ in length: {told}")
    return next(iter(lengths.values()))
