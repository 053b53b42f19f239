"""Rows that a source leaves out on purpose: counted by their own reason, never among the bad ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ibis
import pytest

from stack.base.errors import DataError
from stack.data.badrows import Checked, check, refuse_above
from stack.data.canonical import Canonical
from stack.data.engine import DuckEngine
from stack.data.schema import RawIds, Schema

DAY = 17_000
NOON = DAY * 86_400 + 43_200
COLUMNS = {
    "user": "int64", "item": "string", "time": "int64", "shop": "int64", "type": "string", "scenario": "int64",
    "price": "float64", "quantity": "float64", "row_id": "int64", "excluded": "string",
}  # fmt: skip


def event(row: int, *, item: str | None = "known", kind: str = "buy", excluded: str | None = None) -> dict[str, Any]:
    values = (row, item, NOON + row, 1, kind, 1, 1.0, 1.0, row, excluded)
    return dict(zip(COLUMNS, values, strict=True))


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[DuckEngine]:
    engine = DuckEngine(folder=tmp_path, memory_limit_gib=1.0, num_threads=1)
    yield engine
    engine.close()


def checked(engine: DuckEngine, events: list[dict[str, Any]]) -> Checked:
    canonical = Canonical(
        schema=Schema(event=()),
        events=ibis.memtable(events, schema=ibis.schema(COLUMNS)),
        items=ibis.memtable([{"item": "known"}], schema=ibis.schema({"item": "string"})),
        known_types=("buy",),
        positive_types=("buy",),
    )
    return check(canonical, engine=engine, days=(None, None), now=NOON + 10**6, num_samples=5)


def test_a_row_left_out_on_purpose_is_counted_as_such_even_without_side_information(engine: DuckEngine) -> None:
    found = checked(
        engine,
        [
            event(0),
            event(1, excluded="returned"),
            event(2, item="unheard", excluded="returned"),
            event(3, item="unheard"),
            event(4, item="", excluded="returned"),  # what cannot be read is bad whatever the source says of it
        ],
    )
    assert found.dropped == {DAY: {"excluded_returned": 2, "no_side_information": 1, "bad_item": 1}}
    assert found.num_rows == {DAY: 5}
    assert engine.fetch(found.valid)["row_id"].to_pylist() == [0]


@pytest.mark.parametrize(
    ("raw_ids", "dropped"), [((), {}), ((RawIds(table="item", text=False),), {DAY: {"bad_item": 1}})]
)
def test_the_id_0_is_a_missing_one_where_ids_have_no_vocabulary(
    engine: DuckEngine, raw_ids: tuple[RawIds, ...], dropped: dict[int, dict[str, int]]
) -> None:
    kinds = ibis.schema(COLUMNS | {"item": "int64"})
    canonical = Canonical(
        schema=Schema(event=(), raw_ids=raw_ids),
        events=ibis.memtable([event(row, item=item) for row, item in enumerate((0, -7))], schema=kinds),  # type: ignore[arg-type]
        items=None,
        known_types=("buy",),
        positive_types=("buy",),
    )
    assert check(canonical, engine=engine, days=(None, None), now=NOON + 9, num_samples=5).dropped == dropped


def test_rows_left_out_on_purpose_are_not_part_of_the_share_that_is_refused(engine: DuckEngine) -> None:
    rows = [event(0), *(event(row, item="unheard", excluded="returned") for row in range(1, 10))]
    refuse_above(checked(engine, rows), max_bad_share=0.0)
    with pytest.raises(DataError, match=r"^1 of 11 rows \(9.09%\) are bad.*no_side_information"):
        refuse_above(checked(engine, [*rows, event(10, item="unheard")]), max_bad_share=0.05)
