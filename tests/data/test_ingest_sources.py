"""Ingest of logs with real impressions, shops of items, dated profiles and visits: examples and counts by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from stack.data.days import day_name
from stack.data.ingest_report import IngestReport
from stack.data.layout import DayManifest
from tests.data.test_ingest import FIRST, read_day, run, words
from tests.data.tiny_log import Rows, write_log
from tests.data.tiny_oracle import DAY

START = FIRST * DAY
ITEMS: Rows = [
    {"item": "a", "since": 0, "brand": "x", "category": "c", "tags": [], "shop": "own"},
    {"item": "b", "since": 0, "brand": "y", "category": "c", "tags": [], "shop": None},
    {"item": "b", "since": 0, "brand": "z", "category": "c", "tags": [], "shop": None},
    {"item": None, "since": 0, "brand": "z", "category": "c", "tags": [], "shop": None},
    {"item": None, "since": None, "brand": "z", "category": "c", "tags": [], "shop": None},
    {"item": "b", "since": None, "brand": "later", "category": "c", "tags": [], "shop": "later"},
]
USERS: Rows = [
    {"user": 1, "since": 0, "age": "young"},
    {"user": 1, "since": START + DAY, "age": "old"},
    {"user": 1, "since": START + 2 * DAY + 1, "age": "older"},
]
EVENTS: Rows = [
    {"user": 1, "item": item, "time": START + day * DAY + 50, "shop": shop, "type": "buy", "price": 1.0}
    for day in range(3) for item, shop in (("a", None), ("b", "s"))
]  # fmt: skip
FOLLOW: Rows = [
    {"user": user, "time": time, "icon": "k", "responded": 1.0}
    for user, time in ((1, START + 60), (None, START + 60), (1, None))
]  # fmt: skip
SHOWN: Rows = [
    {"user": user, "time": time, "item": item, "shop": "s", "clicked": clicked, "weight": weight}
    for user, time, item, clicked, weight in (
        (1, START + 100, "a", 1.0, 2.0), (1, START + 100, "b", 0.0, 1.0), (1, START + 100, "b", 1.0, 3.0),
        (1, START + DAY + 100, "b", 0.0, 1.0), (None, START + 100, "a", 1.0, 1.0), (1, None, "a", 1.0, 1.0),
    )
]  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, IngestReport]:
    from tests.data.tiny_log import registered

    folder = tmp_path_factory.mktemp("shown")
    log = write_log(folder / "log", events=EVENTS, items=ITEMS, users=USERS, follow=FOLLOW, impressions=SHOWN)
    with registered():
        report = run(log, folder / "out")
    return folder / "out", report


def only(out: Path, day: int) -> dict[str, Any]:
    (row,) = read_day(out, FIRST + day)
    return row


def test_real_impressions_are_the_examples_with_their_labels(prepared: tuple[Path, IngestReport]) -> None:
    out, _ = prepared
    items, row = words(out, "item"), only(out, 0)
    assert row["moment_time"] == [START + 60, START + 100]
    found = zip(*(row[f"impression_{name}"] for name in ("moment", "item", "clicked", "weight", "draw")), strict=True)
    assert sorted(found) == [(1, items["a"], 1.0, 2.0, 0.0), (1, items["b"], 1.0, 3.0, 0.0)]
    assert row["impression_rate_uniform"] == row["impression_rate_popularity"] == [0.0, 0.0]
    assert only(out, 1)["impression_item"] == [items["b"]]
    assert only(out, 2)["moment_time"] == []


def test_an_unknown_shop_is_that_of_the_item(prepared: tuple[Path, IngestReport]) -> None:
    out, _ = prepared
    shops, items, row = words(out, "shop"), words(out, "item"), only(out, 0)
    assert dict(zip(row["event_item"], row["event_shop"], strict=True)) == {
        items["a"]: shops["own"], items["b"]: shops["s"],
    }  # fmt: skip
    assert dict(zip(row["impression_item"], row["impression_shop"], strict=True)) == {
        items["a"]: shops["own"], items["b"]: 0,
    }  # fmt: skip


def test_side_information_from_an_unknown_time_on_is_not_used(prepared: tuple[Path, IngestReport]) -> None:
    assert set(words(prepared[0], "brand")) == {"x", "y"}


def test_a_profile_is_the_one_that_was_valid_when_the_day_began(prepared: tuple[Path, IngestReport]) -> None:
    out, _ = prepared
    ages = {row: age for age, row in words(out, "age").items()}
    assert [ages[only(out, day)["profile_age"]] for day in range(3)] == ["young", "old", "old"]


def test_rows_not_used_are_counted_by_table_and_reason(prepared: tuple[Path, IngestReport]) -> None:
    out, report = prepared
    assert report.num_side_rows == {"impressions": 6, "follow": 3, "items": 6, "users": 3}
    assert report.dropped == {
        "impressions_without_user": 1, "impressions_without_time": 1, "follow_without_user": 1,
        "follow_without_time": 1, "items_without_item": 2, "items_without_since": 1, "items_repeated": 1,
    }  # fmt: skip
    file = out / "days" / day_name(FIRST) / "manifest.json"
    manifest = msgspec.json.decode(file.read_bytes(), type=DayManifest)
    assert manifest.num_source_rows == {"events": 2, "impressions": 4, "follow": 2}
    assert manifest.dropped == {"impressions_without_user": 1, "follow_without_user": 1}
