"""The server of the page: what it passes on to Prometheus, what it refuses, what it says of each response."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from stack.dashboard.app import HEADERS, STATIC, build_app
from stack.dashboard.boards import BOARDS
from stack.dashboard.prometheus import MAX_POINTS, MAX_QUERY_CHARACTERS, Prometheus
from tests.dashboard.odd_servers import odd_server

LOCAL = "http://127.0.0.1"


class Client:
    """Asks an application in this process, as httpx asks a server."""

    def __init__(self, app: Starlette) -> None:
        self._app = app

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(self._app), base_url=LOCAL) as client:
                return await client.request(method, path, **options)

        return asyncio.run(ask())

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)


def client(address: str, *, timeout_seconds: float = 30.0, max_answer_bytes: int = 20_000) -> Client:
    prometheus = Prometheus(address=address, timeout_seconds=timeout_seconds, max_answer_bytes=max_answer_bytes)
    return Client(build_app(prometheus, scrape_seconds=15.0, hosts=("127.0.0.1", "localhost")))


@pytest.fixture(scope="module")
def odd() -> Iterator[tuple[str, list[str]]]:
    with odd_server() as found:
        yield found


def test_three_questions_are_passed_on_as_they_are_with_a_time_limit(odd: tuple[str, list[str]]) -> None:
    address, asked = odd
    page = client(f"{address}/under/it")
    asked.clear()
    assert page.get("/api/v1/query", params={"query": "up", "time": "5"}).status_code == 200
    window = {"query": 'a{b="c&d"}', "start": "0", "end": "60", "step": "15"}
    assert page.get("/api/v1/query_range", params=window).json() == {"status": "success"}
    assert page.get("/api/v1/alerts").status_code == 200
    assert asked == [
        "/under/it/api/v1/query?query=up&time=5&timeout=30000ms",
        "/under/it/api/v1/query_range?query=a%7Bb%3D%22c%26d%22%7D&start=0&end=60&step=15&timeout=30000ms",
        "/under/it/api/v1/alerts?",
    ]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/v1/series?match[]=up", 404),
        ("GET", "/api/v1/admin/tsdb/snapshot", 404),
        ("GET", "/api/v1/status/config", 404),
        ("GET", "/api/v1/query/../status/config", 404),
        ("GET", "/api/v1/query%2f..%2fstatus", 404),
        ("GET", "/metrics", 404),
        ("GET", "/-/reload", 404),
        ("GET", "/static/../app.py", 404),
        ("GET", "/static/%2e%2e/app.py", 404),
        ("GET", "/static/", 404),
        ("POST", "/api/v1/query?query=up&time=5", 405),
        ("PUT", "/api/v1/alerts", 405),
        ("DELETE", "/", 405),
        ("POST", "/static/main.js", 405),
    ],
)
def test_other_paths_and_methods_are_refused_and_not_passed_on(
    odd: tuple[str, list[str]], method: str, path: str, status: int
) -> None:
    address, asked = odd
    asked.clear()
    response = client(address).request(method, path)
    assert response.status_code == status
    assert asked == []
    assert {name: response.headers[name] for name in HEADERS} == HEADERS


@pytest.mark.parametrize(
    ("path", "parameters", "said"),
    [
        ("query", {"query": "up"}, "query takes query, time, each once"),
        ("query", {"query": "up", "time": "5", "stats": "all"}, "query takes query, time, each once"),
        ("query", {"query": ["up", "down"], "time": "5"}, "query takes query, time, each once"),
        ("alerts", {"filter": "x"}, "alerts takes no parameter, each once"),
        ("query", {"query": "x" * (MAX_QUERY_CHARACTERS + 1), "time": "5"}, "at most 4000 are taken"),
        ("query", {"query": "up", "time": "soon"}, "time='soon' is no number of seconds"),
        ("query", {"query": "up", "time": "inf"}, "time='inf' is no number of seconds"),
        ("query_range", {"query": "up", "start": "0", "end": "9", "step": "0"}, "from 1 to 2000 steps"),
        ("query_range", {"query": "up", "start": "9", "end": "0", "step": "1"}, "from 1 to 2000 steps"),
        ("query_range", {"query": "up", "start": "0", "end": str(MAX_POINTS + 1), "step": "1"}, "from 1 to 2000 steps"),
    ],
)
def test_questions_beyond_the_bounds_are_refused_and_not_passed_on(
    odd: tuple[str, list[str]], path: str, parameters: dict[str, str], said: str
) -> None:
    address, asked = odd
    asked.clear()
    response = client(address).get(f"/api/v1/{path}", params=parameters)
    assert response.status_code == 400
    assert said in response.json()["error"]
    assert asked == []


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("large", "the answer has more than 20000 bytes: choose one run or a shorter range"),
        ("slow", "the answer took longer than 2 s"),
        ("page", "is not Prometheus: status 200 without JSON"),
        ("moved", "is not Prometheus: status 302 without JSON"),
    ],
)
def test_an_answer_that_is_too_large_too_slow_or_not_of_prometheus_is_given_up(
    odd: tuple[str, list[str]], way: str, said: str
) -> None:
    address, asked = odd
    asked.clear()
    response = client(f"{address}/{way}", timeout_seconds=2 if way == "slow" else 30).get("/api/v1/alerts")
    assert response.status_code == 502
    assert said in response.json()["error"]
    assert len(asked) == 1


def test_a_prometheus_that_does_not_answer_is_said(odd: tuple[str, list[str]]) -> None:
    response = client("http://127.0.0.1:9").get("/api/v1/alerts")
    assert response.status_code == 502
    assert response.json()["error"].startswith("Prometheus at http://127.0.0.1:9 does not answer: ")


def test_what_prometheus_refuses_comes_back_as_it_said_it(prometheus: str) -> None:
    response = client(prometheus).get("/api/v1/query", params={"query": "sum(", "time": "5"})
    assert response.status_code == 400
    assert "parse error" in response.json()["error"]


def test_a_name_that_was_made_to_lead_here_is_refused() -> None:
    page = client("http://127.0.0.1:9")
    assert page.get("/", headers={"host": "elsewhere.example"}).status_code == 400
    assert page.get("/", headers={"host": "localhost:8080"}).status_code == 200


def test_the_page_its_files_and_panels_are_served_with_headers_that_keep_others_out() -> None:
    page = client("http://127.0.0.1:9")
    for path in ("/", "/panels.json", "/healthz", *(f"/static/{one.name}" for one in STATIC.glob("*.*"))):
        response = page.get(path)
        assert response.status_code == 200, path
        assert {name: response.headers[name] for name in HEADERS} == HEADERS
    assert "unsafe" not in HEADERS["content-security-policy"]
    told = page.get("/panels.json").json()
    assert [board["name"] for board in told["boards"]] == [board.name for board in BOARDS]
    assert told["scrape_seconds"] == 15.0
    html = page.get("/").text
    assert "<style" not in html
    assert "style=" not in html
    assert html.count("<script") == html.count('src="/static/') == 2
