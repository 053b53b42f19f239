"""What the routes of orders refuse before the server hears of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry

from stack.serve.admin import MAX_BODY_BYTES, build_admin
from stack.serve.config import ServeConfig
from stack.serve.fleet import Fleet
from stack.serve.tokens import Tokens
from stack.telemetry.metrics import ServerMetrics
from tests.serve.in_process import Client

ORDERS = ("/admin/load", "/admin/deltas", "/admin/labels", "/admin/rollback", "/admin/drop")


@pytest.fixture
def client(tmp_path: Path) -> Client:
    """Of a server whose fleet has nobody to give orders to."""
    fleet = Fleet(ServeConfig(), root=tmp_path, work=tmp_path, metrics=ServerMetrics(CollectorRegistry()))
    app = build_admin(
        fleet, tokens=Tokens(None), registries=list, num_alive=lambda: 0, body_timeout_seconds=0.1
    )  # fmt: skip
    return Client(app)


def error_of(response: httpx.Response) -> tuple[int, str]:
    assert list(response.json()) == ["error"]
    return response.status_code, response.json()["error"]


@pytest.mark.parametrize("path", ORDERS)
def test_a_large_order_is_refused_and_its_connection_closed(client: Client, path: str) -> None:
    response = client.post(path, content=b" " * (MAX_BODY_BYTES + 1))
    assert error_of(response) == (413, "at most 65536 bytes are accepted")
    assert response.headers["connection"] == "close"


@pytest.mark.parametrize("path", ORDERS)
def test_a_slow_order_is_refused_and_its_connection_closed(client: Client, path: str) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    response = client.post(path, content=endless())
    assert error_of(response) == (408, "the body did not arrive within 0.1 seconds")
    assert response.headers["connection"] == "close"


@pytest.mark.parametrize("body", [b"", b"{", b"{]", b'{"package": "\xff"}', b'{"package": "b"} more'])
def test_an_order_that_is_no_json_is_refused(client: Client, body: bytes) -> None:
    assert error_of(client.post("/admin/load", content=body)) == (400, "the body is not JSON in UTF-8")


@pytest.mark.parametrize(
    ("path", "body", "text"),
    [
        ("/admin/load", b"[]", "Expected `object`, got `array`"),
        ("/admin/load", b"{}", "missing required field `package`"),
        ("/admin/load", b'{"package": "b", "canary_share": 1.5}', "<= 1.0 - at `$.canary_share`"),
        ("/admin/deltas", b'{"delta": 3}', "Expected `str`, got `int` - at `$.delta`"),
        ("/admin/labels", b'{"stable": 0}', ">= 1 - at `$.stable`"),
        ("/admin/drop", b'{"version": 1e99}', "- at `$.version`"),
    ],
)
def test_an_order_that_does_not_fit_is_refused_by_the_field(client: Client, path: str, body: bytes, text: str) -> None:
    status, said = error_of(client.post(path, content=body))
    assert status == 422
    assert text in said


def test_without_workers_it_is_not_healthy(client: Client) -> None:
    assert error_of(client.get("/healthz")) == (503, "no worker answers: see the server's log")
