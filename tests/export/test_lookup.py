"""From raw ids to keys: as ingest makes them, and to the rows that training gave them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from stack.base.errors import PackageError
from stack.data.keys import UNKNOWN_KEY, hash_texts, keys_of
from stack.export.lookup import (
    NOT_LISTED,
    HashLookup,
    KeyLookup,
    ListLookup,
    Lookup,
    lookups,
    number_keys,
    text_keys,
    write_list,
)
from stack.export.package import IDS, IdKind, Ids
from stack.export.runs import MISSING
from stack.ids.config import IdMode, IdSpec, ManagedConfig
from stack.ids.frozen import FrozenMap
from stack.ids.hashing import HashedRows, HashVariant
from stack.ids.maps import IdMaps, frozen
from tests.export.toy import MANIFEST_OF_TOY

NUM_IDS = 20_000
INTEGERS = [-1, 2**40, -(2**63) + 1, 2**63 - 1, *np.random.default_rng(0).integers(-(2**62), 2**62, NUM_IDS).tolist()]
TEXTS = ["", "ä", "0", *(f"https://shop.example/item/{number}?page={number % 7}" for number in range(NUM_IDS))]
INTEGER = st.integers(-(1 << 63) + 1, (1 << 63) - 1)
TEXT = st.text(st.characters(codec="utf-8"), max_size=80)


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(TEXT | st.none(), max_size=40))
def test_keys_of_texts_are_those_of_ingest(texts: list[str | None]) -> None:
    expected = np.where([text is None for text in texts], MISSING, hash_texts(texts))
    np.testing.assert_array_equal(text_keys(texts), expected)


@settings(max_examples=200, deadline=None)
@given(numbers=st.lists(INTEGER | st.none(), max_size=40))
def test_keys_of_whole_numbers_are_those_of_ingest(numbers: list[int | None]) -> None:
    expected = np.where([number is None for number in numbers], MISSING, keys_of(pa.array(numbers, pa.int64())))
    np.testing.assert_array_equal(number_keys(numbers), expected)


@pytest.mark.parametrize("raw", [INTEGERS, TEXTS], ids=["integers", "texts"])
def test_served_rows_are_the_trained_ones(raw: list[int] | list[str]) -> None:
    text = raw is TEXTS
    maps = IdMaps(
        [
            IdSpec(name="managed", mode=IdMode.managed, num_rows=1 + NUM_IDS // 2, hash=HashVariant.modulo,
                   managed=ManagedConfig(admit_after=1)),
            *(IdSpec(name=variant.value, mode=IdMode.hashed, num_rows=1 + NUM_IDS // 2, hash=variant,
                     managed=ManagedConfig()) for variant in HashVariant),
        ]
    )  # fmt: skip
    keys = torch.from_numpy(keys_of(pa.array(raw, pa.string() if text else pa.int64())).copy())
    distinct, place = torch.unique(keys, return_inverse=True)
    trained = {name: maps(name, distinct)[place].numpy() for name in maps.specs}
    for variant in HashVariant:
        served = HashLookup(maps.hashed(variant.value), text=text).keys([*raw, None])
        np.testing.assert_array_equal(served[:-1], trained[variant.value])
        assert (served[-1] == MISSING).all()
    held = frozen(maps.state()["managed"])
    key_N = KeyLookup(text=text).keys([*raw, None])
    assert key_N[-1] == MISSING
    np.testing.assert_array_equal(held.rows(key_N[:-1]), trained["managed"])
    assert (trained["managed"] > 0).sum() == NUM_IDS // 2


@settings(max_examples=60, deadline=None)
@given(known=st.lists(TEXT, unique=True, max_size=30), asked=st.lists(TEXT | st.none(), max_size=20))
def test_a_list_gives_the_rows_of_texts_and_tells_unknown_from_missing(
    known: list[str], asked: list[str | None], tmp_path_factory: pytest.TempPathFactory
) -> None:
    expected = {text: row for row, text in enumerate(known, start=1)}
    served = listed(tmp_path_factory.mktemp("list"), hash_texts(known), range(1, len(known) + 1), text=True)
    wanted: list[str | None] = [*asked, *known]
    assert served.rows(wanted).tolist() == [0 if text is None else expected.get(text, 0) for text in wanted]
    assert served.keys(wanted).tolist() == [
        MISSING if text is None else expected.get(text, NOT_LISTED) for text in wanted
    ]


def listed(folder: Path, keys: np.ndarray, rows: range, *, text: bool) -> ListLookup:
    write_list(folder, keys, np.array(rows))
    return ListLookup(folder, text=text)


def test_a_text_is_not_found_by_its_beginning_or_with_nul_behind_it(tmp_path: Path) -> None:
    served = listed(tmp_path, hash_texts(["ab", "abc"]), range(1, 3), text=True)
    assert served.rows(["abcd", "ab\0", "a", "ab"]).tolist() == [0, 0, 0, 1]


def test_nobody_has_no_keys(tmp_path: Path) -> None:
    double = HashedRows(num_rows=9, variant=HashVariant.double)
    lookup: list[Lookup] = [
        KeyLookup(text=True), KeyLookup(text=False), HashLookup(double, text=True),
        listed(tmp_path, np.empty(0, dtype=np.int64), range(0), text=False),
    ]  # fmt: skip
    assert [one.keys([]).shape for one in lookup] == [(0,), (0,), (0, 2), (0,)]
    assert lookup[-1].keys([3, None]).tolist() == [NOT_LISTED, MISSING]


def test_the_whole_number_zero_is_missing_where_it_is_the_unknown_key() -> None:
    """A hashed table has it in row 0 in training; where ids are keys, whether it has a row is up to the rows."""
    for variant in HashVariant:
        hashed = HashLookup(HashedRows(num_rows=9, variant=variant), text=False)
        assert (hashed.keys([UNKNOWN_KEY, None]) == MISSING).all()
    assert KeyLookup(text=False).keys([0]).tolist() == [0]


def test_lookups_are_of_the_kind_that_the_manifest_says(tmp_path: Path) -> None:
    write_list(tmp_path / IDS / "type", np.array([7, 3]), np.array([1, 2]))
    ids = {
        "item": Ids(kind=IdKind.key, text=False, num_ids=1), "type": Ids(kind=IdKind.list, text=False, num_ids=2),
        "shop": Ids(kind=IdKind.hash, text=False, num_rows=5, hash=HashVariant.double),
    }  # fmt: skip
    found = lookups(tmp_path, replace(MANIFEST_OF_TOY, ids=ids))
    assert [type(one) for one in found.values()] == [KeyLookup, ListLookup, HashLookup]
    assert found["type"].keys([3, 7, 8]).tolist() == [2, 1, NOT_LISTED]
    np.testing.assert_array_equal(
        found["shop"].keys([3]), HashedRows(num_rows=5, variant=HashVariant.double).rows(np.array([3]))
    )
    without = replace(MANIFEST_OF_TOY, ids={"shop": Ids(kind=IdKind.hash, text=False, num_rows=5)})
    with pytest.raises(PackageError, match="the manifest does not say how 'shop' is hashed"):
        lookups(tmp_path, without)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("keys.npy", np.array([1.0]), r"keys.npy holds float64 of shape \(1,\), \(N\) of int64 is expected"),
        (
            "rows.npy",
            np.array([[1]], dtype=np.int32),
            r"rows.npy holds int32 of shape \(1, 1\), \(N\) of int32 is expected",
        ),
        ("rows.npy", np.array([1, 2], dtype=np.int32), "has 1 keys and 2 rows: export the package again"),
        ("rows.npy", None, "rows.npy cannot be read: "),
    ],
)
def test_a_list_that_is_not_one_is_refused(name: str, content: np.ndarray | None, text: str, tmp_path: Path) -> None:
    write_list(tmp_path, np.array([4]), np.array([1]))
    if content is None:
        (tmp_path / name).write_bytes(b"\x93NUMPY")
    else:
        np.save(tmp_path / name, content)
    with pytest.raises(PackageError, match=text):
        ListLookup(tmp_path, text=False)


def test_a_list_is_the_frozen_map_of_its_keys(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    keys = np.unique(rng.integers(-(2**60), 2**60, 1000))
    rows = rng.permutation(len(keys)) + 1
    shuffled = rng.permutation(len(keys))
    write_list(tmp_path, keys[shuffled], rows[shuffled])
    map_ = FrozenMap(key_N=keys, row_N=rows)
    asked = np.concatenate([keys, keys + 1])
    np.testing.assert_array_equal(ListLookup(tmp_path, text=False).rows(asked.tolist()), map_.rows(asked))
