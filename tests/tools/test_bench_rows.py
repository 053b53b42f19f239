"""The bench of rows looks up keys that are there, in tables as it says, and tells how much memory they took."""

from __future__ import annotations

import gc
import mmap
from pathlib import Path

import numpy as np
import pytest

from stack.export.quantize import RowType
from stack.export.runs import RowStore, Run
from tools.bench import rows


def test_every_row_type_is_timed_without_and_with_deltas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_CALLS", 5)
    monkeypatch.setattr(rows, "_DELTA_ROWS", 50)
    monkeypatch.setattr(rows, "_LARGE_ROWS", 400)
    monkeypatch.setattr(rows, "_LARGE_LOOKUPS", 200)
    figures = {figure.name: figure for figure in rows.measure(num_rounds=2, rows=[300], folder=tmp_path, large=True)}
    for row_type in RowType:
        for name, unit in (("100 keys, 0 deltas", "us"), ("100 keys, 8 deltas", "us"), ("open", "ms")):
            figure = figures[f"300 rows, {row_type.value}: {name}"]
            assert (figure.unit, len(figure.values)) == (unit, 2)
            assert figure.low > 0
    assert len(figures) == 4 * 4 + 2 * 6
    assert figures["400 rows x 16, fp16, cold: RssFile after 200 lookups"].unit == "MiB"
    assert figures["400 rows x 16, fp16, warm: 100 keys"].median > 0
    assert not list(tmp_path.iterdir()), "what it wrote is deleted"


def test_a_table_in_parts_has_its_rows_and_gives_keys_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "_PART_ROWS", 64)
    draw = np.random.default_rng(0)
    sampled = rows.write_table(tmp_path / "t", RowType.fp16, num_rows=1_000, dim=2, num_sampled=100, draw=draw)
    run = Run(tmp_path / "t", row_type=RowType.fp16, dim=2)
    assert run.keys is not None
    assert (run.num_rows, len(np.unique(sampled))) == (1_000, len(sampled))
    assert 100 <= len(sampled) <= 116  # of 16 parts, each rounded up
    assert np.isin(sampled, run.keys).all()
    assert sampled.max() - sampled.min() > 0.9 * 2.0**63


def test_a_store_that_lacks_keys_is_found(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    sampled = rows.write_table(tmp_path / "t", RowType.int8, num_rows=100, dim=2, num_sampled=100, draw=draw)
    store = RowStore(np.zeros(2, np.float32), [Run(tmp_path / "t", row_type=RowType.int8, dim=2)])
    assert len(rows._microseconds(store, sampled.reshape(-1, 10))) == 10
    with pytest.raises(AssertionError, match="every key that is asked for has a row"):
        rows._microseconds(store, sampled.reshape(-1, 10) + 1)


def test_no_key_is_timed_that_it_was_warmed_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[np.ndarray] = []

    def noted(_: RowStore, asked_CQ: np.ndarray) -> list[float]:
        asked.append(asked_CQ)
        return [1.0]

    monkeypatch.setattr(rows, "_CALLS", 50)
    monkeypatch.setattr(rows, "_microseconds", noted)
    draw = np.random.default_rng(0)
    rows.write_table(tmp_path / "t", RowType.fp32, num_rows=1_000, dim=2, num_sampled=1, draw=draw)
    run = Run(tmp_path / "t", row_type=RowType.fp32, dim=2)
    assert run.keys is not None
    lookups = rows._lookups(RowStore(np.zeros(2, np.float32), [run]), [run], run.keys)
    for _ in range(2):
        assert lookups() == 1.0
        warming, timed = asked[-2:]
        assert (warming.shape, timed.shape) == ((50, 100), (50, 100))
        assert not np.isin(timed, warming).any()
        assert np.isin([*warming.ravel(), *timed.ravel()], run.keys).all()
    assert not np.array_equal(asked[1], asked[3]), "every round draws other keys"


def test_a_warm_pass_asks_other_keys_of_the_pages_of_the_cold_one(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    sampled = rows.write_table(
        tmp_path / "t", RowType.fp16, num_rows=4_096, dim=rows._LARGE_DIM, num_sampled=400, draw=draw
    )
    keys = Run(tmp_path / "t", row_type=RowType.fp16, dim=rows._LARGE_DIM).keys
    assert keys is not None
    place, beside = (keys.searchsorted(asked) for asked in (sampled, rows._beside(tmp_path / "t", sampled)))
    np.testing.assert_array_equal(np.abs(place - beside), 64)
    np.testing.assert_array_equal(place // 128, beside // 128)  # of a page's rows, but for the file's header


def test_memory_of_mapped_files_is_told_from_the_process_s_own(tmp_path: Path) -> None:
    """With new pages for certain: an array could come out of memory that others have freed."""
    size = 32 << 20
    (tmp_path / "file").write_bytes(bytes(size))
    gc.collect()
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE) as own, (tmp_path / "file").open("rb") as file:
        before = rows.resident_mib()
        own[:: mmap.PAGESIZE] = b"1" * (size // mmap.PAGESIZE)
        between = rows.resident_mib()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            assert sum(mapped[:: mmap.PAGESIZE]) == 0
            after = rows.resident_mib()
    assert between["RssAnon"] - before["RssAnon"] == pytest.approx(32, abs=8)
    assert between["RssFile"] - before["RssFile"] < 8
    assert after["RssFile"] - between["RssFile"] == pytest.approx(32, abs=8)
