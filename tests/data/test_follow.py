"""Features of offers against a slow loop, under any chunking, and through ingest."""

from __future__ import annotations

import math
import random
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import ibis
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ibis.backends import BaseBackend
from ibis.expr.types import Table

from stack.data import features, follow
from stack.data.days import day_name
from stack.data.follow import PRIOR_OFFERS, PRIOR_RATE, follow_features, follow_names
from stack.data.ingest import ingest
from stack.data.ingest_config import IngestConfig
from stack.data.schema import Group, Schema
from tests.data.tiny_log import TinyConfig, write_log

Row = dict[str, Any]
Rows = list[Row]
NAMES = follow_names()
STATE = features.STATE | follow.STATE
EVENTS = {"user": "int64", "item": "int64", "day": "int32", "price": "float64", "positive": "boolean"}
EVENTS |= dict.fromkeys(("shop", "brand", "category"), "int64")
OFFERS = {"place": "int64"} | dict(follow.OFFERS.items())
FIRST_DAY, NUM_DAYS = 17_000, 12


@pytest.fixture(scope="module")
def backend() -> BaseBackend:
    return ibis.duckdb.connect(threads=1)


def table(rows: Rows, types: dict[str, str]) -> Table:
    schema = ibis.schema(types)
    return ibis.memtable(rows or schema.to_pyarrow().empty_table(), schema=schema)


def empty_state() -> dict[str, Table]:
    return {name: table([], dict(schema.items())) for name, schema in STATE.items()}


@st.composite
def logs(draw: st.DrawFn) -> tuple[Rows, Rows]:
    """Up to 60 purchases and 80 offers (some alike) among 4 users, 3 icons and 12 days; one drawn seed makes them."""
    rng = random.Random(draw(st.integers(0, 2**32)))

    def row() -> Row:
        return {"user": rng.randint(1, 4), "day": FIRST_DAY + rng.randrange(NUM_DAYS)}

    blank = {"item": 1, "price": 1.0, "shop": 0, "brand": 0, "category": 0}
    events = [row() | blank | {"positive": rng.random() < 0.7} for _ in range(draw(st.integers(0, 60)))]
    answers = (0.0, 0.0, 1.0, None)
    offers = [
        row() | {"place": place, "icon": rng.randint(1, 3), "responded": rng.choice(answers)}
        for place in range(draw(st.integers(1, 80)))
    ]
    return events, offers


def oracle(events: Rows, offers: Rows, example: Row) -> list[float]:
    """One offer's features by loops over the log."""
    day = example["day"]

    def of(*names: str) -> Rows:
        same = [offer for offer in offers if all(offer[name] == example[name] for name in names)]
        return [offer for offer in same if offer["day"] < day]

    def responses(rows: Rows) -> Rows:
        return [row for row in rows if row["responded"]]

    def log_rate(rows: Rows) -> float:
        return math.log((len(responses(rows)) + PRIOR_OFFERS * PRIOR_RATE) / (len(rows) + PRIOR_OFFERS))

    user, icon = of("user"), of("icon")
    bought = [e for e in events if e["user"] == example["user"] and e["positive"] and e["day"] < day]
    answered = [row["day"] for row in responses(user)]
    values = {
        "user_offer_count": math.log(1 + len(user)),
        "user_response_count": math.log(1 + len(answered)),
        "user_response_rate": log_rate(user),
        "user_response_recency": 1 / (1 + day - max(answered)) if answered else 0.0,
        "icon_offer_count": math.log(1 + len(icon)),
        "icon_response_rate": log_rate(icon),
        "icon_age": math.log(1 + day - min(row["day"] for row in icon)) if icon else 0.0,
        "user_icon_response_count": math.log(1 + len(responses(of("user", "icon")))),
        "user_count": math.log(1 + len(bought)),
    }
    return [values[name] for name in NAMES]


def features_of(backend: BaseBackend, offers: Rows, events: Rows, state: dict[str, Table]) -> dict[int, list[float]]:
    """The features by place."""
    added = follow_features(examples=table(offers, OFFERS), events=table(events, EVENTS), state=state, names=NAMES)
    rows = backend.to_pyarrow(added).to_pylist()
    assert len(rows) == len(offers)
    return {row["place"]: [row[name] for name in NAMES] for row in rows}


def advanced(backend: BaseBackend, offers: Rows, events: Rows, state: dict[str, Table], last: int) -> dict[str, Table]:
    """The state after a chunk, in memory: that of the user's purchases and those of offers."""
    logged = table(events, EVENTS)
    after = features.advance(events=logged, state=state, last_day=last, pool_days=1)
    after = {"user": after["user"]} | follow.advance(offers=table(offers, OFFERS), state=state, last_day=last)
    return empty_state() | {name: ibis.memtable(backend.to_pyarrow(rows)) for name, rows in after.items()}


slow = settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@slow
@given(log=logs())
def test_features_equal_loops_over_the_log(backend: BaseBackend, log: tuple[Rows, Rows]) -> None:
    events, offers = log
    found = features_of(backend, offers, events, empty_state())
    for offer in offers:
        assert found[offer["place"]] == pytest.approx(oracle(events, offers, offer), rel=1e-9, abs=1e-12), NAMES


@slow
@given(log=logs(), cuts=st.lists(st.integers(FIRST_DAY + 1, FIRST_DAY + 11), max_size=2, unique=True).map(sorted))
def test_chunks_do_not_change_features(backend: BaseBackend, log: tuple[Rows, Rows], cuts: list[int]) -> None:
    events, offers = log
    whole, found, state = features_of(backend, offers, events, empty_state()), {}, empty_state()
    for first, end in pairwise([FIRST_DAY, *cuts, FIRST_DAY + NUM_DAYS]):
        sold, asked = ([row for row in rows if first <= row["day"] < end] for rows in (events, offers))
        found |= features_of(backend, asked, sold, state)
        state = advanced(backend, asked, sold, state, end - 1)
    assert found == whole


@slow
@given(log=logs())
def test_nothing_of_the_day_or_after_enters(backend: BaseBackend, log: tuple[Rows, Rows]) -> None:
    events, offers = log
    day = offers[0]["day"]
    asked = [offer for offer in offers if offer["day"] == day]
    past = [offer for offer in offers if offer["day"] < day]
    answered = [offer | {"responded": 1.0 - (offer["responded"] or 0.0)} for offer in asked]
    sold = [event for event in events if event["day"] < day]
    before = features_of(backend, past + answered, sold, empty_state())
    whole = features_of(backend, offers, events, empty_state())
    assert all(before[offer["place"]] == whole[offer["place"]] for offer in past + asked)


def test_an_unknown_user_and_icon_have_the_prior_rate(backend: BaseBackend) -> None:
    offer = {"place": 0, "user": 1, "icon": 1, "day": FIRST_DAY, "responded": 1.0}
    (values,) = features_of(backend, [offer], [], empty_state()).values()
    known = {"user_response_rate": math.log(0.02), "icon_response_rate": math.log(0.02)}
    assert dict(zip(NAMES, values, strict=True)) == pytest.approx(dict.fromkeys(NAMES, 0.0) | known)


def test_only_a_follow_group_with_features_has_a_state() -> None:
    def has(*groups: Group) -> bool:
        return follow.has_features(Schema(event=(), groups=groups))

    assert has(Group(name="price"), Group(name="follow", dense=NAMES))
    assert not has(Group(name="price", dense=("x",)), Group(name="follow"))


def test_ingest_gives_the_features_of_offers_as_the_log_has_them(tmp_path: Path) -> None:
    """Also where a state is not there and has to be rebuilt from the days before."""
    rng, seconds, out = random.Random(5), 86_400, tmp_path / "out"
    buys: Rows = [
        {"user": rng.randrange(10, 14), "item": "i", "type": "buy", "price": 1.0,
         "time": (FIRST_DAY + day) * seconds + 100 * place}
        for day in range(4) for place in range(12)
    ]  # fmt: skip
    offers: Rows = [
        {"user": buy["user"], "time": buy["time"], "icon": rng.choice("ab"), "responded": float(rng.random() < 0.4)}
        for buy in buys
    ]
    items = [{"item": "i", "since": 0, "brand": "b", "category": "c", "tags": []}]
    log = write_log(tmp_path / "log", events=buys, items=items, follow=offers)
    config = IngestConfig(num_buckets=2, memory_limit_gib=1.0, num_threads=1)
    for last in (FIRST_DAY + 1, FIRST_DAY + 3):
        data = TinyConfig(path=str(log), out=str(out), from_day=day_name(last - 1), to_day=day_name(last))
        ingest(data, config, now=(FIRST_DAY + 9) * seconds)
        shutil.rmtree(out / "state" / day_name(last) / "full")
    sold = [{"user": buy["user"], "day": buy["time"] // seconds, "positive": True} for buy in buys]
    dated = [offer | {"day": offer["time"] // seconds} for offer in offers]
    found = {}
    for file in out.glob("days/*/bucket-*.parquet"):
        for row in pq.read_table(file).to_pylist():
            dense = np.reshape(row["follow_dense"], (-1, len(NAMES))).tolist()
            found |= {row["moment_time"][m]: values for m, values in zip(row["follow_moment"], dense, strict=True)}
    assert len(found) == len(dated)
    for offer in dated:
        assert found[offer["time"]] == pytest.approx(oracle(sold, dated, offer), abs=1e-6), NAMES
