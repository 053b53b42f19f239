"""Draws against pure Python: who is drawn, how often, at which rate."""

from __future__ import annotations

import itertools
import random
from collections import Counter, defaultdict
from typing import Any

import ibis
import pytest
from ibis.backends import BaseBackend
from ibis.expr.types import Table

from stack.base.errors import ConfigError
from stack.data.negatives import NegativesConfig, daily_pools, draw

DAY = 17_000
MOMENT = 2**32
PRIME = 2**31 - 1
Rows = list[dict[str, Any]]


def moment(user: int, time: int) -> int:
    return user * MOMENT + time


@pytest.fixture(scope="module")
def backend() -> BaseBackend:
    return ibis.duckdb.connect(threads=1)


def table(rows: Rows, **types: str) -> Table:
    return ibis.memtable([{name: row[name] for name in types} for row in rows], schema=ibis.schema(types))


def run(backend: BaseBackend, log: dict[str, Rows], settings: NegativesConfig) -> Rows:
    moments = table(log["moments"], moment_id="int64", user="int64", day="int32", time="int64", pool="int64")
    positives = table(log["positives"], moment_id="int64", item="int64", weight="float64")
    pools = table(log["pools"], pool="int64", item="int64", day="int32", display="int8")
    popularity = table(log["popularity"], day="int32", item="int64", count="int64")
    drawn = draw(
        moments=moments, positives=positives, pools=pools, popularity=popularity, settings=settings,
        keep=lambda name, expression: backend.create_table(name, expression, overwrite=True),
    )  # fmt: skip
    rows: Rows = backend.to_pyarrow(drawn).to_pylist()
    return sorted(rows, key=lambda row: (row["moment_id"], row["draw"], row["item"]))


def small_log() -> dict[str, Rows]:
    """Three pools, six users with a moment in each; some positives lie outside, one moment has none inside."""
    pools: Rows = []
    for pool, items in ((1, range(1, 8)), (2, range(5, 30, 2)), (3, (4, 9))):
        pools += [{"pool": pool, "item": item, "day": DAY + pool, "display": int(item % 3 == 0)} for item in items]
    pools.append({"pool": 2, "item": 7, "day": DAY + 2, "display": 1})  # listed twice
    popularity = [
        {"day": day, "item": item, "count": item * item % 17 + 40 * (item == 9)}
        for day in (DAY + 1, DAY + 2, DAY + 3)
        for item in range(1, 20)
    ]
    moments: Rows = []
    positives: Rows = []
    for user in range(1, 7):
        for pool in (1, 2, 3):
            time = (DAY + pool) * 86_400 + user * 977
            moments.append(
                {"moment_id": moment(user, time), "user": user, "day": DAY + pool, "time": time, "pool": pool}
            )
            bought = {1: (user, 100), 2: (5, 7, 9 + 2 * user), 3: (4,) if user == 1 else (50,)}[pool]
            positives += [{"moment_id": moment(user, time), "item": item, "weight": float(user * 3)} for item in bought]
    return {"moments": moments, "positives": positives, "pools": pools, "popularity": popularity}


def mix(value: int) -> int:
    return pow(value % PRIME * 1_389_796 + 1_013, 5, PRIME)


def oracle(log: dict[str, Rows], settings: NegativesConfig) -> Rows:
    """The same draws with loops: cumulative weights searched from the front."""
    display: dict[tuple[int, int], int] = defaultdict(int)
    day_of = {}
    for row in log["pools"]:
        display[row["pool"], row["item"]] = max(display[row["pool"], row["item"]], row["display"])
        day_of[row["pool"]] = row["day"]
    count = {(row["day"], row["item"]): row["count"] for row in log["popularity"]}
    bought: dict[int, dict[int, float]] = defaultdict(dict)
    for row in log["positives"]:
        bought[row["moment_id"]][row["item"]] = row["weight"]
    result: Rows = []
    for row in log["moments"]:
        pool, taken = row["pool"], bought[row["moment_id"]]
        items = sorted(item for key, item in display if key == pool)
        weights = [count.get((day_of[pool], item), 0) + 1 for item in items]
        positives = [item for item in items if item in taken]
        found = {(0, item) for item in positives}
        for kind, per_positive in ((1, settings.num_uniform), (2, settings.num_popularity)):
            for which in range(per_positive * len(positives)):
                base = mix(mix(mix(row["user"] + settings.seed) + row["time"] + kind) + which)
                number = base * 2**31 + mix(base + 1_000_003)
                place = number % len(items) if kind == 1 else search(weights, number % sum(weights))
                if items[place] not in taken:
                    found.add((kind, items[place]))
        for kind, item in sorted(found):
            chance = weights[items.index(item)] / sum(weights)
            result.append(
                {
                    "moment_id": row["moment_id"], "item": item, "clicked": float(kind == 0), "draw": kind,
                    "weight": min(taken[item], settings.max_weight) if kind == 0 else 1.0,
                    "display": display[pool, item],
                    "rate_uniform": 1 - (1 - 1 / len(items)) ** (len(positives) * settings.num_uniform),
                    "rate_popularity": 1 - (1 - chance) ** (len(positives) * settings.num_popularity),
                }
            )  # fmt: skip
    return sorted(result, key=lambda row: (row["moment_id"], row["draw"], row["item"]))


def search(weights: list[int], point: int) -> int:
    for place, weight in enumerate(weights):
        if point < weight:
            return place
        point -= weight
    raise AssertionError(point)


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1])
def test_draws_equal_those_of_a_loop_row_for_row(backend: BaseBackend, seed: int) -> None:
    settings = NegativesConfig(seed=seed, num_uniform=3, num_popularity=5)
    found, expected = run(backend, small_log(), settings), oracle(small_log(), settings)
    assert [row["item"] for row in found] == [row["item"] for row in expected]
    for row, other in zip(found, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-12)


def test_what_was_taken_is_never_a_negative_and_nothing_is_drawn_twice(backend: BaseBackend) -> None:
    log = small_log()
    found = run(backend, log, NegativesConfig())
    taken = {(row["moment_id"], row["item"]) for row in log["positives"]}
    assert not {(row["moment_id"], row["item"]) for row in found if row["draw"]} & taken
    assert max(Counter((row["moment_id"], row["draw"], row["item"]) for row in found).values()) == 1


def test_moments_without_a_positive_in_their_pool_have_no_examples(backend: BaseBackend) -> None:
    found = {row["moment_id"] for row in run(backend, small_log(), NegativesConfig())}
    without = {row["moment_id"] for row in small_log()["moments"] if row["pool"] == 3 and row["user"] != 1}
    assert len(without) == 5
    assert not found & without


def one_pool(num_moments: int) -> tuple[dict[str, Rows], list[int]]:
    """A pool of 50 items with skewed weights; each moment takes the item 1000 of its own pool."""
    weights = [1 + (300 // (item + 1)) for item in range(50)]
    pools = [{"pool": 1, "item": item, "day": DAY, "display": 0} for item in range(50)]
    pools.append({"pool": 1, "item": 1000, "day": DAY, "display": 0})
    popularity = [{"day": DAY, "item": item, "count": weight - 1} for item, weight in enumerate(weights)]
    moments = [
        {"moment_id": moment(user, DAY * 86_400 + 60 * user), "user": user, "day": DAY,
         "time": DAY * 86_400 + 60 * user, "pool": 1}
        for user in range(1, num_moments + 1)
    ]  # fmt: skip
    positives = [{"moment_id": row["moment_id"], "item": 1000, "weight": 1.0} for row in moments]
    return {"moments": moments, "positives": positives, "pools": pools, "popularity": popularity}, [*weights, 1]


@pytest.fixture(scope="module")
def many(backend: BaseBackend) -> tuple[Rows, list[int]]:
    """The examples of 20,000 moments in the skewed pool, and its weights."""
    log, weights = one_pool(20_000)
    return run(backend, log, NegativesConfig(seed=5)), weights


@pytest.mark.parametrize(("kind", "label"), [(1, "rate_uniform"), (2, "rate_popularity")])
def test_frequencies_match_the_stated_rates(many: tuple[Rows, list[int]], kind: int, label: str) -> None:
    found, weights = many
    counts = Counter(row["item"] for row in found if row["draw"] == kind)
    rates = {row["item"]: row[label] for row in found}
    share = [1 / 51 if kind == 1 else weights[item] / sum(weights) for item in range(50)]
    assert [rates[item] for item in range(50)] == pytest.approx([1 - (1 - p) ** 4 for p in share], rel=1e-9)
    chi2 = sum((counts[item] - 20_000 * rates[item]) ** 2 / (20_000 * rates[item]) for item in range(50))
    assert chi2 < 90, chi2  # about 50 degrees of freedom: 99.95% lie below


def test_draws_of_one_moment_are_independent_of_each_other(many: tuple[Rows, list[int]]) -> None:
    by_moment = defaultdict(list)
    for row in many[0]:
        if row["draw"] == 1:
            by_moment[row["moment_id"]].append(row["item"])
    gaps = [b - a for items in by_moment.values() for a, b in itertools.pairwise(items)]
    # four uniform places of 51: the gaps of independent draws, by simulation with Python's generator
    assert sum(gap < 6 for gap in gaps) / len(gaps) == pytest.approx(expected_short_gaps(), abs=0.01)


def expected_short_gaps() -> float:
    rng, short, total = random.Random(0), 0, 0
    for _ in range(40_000):
        items = sorted({place for place in (rng.randrange(51) for _ in range(4)) if place != 50})
        gaps = [b - a for a, b in itertools.pairwise(items)]
        short += sum(gap < 6 for gap in gaps)
        total += len(gaps)
    return short / total


def test_daily_pools_hold_the_items_of_the_days_before(backend: BaseBackend) -> None:
    days = table([{"day": 10}, {"day": 12}, {"day": 12}], day="int32")
    seen = [(6, 1), (7, 2), (9, 2), (9, 3), (10, 4), (11, 5), (12, 6)]
    item_days = table([{"day": day, "item": item} for day, item in seen], day="int32", item="int64")
    pools = backend.to_pyarrow(daily_pools(days=days, item_days=item_days, pool_days=3)).to_pylist()
    assert {(row["pool"], row["item"]) for row in pools} == {(10, 2), (10, 3), (12, 2), (12, 3), (12, 4), (12, 5)}
    assert len(pools) == 6
    assert all(row["pool"] == row["day"] for row in pools)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"num_uniform": 0}, "negatives.num_uniform=0: must be 1 or more"),
        ({"pool_days": 0}, "negatives.pool_days=0: must be 1 or more days"),
        ({"max_weight": 0.5}, "negatives.max_weight=0.5: must be 1 or more"),
        ({"seed": -1}, "negatives.seed=-1: must be 0 to 2147483647"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        NegativesConfig(**values)
