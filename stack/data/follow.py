"""Features of (moment, icon) pairs from responses of strictly earlier days, for the example group `follow`.

An *offer* is one example of the group: an icon (a campaign) in front of a user at a moment; `responded` tells what
came of it, known by the end of its day. As for `stack.data.features`, ids are rows or keys, and counts and days
come from running sums as of the start of the moment's day, so that a nightly job has all of them:

user_offer_count          ln(1 + offers to the user)
user_response_count       ln(1 + responses of the user)
user_response_rate        ln of the user's responses / offers, drawn towards `PRIOR_RATE`
user_response_recency     1 / (1 + days since the user's last response), 0 before the first
icon_offer_count          ln(1 + offers of the icon to anybody)
icon_response_rate        ln of the icon's responses / offers, drawn towards `PRIOR_RATE`
icon_age                  ln(1 + days since the icon's first offer), 0 before it
user_icon_response_count  ln(1 + responses of the user to this very icon)
user_count                ln(1 + the user's positive events), as in `stack.data.features`
"""

from __future__ import annotations

from collections.abc import Sequence

import ibis
from ibis.expr.types import NumericValue, Table

from stack.data.asof import as_of, compact
from stack.data.features import Level, level_as_of
from stack.data.schema import Schema

GROUP = "follow"
PRIOR_RATE = 0.02
"""The response rate of users and icons of whom nothing is known."""
PRIOR_OFFERS = 10
"""How many offers the prior counts for: rate = (responses + PRIOR_OFFERS * PRIOR_RATE) / (offers + PRIOR_OFFERS)."""

LEVELS = {
    "follow_user": Level(keys=("user",), sums=("offers", "responses"), days=("last",)),
    "follow_icon": Level(keys=("icon",), sums=("offers", "responses"), days=("first",)),
    "follow_user_icon": Level(keys=("user", "icon"), sums=("responses",)),
}
"""What is summed. `first` is the day of the first offer, `last` that of the last response."""
STATE: dict[str, ibis.Schema] = {name: level.schema for name, level in LEVELS.items()}
"""Tables carried from chunk to chunk, like `stack.data.features.STATE`."""
OFFERS = ibis.schema({"user": "int64", "icon": "int64", "day": "int32", "responded": "float64"})
"""The columns of examples that become facts; kept day by day, for states between chunks."""


def follow_names() -> tuple[str, ...]:
    """Names of the features, for the group `follow` of a source's schema."""
    return (
        "user_offer_count", "user_response_count", "user_response_rate", "user_response_recency", "icon_offer_count",
        "icon_response_rate", "icon_age", "user_icon_response_count", "user_count",
    )  # fmt: skip


def has_features(schema: Schema) -> bool:
    """Whether datasets of this schema hold these features, and so carry their state."""
    return any(group.name == GROUP and group.dense for group in schema.groups)


def advance(*, offers: Table, state: dict[str, Table], last_day: int) -> dict[str, Table]:
    """The tables of `STATE` at the end of `last_day`, from those at the chunk's start and its offers (as `OFFERS`)."""
    after = {}
    for name, level in LEVELS.items():
        facts = _facts(name, offers=offers, state=state)
        merged = compact(facts=facts, by=level.keys, sums=level.sums, days=level.days, last_day=last_day)
        after[name] = merged.select(*STATE[name])
    return after


def follow_features(*, examples: Table, events: Table, state: dict[str, Table], names: Sequence[str]) -> Table:
    """`examples` of a chunk (the columns of `OFFERS` and any others) with the columns `names` added (float64).

    `events` and `state` are those of the chunk, as for `features.ranking_features`; `state` holds `STATE` too.
    """
    bought = level_as_of("user", keys=examples, events=events, state=state)
    found: dict[str, tuple[tuple[str, ...], Table]] = {"user": (("user",), bought)}
    for name, level in LEVELS.items():
        facts = _facts(name, offers=examples, state=state)
        sums = as_of(keys=examples, facts=facts, by=level.keys, sums=level.sums, days=level.days)
        found[name] = (level.keys, sums)
    joined = examples
    for name, (keys, sums) in found.items():
        theirs = {f"{name}__{column}": sums[column] for column in sums.columns if column not in (*keys, "day")}
        renamed = sums.select(*keys, "day", **theirs)
        joined = joined.left_join(renamed, [*keys, "day"]).select(joined, *(renamed[column] for column in theirs))
    formulas = _formulas(joined)
    return joined.select(*examples.columns, **{name: formulas[name].cast("float64") for name in names})


def _facts(name: str, *, offers: Table, state: dict[str, Table]) -> Table:
    """The level's facts (for `stack.data.asof.as_of`): the state at the chunk's start and the chunk's offers."""
    spec = LEVELS[name]
    responded = offers["responded"].fill_null(0) > 0
    sums = {"offers": ibis.literal(1, "int64"), "responses": responded.cast("int64")}
    days = {"first": offers["day"], "last": ibis.ifelse(responded, offers["day"], ibis.null("int32"))}
    rows = offers.select(
        *spec.keys, "day", **{column: sums[column] for column in spec.sums}, **{day: days[day] for day in spec.days}
    )
    return ibis.union(state[name].select(*STATE[name]), rows)


def _formulas(t: Table) -> dict[str, NumericValue]:
    """The features over the joined sums `<level>__<column>`."""

    def number(column: str) -> NumericValue:
        return t[column].fill_null(0).cast("float64")

    def log1p(value: NumericValue) -> NumericValue:
        return (value + 1.0).ln()

    def log_rate(level: str) -> NumericValue:
        responses, offers = number(f"{level}__responses"), number(f"{level}__offers")
        return ((responses + PRIOR_OFFERS * PRIOR_RATE) / (offers + PRIOR_OFFERS)).ln()

    since_response = (t["day"] - t["follow_user__last"]).cast("float64")
    since_offer = (t["day"] - t["follow_icon__first"]).cast("float64")
    return {
        "user_offer_count": log1p(number("follow_user__offers")),
        "user_response_count": log1p(number("follow_user__responses")),
        "user_response_rate": log_rate("follow_user"),
        "user_response_recency": (1.0 / (since_response + 1.0)).fill_null(0.0),
        "icon_offer_count": log1p(number("follow_icon__offers")),
        "icon_response_rate": log_rate("follow_icon"),
        "icon_age": log1p(since_offer.fill_null(0.0)),
        "user_icon_response_count": log1p(number("follow_user_icon__responses")),
        "user_count": log1p(number("user__count")),
    }
