"""MovieLens-1M: a folder as GroupLens ships it (ratings.dat, users.dat, movies.dat) or with the same three as Parquet.

An event is a rating; its type is the number of stars, and a movie rated `like_stars` or more is a positive example.
Genres are tags, the first of them the category.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import ibis
from ibis.backends import BaseBackend
from ibis.expr.types import Table

from stack.base.errors import ConfigError, DataError
from stack.data.canonical import Canonical, DataConfig, Source
from stack.data.sources.events import schema
from stack.data.sources.tabular import TimeFormat, ids, numbered, open_table, require, seconds, split, unread

PROFILE = ("gender", "age", "occupation", "zip")
COLUMNS = {
    "ratings": ("user_id", "movie_id", "rating", "timestamp"),
    "users": ("user_id", *PROFILE),
    "movies": ("movie_id", "title", "genres"),
}
ENCODING = "latin-1"
"""Of the titles in the files as shipped."""
STARS = ("1", "2", "3", "4", "5")


@dataclass(kw_only=True)
class Movielens1mConfig(DataConfig):
    """`path`: the folder ml-1m."""

    # stars from which a rating counts as liked
    like_stars: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.like_stars <= 5:
            raise ConfigError(f"data.like_stars={self.like_stars}: stars go from 1 to 5")


def read(backend: BaseBackend, options: Movielens1mConfig) -> Canonical:
    """The canonical tables; movies and users are known from the start (the files give no dates)."""
    ratings, users, movies = (_open(backend, options.path, name) for name in COLUMNS)
    parsed = {
        "user": ids(ratings, ratings.user_id),
        "item": ids(ratings, ratings.movie_id),
        "time": seconds(ratings, ratings.timestamp, TimeFormat.seconds),
    }
    written = {"user": ratings.user_id, "item": ratings.movie_id, "time": ratings.timestamp}
    events = ratings.select(
        **parsed,
        unread=unread(written, parsed),
        shop=ibis.null("string"),
        type=ratings.rating.cast("string"),
        scenario=ibis.null("string"),
        price=ibis.null("float64"),
        quantity=ibis.literal(1.0),
    )
    genres = split(movies.genres, "|")
    return Canonical(
        schema=schema(present={"item", "category", "tags"}, profile=PROFILE, has_price=False, has_scenario=False),
        events=numbered(events, order_by=["time", "user", "item", "type"]),
        items=movies.select(item=ids(movies, movies.movie_id, like=events.item), category=genres[0], tags=genres),
        users=users.select(
            user=ids(users, users.user_id, like=events.user), **{name: users[name].cast("string") for name in PROFILE}
        ),
        known_types=STARS,
        positive_types=STARS[options.like_stars - 1 :],
    )


SOURCE = Source(name="movielens_1m", options=Movielens1mConfig, read=read)


def _open(backend: BaseBackend, folder: str | None, name: str) -> Table:
    if folder is None:
        raise DataError("data.path is not set: give the folder ml-1m, e.g. data.path=ml-1m")
    shipped, parquet = Path(folder) / f"{name}.dat", Path(folder) / f"{name}.parquet"
    if not shipped.exists() and not parquet.exists():
        raise DataError(f"data.path={folder}: neither {shipped.name} nor {parquet.name} is there; unpack ml-1m.zip")
    path = str(shipped if shipped.exists() else parquet)
    names = COLUMNS[name] if shipped.exists() else ()
    table = open_table(backend, path, option="data.path", delimiter="::", names=names, encoding=ENCODING)
    for column in COLUMNS[name]:
        require(table, column, option="data.path", path=path)
    return table
