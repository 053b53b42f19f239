"""Ranking features against a slow loop over the log, and their state against any chunking."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import ibis
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ibis.backends import BaseBackend
from ibis.expr.types import Table

from stack.data.features import (
    RECENT_DAYS,
    STATE,
    advance,
    dense_names,
    item_days,
    level_as_of,
    popularity,
    ranking_features,
)

Row = dict[str, Any]
Rows = list[Row]
ALL = dense_names(price=True, discounted=True, shop=True, brand=True, category=True, context=("display",))
EVENTS = {
    "user": "int64", "item": "int64", "shop": "int64", "brand": "int64", "category": "int64", "day": "int32",
    "price": "float64", "discounted": "int64", "positive": "boolean",
}  # fmt: skip
EXAMPLES = {
    "moment_id": "int64", "draw": "int64", "user": "int64", "item": "int64", "shop": "int64", "brand": "int64",
    "category": "int64", "day": "int32", "display": "int8",
}  # fmt: skip
FIRST_DAY = 17_000


@pytest.fixture(scope="module")
def backend() -> BaseBackend:
    return ibis.duckdb.connect(threads=1)


def table(rows: Rows, types: dict[str, str]) -> Table:
    schema = ibis.schema(types)
    return ibis.memtable(rows or schema.to_pyarrow().empty_table(), schema=schema)


def keeper(backend: BaseBackend) -> Callable[[str, Table], Table]:
    return lambda name, expression: backend.create_table(name, expression, overwrite=True)


def empty_state() -> dict[str, Table]:
    return {name: table([], dict(schema.items())) for name, schema in STATE.items()}


def brand_of(item: int) -> int:
    return 1 + item % 2


def category_of(item: int) -> int:
    return item % 3


@st.composite
def logs(draw: st.DrawFn) -> tuple[Rows, Rows]:
    """Up to 200 events of 4 users and 7 items within 40 days, and 60 candidates on those days.

    One drawn seed makes them all: a run of the features costs a second, whatever the size of the log.
    """
    rng = random.Random(draw(st.integers(0, 2**32)))

    def row() -> Row:
        item = rng.randint(1, 7)
        return {
            "user": rng.randint(1, 4), "item": item, "shop": rng.randint(1, 2), "brand": brand_of(item),
            "category": category_of(item), "day": FIRST_DAY + rng.randint(0, 40),
        }  # fmt: skip

    prices = (None, 0.0, 0.333333, 1.25, 7.99)
    events = [
        row() | {"price": rng.choice(prices), "discounted": rng.randint(0, 1), "positive": rng.random() < 0.7}
        for _ in range(draw(st.integers(0, 200)))
    ]
    examples = [row() | {"moment_id": n, "draw": rng.randint(0, 2), "display": rng.randint(0, 1)} for n in range(60)]
    return events, examples


def oracle(events: Rows, example: Row) -> list[float]:
    """One candidate's features by loops over the log."""
    day = example["day"]
    past = [event for event in events if event["positive"] and event["day"] < day]

    def having(*names: str) -> Rows:
        return [event for event in past if all(event[name] == example[name] for name in names)]

    def log_count(rows: Rows) -> float:
        return math.log(1 + len(rows))

    def share(rows: Rows, of: Rows) -> float:
        return len(rows) / len(of) if of else 0.0

    def freshness(rows: Rows) -> float:
        return 28 / (27 + day - max(row["day"] for row in rows)) if rows else 0.0

    def mean_price(rows: Rows) -> float | None:
        units = [math.floor(row["price"] * 10_000 + 0.5) for row in rows if row["price"] is not None]
        return sum(units) / len(units) / 10_000 if sum(units) else None

    def log_ratio(over: Rows, under: Rows) -> float:
        above, below = mean_price(over), mean_price(under)
        return 0.0 if above is None or below is None else math.log(above / below)

    item, user, brand, category = having("item"), having("user"), having("brand"), having("category")
    own_item, own_brand, own_category = having("user", "item"), having("user", "brand"), having("user", "category")
    values = {
        "item_count": log_count(item),
        "item_recent_count": log_count([row for row in item if row["day"] >= day - RECENT_DAYS]),
        "item_freshness": freshness(item),
        "item_age": math.log(1 + day - min(row["day"] for row in item)) if item else 0.0,
        "user_item_count": log_count(own_item),
        "user_item_freshness": freshness(own_item),
        "user_count": log_count(user),
        "shop_item_count": log_count(having("shop", "item")),
        "user_shop_share": share(having("user", "shop"), user),
        "brand_count": log_count(brand),
        "user_brand_count": log_count(own_brand),
        "user_brand_share": share(own_brand, user),
        "user_brand_freshness": freshness(own_brand),
        "category_count": log_count(category),
        "user_category_count": log_count(own_category),
        "user_category_share": share(own_category, user),
        "user_category_freshness": freshness(own_category),
        "user_item_share": share(own_item, own_category),
        "price": math.log(1 + (mean_price(item) or 0.0)),
        "cheaper_than_category": log_ratio(category, item),
        "price_near_user": -abs(log_ratio(item, user)),
        "discount_share": share([row for row in item if row["discounted"]], item),
        "display": float(example["display"]),
    }
    return [values[name] for name in ALL]


def features_of(
    backend: BaseBackend, examples: Rows, events: Rows, state: dict[str, Table], names: tuple[str, ...] = ALL
) -> dict[int, list[float]]:
    """The features by moment_id."""
    added = ranking_features(
        examples=table(examples, EXAMPLES), events=table(events, EVENTS), state=state, names=names, keep=keeper(backend)
    )
    rows = backend.to_pyarrow(added).to_pylist()
    assert len(rows) == len(examples)
    return {row["moment_id"]: [row[name] for name in names] for row in rows}


def chunked(backend: BaseBackend, events: Rows, cuts: list[int]) -> Iterator[tuple[int, int, Rows, dict[str, Table]]]:
    """First day (included), last day, events and state at the start, of the chunks that `cuts` make."""
    state = empty_state()
    for first, end in pairwise([FIRST_DAY, *cuts, FIRST_DAY + 41]):
        inside = [event for event in events if first <= event["day"] < end]
        yield first, end - 1, inside, state
        after = advance(events=table(inside, EVENTS), state=state, last_day=end - 1, pool_days=5)
        state = {name: ibis.memtable(backend.to_pyarrow(rows.select(*STATE[name]))) for name, rows in after.items()}


slow = settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@slow
@given(log=logs())
def test_features_equal_loops_over_the_log(backend: BaseBackend, log: tuple[Rows, Rows]) -> None:
    events, examples = log
    found = features_of(backend, examples, events, empty_state())
    for example in examples:
        assert found[example["moment_id"]] == pytest.approx(oracle(events, example), rel=1e-9, abs=1e-12), ALL


@slow
@given(log=logs(), cuts=st.lists(st.integers(FIRST_DAY + 1, FIRST_DAY + 40), max_size=2, unique=True).map(sorted))
def test_chunks_do_not_change_features(backend: BaseBackend, log: tuple[Rows, Rows], cuts: list[int]) -> None:
    events, examples = log
    whole = features_of(backend, examples, events, empty_state())
    for first, last, inside, state in chunked(backend, events, cuts):
        asked = [example for example in examples if first <= example["day"] <= last]
        if asked:
            found = features_of(backend, asked, inside, state)
            assert found == {place: whole[place] for place in found}


@slow
@given(log=logs())
def test_nothing_of_the_day_or_after_enters(backend: BaseBackend, log: tuple[Rows, Rows]) -> None:
    events, examples = log
    day = examples[0]["day"]
    asked = [example for example in examples if example["day"] == day]
    past = [event for event in events if event["day"] < day]
    assert features_of(backend, asked, events, empty_state()) == features_of(backend, asked, past, empty_state())


@pytest.fixture(scope="module")
def days_of_sales() -> Rows:
    """Item 1 is sold on days 0, 10, 10 and 39, item 2 on day 12; an event that is not positive on day 11."""
    sales = [(0, 1, True), (10, 1, True), (10, 1, True), (39, 1, True), (12, 2, True), (11, 2, False)]
    return [
        {"user": 1, "item": item, "shop": 1, "brand": 1, "category": 7, "day": FIRST_DAY + day, "price": 2.5,
         "discounted": 0, "positive": positive}
        for day, item, positive in sales
    ]  # fmt: skip


def test_popularity_counts_strictly_earlier_days(backend: BaseBackend, days_of_sales: Rows) -> None:
    days = table([{"day": FIRST_DAY + day} for day in (0, 10, 11, 40)], {"day": "int32"})
    expected = {(10, 1): 1, (11, 1): 3, (40, 1): 4, (40, 2): 1}
    for first, _, inside, state in chunked(backend, days_of_sales, [FIRST_DAY + 40]):
        counts = popularity(events=table(inside, EVENTS), state=state, days=days.filter(days["day"] >= first))
        rows = backend.to_pyarrow(counts).to_pylist()
        found = {(row["day"] - FIRST_DAY, row["item"]): row["count"] for row in rows}
        assert found == {key: count for key, count in expected.items() if key[0] + FIRST_DAY >= first}


def test_items_of_days_reach_back_through_the_state(backend: BaseBackend, days_of_sales: Rows) -> None:
    *_, (_, _, inside, state) = chunked(backend, days_of_sales, [FIRST_DAY + 15])
    rows = backend.to_pyarrow(item_days(events=table(inside, EVENTS), state=state)).to_pylist()
    # the state keeps days 10 to 14 (pool_days=5 before day 15); events that are not positive count as well
    assert {(row["day"] - FIRST_DAY, row["item"]) for row in rows} == {(10, 1), (11, 2), (12, 2), (39, 1)}


def test_a_level_gives_sums_of_money_as_whole_numbers(backend: BaseBackend, days_of_sales: Rows) -> None:
    asked = [{"category": category, "day": FIRST_DAY + 11} for category in (7, 8)]
    keys = table(asked, {"category": "int64", "day": "int32"})
    sums = level_as_of("category", keys=keys, events=table(days_of_sales, EVENTS), state=empty_state())
    found = {row["category"]: row for row in backend.to_pyarrow(sums).to_pylist()}
    assert found[7] == {"category": 7, "day": FIRST_DAY + 11, "count": 3, "priced": 3, "spent": 75_000}
    assert found[8] == {"category": 8, "day": FIRST_DAY + 11, "count": 0, "priced": 0, "spent": 0}


def test_the_state_has_one_row_for_each_key_and_those_that_expire(backend: BaseBackend, days_of_sales: Rows) -> None:
    after = advance(events=table(days_of_sales, EVENTS), state=empty_state(), last_day=FIRST_DAY + 40, pool_days=5)
    rows = backend.to_pyarrow(after["item"]).to_pylist()
    found = {(row["item"], row["day"] - FIRST_DAY): (row["count"], row["recent"]) for row in rows}
    # at day 40 the sales of days 0, 10 and 12 have expired; that of day 39 will on day 67
    assert found == {(1, 40): (4, 1), (2, 40): (1, 0), (1, 67): (0, -1)}


def test_the_names_of_a_source_follow_its_columns() -> None:
    assert len(ALL) == 23
    bare = dense_names()
    assert {"item_count", "user_item_count"} <= set(bare)
    assert not [name for name in bare if any(part in name for part in ("price", "brand", "category", "shop"))]
    assert "cheaper_than_category" not in dense_names(price=True)


def test_a_log_of_items_alone_has_features(backend: BaseBackend) -> None:
    events = [{"user": 1, "item": 2, "shop": 0, "brand": 0, "category": 0, "day": FIRST_DAY, "positive": True}]
    types = {name: kind for name, kind in EVENTS.items() if name not in ("price", "discounted")}
    rows = [{**row, "price": None} for row in events]
    asked = {name: kind for name, kind in EXAMPLES.items() if name not in ("shop", "brand", "category", "display")}
    example = {"moment_id": 1, "draw": 0, "user": 1, "item": 2, "day": FIRST_DAY + 1}
    added = ranking_features(
        examples=table([example], asked), events=table(rows, types | {"price": "float64"}), state=empty_state(),
        names=dense_names(), keep=keeper(backend),
    )  # fmt: skip
    (row,) = backend.to_pyarrow(added).to_pylist()
    assert [row[name] for name in dense_names()] == pytest.approx(
        [math.log(2), math.log(2), 1.0, math.log(2), math.log(2), 1.0, math.log(2)]
    )
