"""A marketplace with known truth, as a log on disk: users and items have tastes, items a popularity, users sessions.

Nothing is kept for each id: a latent vector, a brand, a price is a function of the id and the seed (a counter-based
random number), so that a thousand and a billion ids cost the same memory, and any day can be written alone. For user
u and item i shown on day d:

    P(click) = sigmoid(bias + taste <p_u, q_i> / sqrt(K) + popularity * z_i(d) )
    P(buy | click) = sigmoid(buy_bias + taste <p_u, q_i> / sqrt(K))

where q_i is the centre of the item's category plus noise and z_i is the log-popularity, standardised. Items are shown
by popularity (Zipf); for a share of them the best for the user of four such draws is taken, as a recommender would.
The log that is kept may be filtered: a skipped impression stays with `keep_skipped`, a clicked one with
`keep_clicked`; its weight is 1 / that rate, and `probability` is the truth before filtering. The last `num_whole_days`
are kept whole: what passes the filter on other days is part of what passes without one.

Layout::

    <log>/impressions/2024-01-01.parquet   user, item, time, clicked, weight, probability
    <log>/events/2024-01-01.parquet        user, item, time, type (click, buy), price, quantity
    <log>/items/2024-01-01.parquet         item, brand, shop, category, tags, since   (items shown that day)
    <log>/truth.json                       every parameter; written last
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stack.base.errors import ConfigError, DataError
from stack.base.files import write_bytes
from stack.base.seed import derive
from stack.telemetry.progress import progress

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

SECONDS_PER_DAY = 86_400
_USERS_AT_ONCE = 50_000
_KINDS = ("impressions", "events", "items")


@dataclass(kw_only=True)
class Marketplace:
    """The truth: sizes, tastes, popularity and filters. The same values give the same log, byte for byte."""

    num_users: int = 1_000
    num_items: int = 5_000
    num_categories: int = 40
    num_brands: int = 300
    num_shops: int = 100
    num_days: int = 14
    first_day: str = "2024-01-01"
    # sessions of a user in a day, mean of a Poisson
    sessions_per_day: float = 0.5
    # items shown in a session, at most: each is shown once
    impressions_per_session: int = 12
    # width K of the latent vectors
    latent_dim: int = 8
    # log-odds of a click on an average item
    bias: float = -4.0
    # log-odds for each unit of taste
    taste: float = 2.0
    # log-odds for each standard deviation of log-popularity
    popularity: float = 0.5
    # log-odds of buying what was clicked
    buy_bias: float = -1.0
    # exponent of Zipf's law, of what is shown
    zipf: float = 1.05
    # share of shown items that are the best for the user of four draws
    targeted_share: float = 0.3
    # ranks of popularity by which every item moves each day (drift)
    drift_ranks_per_day: int = 0
    # share of clicked and of skipped impressions that the log keeps
    keep_clicked: float = 1.0
    keep_skipped: float = 1.0
    # last days that the log keeps whole, whatever the filter: what live traffic is
    num_whole_days: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_users", "num_items", "num_categories", "num_brands", "num_shops", "num_days"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: the marketplace needs at least 1")
        for name in ("keep_clicked", "keep_skipped"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)}: a share that is kept lies above 0 and up to 1")
        if not 0 <= self.num_whole_days <= self.num_days:
            raise ConfigError(f"num_whole_days={self.num_whole_days} must be from 0 to num_days={self.num_days}")
        if self.zipf == 1.0:
            raise ConfigError("zipf=1.0: the exponent must differ from 1; take 1.0001")

    def latent(self, ids: Ints, *, kind: str) -> Floats:
        """Latent vectors (N, K) of users or items, about standard normal in each of the K places."""
        salt = derive(self.seed, "latent", kind)
        counters = ids[:, None] * self.latent_dim + np.arange(self.latent_dim)
        noise = _normal(counters, salt)
        if kind == "user":
            return noise
        centre_salt = derive(self.seed, "centre")
        centres = self.category(ids)[:, None] * self.latent_dim + np.arange(self.latent_dim)
        vectors: Floats = np.sqrt(0.7) * _normal(centres, centre_salt) + np.sqrt(0.3) * noise
        return vectors

    def category(self, items: Ints) -> Ints:
        return items % self.num_categories

    def attributes(self, items: Ints) -> dict[str, Ints]:
        """brand, shop and category of items; a brand keeps to one category where there are enough brands."""
        spread = _bits(items, derive(self.seed, "brand")) % max(1, self.num_brands // self.num_categories)
        brand = (spread * self.num_categories + self.category(items)) % self.num_brands
        shop = _bits(items, derive(self.seed, "shop")) % self.num_shops
        return {"brand": brand + 1, "shop": shop + 1, "category": self.category(items) + 1}

    def price(self, items: Ints) -> Floats:
        """Log-normal around the level of the category, to the cent."""
        level = 2.0 + 0.5 * _normal(self.category(items), derive(self.seed, "level"))
        dollars = np.exp(level + 0.4 * _normal(items, derive(self.seed, "price")))
        return np.asarray(np.round(dollars, 2), np.float64)

    def item_of_rank(self, rank: Ints, day: int) -> Ints:
        """The item that is `rank`-th (from 0) in popularity on a day; a permutation of 1..num_items."""
        step = _coprime(int(self.num_items * 0.618) + 1, self.num_items)
        moved = (rank + day * self.drift_ranks_per_day) % self.num_items
        return _multiply(moved, step, self.num_items) + 1

    def draw_ranks(self, uniform: Floats) -> Ints:
        """Ranks by Zipf's law, from uniform numbers, by the inverse of its continuous form."""
        exponent = 1.0 - self.zipf
        edge = (self.num_items + 1.0) ** exponent
        rank = (1.0 + uniform * (edge - 1.0)) ** (1.0 / exponent) - 1.0
        ranks: Ints = np.minimum(rank.astype(np.int64), self.num_items - 1)
        return ranks

    def keep(self, day: int) -> tuple[float, float]:
        """Shares of clicked and of skipped impressions that the log keeps of a day."""
        return (self.keep_clicked, self.keep_skipped) if day < self.num_days - self.num_whole_days else (1.0, 1.0)

    def click_logit(self, users: Ints, items: Ints, ranks: Ints) -> Floats:
        """Log-odds of a click, the truth that a model should find."""
        spread = np.log(self.num_items + 1.0) / np.sqrt(12.0)
        standardised = (np.log(self.num_items + 1.0) - 1.0 - np.log1p(ranks)) / max(spread, 1e-9)
        logit: Floats = self.bias + self.taste * self.affinity(users, items) + self.popularity * standardised
        return logit

    def affinity(self, users: Ints, items: Ints) -> Floats:
        product = self.latent(users, kind="user") * self.latent(items, kind="item")
        inner: Floats = product.sum(axis=1) / np.sqrt(self.latent_dim)
        return inner


def write_log(market: Marketplace, folder: Path) -> Path:
    """Writes the log day by day and returns its folder; a log that is there with the same truth is left as it is.

    Raises: `DataError` where the folder holds a log of other parameters.
    """
    truth = msgspec.json.format(msgspec.json.encode(market))
    done = folder / "truth.json"
    if done.exists():
        if done.read_bytes() != truth:
            raise DataError(f"{folder} holds a marketplace of other parameters: delete it, or choose another data.path")
        return folder
    for kind in _KINDS:
        (folder / kind).mkdir(parents=True, exist_ok=True)
    first = datetime.date.fromisoformat(market.first_day)
    for day in progress(range(market.num_days), description="marketplace", unit="days"):
        _write_day(market, folder, first + datetime.timedelta(days=day), day)
    write_bytes(done, truth)
    return folder


def _write_day(market: Marketplace, folder: Path, date: datetime.date, day: int) -> None:
    impressions, events, shown_items = [], [], []
    start = (date - datetime.date(1970, 1, 1)).days * SECONDS_PER_DAY
    for shown in _sessions(market, day, start):
        impressions.append(_kept(shown))
        events.append(_events(market, shown))
        shown_items.append(np.unique(shown["item"].astype(np.int64)))
    items = _items(market, np.unique(np.concatenate(shown_items)), start)
    for kind, table in zip(_KINDS, (pa.concat_tables(impressions), pa.concat_tables(events), items), strict=True):
        pq.write_table(table, folder / kind / f"{date}.parquet", compression="zstd")


def _sessions(market: Marketplace, day: int, start: int) -> Iterator[dict[str, NDArray[np.generic]]]:
    """All impressions of a day with truth and outcome, a block of users at a time."""
    for low in range(1, market.num_users + 1, _USERS_AT_ONCE):
        rng = np.random.default_rng(derive(market.seed, "day", day, low))
        users = np.arange(low, min(low + _USERS_AT_ONCE, market.num_users + 1))
        session_user = np.repeat(users, rng.poisson(market.sessions_per_day, len(users)))
        session_time = start + rng.integers(0, SECONDS_PER_DAY, len(session_user))
        width = market.impressions_per_session
        session = np.repeat(np.arange(len(session_user)), width)
        rank = market.draw_ranks(rng.random(len(session)))
        rank = _target(market, rng, session_user[session], rank, day)
        _, shown_once = np.unique(session * market.num_items + rank, return_index=True)
        session, rank = session[shown_once], rank[shown_once]
        user, time, item = session_user[session], session_time[session], market.item_of_rank(rank, day)
        logit = market.click_logit(user, item, rank)
        probability = 1.0 / (1.0 + np.exp(-logit))
        clicked = rng.random(len(user)) < probability
        buys = 1.0 / (1.0 + np.exp(-(market.buy_bias + market.taste * market.affinity(user, item))))
        keep = np.where(clicked, *market.keep(day))
        yield {
            "user": user, "item": item, "time": time, "clicked": clicked, "probability": probability,
            "bought": clicked & (rng.random(len(user)) < buys), "keep": keep, "kept": rng.random(len(user)) < keep,
        }  # fmt: skip


def _target(market: Marketplace, rng: np.random.Generator, user: Ints, rank: Ints, day: int) -> Ints:
    """Replaces a share of the ranks by the best of a few draws for the user: what a recommender would show."""
    chosen = np.flatnonzero(rng.random(len(user)) < market.targeted_share)
    tries = market.draw_ranks(rng.random((4, len(chosen))))
    scores = np.stack([market.affinity(user[chosen], market.item_of_rank(one, day)) for one in tries])
    best = rank.copy()
    best[chosen] = tries[scores.argmax(axis=0), np.arange(len(chosen))]
    return best


def _kept(shown: dict[str, NDArray[np.generic]]) -> pa.Table:
    """The impressions that pass the filter."""
    return pa.table(
        {
            "user": shown["user"], "item": shown["item"], "time": shown["time"],
            "clicked": shown["clicked"].astype(np.float64), "weight": 1.0 / shown["keep"].astype(np.float64),
            "probability": shown["probability"],
        }
    ).filter(pa.array(shown["kept"]))  # fmt: skip


def _events(market: Marketplace, shown: dict[str, NDArray[np.generic]]) -> pa.Table:
    """Clicks at the moment of the impression, purchases a minute later."""
    clicked, bought = np.flatnonzero(shown["clicked"]), np.flatnonzero(shown["bought"])
    rows = np.concatenate([clicked, bought])
    later = np.repeat([0, 60], [len(clicked), len(bought)])
    item = shown["item"][rows].astype(np.int64)
    return pa.table(
        {
            "user": shown["user"][rows], "item": item, "time": shown["time"][rows].astype(np.int64) + later,
            "type": np.repeat(["click", "buy"], [len(clicked), len(bought)]),
            "price": market.price(item), "quantity": np.ones(len(rows)),
        }
    )  # fmt: skip


def _items(market: Marketplace, items: Ints, since: int) -> pa.Table:
    columns: dict[str, object] = {"item": items, **market.attributes(items)}
    tags = [[f"tag-{item % 17}", f"tag-{17 + item % 23}"] for item in items.tolist()]
    return pa.table({**columns, "tags": pa.array(tags, pa.list_(pa.string())), "since": np.full(len(items), since)})


def _bits(counters: Ints, salt: int) -> Ints:
    """Random 63-bit integers of counters (SplitMix64: Steele, Lea, Flood, OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        mixed = counters.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(salt)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed = mixed ^ (mixed >> np.uint64(31))
    return (mixed >> np.uint64(1)).astype(np.int64)


def _normal(counters: Ints, salt: int) -> Floats:
    """Standard normal numbers of counters, by Box and Muller."""
    radius = (_bits(counters, salt) + 1.0) / 2.0**63
    angle = _bits(counters, salt ^ 0x5DEECE66D) / 2.0**63
    normal: Floats = np.sqrt(-2.0 * np.log(radius)) * np.cos(2.0 * np.pi * angle)
    return normal


def _multiply(values: Ints, factor: int, modulus: int) -> Ints:
    """values * factor modulo modulus without overflow, for a modulus up to 2^40."""
    low, high = factor & 0xFFFFF, factor >> 20
    return (((values * high) % modulus << 20) + values * low) % modulus


def _coprime(start: int, modulus: int) -> int:
    while np.gcd(start, modulus) != 1:
        start += 1
    return start
