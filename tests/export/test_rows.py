"""Table rows and vocabularies on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.base.errors import UserError
from stack.export.rows import TableReader, VocabularyReader, write_table, write_vocabulary

INTEGER = st.integers(-(1 << 63), (1 << 63) - 1)
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


def reader(raw: np.ndarray | Sequence[str], rows: Sequence[int]) -> VocabularyReader:
    folder = Path(tempfile.mkdtemp())
    write_vocabulary(folder, "t", raw=raw, rows=np.array(rows, dtype=np.int32))
    return VocabularyReader(folder, "t")


@settings(max_examples=60, deadline=None)
@given(known=st.lists(INTEGER, unique=True, max_size=30), asked=st.lists(INTEGER | st.none(), max_size=20))
def test_integer_ids_find_their_rows_and_others_row_zero(known: list[int], asked: list[int | None]) -> None:
    expected = {raw: row for row, raw in enumerate(known, start=1)}
    vocabulary = reader(np.array(known, dtype=np.int64), range(1, len(known) + 1))
    assert vocabulary.rows([*asked, *known]).tolist() == [expected.get(raw, 0) for raw in [*asked, *known]]


@settings(max_examples=60, deadline=None)
@given(known=st.lists(TEXT, unique=True, max_size=30), asked=st.lists(TEXT | st.none(), max_size=20))
def test_text_ids_find_their_rows_and_others_row_zero(known: list[str], asked: list[str | None]) -> None:
    expected = {raw: row for row, raw in enumerate(known, start=1)}
    vocabulary = reader(known, range(1, len(known) + 1))
    assert vocabulary.rows([*asked, *known]).tolist() == [expected.get(raw, 0) for raw in [*asked, *known]]


def test_a_text_id_is_not_found_by_its_beginning_or_with_nul_behind_it() -> None:
    vocabulary = reader(["ab", "abc"], [1, 2])
    assert vocabulary.rows(["abcd", "ab\0", "a", "ab"]).tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("raw", [["a" * 257], ["a\0b"]])
def test_an_id_that_cannot_be_stored_is_refused(raw: list[str]) -> None:
    with pytest.raises(UserError, match=r"vocabulary 't': the raw id b'a.*at most 256 bytes without NUL"):
        reader(raw, [1])


def test_an_id_given_twice_is_refused() -> None:
    with pytest.raises(UserError, match="vocabulary 't' holds the same raw id more than once"):
        reader(np.array([3, 4, 3]), [1, 2, 3])


def test_a_table_written_in_parts_gives_its_rows_and_row_zero_for_others(tmp_path: Path) -> None:
    weight_ND = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    parts = [(np.array([4, 5, 6]), weight_ND[4:]), (np.arange(4), weight_ND[:4])]
    write_table(tmp_path / "t.npy", num_rows=7, dim=3, parts=parts)
    table = TableReader(tmp_path / "t.npy")
    assert (table.num_rows, table.dim) == (7, 3)
    np.testing.assert_array_equal(table.vectors(np.array([6, 0, 7, -1, 2])), weight_ND[[6, 0, 0, 0, 2]])
    summed_ND = table.vectors(np.array([[6, 1], [2, 2]]))
    np.testing.assert_array_equal(summed_ND, [weight_ND[6] + weight_ND[1], weight_ND[2] + weight_ND[2]])


def test_means_are_those_of_each_owner_and_zero_without_ids(tmp_path: Path) -> None:
    weight_ND = np.arange(12, dtype=np.float32).reshape(4, 3)
    write_table(tmp_path / "t.npy", num_rows=4, dim=3, parts=[(np.arange(4), weight_ND)])
    means_GD = TableReader(tmp_path / "t.npy").means(np.array([1, 3, 3, 2]), np.array([0, 2, 0, 1, 1, 0]))
    expected = [[0, 0, 0], weight_ND[[1, 3]].mean(0), [0, 0, 0], weight_ND[3], weight_ND[2], [0, 0, 0]]
    np.testing.assert_allclose(means_GD, expected)


def test_a_table_that_lacks_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="t: 2 of 3 rows are in no part"):
        write_table(tmp_path / "t.npy", num_rows=3, dim=1, parts=[(np.array([1]), np.ones((1, 1), np.float32))])
    with pytest.raises(ValueError, match="t: rows 3 to 3, the table has 3"):
        write_table(tmp_path / "t.npy", num_rows=3, dim=1, parts=[(np.array([3]), np.ones((1, 1), np.float32))])
