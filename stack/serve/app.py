"""The HTTP routes over a service. Whatever is refused is answered as `{"error": "one line"}`.

    POST /v1/users:embed      events, profile, query -> the user's vector
    POST /v1/items:score      the same, or a vector, or a user's name, and candidates -> scores by task
    POST /v1/users:retrieve   a user in the same ways -> the nearest items
    GET  /v1/model            what is served: tasks, inputs, lineage, parity
    GET  /openapi.json        these routes, described for this package
    GET  /healthz             200 while requests are answered
    /v2...                    the Open Inference Protocol (`stack.serve.oip`)

Bodies are of at most `max_body_bytes`, not encoded; nothing of them is logged, unless `serve.record` asks for it. A
request may ask for a version by the header `x-stack-version`: stable, canary, or a number.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from time import perf_counter

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from stack.serve.predictor import NotFiniteAnswerError
from stack.serve.record import Recorder
from stack.serve.request import RequestError
from stack.serve.service import Served, Service
from stack.serve.tokens import Tokens
from stack.telemetry.metrics import WorkerMetrics

VERSION_HEADER = "x-stack-version"
LABEL = "stack.label"
"""Where a request's scope has the label of the version that was picked for it, for the metrics of a refusal."""
_UNREAD = frozenset({401, 408, 413, 415, 429})
"""Statuses after which the rest of the body is not read: the connection is closed."""
Answer = Callable[[Served, bytes], object]


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `/v1/model`: the manifest without its files."""

    version: int
    package: str
    generation: str
    name: str
    inputs: object
    tasks: object
    retrieval: object
    lineage: object
    parity: object
    audits: object
    max_events: int
    vector_dim: int
    query_in_vector: bool
    scorer_needs_states: bool


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What a worker takes: bytes and seconds of a body, requests at once."""

    max_body_bytes: int
    body_timeout_seconds: float
    max_in_flight: int


class Front:
    """Reads requests within bounds, has them answered, counts them. Answers are made one after the other, on the event
    loop's own thread: a worker has one core."""

    def __init__(
        self,
        service: Service,
        *,
        bounds: Bounds,
        tokens: Tokens,
        metrics: WorkerMetrics,
        recorder: Recorder | None = None,
    ) -> None:
        self.service = service
        self.metrics = metrics
        self.stopping = False
        self._bounds = bounds
        self._tokens = tokens
        self._recorder = recorder
        self._num_in_flight = 0
        self._cached = dict.fromkeys(("hits", "misses", "expired", "errors", "evicted"), 0)

    def post(self, path: str, answer: Answer) -> Route:
        """Where a body is answered with JSON."""
        seconds = self.metrics.seconds.labels(path)

        async def endpoint(request: Request) -> Response:
            with self.admitted(request):
                body = await self.read(request)
                start = perf_counter()
                served, label = self.service.pick(request.headers.get(VERSION_HEADER))
                request.scope[LABEL] = label
                found = answer(served, body)
                encoded = msgspec.json.encode(found)
                response = json_response(encoded)
                seconds.observe(perf_counter() - start)
                if self._recorder is not None:
                    self._recorder.offer(path, served, body, encoded)
            self.metrics.requests.labels(path, label, "200").inc()
            self.metrics.count_unknown(getattr(found, "unknown", {}))
            self._count_cache()
            return response

        return Route(path, endpoint, methods=["POST"])

    async def read(self, request: Request) -> bytes:
        """The body, never holding more than may be sent.

        Raises: `RequestError` 415 for an encoded body, 413 for a large one (declared or found), 408 for a slow one.
        """
        encoding = request.headers.get("content-encoding", "identity")
        if encoding.lower() != "identity":
            raise RequestError(415, f"content-encoding {encoding[:40]!r} is not accepted: send the body plain")
        await asyncio.sleep(0)  # all that have arrived take their slots before the first of them is answered
        most = self._bounds.max_body_bytes
        declared = request.headers.get("content-length", "0")
        if int(declared) > most:
            raise RequestError(413, f"the body has {declared[:20]} bytes: at most {most} are accepted")
        body = bytearray()
        try:
            async with asyncio.timeout(self._bounds.body_timeout_seconds):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > most:
                        raise RequestError(413, f"the body is too large: at most {most} bytes are accepted")
        except TimeoutError as error:
            seconds = self._bounds.body_timeout_seconds
            raise RequestError(408, f"the body did not arrive within {seconds:g} seconds") from error
        return bytes(body)

    def allow(self, request: Request) -> None:
        """Raises: `RequestError` 401 without one of the tokens."""
        if not self._tokens.allows(request.headers.get("authorization")):
            raise RequestError(401, "a bearer token is needed: send the header `authorization: Bearer <token>`")

    def admitted(self, request: Request) -> AbstractContextManager[None]:
        """Held while a request is read and answered. Raises: `RequestError` 401, 429."""
        self.allow(request)
        if self._num_in_flight >= self._bounds.max_in_flight:
            self.metrics.refused.labels("in_flight").inc()
            raise RequestError(429, f"{self._num_in_flight} requests are under way here already: try again in a second")
        return _Slot(self)

    def _count_cache(self) -> None:
        """What the cache counted since the last time."""
        cache = self.service.kept.cache
        for result in self._cached:
            count: int = getattr(cache, result)
            if count > self._cached[result]:
                self.metrics.cache.labels(result).inc(count - self._cached[result])
                self._cached[result] = count


class _Slot:
    """One of the requests that a worker reads or answers at once."""

    def __init__(self, front: Front) -> None:
        self._front = front

    def __enter__(self) -> None:
        self._front._num_in_flight += 1
        self._front.metrics.in_flight.inc()

    def __exit__(self, *_: object) -> None:
        self._front._num_in_flight -= 1
        self._front.metrics.in_flight.dec()


def build_app(front: Front, *, more: list[Route] | None = None) -> Starlette:
    """The application. `more`: routes of other protocols over the same front."""
    service = front.service

    async def health(_: Request) -> Response:
        service.pick()
        if front.stopping:
            return error_response(503, "this server is stopping")
        return json_response(b'{"status":"ok"}')

    async def describe(request: Request) -> Response:
        front.allow(request)
        served, _ = service.pick(request.headers.get(VERSION_HEADER))
        return json_response(msgspec.json.encode(_described(served)))

    return Starlette(
        routes=[
            Route("/healthz", health),
            Route("/v1/model", describe),
            front.post("/v1/users:embed", service.embed),
            front.post("/v1/items:score", service.score),
            front.post("/v1/users:retrieve", service.retrieve),
            *(more or ()),
        ],
        exception_handlers={
            RequestError: _refused(front),
            HTTPException: _http_error,
            ClientDisconnect: _gone,
            Exception: _own_fault(front),
        },
    )


def json_response(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(body, status_code=status, media_type="application/json", headers=headers)


def error_response(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    return json_response(msgspec.json.encode({"error": text}), status, headers)


def _described(served: Served) -> Model:
    manifest = served.predictor.manifest
    return Model(
        version=served.number,
        package=manifest.digest,
        generation=served.predictor.generation,
        name=manifest.name,
        inputs=manifest.inputs,
        tasks=manifest.tasks,
        retrieval=manifest.retrieval,
        lineage=manifest.lineage,
        parity=manifest.parity,
        audits=manifest.audits,
        max_events=manifest.max_events,
        vector_dim=manifest.vector_dim,
        query_in_vector=manifest.query_in_vector,
        scorer_needs_states=manifest.scorer_needs_states,
    )


def _refused(front: Front) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def handler(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        headers = {"connection": "close"} if error.status in _UNREAD else {}
        if error.status in (429, 503):
            headers["retry-after"] = "1"
        if error.status == 401:
            headers["www-authenticate"] = "Bearer"
        if isinstance(error, NotFiniteAnswerError):
            front.metrics.not_finite.inc()
        _count(front, request, error.status)
        return error_response(error.status, str(error), headers)

    return handler


def _own_fault(front: Front) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def handler(request: Request, _: Exception) -> Response:
        _count(front, request, 500)
        return error_response(500, "internal error: see the server's log")

    return handler


def _count(front: Front, request: Request, status: int) -> None:
    """A request that was not answered; its label is `none` where no version was picked yet."""
    label, path = request.scope.get(LABEL, "none"), request.scope["route"].path
    front.metrics.requests.labels(path, label, str(status)).inc()


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = f"{request.method} {request.url.path[:80]}: {error.detail}"
    return error_response(error.status_code, text, dict(error.headers or {}))


async def _gone(_: Request, error: Exception) -> Response:
    return error_response(400, "the connection was closed before the body was complete")
