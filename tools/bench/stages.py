"""Where a request's time goes, stage by stage, in this process; and what asking for several users at once would save.

The stages are timed one after the other in the same pass, as a server does them: each finds the caches as the one
before left them. Times are medians of many passes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import numpy as np

from stack.export.engines import Array
from stack.export.package import USER_HALF, open_package
from stack.export.runner import Candidates
from stack.serve.cache import NoCache
from stack.serve.config import ServeConfig
from stack.serve.predictor import Predictor, _dense
from stack.serve.request import Limits
from stack.serve.service import Kept, Served, Service
from tools.bench.bodies import recorded_bodies, sized, user_of
from tools.bench.harness import Figure
from tools.bench.serving import GROUP

TASK = "ctr"
USERS_AT_ONCE = (1, 2, 4, 8, 16)
NUM_PASSES = 300


def measure(package: Path, *, num_rounds: int, num_passes: int = NUM_PASSES) -> list[Figure]:
    """Milliseconds of each stage of `embed` with 100 events and of `score` with 1,000 candidates, for one task."""
    service, served = opened(package)
    body = recorded_bodies(package, GROUP)[0]
    embed = msgspec.json.encode(user_of(sized(body)))
    score = msgspec.json.encode({**sized(body, num_candidates=1_000), "tasks": [TASK]})
    found: dict[str, list[float]] = {}
    for _ in range(num_rounds):
        for name, value in (
            _embed(service, served, embed, num_passes)
            | _score(served, score, num_passes // 4)
            | _batches(served, embed, num_passes // 4)
        ).items():
            found.setdefault(name, []).append(value)
    return [Figure(name=name, unit="ms", values=tuple(values)) for name, values in found.items()]


def opened(package: Path) -> tuple[Service, Served]:
    """As a worker has it that keeps no vectors."""
    defaults = ServeConfig()
    limits = Limits(num_events=0, num_candidates=defaults.max_candidates, num_ids=defaults.max_ids)
    service = Service(kept=Kept(cache=NoCache(), max_age_seconds=1.0), limits=limits)
    return service, service.make(1, Predictor(package, open_package(package)))


def user_inputs(served: Served, body: bytes) -> list[Array]:
    """Of the user half, for a body of `users:embed`."""
    predictor = served.predictor
    who = served.decoder.embed(body)
    assert who.user is not None
    users, graph = predictor._users(who.user, {}), predictor.manifest.graphs[USER_HALF]
    return [predictor._runner._user_input(graph, entry, users, {}) for entry in graph.inputs]


def _embed(service: Service, served: Served, body: bytes, num_passes: int) -> dict[str, float]:
    predictor = served.predictor
    runner, engine = predictor._runner, predictor._engine
    graph = predictor.manifest.graphs[USER_HALF]

    def one(mark: Callable[[str], None]) -> None:
        who = served.decoder.embed(body)
        mark("JSON read and checked")
        assert who.user is not None
        users = predictor._users(who.user, {})
        mark("ids to keys")
        inputs = [runner._user_input(graph, entry, users, {}) for entry in graph.inputs]
        mark("keys to vectors")
        engine.run(USER_HALF, inputs)
        mark("user half")

    stages = _stages(one, num_passes)
    whole = _median(lambda: msgspec.json.encode(service.embed(served, body)), num_passes)
    stages["answer made and written"] = whole - sum(stages.values())
    return _named("embed, 100 events", {**stages, "all": whole})


def _score(served: Served, body: bytes, num_passes: int) -> dict[str, float]:
    """Of a user whose vector is there already."""
    predictor = served.predictor
    runner, engine = predictor._runner, predictor._engine
    request = served.decoder.score(body)
    assert request.who.user is not None
    (user,) = predictor.compute([request.who.user])
    described = predictor.manifest.schema.group(GROUP)
    name = predictor._scorer_tasks[GROUP][TASK].graph
    graph = predictor.manifest.graphs[name]

    def one(mark: Callable[[str], None]) -> None:
        asked = served.decoder.score(body)
        mark("JSON read and checked")
        keys = predictor._keys(described.candidate, asked.candidates, asked.num_candidates)
        mark("ids to keys")
        dense_EF = _dense(described.dense, asked.dense, asked.num_candidates)
        mark("ranking features to an array")
        candidates = Candidates(ids=keys, dense_EF=dense_EF)
        inputs = [runner._candidate_input(graph, entry, candidates, user.outputs, {}) for entry in graph.inputs]
        mark("keys to vectors")
        engine.run(name, inputs)
        mark(f"scorer ({TASK})")

    return _named("score, 1,000 candidates", _stages(one, num_passes))


def _batches(served: Served, body: bytes, num_passes: int) -> dict[str, float]:
    """The user half of several users at once, for each of them."""
    engine, one = served.predictor._engine, user_inputs(served, body)
    found = {}
    for number in USERS_AT_ONCE:
        inputs = [np.ascontiguousarray(np.repeat(value, number, axis=0)) for value in one]
        seconds = _median(lambda inputs=inputs: engine.run(USER_HALF, inputs), num_passes)  # type: ignore[misc]
        found[f"user half, 100 events, {number} users at once, each"] = seconds / number
    return found


def _stages(one: Callable[[Callable[[str], None]], None], num_passes: int) -> dict[str, float]:
    """Medians of the times between marks."""
    times: dict[str, list[float]] = {}
    for number in range(num_passes + 3):
        last = time.perf_counter()

        def mark(name: str) -> None:
            nonlocal last
            now = time.perf_counter()
            if number >= 3:  # noqa: B023
                times.setdefault(name, []).append(1e3 * (now - last))
            last = now

        one(mark)
    return {name: statistics.median(values) for name, values in times.items()}


def _median(act: Callable[[], object], num_passes: int) -> float:
    """Milliseconds of a call."""
    times = []
    for _ in range(num_passes + 3):
        start = time.perf_counter()
        act()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[3:])


def _named(request: str, stages: Mapping[str, float]) -> dict[str, float]:
    return {f"{request}: {stage}": value for stage, value in stages.items()}
