"""The routes that load, switch and measure, on a port of their own, with tokens of their own.

    GET  /metrics                  what Prometheus scrapes; no token
    GET  /healthz                  200 while workers answer; no token
    GET  /admin/versions           versions, labels, deltas
    POST /admin/load               {"package": "name"}; with "canary_share": 0.1 as canary, else as stable
    POST /admin/deltas             {"delta": "name"}, with "version" on another than the stable one
    POST /admin/labels             {"stable": 3, "canary": 4, "canary_share": 0.1}; what is left out stays or goes away
    POST /admin/rollback           stable is what it was before
    POST /admin/drop               {"version": 2}

Packages are named, never addressed: they are folders beside the one that the server was started with.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stack.base.errors import UserError
from stack.serve.app import error_response, json_response
from stack.serve.fleet import Fleet
from stack.serve.tokens import Tokens

MAX_BODY_BYTES = 64 << 10
_Name = Annotated[str, Meta(max_length=64)]
_Share = Annotated[float, Meta(ge=0, le=1)]
_Number = Annotated[int, Meta(ge=1, le=10**9)]


class LoadPackage(Struct, frozen=True, forbid_unknown_fields=True):
    package: _Name
    canary_share: _Share | None = None


class ApplyDelta(Struct, frozen=True, forbid_unknown_fields=True):
    delta: _Name
    version: _Number | None = None


class SetLabels(Struct, frozen=True, forbid_unknown_fields=True):
    stable: _Number | None = None
    canary: _Number | None = None
    canary_share: _Share = 0.0


class DropVersion(Struct, frozen=True, forbid_unknown_fields=True):
    version: _Number


T = TypeVar("T")


def build_admin(
    fleet: Fleet, *, tokens: Tokens, registries: Callable[[], Sequence[Collector]], num_alive: Callable[[], int],
    body_timeout_seconds: float,
) -> Starlette:  # fmt: skip
    """The application. `registries`: what is scraped; `num_alive`: workers that answer."""

    async def metrics(_: Request) -> Response:
        body = b"".join(generate_latest(registry) for registry in registries())
        return Response(body, media_type=CONTENT_TYPE_LATEST)

    async def health(_: Request) -> Response:
        alive = num_alive()
        if not alive:
            return error_response(503, "no worker answers: see the server's log")
        return json_response(msgspec.json.encode({"workers": alive}))

    async def versions(request: Request) -> Response:
        _allow(tokens, request)
        return _told(fleet)

    def post(kind: type[T] | None, act: Callable[[T], Awaitable[object]]) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            _allow(tokens, request)
            await act(await _body(request, kind, body_timeout_seconds))  # type: ignore[arg-type]
            return _told(fleet)

        return endpoint

    async def load(asked: LoadPackage) -> None:
        await fleet.load(asked.package, canary_share=asked.canary_share)

    async def apply(asked: ApplyDelta) -> None:
        await fleet.apply(asked.delta, number=asked.version)

    async def label(asked: SetLabels) -> None:
        await fleet.use(asked.stable, asked.canary, asked.canary_share)

    async def drop(asked: DropVersion) -> None:
        await fleet.drop(asked.version)

    async def rollback(_: None) -> None:
        await fleet.rollback()

    return Starlette(
        routes=[
            Route("/metrics", metrics),
            Route("/healthz", health),
            Route("/admin/versions", versions),
            Route("/admin/load", post(LoadPackage, load), methods=["POST"]),
            Route("/admin/deltas", post(ApplyDelta, apply), methods=["POST"]),
            Route("/admin/labels", post(SetLabels, label), methods=["POST"]),
            Route("/admin/rollback", post(None, rollback), methods=["POST"]),
            Route("/admin/drop", post(DropVersion, drop), methods=["POST"]),
        ],
        exception_handlers={UserError: _refused, HTTPException: _http_error},
    )


def _told(fleet: Fleet) -> Response:
    return json_response(msgspec.json.encode(fleet.told()))


def _allow(tokens: Tokens, request: Request) -> None:
    if not tokens.allows(request.headers.get("authorization")):
        raise HTTPException(401, "a bearer token is needed", {"www-authenticate": "Bearer"})


async def _body(request: Request, kind: type[T] | None, timeout_seconds: float) -> T | None:
    """Raises: `HTTPException` 400, 408, 413 or 422."""
    body = bytearray()
    closes = {"connection": "close"}
    try:
        async with asyncio.timeout(timeout_seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise HTTPException(413, f"at most {MAX_BODY_BYTES} bytes are accepted", closes)
    except TimeoutError as error:
        raise HTTPException(408, f"the body did not arrive within {timeout_seconds:g} seconds", closes) from error
    if kind is None:
        return None
    try:
        return msgspec.json.decode(bytes(body), type=kind)
    except msgspec.ValidationError as error:
        raise HTTPException(422, str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HTTPException(400, "the body is not JSON in UTF-8") from error


async def _refused(_: Request, error: Exception) -> Response:
    return error_response(422, str(error))


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return error_response(error.status_code, error.detail, dict(error.headers or {}))
