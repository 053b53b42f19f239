"""Ingest of ids without a vocabulary: keys where there were rows, and all else as it is with one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stack.base.errors import ConfigError, DataError
from stack.data.dataset import Dataset
from stack.data.days import day_name
from stack.data.keys import hash_texts
from stack.data.loader import Loader
from tests.data.test_ingest import FIRST, ITEMS, USERS, events_of, read_day, run, tree, words
from tests.data.tiny_log import registered, write_log

RAW = ["age", "category", "icon", "item", "tags"]
"""Brands keep their vocabulary: that of a feature of items that have none."""
NAMES = {
    "event_item": "item", "impression_item": "item", "event_category": "category", "impression_category": "category",
    "event_tags": "tags", "impression_tags": "tags", "follow_icon": "icon", "profile_age": "age",
}  # fmt: skip


def follow() -> list[dict[str, Any]]:
    return [
        {"user": e["user"], "time": e["time"], "icon": "k", "responded": 1.0} for e in events_of(0)[::9]
        if e["type"] == "buy"
    ]  # fmt: skip


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log(tmp_path_factory.mktemp("log"), events=events_of(0), items=ITEMS, users=USERS, follow=follow())


@pytest.fixture(scope="module")
def raw(log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("raw") / "out"
    with registered():
        run(log, out, raw_ids=RAW)
    return out


def keyed(row: dict[str, Any], keys: dict[str, dict[int, int]]) -> dict[str, Any]:
    """A timeline with keys in place of rows. What is ordered by ids is sorted: tags, and the examples of a moment."""

    def key(table: str, value: Any) -> Any:
        if isinstance(value, list):
            found = [key(table, one) for one in value]
            return sorted(found) if table == "tags" and found and not isinstance(found[0], list) else found
        return keys[table][value] if keys else value

    row = row | {name: key(table, row[name]) for name, table in NAMES.items()}
    for group in ("impression", "price"):
        names = [name for name in row if name.startswith(f"{group}_") and not name.endswith("_dense")]
        num = len(row[f"{group}_moment"])
        width = len(row[f"{group}_dense"]) // max(num, 1)
        dense = [row[f"{group}_dense"][width * place : width * (place + 1)] for place in range(num)]
        order = sorted(range(num), key=lambda place: [str(row[name][place]) for name in names])
        row |= {name: [row[name][place] for place in order] for name in names}
        row[f"{group}_dense"] = [dense[place] for place in order]
    return row


def test_keys_take_the_place_of_rows_and_all_else_is_the_same(tmp_path: Path) -> None:
    """With real impressions: draws depend on the order of ids."""
    shown = [
        {"user": e["user"], "item": f"i{(k + place) % 12}", "time": e["time"], "shop": e["shop"],
         "clicked": float(k == 0), "weight": 1.0}
        for place, e in enumerate(events_of(0)) for k in range(3)
    ]  # fmt: skip
    log = write_log(tmp_path / "log", events=events_of(0), items=ITEMS, users=USERS, follow=follow(), impressions=shown)
    for name, options in (("rows", {}), ("keys", {"raw_ids": RAW})):
        run(log, tmp_path / name, to_day=day_name(FIRST + 2), **options)
    keys = {
        table: {0: 0} | {row: int(hash_texts([str(word)])[0]) for word, row in words(tmp_path / "rows", table).items()}
        for table in RAW
    }
    for day in range(FIRST, FIRST + 3):
        rows, found = read_day(tmp_path / "rows", day), read_day(tmp_path / "keys", day)
        assert [keyed(row, {}) for row in found] == [keyed(row, keys) for row in rows]
        assert sum(len(row["impression_item"]) for row in rows) > 50
    assert b"raw_ids" not in (tmp_path / "rows" / "dataset.json").read_bytes(), "with vocabularies it is what it was"
    for table in ("brand", "shop", "user"):
        assert words(tmp_path / "keys", table) == words(tmp_path / "rows", table), table
    assert not [table for table in RAW if (tmp_path / "keys" / "vocab" / table).exists()]


def test_any_chunking_gives_the_same_bytes(log: Path, raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(log, out, to_day=day_name(FIRST + 2), chunk_days=2, raw_ids=RAW)
    run(log, out, from_day=day_name(FIRST + 3), raw_ids=RAW)
    assert tree(out) == tree(raw)
    assert words(out, "brand") == words(raw, "brand")


def test_draws_are_items_of_the_days_before_and_nothing_that_was_bought(raw: Path) -> None:
    known = {int(key) for key in hash_texts([f"i{item}" for item in range(12)])}
    assert min(known) < 0 < max(known), "keys have either sign"
    num_drawn = 0
    for row in (row for day in range(FIRST + 1, FIRST + 4) for row in read_day(raw, day)):
        taken = {
            (m, i) for m, i, c in zip(row["impression_moment"], row["impression_item"], row["impression_clicked"],
                                      strict=True) if c
        }  # fmt: skip
        for moment, item, draw in zip(
            row["impression_moment"], row["impression_item"], row["impression_draw"], strict=True
        ):
            assert item in known
            assert draw == 0 or (moment, item) not in taken
            num_drawn += draw > 0
    assert num_drawn > 100


def test_the_loader_gives_keys(raw: Path) -> None:
    dataset = Dataset(raw)
    assert dataset.num_rows(day_name(FIRST))["item"] == 1, "row 0 alone"
    expected = [item for row in read_day(raw, FIRST + 1) for item in row["event_item"]]
    loader = Loader(dataset, days=[day_name(FIRST + 1)], global_batch_size=100, shuffle=False, num_prefetch=0)
    found = [item for batch in loader for item in batch.event["item"].tolist()]  # type: ignore[union-attr]
    assert sorted(found) == sorted(expected)
    with pytest.raises(
        DataError, match="has no vocabulary 'item': it was made with ingest.raw_ids, and keeps the keys"
    ):
        dataset.vocabulary("item")


@pytest.mark.parametrize(
    ("tables", "text"),
    [
        (["itm"], "ingest.raw_ids names 'itm'; the tables of the log are: age, brand, category, icon, item, "),
        (["user"], "names 'user', which needs a vocabulary: timelines are spread over buckets and sorted by its rows;"),
        (["type"], "names 'type', which needs a vocabulary: property 'type' is embedded by its rows; leave it out of"),
        (["item", "shop"], "other shops of the group 'shop' are drawn among its rows; leave it out of ingest.raw_ids"),
    ],
)
def test_tables_whose_rows_are_needed_are_refused(log: Path, tmp_path: Path, tables: list[str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        run(log, tmp_path / "out", raw_ids=tables)
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_a_later_day_with_other_tables_is_refused(log: Path, raw: Path) -> None:
    made = "age:text category:text icon:text item:text tags:text"
    for tables, asked in (([], "None"), (["item"], "item:text")):
        with pytest.raises(DataError, match=f"was made with ingest.raw_ids={made}, and {asked} is asked for: choose"):
            run(log, raw, raw_ids=tables)
