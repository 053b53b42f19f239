"""Runs on disk and the store over them, against dictionaries."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.base.errors import PackageError
from stack.export import run_writer, runs
from stack.export.quantize import RowType, decode, encode
from stack.export.run_writer import merge_deltas, write_run
from stack.export.runs import MISSING, RowStore, Run

DIM = 3
DEFAULT_D = np.array([9.0, 8.0, 7.0], np.float32)
SMALL = st.integers(-12, 12)
ANY = SMALL | st.integers(MISSING + 1, (1 << 63) - 1)

Said = dict[int, "int | None"]
"""What a run says: the number of each key's vector, None where the key is gone."""


def vector(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(size=DIM).astype(np.float32)


def stored(number: int, row_type: RowType) -> np.ndarray:
    """The vector after it was stored and read."""
    return decode(encode(vector(number)[None], row_type), row_type, DIM)[0]


def written(said: Said, *, row_type: RowType = RowType.fp32, part: int = 4, folder: Path | None = None) -> Run:
    folder = folder or Path(tempfile.mkdtemp()) / "run"
    kept = sorted(key for key, number in said.items() if number is not None)
    gone = sorted(key for key, number in said.items() if number is None)
    parts = [kept[first : first + part] for first in range(0, len(kept), part)]
    write_run(
        folder, row_type=row_type, dim=DIM, num_rows=len(kept), gone=np.array(gone, np.int64) if gone else None,
        parts=[(np.array(keys, np.int64), np.stack([vector(said[key] or 0) for key in keys])) for keys in parts],
    )  # fmt: skip
    return Run(folder, row_type=row_type, dim=DIM)


def numbered(num_rows: int, folder: Path, row_type: RowType = RowType.fp32) -> Run:
    parts = [(None, np.stack([vector(row)])) for row in range(num_rows)]
    write_run(folder, row_type=row_type, dim=DIM, num_rows=num_rows, parts=parts)
    return Run(folder, row_type=row_type, dim=DIM)


def expect(told: Sequence[Said], key: int, row_type: RowType = RowType.fp32) -> tuple[list[float], bool]:
    """What a store over these, newest first, says of a key."""
    for said in told:
        if key in said:
            number = said[key]
            return (DEFAULT_D.tolist(), False) if number is None else (stored(number, row_type).tolist(), True)
    return DEFAULT_D.tolist(), False


@st.composite
def told(draw: st.DrawFn, keys: st.SearchStrategy[int] = ANY, most_runs: int = 4) -> list[Said]:
    one = st.dictionaries(keys, st.none() | st.integers(0, 50), max_size=20)
    return draw(st.lists(one, min_size=1, max_size=most_runs))


@pytest.fixture(scope="module", autouse=True)
def _folders_of_pytest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hypothesis makes thousands of runs: they go where pytest tidies up."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("runs")))
        yield


@pytest.fixture
def tiny_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fences in runs of 4 keys, blocks of 3, merges of 5 keys at a time."""
    for module in (runs, run_writer):
        monkeypatch.setattr(module, "MIN_FENCED_KEYS", 4)
        monkeypatch.setattr(module, "BLOCK_KEYS", 3)
    monkeypatch.setattr(run_writer, "_MERGED_KEYS", 5)


def asked(story: Sequence[Said]) -> list[int]:
    near = {near for said in story for key in said for near in (key - 1, key, key + 1) if MISSING < near < 1 << 63}
    return [*near, MISSING, 0, (1 << 63) - 1]


@pytest.mark.usefixtures("tiny_blocks")
@pytest.mark.parametrize("row_type", RowType)
@settings(max_examples=60, deadline=None)
@given(story=told(), part=st.integers(1, 7))
def test_the_newest_run_that_speaks_of_a_key_decides(row_type: RowType, story: list[Said], part: int) -> None:
    store = RowStore(DEFAULT_D, [written(said, row_type=row_type, part=part) for said in story])
    keys = asked(story)
    vector_ND, known_N = store.find(np.array(keys))
    assert list(zip(vector_ND.tolist(), known_N.tolist(), strict=True)) == [
        expect(story, key, row_type) for key in keys
    ]
    assert store.num_deltas == len(story) - 1
    assert store.num_rows == sum(number is not None for said in story for number in said.values())


@pytest.mark.usefixtures("tiny_blocks")
@settings(max_examples=150, deadline=None)
@given(story=told(SMALL | ANY, most_runs=5))
def test_a_merge_of_deltas_says_what_they_say(story: list[Said]) -> None:
    row_type = RowType.int8
    deltas = [written(said, row_type=row_type) for said in story]
    folder = Path(tempfile.mkdtemp()) / "merged"
    merge_deltas(deltas, folder)
    merged = Run(folder, row_type=row_type, dim=DIM)
    expected: Said = {}
    for said in reversed(story):
        expected.update(said)
    assert merged.keys is not None
    assert merged.keys.tolist() == sorted(key for key, number in expected.items() if number is not None)
    assert merged.gone.tolist() == sorted(key for key, number in expected.items() if number is None)
    base = written({key: 60 for key in asked(story) if key != MISSING}, row_type=row_type)
    keys_N = np.array(asked(story))
    over_parts, over_merge = RowStore(DEFAULT_D, [*deltas, base]), RowStore(DEFAULT_D, [merged, base])
    for one, other in zip(over_parts.find(keys_N), over_merge.find(keys_N), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_key_that_is_gone_stays_gone_until_it_is_added_again(tmp_path: Path) -> None:
    base, first, second, third = written({5: 1, 6: 2}), written({5: None}), written({7: 3}), written({5: 4})
    store = RowStore(DEFAULT_D, [base])
    for delta, known in ((first, False), (second, False), (third, True)):
        newer = store.with_delta(delta)
        assert newer.find(np.array([5]))[1].tolist() == [known]
        assert newer.num_deltas == store.num_deltas + 1, "the older store stays as it was"
        store = newer
    np.testing.assert_array_equal(store.find(np.array([5]))[0], [vector(4)])
    merge_deltas([second, first], tmp_path / "merged")
    assert Run(tmp_path / "merged", row_type=RowType.fp32, dim=DIM).gone.tolist() == [5]


def test_numbered_rows_are_found_by_number_and_a_delta_may_change_and_add_to_them(tmp_path: Path) -> None:
    base = numbered(3, tmp_path / "base")
    keys_N = np.array([-1, 0, 2, 3, 4, MISSING, (1 << 63) - 1])
    vector_ND, known_N = RowStore(DEFAULT_D, [base]).find(keys_N)
    assert known_N.tolist() == [False, True, True, False, False, False, False]
    np.testing.assert_array_equal(vector_ND, [DEFAULT_D, vector(0), vector(2), *[DEFAULT_D] * 4])
    vector_ND, known_N = RowStore(DEFAULT_D, [written({0: None, 2: 20, 4: 40}), base]).find(keys_N)
    assert known_N.tolist() == [False, False, True, False, True, False, False]
    np.testing.assert_array_equal(vector_ND[[2, 4]], [vector(20), vector(40)])


@pytest.mark.parametrize("row_type", RowType)
def test_keys_of_an_id_are_summed_and_an_id_without_keys_is_the_default_once(row_type: RowType, tmp_path: Path) -> None:
    store = RowStore(DEFAULT_D, [numbered(4, tmp_path / "base", row_type)])
    keys_NK = np.array([[1, 3], [2, 2], [MISSING, MISSING], [1, 77], [77, 88], [MISSING, 3]])
    vector_ND, known_N = store.find(keys_NK)
    one, two, three = (stored(row, row_type) for row in (1, 2, 3))
    expected = [one + three, two + two, DEFAULT_D, one + DEFAULT_D, DEFAULT_D + DEFAULT_D, three]
    np.testing.assert_array_equal(vector_ND, expected)
    assert known_N.tolist() == [True, True, False, True, False, True]


def test_means_are_those_of_each_owner_and_zero_without_ids() -> None:
    store = RowStore(DEFAULT_D, [written({1: 1, 3: 3, 8: 8})])
    keys_N = np.array([1, 3, 4, 8, MISSING])
    mean_GD, known_N = store.means(keys_N, np.array([0, 2, 0, 1, 2, 0]))
    zero = np.zeros(DIM)
    expected = [zero, (vector(1) + vector(3)) / 2, zero, DEFAULT_D, (vector(8) + DEFAULT_D) / 2, zero]
    np.testing.assert_allclose(mean_GD, expected, rtol=1e-6)
    assert known_N.tolist() == [True, True, False, True, False]
    mean_GD, known_N = store.means(np.empty(0, np.int64), np.array([0, 0]))
    assert (mean_GD.tolist(), known_N.tolist()) == ([[0.0] * DIM] * 2, [])
    mean_GD, known_N = store.means(np.array([[1, 3], [8, MISSING]]), np.array([2]))
    np.testing.assert_allclose(mean_GD, [(vector(1) + vector(3) + vector(8)) / 2], rtol=1e-6)
    assert known_N.tolist() == [True, True]


def test_what_a_store_gives_may_be_written_to(tmp_path: Path) -> None:
    store = RowStore(DEFAULT_D, [numbered(2, tmp_path / "base")])
    store.find(np.array([0, 9]))[0][:] = 5
    np.testing.assert_array_equal(store.find(np.array([0, 9]))[0], [vector(0), DEFAULT_D])


@pytest.mark.parametrize("num_keys", [1 << 18, (1 << 18) + 31])
def test_a_large_run_is_searched_through_its_fences(num_keys: int, tmp_path: Path) -> None:
    key_N = np.unique(np.random.default_rng(0).integers(-(1 << 62), 1 << 62, num_keys + 100))[:num_keys]
    weight_ND = np.arange(num_keys, dtype=np.float32)[:, None]
    edges = [0, 5, 1_000, 77_777, num_keys]
    parts = [(key_N[a:b], weight_ND[a:b]) for a, b in pairwise(edges)]
    write_run(tmp_path / "run", row_type=RowType.fp32, dim=1, num_rows=num_keys, parts=parts)
    np.testing.assert_array_equal(np.load(tmp_path / "run" / "fences.npy"), key_N[31::32])
    store = RowStore(np.array([-1], np.float32), [Run(tmp_path / "run", row_type=RowType.fp32, dim=1)])
    vector_ND, known_N = store.find(key_N)
    np.testing.assert_array_equal(vector_ND, weight_ND)
    assert known_N.all()
    between = np.setdiff1d(np.concatenate([key_N + 1, key_N - 1, [MISSING, (1 << 63) - 1]]), key_N)
    vector_ND, known_N = store.find(between)
    assert (vector_ND == -1).all()
    assert not known_N.any()
    (tmp_path / "run" / "fences.npy").unlink()
    with pytest.raises(PackageError, match="fences.npy is missing"):
        Run(tmp_path / "run", row_type=RowType.fp32, dim=1)


def test_files_are_what_the_format_says(tmp_path: Path) -> None:
    written({3: 1, -2: 2, 9: None}, row_type=RowType.fp16, folder=tmp_path / "keyed")
    numbered(2, tmp_path / "numbered")
    assert sorted(path.name for path in (tmp_path / "keyed").iterdir()) == ["gone.npy", "keys.npy", "rows.npy"]
    assert [path.name for path in (tmp_path / "numbered").iterdir()] == ["rows.npy"]
    rows, keys = np.load(tmp_path / "keyed" / "rows.npy"), np.load(tmp_path / "keyed" / "keys.npy")
    assert (rows.dtype, keys.tolist()) == (np.float16, [-2, 3])
    np.testing.assert_array_equal(rows, np.stack([vector(2), vector(1)]).astype(np.float16))
    assert np.load(tmp_path / "keyed" / "gone.npy").tolist() == [9]


def part(*keys: int) -> tuple[np.ndarray, np.ndarray]:
    return np.array(keys, np.int64), np.ones((len(keys), DIM), np.float32)


@pytest.mark.parametrize(
    ("parts", "gone", "said"),
    [
        ([part(1, 3), part(3)], None, "keys.npy: keys must ascend strictly"),
        ([part(1, 3, 2)], None, "keys.npy: keys must ascend strictly"),
        ([part(MISSING, 2)], None, "keys must ascend strictly, above -9223372036854775808"),
        ([part(1), (None, part(2)[1])], None, "some parts have keys and some have none"),
        ([(None, part(2)[1]), part(1)], None, "some parts have keys and some have none"),
        ([part(1), part(2)], None, "parts have 2 rows, 3 are expected"),
        ([part(1, 2), part(4, 5)], None, "parts have 4 rows, 3 are expected"),
        ([], None, "parts have 0 rows, 3 are expected"),
        ([(np.array([1, 2], np.int64), part(1, 2, 3)[1])], None, r"keys of shape \(2,\) for 3 rows"),
        ([(None, np.ones((3, DIM + 1), np.float32))], None, r"rows of shape \(3, 4\), 3 wide are expected"),
        ([part(1, 2, 3)], [3, 7], "a key has a row and is gone at once"),
        ([(None, part(1, 2, 3)[1])], [2], "a key has a row and is gone at once"),
        ([part(1, 2, 3)], [8, 7], "gone.npy: keys must ascend strictly"),
        ([part(1, 2), (np.array([5]), np.full((1, DIM), np.nan, np.float32))], None, "row 2 has a number"),
    ],
)  # fmt: skip
def test_a_run_that_is_not_one_is_refused_and_cannot_be_opened(
    parts: list[tuple[np.ndarray, np.ndarray]], gone: list[int] | None, said: str, tmp_path: Path
) -> None:
    gone_N = None if gone is None else np.array(gone)
    with pytest.raises(ValueError, match=said):
        write_run(tmp_path, row_type=RowType.fp32, dim=DIM, num_rows=3, parts=parts, gone=gone_N)
    with pytest.raises(PackageError, match="rows.npy cannot be read"):
        Run(tmp_path, row_type=RowType.fp32, dim=DIM)


@pytest.mark.parametrize(
    ("row_type", "dim", "said"),
    [
        (RowType.fp16, DIM, r"rows.npy holds float32 of shape \(2, 3\), \(N, 3\) of float16 is expected"),
        (RowType.int8, DIM, r"rows.npy holds float32 of shape \(2, 3\), \(N, 11\) of uint8 is expected"),
        (RowType.fp32, DIM + 1, r"rows.npy holds float32 of shape \(2, 3\), \(N, 4\) of float32 is expected"),
    ],
)
def test_a_run_of_another_type_or_width_is_refused(row_type: RowType, dim: int, said: str) -> None:
    folder = written({1: 1, 2: 2}).folder
    with pytest.raises(PackageError, match=said):
        Run(folder, row_type=row_type, dim=dim)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def pickled(path: Path) -> None:
    np.save(path, np.array([{}, {}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize("name", ["rows.npy", "keys.npy", "gone.npy"])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut, "cannot be read: mmap length is greater than file ?size"),
        (lengthen, r"has \d+ bytes, its header says \d+"),
        (empty, "cannot be read"),
        (pickled, "cannot be read: Array can't be memory-mapped: Python objects in dtype"),
    ],
)
def test_a_damaged_file_is_refused_by_name(name: str, damage: object, said: str) -> None:
    folder = written({1: 1, 2: 2, 3: None}).folder
    assert callable(damage)
    damage(folder / name)
    with pytest.raises(PackageError, match=f"{name} {said}"):
        Run(folder, row_type=RowType.fp32, dim=DIM)


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    def opened(name: str, values: list[int] | np.ndarray) -> None:
        folder = written({1: 1, 2: 2}).folder
        np.save(folder / name, values)
        Run(folder, row_type=RowType.fp32, dim=DIM)

    with pytest.raises(PackageError, match="keys.npy has 3 keys, rows.npy has 2 rows"):
        opened("keys.npy", [1, 2, 3])
    with pytest.raises(PackageError, match="keys.npy does not hold 2 ascending keys: from 2 to 1"):
        opened("keys.npy", [2, 1])
    with pytest.raises(PackageError, match="keys.npy does not hold 2 ascending keys"):
        opened("keys.npy", [MISSING, 1])
    with pytest.raises(PackageError, match=r"keys.npy holds float64 of shape \(2,\), \(N\) of int64 is expected"):
        opened("keys.npy", np.array([1.0, 2.0]))
    with pytest.raises(PackageError, match="rows.npy holds float32"):
        opened("rows.npy", np.asfortranarray(np.ones((2, DIM), np.float32)))
    with pytest.raises(PackageError, match="rows.npy is missing"):
        Run(tmp_path, row_type=RowType.fp32, dim=DIM)


@pytest.mark.usefixtures("tiny_blocks")
def test_fences_of_other_keys_are_refused() -> None:
    folder = written(dict.fromkeys(range(7), 1)).folder
    np.save(folder / "fences.npy", [2, 6])
    with pytest.raises(PackageError, match="fences.npy is not of the 7 keys beside it"):
        Run(folder, row_type=RowType.fp32, dim=DIM)


def test_runs_of_several_kinds_make_no_store_and_no_merge(tmp_path: Path) -> None:
    single, half = written({1: 1}), written({1: 1}, row_type=RowType.fp16)
    with pytest.raises(
        ValueError, match=r"runs of one type, 3 wide, make a store; these are \[\('fp16', 3\), \('fp32'"
    ):
        RowStore(DEFAULT_D, [single]).with_delta(half)
    with pytest.raises(ValueError, match=r"runs of one type, 2 wide, make a store; these are \[\('fp32', 3\)\]"):
        RowStore(DEFAULT_D[:2], [single])
    with pytest.raises(ValueError, match="these are \\[\\]"):
        RowStore(DEFAULT_D, [])
    with pytest.raises(ValueError, match="runs of one type and width merge"):
        merge_deltas([single, half], tmp_path / "merged")
    with pytest.raises(ValueError, match="base: rows that are numbered do not merge"):
        merge_deltas([single, numbered(1, tmp_path / "base")], tmp_path / "merged")


def test_a_run_is_not_written_over_another(tmp_path: Path) -> None:
    numbered(1, tmp_path / "base")
    with pytest.raises(FileExistsError):
        numbered(1, tmp_path / "base")


def test_rows_are_served_without_torch() -> None:
    code = "import stack.export.runs, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
