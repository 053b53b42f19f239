"""The bench of checkpoints measures what it says, and finds a restore that is not what was saved."""

from __future__ import annotations

import gc
import mmap
from pathlib import Path

import pytest
import torch

from stack.checkpoint.load import Checkpoint
from tools.bench import checkpoint
from tools.bench.chains import Table
from tools.bench.disk import counted_flushes, watched_memory


def test_every_figure_is_there_and_deltas_grow_with_the_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checkpoint, "ROWS_BESIDE_TRAINING", 2_000)
    monkeypatch.setattr(checkpoint, "SECONDS_ALONE", 0.0)
    monkeypatch.setattr(checkpoint, "NUM_DELTAS", 3)
    found = checkpoint.measure(num_rounds=1, rows=20_000, large=False, folder=tmp_path)
    figures = {figure.name.removeprefix("20,000 rows of float32: "): figure.median for figure in found}
    assert len(figures) == len(found) == 44
    assert figures["delta of 50%, of the base"] == pytest.approx(50, abs=3)
    assert figures["delta of 10%, of the base"] == pytest.approx(10, abs=2)
    assert figures["smallest version, flushes"] > 5
    assert list(tmp_path.iterdir()) == []


def test_a_restore_that_is_not_what_was_saved_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "restore", lambda self, shards: [])
        patched.setattr(checkpoint, "NUM_DELTAS", 1)
        with (
            pytest.raises(AssertionError, match="restored otherwise than it was saved"),
            checkpoint._table(tmp_path, num_rows=100, dtype=torch.float32) as (table, _),
        ):
            checkpoint._chain(table, table.save(None), num_rounds=1, num_warmup=0)


def test_a_table_touches_the_share_it_is_asked_for_and_tells_which_rows(tmp_path: Path) -> None:
    table = Table(tmp_path / "chain", num_rows=10_000, dtype=torch.float16)
    before = table.shard.weight_ND.clone()
    row = table.touch(0.1)
    assert len(row) == pytest.approx(1_000, abs=150)
    assert (before != table.shard.weight_ND).any(1).nonzero().squeeze(1).tolist() == row.tolist()


def test_flushes_and_memory_are_watched(tmp_path: Path) -> None:
    table = Table(tmp_path / "chain", num_rows=100, dtype=torch.float32)
    with counted_flushes() as flushes:
        table.save(None)
    assert flushes
    size = 64 << 20
    gc.collect()
    gc.disable()  # what is freed meanwhile would hide what is taken
    try:
        with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE) as block, watched_memory() as memory:  # new pages for certain
            block.write(bytes(size))
    finally:
        gc.enable()
    assert memory.own_bytes > 0.9 * size
