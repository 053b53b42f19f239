"""The application of a worker in this process, over a package, and a client that asks it."""

from __future__ import annotations

import asyncio
from functools import cache
from pathlib import Path
from typing import Any

import httpx
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette

from stack.export.package import read_manifest
from stack.serve.app import Bounds, Front, build_app
from stack.serve.cache import NoCache
from stack.serve.oip import oip_routes
from stack.serve.predictor import Predictor
from stack.serve.request import Limits
from stack.serve.service import Kept, Labels, Service
from stack.serve.tokens import Tokens
from stack.telemetry.metrics import WorkerMetrics

MAX_CANDIDATES, MAX_IDS, MAX_BODY = 5, 3, 100_000
USER: dict[str, Any] = {
    "now": 100,
    "events": {"time": [1, 99], "item": [-7, 900], "type": ["buy", None]},
    "profile": {"age": "alt"},
    "query": {"shop": 5},
}
CANDIDATES: dict[str, Any] = {
    "group": "impression",
    "candidates": {"item": [900, 1 << 40], "tags": [["öl", "wine"], []], "dense": {"price": [1.5, 2]}},
}


class Client:
    """Asks an application in this process, as httpx asks a server."""

    def __init__(self, app: Starlette) -> None:
        self._app = app

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self._app)
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                return await client.request(method, path, **options)

        return asyncio.run(ask())

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.request("POST", path, **options)


@cache
def predictor_of(package: Path) -> Predictor:
    return Predictor(package, read_manifest(package))


def service_of(predictor: Predictor | None) -> Service:
    """Versions 3, stable, and 12, canary, of one package; or none yet."""
    limits = Limits(num_events=0, num_candidates=MAX_CANDIDATES, num_ids=MAX_IDS)
    service = Service(kept=Kept(cache=NoCache(), max_age_seconds=1.0), limits=limits)
    if predictor is not None:
        service.versions = {number: service.make(number, predictor) for number in (3, 12)}
        service.labels = Labels(stable=3, canary=12, share=0.0)
    return service


def front_of(service: Service, tokens: Path | None = None) -> Front:
    bounds = Bounds(max_body_bytes=MAX_BODY, body_timeout_seconds=5.0, max_in_flight=2)
    return Front(service, bounds=bounds, tokens=Tokens(tokens), metrics=WorkerMetrics(CollectorRegistry()))


def client_of(front: Front) -> Client:
    return Client(build_app(front, more=oip_routes(front)))
