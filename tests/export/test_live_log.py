"""Recorded requests as traffic: the model scores them as it scores the moments that they were asked at."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from msgspec import Raw

from stack.audits.audit import Audited, audit
from stack.audits.config import AuditConfig, Fix, Part
from stack.audits.effect import EVERYTHING
from stack.audits.live import LiveTraffic
from stack.audits.normalisation import normalisation
from stack.audits.report import REPORT, AuditReport
from stack.base.errors import ConfigError, DataError
from stack.data.batch import Batch, Jagged
from stack.data.dataset import Dataset
from stack.data.loader import Loader
from stack.export.export import Trained
from stack.export.live_log import NO_CANDIDATES, OF_A_VECTOR, OTHER_GROUP, UNREADABLE, live_traffic
from stack.export.moments import by_moment
from stack.export.package import read_manifest
from stack.export.requests import Asker
from stack.export.skew_log import Line, encode_line

SCORE, EMBED = "/v1/items:score", "/v1/users:embed"
GROUPS = ("impression", "follow")


def line(body: dict[str, Any], route: str = SCORE) -> bytes:
    """As a server writes it."""
    raw = Raw(msgspec.json.encode(body))
    return encode_line(Line(at=1.0, route=route, package="", num_deltas=0, body=raw, answer=Raw(b'{"scores": {}}')))


def asked(dataset: Dataset, package: Path) -> Iterator[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """Requests of the moments of the last day, the batches of which the model has scored: what it says of each."""
    manifest = read_manifest(package)
    asker = Asker(dataset, manifest.schema)
    batch: Batch
    for batch in Loader(dataset, days=dataset.days()[-1:], global_batch_size=8, shuffle=False, num_prefetch=0):
        for group in GROUPS:
            for moment, example_E in by_moment(batch.groups[group]):
                user = asker.raw_ids("user", [int(batch.user_B[batch.moment_row_M[moment]])])[0]
                body = asker.request(batch, moment, manifest.max_events) | {"user": user}
                yield body | asker.candidates(batch, example_E, group), {"batch": batch, "examples": example_E}


@pytest.fixture(scope="module")
def bodies(dataset: Dataset, package: Path) -> list[dict[str, Any]]:
    return [body for body, _ in asked(dataset, package)]


def traffic(dataset: Dataset, package: Path, log: Path, *, most: int = 1000, per_batch: int = 16) -> LiveTraffic:
    return live_traffic(dataset, read_manifest(package), log, most=most, per_batch=per_batch, seed=3)


def write(folder: Path, lines: list[bytes]) -> Path:
    """Two files, as of two workers."""
    folder.mkdir()
    (folder / "requests-1.jsonl").write_bytes(b"".join(lines[::2]))
    (folder / "requests-2.jsonl").write_bytes(b"".join(lines[1::2]))
    return folder


def scores(trained: Trained, batches: Any) -> dict[str, np.ndarray]:
    """Of all examples, task by task."""
    parts: dict[str, list[np.ndarray]] = {}
    with torch.no_grad():
        for batch in batches:
            for name, output in trained.model(batch).items():
                parts.setdefault(name, []).append(output.score_E.numpy())
    return {name: np.concatenate(several) for name, several in parts.items()}


def test_requests_of_prepared_moments_are_scored_as_the_moments_are(
    dataset: Dataset, published: Trained, package: Path, tmp_path: Path
) -> None:
    found = list(asked(dataset, package))
    expected: dict[str, list[np.ndarray]] = {}
    with torch.no_grad():
        for body, of in found:
            for name, output in published.model(of["batch"]).items():
                if published.model.task(name).group == body["group"]:
                    expected.setdefault(name, []).append(output.score_E[of["examples"]].numpy())
    (tmp_path / "one.jsonl").write_bytes(b"".join(line(body) for body, _ in found))
    live = traffic(dataset, package, tmp_path / "one.jsonl")
    told = scores(published, live.batches)
    assert live.report.num_requests == live.report.num_lines == len(found) > 40
    assert live.report.days == dataset.days()[-1:]
    assert set(expected) == {"ctr", "rank", "next_item", "follow"}
    assert min(told[name].std() for name in ("ctr", "rank", "next_item")) > 0.3, "scores that differ"
    for name, parts in expected.items():
        np.testing.assert_allclose(told[name], np.concatenate(parts), rtol=0, atol=1e-5, err_msg=name)
    users = [of["batch"].user_B[0] for _, of in found[:1]]
    assert next(iter(live.batches)).user_B[0] == users[0]


def test_passes_are_the_same_and_a_draw_is_of_the_whole_log(
    dataset: Dataset, published: Trained, package: Path, bodies: list[dict[str, Any]], tmp_path: Path
) -> None:
    log = write(tmp_path / "log", [line(body) for body in bodies])
    live = traffic(dataset, package, log, most=30, per_batch=8)
    assert [batch.num_timelines for batch in live.batches] == [8, 8, 8, 6]
    first = scores(published, live.batches)
    with (log / "requests-1.jsonl").open("ab") as file:
        file.write(line(bodies[0]) * 5)
    again = scores(published, live.batches)
    assert all(np.array_equal(first[name], again[name]) for name in first), "what is appended has no part"
    times = {body["now"] for body in bodies[:30]}
    assert {int(second) for batch in live.batches for second in batch.moment_time_M} - times, "not the first 30 alone"


def test_labels_say_that_nothing_was_drawn_and_unknown_ids_are_row_0(
    dataset: Dataset, package: Path, bodies: list[dict[str, Any]], tmp_path: Path
) -> None:
    body = msgspec.json.decode(msgspec.json.encode(next(one for one in bodies if len(one["events"]["time"]) > 2)))
    body["events"]["brand"][0], body["events"]["tags"][0] = "no brand", ["tags-3", "no tag"]
    body["events"].pop("scenario")
    body["user"] = "nobody"
    body["candidates"]["dense"].pop("price")
    body["candidates"]["item"][0] = None
    (tmp_path / "one.jsonl").write_bytes(line(body))
    (batch,) = traffic(dataset, package, tmp_path / "one.jsonl").batches
    examples, tags = batch.groups["impression"], batch.event["tags"]
    count = len(body["candidates"]["item"])
    assert (batch.num_timelines, batch.num_moments, int(batch.user_B[0])) == (1, 1, 0)
    assert batch.moment_position_M.tolist() == batch.num_events_B.tolist() == [len(body["events"]["time"])]
    assert isinstance(tags, Jagged)
    assert (int(batch.event["brand"][0]), tags.values_N[:2].tolist()) == (0, [0, 3])  # type: ignore[index]
    assert not batch.property["scenario"].any()  # type: ignore[union-attr]
    assert int(examples.ids["item"][0]) == 0  # type: ignore[index]
    assert examples.dense_EF[:, 2].tolist() == [0.0] * count
    assert {name: label.tolist() for name, label in examples.labels.items()} == {
        "clicked": [0] * count, "weight": [1] * count, "draw": [0] * count, "rate_uniform": [0] * count,
        "rate_popularity": [0] * count,
    }  # fmt: skip
    assert [batch.groups[name].num_examples for name in ("price", "follow", "shop")] == [0, 0, 0]


def test_lines_that_cannot_be_traffic_are_counted_by_their_reason(
    dataset: Dataset, package: Path, bodies: list[dict[str, Any]], tmp_path: Path
) -> None:
    good = bodies[0]
    time = [good["now"] - 5, good["now"] - 9]
    odd = [
        good | {"now": "yesterday"}, good | {"events": {"time": time}}, good | {"events": {"time": [good["now"]]}},
        good | {"events": {"time": time[:1], "item": []}}, good | {"candidates": {"item": [1, 2], "shop": [1]}},
        good | {"candidates": {}}, good | {"candidates": {"item": [2**70]}},
        good | {"candidates": {"item": [1], "dense": {"price": ["dear"]}}},
    ]  # fmt: skip
    others = [line(good, EMBED), line({"user": 3, **{name: good[name] for name in ("group", "candidates")}}),
              line(good | {"group": "video"})]  # fmt: skip
    lines = [line(good), *map(line, odd), *others, b'{"at": 3, "ro\n', b"\xff\xfe\n", b"\n"]
    log = write(tmp_path / "log", lines)
    report = traffic(dataset, package, log).report
    assert (report.num_lines, report.num_requests) == (len(lines) - 1, 1)
    assert report.skipped == {UNREADABLE: len(odd) + 2, NO_CANDIDATES: 1, OF_A_VECTOR: 1, OTHER_GROUP: 1}
    log = write(tmp_path / "none", lines[1:])
    with pytest.raises(DataError, match=r"none of the 13 lines of audit.live_log=.* can be traffic \(10 line that"):
        traffic(dataset, package, log)


def test_normalisation_on_a_log_tells_what_scores_would_do_and_nothing_of_labels(
    dataset: Dataset, published: Trained, package: Path, bodies: list[dict[str, Any]], tmp_path: Path
) -> None:
    impressions = [body for body in bodies if body["group"] == "impression"]
    for body in impressions[::2]:
        body["candidates"]["dense"]["price"] = [50.0 for _ in body["candidates"]["dense"]["price"]]
    log = write(tmp_path / "log", list(map(line, impressions)))
    config = AuditConfig(reference_days=1, max_log_loss_cost=0.0, max_auc_cost=0.0)
    found = normalisation(
        published.model, dataset, dataset.days()[-1:], rank_spread=None, config=config,
        live=traffic(dataset, package, log).batches,
    )  # fmt: skip
    assert {one.task for one in found.effects} == {"ctr", "rank", "next_item"}, "nobody asked about follow"
    for one in found.effects:
        assert (one.observed_rate, one.auc_cost, one.log_loss_cost) == (None, None, None)
        assert set(msgspec.structs.asdict(one.learnt).values()) | set(msgspec.structs.asdict(one.live).values()) == {
            None
        }
        assert one.logit_rmse is not None
        assert one.psi is not None
    (ctr,) = (one for one in found.effects if (one.task, one.slice) == ("ctr", EVERYTHING))
    assert ctr.logit_rmse is not None
    assert ctr.logit_rmse > 0.01
    layers = {layer.name: layer for layer in found.layers}
    (standardize,) = (name for name in layers if name.startswith("ctr.standardize"))
    assert layers[standardize].drivers[0].name == "price"
    assert layers["ctr.head.activate.0"].drivers[0].name == "price", "against the days that are the sample"
    assert [layer.num_rows for layer in found.layers if layer.task == "follow"] == [0] * sum(
        layer.task == "follow" for layer in found.layers
    )
    assert next(layer.shift_p95 for layer in found.layers if layer.task == "follow") is None
    assert found.findings
    for finding in found.findings:
        assert finding.name.endswith("is not given what its layers have learnt")
        assert "AUC" not in finding.measured
        assert finding.remedy.startswith("what it costs cannot be told without labels")


def test_an_audit_and_a_repair_on_a_log_say_so(
    dataset: Dataset, published: Trained, package: Path, bodies: list[dict[str, Any]], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    log = write(tmp_path / "log", [line(bodies[0], EMBED), *map(line, bodies)])
    done: list[str] = []

    def publish(how: str) -> int:
        done.append(how)
        return 8

    def audited(live: LiveTraffic | None) -> Audited:
        return Audited(
            name="small", version=7, step=2, model=copy.deepcopy(published.model), dataset=dataset,
            training_days=dataset.days()[:1], rank_spread=0.0, sections={}, publish=publish, live=live,
        )  # fmt: skip

    first, last = dataset.days()
    config = AuditConfig(
        parts=[Part.normalisation, Part.calibration], reference_days=1, live_log=str(log), package=str(package),
        critical_calibration=1e6, max_auc_cost=1.0, max_log_loss_cost=1e6,
    )  # fmt: skip
    live = traffic(dataset, package, log)
    report = audit(audited(live), folder=tmp_path / "out", config=config)
    out = " ".join(capsys.readouterr().out.split())
    assert f"normalisation on {len(bodies)} of the {len(bodies) + 1} lines of {log}, of {last}; passed over: 1 " in out
    assert "calibration is left out: recorded requests have no labels" in out
    assert f"Normalisation against {len(bodies)} recorded requests of {last}" in out
    assert (report.traffic, report.num_timelines, report.log) == ("log", len(bodies), live.report)
    assert ("not seen" in out) == any(not layer.num_rows for layer in report.layers)
    assert list(report.parts) == ["normalisation"]
    assert (report.days, report.reference_days) == ((last,), (first,))
    assert msgspec.json.decode((tmp_path / "out" / REPORT).read_bytes(), type=AuditReport) == report
    mended = audit(audited(live), folder=tmp_path / "out", config=replace(config, fix=Fix.rebuild))
    assert done == [f"statistics of recorded requests of {last}, calibrated on {last}"]
    assert mended.repaired is not None
    assert mended.repaired.days == (last,)
    moved = {one.task: one.logit_rmse or 0.0 for one in mended.effects if one.slice == EVERYTHING}
    before = {one.task: one.logit_rmse or 0.0 for one in report.effects if one.slice == EVERYTHING}
    for name in ("ctr", "rank", "next_item"):
        assert moved[name] < 1e-4 < before[name], "the statistics are those of the log now"
    assert {one.task for one in mended.repaired.tasks} >= {"ctr", "rank"}
    assert mended.repaired.tasks[0].after.log_loss is not None, "on days, which have labels"


def test_a_log_without_what_it_needs_is_refused() -> None:
    with pytest.raises(ConfigError, match="audit.live_log=log needs audit.package=FOLDER, the one that answered"):
        AuditConfig(live_log="log")
    with pytest.raises(ConfigError, match="is the traffic of the part normalisation: have it in audit.parts"):
        AuditConfig(live_log="log", package="package", parts=[Part.calibration])
