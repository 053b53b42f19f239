"""Rows of the log that cannot be used: found, counted by reason, sampled, and refused above a share.

A row has one reason, the first that applies, in the order of `Reason`. Of copies the one with the lowest
`row_id` stays.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import ibis
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from ibis.expr.types import BooleanValue, StringColumn, Table

from stack.base.errors import DataError
from stack.base.files import write_bytes
from stack.data.canonical import EVENT_COLUMNS, Canonical
from stack.data.days import SECONDS_PER_DAY, day_name
from stack.data.engine import Engine
from stack.data.keys import UNKNOWN_KEY


class Reason(StrEnum):
    """Why a row was dropped; the values are the keys of a day manifest's `dropped`."""

    BAD_TIME = "bad_time"
    FUTURE_TIME = "future_time"
    BAD_USER = "bad_user"
    BAD_ITEM = "bad_item"
    UNKNOWN_TYPE = "unknown_type"
    NO_SIDE_INFORMATION = "no_side_information"
    DUPLICATE = "duplicate"


EXCLUDED = "excluded_"
"""Reasons that begin so are the source's own (column `excluded`): counted, but no fault of the log."""

OPTIONAL_COLUMNS = ("discounted",)
"""Columns of events that go through to the features where the source has them."""

_COLUMNS = {
    Reason.BAD_TIME: ("time", "missing, unparsable or before 1970"),
    Reason.FUTURE_TIME: ("time", "later than now"),
    Reason.BAD_USER: ("user", "missing or malformed"),
    Reason.BAD_ITEM: ("item", "missing or malformed"),
    Reason.UNKNOWN_TYPE: ("type", "not a behaviour that the source knows"),
    Reason.NO_SIDE_INFORMATION: ("item", "without a row in the side information of items"),
    Reason.DUPLICATE: ("row", "a copy of an earlier one"),
}


@dataclass(frozen=True, kw_only=True)
class Checked:
    """The rows of the days asked for. `valid`: events plus `day`. `num_rows` and `dropped` count source rows by day;
    day None holds the rows whose time is no day of the log. `sample`: bad rows as Arrow, columns as text."""

    valid: Table
    num_rows: dict[int | None, int]
    dropped: dict[int | None, Counter[str]]
    sample: pa.Table

    def total(self) -> Counter[str]:
        """Dropped rows of all days by reason."""
        return sum(self.dropped.values(), Counter())


def check(
    canonical: Canonical, *, engine: Engine, days: tuple[int | None, int | None], now: int, num_samples: int
) -> Checked:
    """Finds the bad rows among the events of `days` (first and last, both included; None is open).

    `now` is the epoch second after which a time is in the future. Rows of other days are not looked at, rows without a
    usable time always. At most `num_samples` rows are sampled for each day and reason.
    """
    first, last = days
    optional = [name for name in (*OPTIONAL_COLUMNS, "excluded", "unread") if name in canonical.events.columns]
    events = canonical.events.select(*EVENT_COLUMNS, *optional)
    dayless = events.time.isnull() | (events.time < 0) | (events.time > now)
    events = events.mutate(day=dayless.ifelse(ibis.null("int32"), (events.time // SECONDS_PER_DAY).cast("int32")))
    if first is not None:
        events = events.filter(events.day.isnull() | (events.day >= first))
    if last is not None:
        events = events.filter(events.day.isnull() | (events.day <= last))
    rows = engine.materialize("rows", _with_reason(events, canonical, now))
    counts = engine.fetch(rows.group_by("day", "reason").agg(n=lambda t: t.count())).to_pylist()
    num_rows: Counter[int | None] = Counter()
    dropped: dict[int | None, Counter[str]] = {}
    for count in counts:
        num_rows[count["day"]] += count["n"]
        if count["reason"] is not None:
            dropped.setdefault(count["day"], Counter())[count["reason"]] += count["n"]
    bad = rows.filter(rows.reason.notnull())
    rank = ibis.row_number().over(group_by=["day", "reason"], order_by="row_id")
    bad = bad.mutate(rank=rank).filter(lambda t: t.rank < num_samples).drop("rank")
    text = {name: bad[name].cast("string") for name in EVENT_COLUMNS if name != "row_id"}
    text["unread"] = bad.unread if "unread" in bad.columns else ibis.null("string")
    sample = engine.fetch(
        bad.mutate(**text).select("day", "reason", *EVENT_COLUMNS, "unread").order_by("day", "reason", "row_id")
    )
    valid = rows.filter(rows.reason.isnull())
    valid = valid.drop("reason", *(name for name in ("unread",) if name in valid.columns))
    return Checked(valid=valid, num_rows=dict(num_rows), dropped=dropped, sample=sample)


def refuse_above(checked: Checked, *, max_bad_share: float) -> None:
    """Raises `DataError` where more than `max_bad_share` of the rows are bad, naming the column behind most of them."""
    total = checked.total()
    for reason in [reason for reason in total if reason.startswith(EXCLUDED)]:
        del total[reason]
    num_rows = sum(checked.num_rows.values())
    num_bad = sum(total.values())
    if num_bad <= max_bad_share * num_rows:
        return
    reason, count = max(total.items(), key=lambda pair: (pair[1], pair[0]))
    column, what = _COLUMNS[Reason(reason)]
    rows = checked.sample.filter(pc.equal(checked.sample["reason"], reason)).slice(0, 1).to_pylist()
    value = (rows[0]["unread"] or rows[0].get(column)) if rows else None
    example = "" if value is None else f", e.g. {value!r}"
    raise DataError(
        f"{num_bad:,} of {num_rows:,} rows ({num_bad / num_rows:.2%}) are bad, the limit is "
        f"ingest.max_bad_share={max_bad_share:.2%}: column {column!r} is {what} in {count:,} of them "
        f"({reason}{example}); "
        f"mend the log, or raise ingest.max_bad_share to drop them"
    )


def sample_of(checked: Checked, day: int | None) -> pa.Table:
    """The sampled bad rows of one day, or of none."""
    column = checked.sample["day"]
    mask = pc.is_null(column) if day is None else pc.fill_null(pc.equal(column, day), False)
    rows = checked.sample.filter(mask).drop(["day"])
    return rows.append_column("day", pa.array([None if day is None else day_name(day)] * rows.num_rows, pa.string()))


def write_sample(rows: pa.Table, path: Path) -> None:
    """Writes a sample of bad rows, or removes that of an earlier run where there are none."""
    if rows.num_rows == 0:
        path.unlink(missing_ok=True)
        return
    buffer = pa.BufferOutputStream()
    pq.write_table(rows, buffer, compression="zstd")
    write_bytes(path, buffer.getvalue().to_pybytes())


def _with_reason(events: Table, canonical: Canonical, now: int) -> Table:
    """`events` with the column `reason`, null for good rows."""
    without_item = (
        events.type.isin(canonical.types_without_item) if canonical.types_without_item else ibis.literal(False)
    )
    bad_item = _malformed(events, "item")
    if canonical.schema.without_vocabulary("item") is not None and events.item.type().is_integer():
        bad_item = bad_item | (events.item == UNKNOWN_KEY)
    cases = [
        (events.time.isnull() | (events.time < 0), Reason.BAD_TIME),
        (events.time > now, Reason.FUTURE_TIME),
        (_malformed(events, "user"), Reason.BAD_USER),
        (bad_item & ~without_item.fill_null(False), Reason.BAD_ITEM),
        (events.type.isnull() | events.type.notin(canonical.known_types), Reason.UNKNOWN_TYPE),
    ]
    bad = ibis.cases(*((test, str(reason)) for test, reason in cases))
    if "excluded" in events.columns:  # before side information: a row left out on purpose is no bad row
        bad = bad.fill_null(EXCLUDED + events.excluded)
    if canonical.items is not None:
        known = canonical.items.select(item_=canonical.items.item).distinct().mutate(known_=True)
        events = events.left_join(known, events.item == known.item_).drop("item_")
        without_side = events.item.notnull() & events.known_.isnull()
        bad = bad.fill_null(ibis.cases((without_side, str(Reason.NO_SIDE_INFORMATION))))
    events = events.mutate(reason=bad)
    same = [name for name in EVENT_COLUMNS if name != "row_id"]
    copy = ibis.row_number().over(group_by=[*same, "reason"], order_by="row_id")
    events = events.mutate(copy=copy)
    duplicate = events.reason.isnull() & (events.copy > 0)
    events = events.mutate(reason=duplicate.ifelse(str(Reason.DUPLICATE), events.reason))
    optional = [name for name in (*OPTIONAL_COLUMNS, "unread") if name in events.columns]
    return events.select(*EVENT_COLUMNS, *optional, "day", "reason")


def _malformed(events: Table, column: str) -> BooleanValue:
    """Whether an id is missing, or text that is empty or has spaces around it."""
    value = events[column]
    if not isinstance(value, StringColumn):
        return value.isnull()
    return value.isnull() | (value == "") | (value != value.strip())
