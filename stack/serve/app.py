"""The HTTP routes over a predictor. Whatever is refused is answered as `{"error": "one line"}`.

    GET  /healthz           200 once the package is loaded and warm
    GET  /v1/model          what is served: tasks, inputs, lineage, parity
    POST /v1/users:embed    events, profile, query -> the user's vector
    POST /v1/items:score    the same or a vector, and candidates -> scores by task

Bodies are JSON of at most `max_body_bytes`, not encoded; nothing of them is logged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from stack.serve.predictor import Predictor
from stack.serve.request import Decoder, Limits, RequestError


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `/v1/model`: the manifest without its files."""

    package: str
    schema: object
    tasks: object
    lineage: object
    parity: object
    max_events: int
    vector_dim: int
    query_in_vector: bool
    scorer_needs_states: bool


def build_app(predictor: Predictor, *, limits: Limits, max_body_bytes: int, body_timeout_seconds: float) -> Starlette:
    """The application; requests are answered one after the other, on the event loop's own thread."""
    decoder = Decoder(predictor.manifest, limits)
    model = msgspec.json.encode(_describe(predictor))

    async def health(_: Request) -> Response:
        return _json(b'{"status":"ok"}')

    async def describe(_: Request) -> Response:
        return _json(model)

    def post(answer: Callable[[bytes], object]) -> Callable[[Request], object]:
        async def endpoint(request: Request) -> Response:
            body = await _read(request, max_body_bytes, body_timeout_seconds)
            return _json(msgspec.json.encode(answer(body)))

        return endpoint

    return Starlette(
        routes=[
            Route("/healthz", health),
            Route("/v1/model", describe),
            Route("/v1/users:embed", post(lambda body: predictor.embed(decoder.embed(body))), methods=["POST"]),
            Route("/v1/items:score", post(lambda body: predictor.score(decoder.score(body))), methods=["POST"]),
        ],
        exception_handlers={
            RequestError: _refused,
            HTTPException: _http_error,
            ClientDisconnect: _gone,
            Exception: _own_fault,
        },
    )


async def _read(request: Request, max_bytes: int, timeout_seconds: float) -> bytes:
    """The body, never holding more than `max_bytes` of it.

    Raises: `RequestError` 415 for an encoded body, 413 for a large one (declared or found), 408 for a slow one.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise RequestError(415, f"content-encoding {encoding[:40]!r} is not accepted: send the body plain")
    declared = request.headers.get("content-length", "0")
    if int(declared) > max_bytes:
        raise RequestError(413, f"the body has {declared} bytes: at most {max_bytes} are accepted")
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise RequestError(413, f"the body is too large: at most {max_bytes} bytes are accepted")
    except TimeoutError as error:
        raise RequestError(408, f"the body did not arrive within {timeout_seconds:g} seconds") from error
    return bytes(body)


def _describe(predictor: Predictor) -> Model:
    manifest = predictor.manifest
    return Model(
        package=manifest.digest,
        schema=manifest.schema,
        tasks=manifest.tasks,
        lineage=manifest.lineage,
        parity=manifest.parity,
        max_events=manifest.max_events,
        vector_dim=manifest.vector_dim,
        query_in_vector=manifest.query_in_vector,
        scorer_needs_states=manifest.scorer_needs_states,
    )


def _json(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(body, status_code=status, media_type="application/json", headers=headers)


def _error(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    return _json(msgspec.json.encode({"error": text}), status, headers)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    unread = {"connection": "close"} if error.status in (408, 413, 415) else None
    return _error(error.status, str(error), unread)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = f"{request.method} {request.url.path[:80]}: {error.detail}"
    return _error(error.status_code, text, dict(error.headers or {}))


async def _gone(_: Request, error: Exception) -> Response:
    return _error(400, "the connection was closed before the body was complete")


async def _own_fault(_: Request, error: Exception) -> Response:
    return _error(500, "internal error: see the server's log")
