"""The routes of the page.

    GET /                          the page
    GET /static/...                its scripts and styles, from this package
    GET /panels.json               the boards, and what the page is to know of this server
    GET /api/v1/query, query_range, alerts     passed on to Prometheus (`stack.dashboard.prometheus`)
    GET /healthz                   200

Everything else is 404, other methods are 405. Nothing comes from another host, and no script stands in the page: the
headers forbid both.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stack.dashboard.boards import BOARDS
from stack.dashboard.panels import Board
from stack.dashboard.prometheus import PATHS, Prometheus, RefusedError, UnreachableError

STATIC = Path(__file__).parent / "static"
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}
_AT_ONCE = 8
"""Questions that Prometheus is asked at the same time."""


def build_app(prometheus: Prometheus, *, scrape_seconds: float, hosts: Sequence[str]) -> Starlette:
    """`hosts`: the names by which it may be asked; a page elsewhere whose name is made to lead here is refused."""
    limiter = anyio.CapacityLimiter(_AT_ONCE)

    def ask(name: str) -> Route:
        async def endpoint(request: Request) -> Response:
            try:
                answer = await anyio.to_thread.run_sync(
                    prometheus.ask, name, request.query_params.multi_items(), limiter=limiter
                )
            except RefusedError as error:
                return _json({"status": "error", "error": str(error)}, status=400)
            except UnreachableError as error:
                return _json({"status": "error", "error": str(error), "errorType": "unreachable"}, status=502)
            return Response(answer.body, status_code=answer.status, media_type="application/json")

        return Route(f"/api/v1/{name}", endpoint, methods=["GET"])

    boards = _boards(BOARDS, scrape_seconds=scrape_seconds, prometheus=prometheus.address)
    return Starlette(
        routes=[
            Route("/", lambda _: FileResponse(STATIC / "index.html"), methods=["GET"]),
            Route("/panels.json", lambda _: Response(boards, media_type="application/json"), methods=["GET"]),
            Route("/healthz", lambda _: _json({"status": "ok"}, status=200), methods=["GET"]),
            *map(ask, PATHS),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        middleware=[Middleware(_Headers), Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))],
    )


def _boards(boards: Sequence[Board], *, scrape_seconds: float, prometheus: str) -> bytes:
    return msgspec.json.encode({"boards": boards, "scrape_seconds": scrape_seconds, "prometheus": prometheus})


def _json(value: object, *, status: int) -> Response:
    return Response(msgspec.json.encode(value), status_code=status, media_type="application/json")


class _Headers:
    """Puts `HEADERS` on every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._headers = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *self._headers]
            await send(message)

        await self._app(scope, receive, send_with_headers)
