"""Nothing at or after a moment reaches what its examples see; and the check finds leaks that are planted."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ibis.expr.types import Table

from stack.data import coding, features, follow, timeline
from tests.data.test_ingest import FIRST, ITEMS, read_day, run
from tests.data.tiny_log import Rows, write_log
from tests.data.tiny_oracle import DAY

Log = dict[str, Rows]


def log_of(seed: int) -> Log:
    """Three days: on the first everybody and everything, so that ids have the same rows whatever comes later."""
    rng = random.Random(seed)

    def event(day: int, second: int, **more: Any) -> dict[str, Any]:
        return {
            "user": rng.randrange(10, 14), "item": f"i{rng.randrange(12)}", "time": (FIRST + day) * DAY + second,
            "shop": rng.choice(["s1", "s2"]), "type": rng.choice(["buy", "view"]),
            "scenario": "plain", "price": round(rng.uniform(1, 5), 2), **more,
        }  # fmt: skip

    events = [event(0, k, user=10 + k % 4, item=f"i{k}", type=("buy", "view")[k % 2]) for k in range(12)]
    events += [event(0, 90 + k, shop=f"s{k}", type=("view", "buy")[k % 2]) for k in (1, 2)]
    # a few seconds for all, the last of the day among them: many fall on the very second of a moment
    seconds = [0, 1000, 2000, 3000, DAY - 1]
    events += [event(day, rng.choice(seconds), item=f"i{k % 12}") for day in (1, 2) for k in range(14)]
    visits = [
        {"user": user, "time": (FIRST + day) * DAY + second, "shop": "s1"}
        for day in (1, 2) for user in range(10, 14) for second in seconds
    ]  # fmt: skip
    offers = [
        {"user": user, "time": (FIRST + day) * DAY + second, "icon": icon, "responded": float(rng.random() < 0.5)}
        for day in (1, 2) for user in range(10, 14) for icon in ("k", "l") for second in (1000, 3000, DAY - 1)
    ]  # fmt: skip
    users = [{"user": 10 + k % 4, "since": since * DAY, "age": rng.choice(["old", "young"])}
             for k, since in enumerate([0] * 4 + [FIRST + 1] * 4 + [FIRST + 2] * 4)]  # fmt: skip
    users += [{"user": user, "since": 0, "age": age} for user, age in ((20, "old"), (21, "young"))]
    items = ITEMS[:12] + [
        {"item": f"i{k}", "since": (FIRST + day) * DAY + rng.choice(seconds), "brand": f"b{rng.randrange(4)}",
         "category": f"c{rng.randrange(3)}", "tags": [f"t{rng.randrange(4)}"]}
        for k, day in enumerate([1] * 6 + [2] * 6)
    ]  # fmt: skip
    events += [event(0, 200 + k, user=user, item=f"i{k}", type="view") for k, user in enumerate((20, 21))]
    return {"events": events, "items": items, "users": users, "follow": offers, "visits": visits}


def changed(log: Log, other: Log, time: int) -> Log:
    """`log` with all that happens or becomes valid at or after `time` taken from `other`.

    Visits stay: that a user is there is known at the moment itself. So do offers, but not what came of them.
    """
    result: Log = {"visits": log["visits"]}
    for name, when in (("events", "time"), ("items", "since"), ("users", "since"), ("follow", "time")):
        later = [row for row in other[name] if row[when] >= time and name != "users"]
        later += [{**row, "age": "old"} for row in log[name] if row[when] >= time and name == "users"]
        result[name] = [row for row in log[name] if row[when] < time] + later
    return result


def seen(row: dict[str, Any], time: int) -> dict[str, Any]:
    """All of a timeline that belongs to moments before `time`; of a moment at `time` what is no example of it."""
    moments = row["moment_time"]
    before, reached = sum(one < time for one in moments), sum(one <= time for one in moments)
    history = row["moment_position"][reached - 1] if reached else 0
    kept: dict[str, Any] = {}
    for name, values in row.items():
        group = name.split("_")[0]
        if name.startswith("event_"):
            kept[name] = values[:history]
        elif name.startswith(("moment_", "query_")):
            kept[name] = values[:reached]
        elif f"{group}_moment" in row:
            places = [place for place, moment in enumerate(row[f"{group}_moment"]) if moment < before]
            width = len(values) // max(len(row[f"{group}_moment"]), 1) if name.endswith("_dense") else 1
            kept[name] = [values[place * width : (place + 1) * width] for place in places]
        else:
            kept[name] = values
    return kept


def assert_no_leak(folder: Path, seed: int, time: int, **options: Any) -> None:
    log = log_of(seed)
    for name, rows in (("a", log), ("b", changed(log, log_of(seed + 1), time))):
        run(write_log(folder / name / "log", **rows), folder / name / "out", **options)  # type: ignore[arg-type]
    num_examples = 0
    for day in range(FIRST, time // DAY + 1):
        a, b = ({row["user"]: row for row in read_day(folder / name / "out", day)} for name in ("a", "b"))
        for user, row in a.items():
            if any(moment <= time for moment in row["moment_time"]):
                first, second = seen(row, time), seen(b[user], time)
                wrong = [name for name in first if first[name] != second[name]]
                assert not wrong, f"day {day - FIRST}, user {user}: {wrong}"
                num_examples += sum(len(first[f"{group}_moment"]) for group in ("impression", "follow", "shop"))
    assert num_examples


@settings(max_examples=2, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 10**6), day=st.integers(1, 2), second=st.sampled_from([1000, 3000, DAY - 1]))
def test_what_happens_at_a_moment_or_later_changes_nothing_that_it_sees(
    tmp_path_factory: pytest.TempPathFactory, seed: int, day: int, second: int
) -> None:
    assert_no_leak(tmp_path_factory.mktemp("leak"), seed, (FIRST + day) * DAY + second)


def test_nothing_later_is_seen_where_ids_have_no_vocabulary_either(tmp_path: Path) -> None:
    """Brands keep theirs, whose first days then come of the days on which items are at hand."""
    assert_no_leak(tmp_path, 11, (FIRST + 2) * DAY + 1000, raw_ids=["item", "category", "tags", "icon", "age"])


def at_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions count the events at the moment's own second."""

    class Shifted:
        event_time: Any = None

        def __getattr__(self, name: str) -> Any:
            return getattr(np, name)

        def searchsorted(self, keys: Any, values: Any, side: str = "left") -> Any:
            return np.searchsorted(keys, values, "right" if keys is self.event_time else side)

    shifted = Shifted()
    original = timeline.Cutter._moments

    def moments(self: Any, *arguments: Any) -> Any:
        shifted.event_time = self._event_time
        return original(self, *arguments)

    monkeypatch.setattr(timeline, "np", shifted)
    monkeypatch.setattr(timeline.Cutter, "_moments", moments)


def same_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranking features and those of offers count the moment's own day."""
    for module in (features, follow):
        original = module.as_of

        def early(*, facts: Table, original: Any = original, **more: Any) -> Table:
            result: Table = original(facts=facts.mutate(day=(facts["day"] - 1).cast("int32")), **more)
            return result

        monkeypatch.setattr(module, "as_of", early)


def tomorrows_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """Side information of items is that of a day later."""
    original = coding.as_of

    def later(table: Table, side: Table, key: str, *, dated: bool) -> Table:
        side = side.mutate(since=side["since"] - DAY, until=side["until"] - DAY)
        return original(table, side, key, dated=dated)

    monkeypatch.setattr(coding, "as_of", later)


@pytest.mark.parametrize(
    ("plant", "column"),
    [
        (at_the_moment, "day 1, .*'moment_position'"),
        (same_day, "day 1, .*'impression_dense', 'follow_dense'"),
        (tomorrows_items, "day 1, .*'impression_brand', 'impression_category', 'impression_tags'"),
    ],
)
def test_the_check_finds_a_planted_leak(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, plant: Any, column: str
) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError, match=column):
        assert_no_leak(tmp_path, 3, (FIRST + 1) * DAY + 3000)
