"""What a server recorded, replayed: equal; and each way in which a request can differ is told by its name."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from stack.audits.findings import Level
from stack.audits.skew_config import SkewConfig
from stack.base.errors import ConfigError
from stack.data.batch import Batch
from stack.data.dataset import Dataset
from stack.data.loader import Loader
from stack.export.export import Trained
from stack.export.moments import by_moment
from stack.export.package import IdKind, Ids, read_manifest
from stack.export.requests import Asker
from stack.export.runner import Users
from stack.export.skew import NO_MOMENT, NO_USER, NOBODY, OF_A_VECTOR, UNREADABLE, SkewReport, cut, skew
from stack.export.skew_features import Coder, codes_of, side_by_side
from stack.export.skew_show import findings, html, tables
from stack.serve.client import ask, running_server
from stack.telemetry.console import show
from tests.audits.test_page import read
from tests.prepared import FIRST_ITEM, ITEM_FEATURES, write_prepared

CONFIG = SkewConfig()
Request = dict[str, Any]


def bodies(dataset: Dataset, package: Path) -> Iterator[Request]:
    """What an application would ask on the last day: impressions, and users alone; with the user's own id."""
    manifest = read_manifest(package)
    asker = Asker(dataset, manifest.schema)
    batch: Batch
    for batch in Loader(dataset, days=dataset.days()[-1:], global_batch_size=8, shuffle=False, num_prefetch=0):
        for moment, example_E in by_moment(batch.groups["impression"])[:6]:
            user = asker.raw_ids("user", [int(batch.user_B[batch.moment_row_M[moment]])])[0]
            one = asker.request(batch, moment, manifest.max_events) | {"user": user}
            yield one
            yield one | asker.candidates(batch, example_E, "impression")


@pytest.fixture(scope="module")
def log(dataset: Dataset, package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recorded by a real server of two workers."""
    folder = tmp_path_factory.mktemp("skew") / "log"
    options = [f"serve.record={folder}", "serve.record_share=1", "serve.workers=2", "serve.cache=none"]
    with running_server(package, options=options) as server:
        for body in bodies(dataset, package):
            ask(server.address, "/v1/items:score" if "group" in body else "/v1/users:embed", body)
    return folder


@pytest.fixture(scope="module")
def lines(log: Path) -> list[Request]:
    found = [msgspec.json.decode(line) for file in sorted(log.iterdir()) for line in file.read_bytes().splitlines()]
    return sorted(found, key=lambda one: (one["body"]["now"], one["route"]))


@pytest.fixture
def replayed(lines: list[Request], published: Trained, package: Path, tmp_path: Path) -> Callable[..., SkewReport]:
    """The log again after something was done to the requests that a condition picks."""

    def run(change: Callable[[Request], object], *, num: int = 1, config: SkewConfig = CONFIG) -> SkewReport:
        changed = copy.deepcopy(lines)
        scored = [one["body"] for one in changed if "group" in one["body"]]
        # with events enough to lose some, and a profile
        picked = [one for one in scored if len(one["events"]["time"]) > 3 and None not in one["profile"].values()]
        for body in picked[:num]:
            change(body)
        (tmp_path / "requests.jsonl").write_bytes(b"\n".join(map(msgspec.json.encode, changed)))
        return skew(published, package=package, log=tmp_path, config=config)

    return run


def test_what_a_server_answered_is_what_training_sees(log: Path, published: Trained, package: Path) -> None:
    report = skew(published, package=package, log=log, config=CONFIG)
    assert report.num_recorded == report.num_compared == report.num_equal >= 24
    assert report.skipped == {}
    assert report.exact_rows
    assert [one.num_different for one in report.features] == [0] * len(report.features)
    assert {"now", "events", "events.time", "events.tags", "events.type", "profile.age",
            "candidates.impression.item", "candidates.impression.dense.price"} <= {
        one.name for one in report.features if one.num_values
    }  # fmt: skip
    by_name = {one.name: one for one in report.scores}
    assert set(by_name) == {"vector", "ctr", "rank", "next_item"}
    for one in by_name.values():
        assert one.num_equal == one.num_values > 0
        assert one.num_off == 0
        assert one.from_package is not None
        assert one.from_trained is not None
        assert max(one.from_package, one.from_trained) <= 1e-5
    assert findings(report, CONFIG) == []


def _events(change: Callable[[Request], object]) -> Callable[[Request], object]:
    return lambda body: change(body["events"])


def _drop(events: Request, place: int) -> None:
    for column in events.values():
        del column[place]


def _set(column: list[Any], place: int, value: object) -> None:
    column[place] = value


@pytest.mark.parametrize(
    ("change", "feature", "kind", "remedy"),
    [
        (_events(lambda it: _drop(it, -2)), "events", "missing", "look how late events reach whoever asks"),
        (_events(lambda it: [_drop(it, 0), _drop(it, 0)]), "events", "older missing", "send more history"),
        (_events(lambda it: [column.insert(0, column[0] if name != "time" else 5) for name, column in it.items()]),
         "events", "extra", "look for events that the log drops"),
        (_events(lambda it: _set(it["time"], -1, it["time"][-1] - 1)), "events.time", "shifted", "compare clocks"),
        (_events(lambda it: _set(it["type"], 1, "type-1" if it["type"][1] != "type-1" else "type-2")),
         "events.type", "other value", "compute it in one place"),
        (_events(lambda it: _set(it["brand"], 0, "Brand-1")), "events.brand", "unknown id", "code ids as the log does"),
        (_events(lambda it: it.pop("scenario")), "events.scenario", "not sent", "send it"),
        (_events(lambda it: it["tags"][0].append("tags-29")), "events.tags", "other value", "compute it in one place"),
        (lambda body: body["profile"].update(income="income-7x"), "profile.income", "unknown id", "code ids as"),
        (lambda body: body["candidates"]["dense"]["price"].__setitem__(0, 1.5),
         "candidates.impression.dense.price", "other value", "compute it in one place"),
        (lambda body: body["candidates"]["dense"].pop("item_count"), "candidates.impression.dense.item_count",
         "not sent", "send it"),
        (lambda body: body["candidates"]["shop"].__setitem__(0, "SHOP"), "candidates.impression.shop", "unknown id",
         "code ids as the log does"),
        (lambda body: body["candidates"]["item"].__setitem__(0, "item-x"), "candidates.impression.item", "missing",
         "look how late"),
    ],
)  # fmt: skip
def test_each_way_to_differ_is_named(
    replayed: Callable[..., SkewReport], change: Callable[[Request], object], feature: str, kind: str, remedy: str
) -> None:
    report = replayed(change)
    different = {one.name: one for one in report.features if one.num_different}
    assert list(different) == [feature], "and no other"
    assert list(different[feature].kinds) == [kind]
    assert (different[feature].num_requests, different[feature].num_first) == (1, 1)
    assert report.num_equal == report.num_compared - 1
    (found,) = findings(report, replace(CONFIG, critical_share=0.2))
    assert found.level is Level.warning
    assert found.name == f"feature {feature} is not served as training sees it"
    assert found.remedy.startswith(remedy)


def test_a_feature_that_differs_in_many_requests_stops_a_release(replayed: Callable[..., SkewReport]) -> None:
    def hour_later(body: Request) -> None:
        body["events"]["time"] = [second + 3600 for second in body["events"]["time"]]

    report = replayed(hour_later, num=4)
    (time,) = (one for one in report.features if one.num_different)
    assert (time.name, time.num_requests, time.shift_seconds) == ("events.time", 4, 3600.0)
    (found,) = findings(report, CONFIG)
    assert found.level is Level.critical
    assert "differs in 4 of" in found.measured
    assert "shifted by +3,600 s)" in found.measured


def test_requests_are_joined_within_seconds_where_that_is_asked_for(replayed: Callable[..., SkewReport]) -> None:
    def late(body: Request) -> None:
        body["now"] += 2

    strict = replayed(late)
    assert strict.skipped == {NO_MOMENT: 1}
    near = replayed(late, config=replace(CONFIG, within_seconds=3))
    assert near.skipped == {}
    (now,) = (one for one in near.features if one.num_different)
    assert (now.name, now.kinds, now.shift_seconds) == ("now", {"shifted": 1}, 2.0)


def test_another_answer_to_equal_features_is_critical_and_one_of_other_rows_is_not_compared(
    lines: list[Request], published: Trained, package: Path, tmp_path: Path
) -> None:
    changed = copy.deepcopy(lines)
    scored = [one for one in changed if "group" in one["body"]]
    scored[0]["answer"]["scores"]["ctr"][0] += 1e-3
    scored[1]["answer"]["scores"]["ctr"][0] += 1e-3
    scored[1]["num_deltas"] = 1
    scored[2]["package"] = "another"
    (tmp_path / "requests.jsonl").write_bytes(b"\n".join(map(msgspec.json.encode, changed)))
    report = skew(published, package=package, log=tmp_path / "requests.jsonl", config=CONFIG)
    assert report.num_other_package == 2
    assert report.num_equal == report.num_compared
    (ctr,) = (one for one in report.scores if one.num_off)
    assert (ctr.name, ctr.num_off) == ("ctr", 1)
    assert ctr.from_package == pytest.approx(1e-3, rel=0.02)
    (found,) = findings(report, CONFIG)
    assert found.level is Level.critical
    assert found.line.startswith("ctr is served otherwise though all features are equal: 1 of ")


def test_what_cannot_be_replayed_is_counted_by_its_reason(
    lines: list[Request], published: Trained, package: Path, tmp_path: Path
) -> None:
    odd = [copy.deepcopy(lines[0]) for _ in range(4)]
    odd[0]["body"] = {"user": "user-3", "query": {}}
    odd[1]["body"] = {name: value for name, value in odd[1]["body"].items() if name != "user"}
    odd[1]["body"]["profile"].pop("user", None)
    odd[2]["body"] |= {"user": "nobody", "profile": {}}
    odd[3]["body"]["now"] -= 86_400 * 400
    text = b"\n".join([*map(msgspec.json.encode, odd), b'{"at": 3, "ro', b""])
    (tmp_path / "requests.jsonl").write_bytes(text)
    report = skew(published, package=package, log=tmp_path, config=CONFIG)
    assert report.skipped == {OF_A_VECTOR: 1, NOBODY: 1, NO_USER: 1, UNREADABLE: 1, NO_MOMENT: 1}
    assert (report.num_recorded, report.num_compared) == (5, 0)
    (found,) = findings(report, CONFIG)
    assert found.level is Level.warning
    assert found.name == "no recorded request could be replayed"
    first = skew(published, package=package, log=tmp_path, config=replace(CONFIG, requests=2))
    assert first.skipped == {OF_A_VECTOR: 1, NOBODY: 1}


def test_the_report_is_shown_told_and_can_be_read_back(
    replayed: Callable[..., SkewReport], capsys: pytest.CaptureFixture[str]
) -> None:
    report = replayed(lambda body: body["profile"].update(age=None))
    assert msgspec.json.decode(msgspec.json.encode(report), type=SkewReport) == report
    for shown in tables(report):
        show(shown)
    out = capsys.readouterr().out
    assert "Recorded requests against prepared data" in out
    assert "Answers served, and said of prepared data" in out
    reader = read(html(report))
    assert "1 not sent" in reader.text
    assert not any("user-" in said or "item-" in said for said in reader.text), "no ids"


def test_events_are_brought_side_by_side() -> None:
    """The second at 5 is missing, that at 9 was told 1 too early, 7 is extra, 1 is before all that was sent."""
    time, codes = [3, 5, 7, 8], [(1,), (2,), (4,), (5,)]
    pairs = side_by_side(time, codes, [1, 3, 5, 5, 9], [(9,), (1,), (3,), (2,), (5,)])
    assert sorted(pairs.places) == [(0, 1), (1, 3), (3, 4)]
    assert pairs.shifts == [-1]
    assert (pairs.num_missing, pairs.num_older, pairs.num_extra) == (1, 1, 1)
    assert side_by_side([], [], [4], [(1,)]).num_missing == 1
    swapped = side_by_side([3, 3], [(1,), (2,)], [3, 3], [(2,), (1,)])
    assert swapped.places == [(0, 0), (1, 1)], "order at one second matters to an encoder, and is compared"


def test_ids_without_a_vocabulary_are_compared_by_their_keys(tmp_path: Path) -> None:
    dataset = Dataset(write_prepared(tmp_path / "prepared", num_days=1, num_users=6, raw_ids=True))
    coder = Coder(dataset, {"item": Ids(kind=IdKind.key, text=False), "brand": Ids(kind=IdKind.key, text=True),
                            "tags": Ids(kind=IdKind.key, text=True)})  # fmt: skip
    (batch,) = Loader(dataset, days=dataset.days(), global_batch_size=60, shuffle=False, num_prefetch=0)
    some = np.arange(5)
    row_N = batch.event["item"][:5].numpy() - FIRST_ITEM
    item, brand, tags = (next(one for one in ITEM_FEATURES if one.name == name) for name in ("item", "brand", "tags"))
    assert coder.column(item, (FIRST_ITEM + row_N).tolist(), 5)[0] == codes_of(batch.event["item"], some)
    texts = [f"brand-{1 + row % 19}" for row in row_N.tolist()]
    assert coder.column(brand, texts, 5)[0] == codes_of(batch.event["brand"], some)
    bags = [[f"tags-{1 + row % 7}", f"tags-{1 + row % 29}"] for row in row_N.tolist()]
    assert coder.column(tags, bags, 5)[0] == codes_of(batch.event["tags"], some), "in whatever order"
    assert coder.column(brand, [None, "brand-3"], 2)[1] == [False, True]
    assert coder.column(item, None, 2) == ([0, 0], [False, False])
    odd = coder.column(item, ["17", True, [3]], 4)
    assert odd == ([0, 0, 0, 0], [True, True, True, False]), "of another kind is unknown, and what is short not sent"
    assert coder.column(tags, [["tags-1"], "tags-1"], 2)[0] == [(1,), ()]


def test_timelines_that_are_longer_than_a_request_are_cut_at_their_beginning() -> None:
    users = Users(
        event={}, property={}, event_time_T=np.arange(10),
        event_index_BL=np.array([[0, 1, 2, 3, 4], [5, 6, 10, 10, 10]]),
        num_events_B=np.array([5, 2]), profile={}, query={}, now_B=np.array([9, 9]),
    )  # fmt: skip
    shorter = cut(users, 3)
    assert shorter.event_index_BL is not None
    assert shorter.event_index_BL.tolist() == [[2, 3, 4], [5, 6, 10]]
    assert shorter.num_events_B.tolist() == [3, 2]
    assert cut(users, 5) is users


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"tolerance": -1.0}, "audit.skew.tolerance=-1.0 must be 0 or more"),
        ({"critical_share": 2.0}, "audit.skew.critical_share=2.0 must be a share, from 0 to 1"),
        ({"requests": 0}, "audit.skew.requests=0 must be at least 1"),
    ],
)
def test_limits_that_cannot_be_are_refused(changed: dict[str, float], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        replace(CONFIG, **changed)
