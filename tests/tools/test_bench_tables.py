"""The benches of tables compare the same work: they assert equal results themselves, and their counts are right."""

from __future__ import annotations

import pytest
import torch

from stack.tables.config import Communication
from tools.bench import exchange, lookup, touched
from tools.bench.exchange import Work


def test_sequence_kernel_and_one_id_bags_come_to_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "NUM_ROWS", 100)
    monkeypatch.setattr(lookup, "NUM_IDS", (500,))
    figures = {figure.name: figure for figure in lookup.measure(num_rounds=2)}
    assert len(figures) == 3
    bags, sequence = (figures[f"500 ids, {name}"].values for name in ("one-id bags", "sequence kernel"))
    gain = figures["500 ids, one-id bags over sequence kernel"].values
    assert gain == pytest.approx([bag / slow for bag, slow in zip(bags, sequence, strict=True)])


@pytest.mark.parametrize("factor", [-1.0, 2.0])
def test_a_lookup_that_learns_otherwise_is_found(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """Also by a factor, which row-wise Adagrad takes out of the weights."""
    monkeypatch.setattr(lookup, "NUM_ROWS", 100)
    original, calls = lookup._step, []

    def other(kernel: object, drawn: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        calls.append(1)
        return original(kernel, (drawn[0], drawn[1] * factor ** (len(calls) % 2)))

    monkeypatch.setattr(lookup, "_step", other)
    with pytest.raises(AssertionError, match="not close"):
        lookup.measure(num_rounds=1)


def test_bytes_are_those_of_the_type_and_of_what_leaves_the_process() -> None:
    # 1,024 distinct ids of 32 numbers, half of which are the process's own
    assert exchange._mib(Communication.fp32, 1024, 2) == 1024 * 16 * 4 / 2**20
    assert exchange._mib(Communication.fp16, 1024, 2) == 1024 * 16 * 2 / 2**20
    assert exchange._mib(Communication.int8, 1024, 2) == 1024 * 16 * 1.25 / 2**20
    assert exchange._mib(Communication.fp32, 1024, 1) == 0.0


def test_all_ways_to_know_changed_rows_come_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(touched, "NUM_IDS", (300,))
    figures = {figure.name: figure for figure in touched.measure([], num_rounds=2, rows=[1_003])}
    assert figures["1,003 rows, 300 ids: a byte a row, memory"].values == (1_003 / 2**20,)
    assert figures["1,003 rows, 300 ids: a bit a row, memory"].values == (126 / 2**20,)
    assert figures["1,003 rows, 300 ids: state compared, memory"].values == (4_012 / 2**20,)
    assert len(figures["1,003 rows, 300 ids: a bit a row, a save"].values) == 2
    assert "1,003 rows, 300 ids: step of a table with over without" in figures


def test_a_way_that_comes_to_other_rows_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(touched, "NUM_IDS", (300,))
    monkeypatch.setattr(touched.Bits, "mark", lambda self, id_N: None)
    with pytest.raises(AssertionError, match="the ways come to other rows"):
        touched.measure([], num_rounds=1, rows=[100])


@pytest.mark.long
def test_two_processes_measure_dedup_and_communication() -> None:
    batches = [torch.tensor([[1, 1, 2, 3], [2, 2, 2, 2]])]
    dedup = exchange._run(Work(kind="dedup", num_rows=100, ids="", out="", num_rounds=1), batches)
    assert dedup.numbers == {"ids per distinct": 4 / 3}
    assert set(dedup.seconds) == {"every id", "distinct ids"}
    found = exchange._run(Work(kind="communication", num_rows=100, ids="", out="", num_rounds=1), batches).numbers
    errors = {name.split(":")[0]: value for name, value in found.items() if "error of a vector" in name}
    assert errors["fp32"] == 0.0
    assert 0.0 < errors["fp16"] < 0.1 < errors["int8"] < 1.0
