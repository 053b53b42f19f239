"""The versions that a worker serves, and how a request finds the one that answers it.

Labels stand for versions: `stable` answers, `canary` answers its share of requests, a version may be asked by number.
All are loaded before a label moves, so a move drops nothing; what is under way ends with the version it began with.

Legend: R the user vector's width.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np
from msgspec import Struct

from stack.serve.cache import VectorCache, cache_key, pack, unpack
from stack.serve.predictor import Computed, Predictor, Value
from stack.serve.request import Decoder, Limits, RawId, RequestError, Retrieve, Score, Who

STABLE, CANARY = "stable", "canary"


class Embedding(Struct, frozen=True, kw_only=True):
    """The answer of `users:embed`. `unknown` counts, by feature, the given ids that are unknown."""

    vector: list[float]
    tasks: dict[str, Value]
    unknown: dict[str, int]
    version: int
    package: str


class Scores(Struct, frozen=True, kw_only=True):
    """The answer of `items:score`: by task, one value for each candidate in the order given. `kept`: whether the user's
    vector had been kept from an earlier request."""

    scores: dict[str, list[Value]]
    unknown: dict[str, int]
    kept: bool
    version: int
    package: str


class Retrieved(Struct, frozen=True, kw_only=True):
    """The answer of `users:retrieve`, best first."""

    items: list[RawId]
    scores: list[float]
    unknown: dict[str, int]
    kept: bool
    version: int
    package: str


@dataclass(frozen=True, kw_only=True)
class Served:
    """One version: a package, the rows laid over it, and how its requests are read."""

    number: int
    predictor: Predictor
    decoder: Decoder

    @property
    def package(self) -> str:
        return self.predictor.manifest.digest


@dataclass(kw_only=True)
class Labels:
    """Which versions answer. `share` of requests goes to the canary."""

    stable: int
    canary: int | None = None
    share: float = 0.0


@dataclass(kw_only=True)
class Kept:
    """Where user vectors are kept, and for how long at most."""

    cache: VectorCache
    max_age_seconds: float


@dataclass(kw_only=True)
class Service:
    """All that a worker answers with. `versions` and `labels` are exchanged whole, between two requests."""

    kept: Kept
    limits: Limits
    versions: dict[int, Served] = field(default_factory=dict)
    labels: Labels | None = None
    clock: Callable[[], float] = time.time
    draw: Callable[[], float] = random.random

    def make(self, number: int, predictor: Predictor) -> Served:
        """A version that is not served yet."""
        limits = replace(self.limits, num_events=predictor.manifest.max_events)
        return Served(number=number, predictor=predictor, decoder=Decoder(predictor.manifest, limits))

    def pick(self, asked: str | None = None) -> tuple[Served, str]:
        """The version for a request and the label it goes by; `asked` is a label or a number.

        Raises: `RequestError` 404 where there is no such version, 503 where there is none yet.
        """
        labels = self.labels
        if labels is None:
            raise RequestError(503, "no package is loaded yet")
        if asked is None:
            takes_canary = labels.canary is not None and self.draw() < labels.share
            asked = CANARY if takes_canary else STABLE
        by_label = {STABLE: labels.stable, CANARY: labels.canary}
        number = by_label[asked] if asked in by_label else int(asked) if asked.isdecimal() and len(asked) < 10 else None
        if number is None or number not in self.versions:
            known = ", ".join(map(str, sorted(self.versions)))
            raise RequestError(404, f"no version {asked[:40]!r} is loaded: stable, canary or one of {known}")
        return self.versions[number], asked if asked in by_label else "numbered"

    def embed(self, served: Served, body: bytes) -> Embedding:
        who = served.decoder.embed(body)
        user = self._computed(served, who)
        return Embedding(
            vector=user.outputs["vector"][0].tolist(),
            tasks=served.predictor.user_answers(user),
            unknown=user.unknown,
            version=served.number,
            package=served.package,
        )

    def score(self, served: Served, body: bytes) -> Scores:
        request = served.decoder.score(body)
        return self.answer_score(served, request)

    def answer_score(self, served: Served, request: Score) -> Scores:
        user, kept = self._user(served, request.who, needs_states=served.predictor.manifest.scorer_needs_states)
        scores, unknown = served.predictor.score(
            user, request.group, request.candidates, request.dense, request.num_candidates, tasks=request.tasks
        )
        return Scores(scores=scores, unknown=unknown, kept=kept, version=served.number, package=served.package)

    def retrieve(self, served: Served, body: bytes) -> Retrieved:
        request: Retrieve = served.decoder.retrieve(body)
        user, kept = self._user(served, request.who, needs_states=False)
        items, scores = served.predictor.retrieve(user, request.k)
        return Retrieved(
            items=items, scores=scores, unknown=user.unknown, kept=kept, version=served.number, package=served.package
        )

    def _user(self, served: Served, who: Who, *, needs_states: bool) -> tuple[Computed, bool]:
        """The user of a request, and whether it had been kept. Of a request that could be computed one that was kept is
        taken only where it says how old that may be."""
        if who.vector is not None:
            return self._of_vector(served, who.vector, needs_states=needs_states), False
        takes_kept = who.user is None or who.max_age_seconds is not None
        if who.name is not None and takes_kept and not needs_states:
            found = self._kept(served, who)
            if found is not None:
                return found, True
        if who.user is None:
            raise RequestError(
                422 if needs_states else 404,
                "this package attends by candidate: give `now` and `events`, a kept vector is not enough"
                if needs_states
                else "no vector of this user with this query is kept, or it is too old: give `now` and `events`",
            )
        return self._computed(served, who), False

    def _computed(self, served: Served, who: Who) -> Computed:
        assert who.user is not None, "the decoder gives a user, a vector or a name"
        (user,) = served.predictor.compute([who.user])
        if who.name is not None:
            vector = served.predictor.vector_of(user)
            self.kept.cache.put(_key(served, who), pack(vector, b"", self.clock()))
        return user

    def _kept(self, served: Served, who: Who) -> Computed | None:
        most = self.kept.max_age_seconds
        if who.max_age_seconds is not None:
            most = min(most, who.max_age_seconds)
        value = self.kept.cache.get(_key(served, who), max_age_seconds=most)
        if value is None:
            return None
        vector = unpack(value).vector_R
        return served.predictor.stored(vector) if len(vector) == served.predictor.num_stored else None

    def _of_vector(self, served: Served, vector: list[float], *, needs_states: bool) -> Computed:
        if needs_states:
            raise RequestError(
                422, "this package attends by candidate: give `now` and `events`, a `vector` is not enough"
            )
        width = served.predictor.manifest.vector_dim
        if len(vector) != width:
            raise RequestError(
                422, f"`vector` has {len(vector)} numbers: vectors of this package have {width}"
            )  # fmt: skip
        return served.predictor.stored(np.array(vector, dtype=np.float32))


def _key(served: Served, who: Who) -> bytes:
    """Of the user, and of the query where the vector changes with it."""
    assert who.name is not None
    query = b""
    if served.predictor.manifest.query_in_vector:
        given = {name: value for name, value in who.query.items() if value is not None}
        query = hashlib.blake2b(msgspec.json.encode(given, order="sorted"), digest_size=16).digest()
    return cache_key(served.predictor.generation, who.name, query)
