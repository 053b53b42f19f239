"""The bench of serving asks what a server takes, times the stages of its answers, and fails where a worker is lost."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from stack.export.package import REQUESTS, read_manifest
from stack.serve.client import Running
from stack.serve.oip import JSON_SIZE_HEADER
from tests.clocks import Clock
from tests.export.toy import write_toy_package
from tests.serve.in_process import CANDIDATES, MAX_CANDIDATES, USER, Client, client_of, front_of, predictor_of
from tests.serve.in_process import service_of as toy_service
from tests.serve.tensors import SCORE
from tools.bench import stages, swaps
from tools.bench.bodies import NUM_EVENTS, Body, binary_scoring, recorded_bodies, sized, user_of
from tools.bench.load import Load, Target
from tools.bench.serving import GROUP

MOST_EVENTS = NUM_EVENTS + 20


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy's, which takes as many events as the bench sends."""
    folder = tmp_path_factory.mktemp("toy") / "package"
    return write_toy_package(folder, change=lambda toy: msgspec.structs.replace(toy, max_events=MOST_EVENTS))


@pytest.fixture(scope="module")
def client(package: Path) -> Client:
    return client_of(front_of(toy_service(predictor_of(package))))


RECORDED = USER | CANDIDATES


def test_recorded_bodies_are_those_of_the_group_longest_first(package: Path, tmp_path: Path) -> None:
    (alone,) = msgspec.json.decode((package / REQUESTS).read_bytes(), type=list[dict[str, Any]])
    others = [{"body": RECORDED}, {"body": RECORDED | {"group": "basket"}}, {"body": USER}]
    (tmp_path / REQUESTS).write_bytes(msgspec.json.encode([alone, *others]))
    assert recorded_bodies(tmp_path, GROUP) == [RECORDED, alone["body"]]


@pytest.mark.parametrize("num_events", [0, 1, 2, 5, NUM_EVENTS])
@pytest.mark.parametrize("num_candidates", [1, 2, MAX_CANDIDATES])
def test_sized_bodies_have_so_many_of_each_and_are_answered(
    client: Client, num_events: int, num_candidates: int
) -> None:
    body = sized(RECORDED, num_events=num_events, num_candidates=num_candidates)
    assert {len(column) for column in body["events"].values()} == {num_events}
    assert body["events"]["time"] == sorted(body["events"]["time"])
    assert body["events"]["item"] == ([-7, 900] * NUM_EVENTS)[2 * NUM_EVENTS - num_events :]
    candidates = body["candidates"]
    assert {len(column) for column in (candidates["item"], candidates["tags"], candidates["dense"]["price"])} == {
        num_candidates
    }
    response = client.post("/v1/items:score", json=body)
    assert response.status_code == 200, response.text
    assert len(response.json()["scores"]["ctr"]) == num_candidates
    assert response.json()["unknown"] == {}
    assert client.post("/v1/users:embed", json=user_of(body)).status_code == 200


@pytest.mark.parametrize("tags", [[["öl", "wine"], []], [[], []]])
def test_a_body_in_binary_is_scored_as_its_json(package: Path, client: Client, tags: list[list[str]]) -> None:
    body: Body = {**RECORDED, "candidates": RECORDED["candidates"] | {"item": [900, None], "tags": tags}}
    vector = client.post("/v1/users:embed", json=user_of(body)).json()["vector"]
    wanted = client.post("/v1/items:score", json=body).json()["scores"]["ctr"]
    data, size = binary_scoring(body, vector, read_manifest(package), "ctr")
    response = client.post(f"{SCORE}/infer", content=data, headers={JSON_SIZE_HEADER: str(size)})
    assert response.status_code == 200, response.text
    found = response.content[int(response.headers[JSON_SIZE_HEADER]) :]
    np.testing.assert_array_equal(np.frombuffer(found, "<f4"), np.array(wanted, np.float32))


def test_the_stages_of_an_answer_are_parts_of_it(package: Path) -> None:
    figures = stages.measure(package, num_rounds=2, num_passes=8)
    found = {figure.name: figure for figure in figures}
    assert all((figure.unit, len(figure.values)) == ("ms", 2) for figure in figures)
    embed = [figure for name, figure in found.items() if name.startswith("embed, 100 events: ")]
    (whole,) = [figure for figure in embed if figure.name.endswith(": all")]
    for number in range(2):
        parts = sum(figure.values[number] for figure in embed if figure is not whole)
        assert parts == pytest.approx(whole.values[number])
    assert [name.partition(": ")[2] for name in found if name.startswith("score, ")] == [
        "JSON read and checked", "ids to keys", "ranking features to an array", "keys to vectors", "scorer (ctr)",
    ]  # fmt: skip


class Crew:
    """Two workers, 1 and 2, of which one is killed; `pids`: who is there, each time that somebody looks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *pids: list[int], failures: Counter[str]) -> None:
        left, clock = list(pids), Clock()
        self.killed: list[tuple[int, int]] = []

        def sleep(seconds: float) -> None:
            clock.now += seconds

        def load(_: Target, *, concurrency: int, **__: object) -> Load:
            assert concurrency == swaps.KILL_CONCURRENCY
            return Load(begun=[1.0, 1.5, 3.5], seconds=[0.1] * 3, failures=failures, duration=3.0)

        monkeypatch.setattr(swaps, "time", SimpleNamespace(sleep=sleep, monotonic=clock))
        monkeypatch.setattr(swaps, "worker_pids", lambda _: left.pop(0) if len(left) > 1 else left[0])
        monkeypatch.setattr(swaps.os, "kill", lambda *victim: self.killed.append(victim))
        monkeypatch.setattr(swaps, "load", load)

    def figures(self) -> dict[str, float]:
        server = SimpleNamespace(order=lambda path: {"workers": 2})
        target = Target(address="http://server:80", path="/", bodies=[])
        found = swaps._kill(cast("Running", server), target)
        assert self.killed == [(1, signal.SIGKILL)]
        return {figure.name: figure.median for figure in found}


def test_a_worker_that_is_killed_is_told_by_what_was_cut_and_when_another_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    crew = Crew(monkeypatch, [1, 2], [1, 2], [2], [2, 3], failures=Counter(IncompleteReadError=5))
    assert list(crew.figures().values()) == [5, 3, 2.0, pytest.approx(2 * 0.02)]


@pytest.mark.parametrize(
    ("there", "failures", "text"),
    [
        ([2], Counter(), "no worker took the place of the one that was killed within 60 seconds"),
        ([1, 2], Counter(), "no worker took the place of the one that was killed within 60 seconds"),
        ([2, 3], Counter({"500": 2}), "after kill -9 of a worker requests were answered with 500"),
        ([2, 3], Counter(ConnectionResetError=9), "kill -9 of a worker cut 9 connections: it had at most 8"),
    ],
)
def test_a_worker_that_is_killed_and_missed_fails_the_bench_with_one_line(
    monkeypatch: pytest.MonkeyPatch, there: list[int], failures: Counter[str], text: str
) -> None:
    with pytest.raises(AssertionError, match=text):
        Crew(monkeypatch, [1, 2], there, failures=failures).figures()
