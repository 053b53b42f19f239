"""The benches of ids measure what they say: all maps on the same keys, a stream that drifts, a model that learns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from stack.ids.config import IdMode, IdSpec, ManagedConfig
from stack.ids.hashing import HashVariant
from stack.tables.config import RowType
from tools.bench import billion, drift, harness, ids
from tools.bench.stream import TABLE, Learner, Step, Stream, alone, full_of, least_loss

STREAM = Stream(num_ids=500, batch_size=256, skew=3.0, drift=2.0)


def mean_distance(step: Step, *, head: int) -> float:
    return float(((step.number_N - 1 - head + 250) % 500 - 250).abs().float().mean())


@pytest.mark.slow
def test_every_map_is_timed_on_both_streams() -> None:
    figures = ids.measure(num_rounds=1, rows=[2_000])
    assert len(figures) == 16
    assert all(figure.median > 0.0 for figure in figures)
    assert {figure.name.partition(": ")[2] for figure in figures} >= {"bare modulo", "bounded, training"}


def test_a_step_of_the_stream_depends_on_seed_and_number_alone_and_its_head_moves() -> None:
    first, again, later = STREAM.step(3), STREAM.step(3), STREAM.step(120)
    assert torch.equal(first.raw_N, again.raw_N)
    assert int(first.number_N.min()) >= 1
    assert int(first.number_N.max()) <= 500
    # On a ring of 500 the mean distance is 250 times the mean of u^3, a quarter.
    assert mean_distance(first, head=6) == pytest.approx(62.5, abs=15)
    assert mean_distance(later, head=240) == pytest.approx(62.5, abs=15)
    assert mean_distance(later, head=6) > 150
    assert torch.unique(first.raw_N).shape == torch.unique(first.number_N).shape
    assert float((first.clicked_N - first.chance_N).mean().abs()) < 0.1


@pytest.mark.slow
def test_the_model_learns_the_values_of_ids_and_sharing_rows_costs() -> None:
    outcomes = {(one.name, one.share): one for one in drift.study(stream=STREAM, num_steps=60, shares=(0.1, 1.0))}
    least = outcomes["every chance known", None].loss
    constant = outcomes["no ids: the mean rate", None].loss
    exact = outcomes["exact", 1.0].loss
    assert least < exact < constant
    assert outcomes["managed, lru", 1.0].loss == pytest.approx(exact, abs=2e-3), "a row for each id, as exact"
    assert exact < outcomes["hashed, modulo", 0.1].loss
    assert outcomes["managed, lru", 0.1].num_evicted
    assert drift.as_table(list(outcomes.values())).row_count == len(outcomes)


def test_a_full_table_of_others_gives_every_row_to_the_stream() -> None:
    with alone():
        spec = IdSpec(
            name=TABLE, mode=IdMode.managed, num_rows=100, hash=HashVariant.modulo, managed=ManagedConfig(admit_after=1)
        )
        learner = Learner(spec, dim=8)
        learner.ids.load({TABLE: full_of(-torch.arange(1, 100))})
        loss = learner.learn(STREAM.step(0))
        figures = learner.ids.figures()[TABLE]
    assert loss == pytest.approx(torch.log(torch.tensor(2.0)).item(), abs=0.05)
    assert figures.occupancy == 1.0
    assert figures.num_evicted == figures.num_admitted > 50
    assert least_loss(STREAM.step(0)) < 0.68


def test_a_case_of_the_billion_tells_its_steps_and_the_picture_draws_them(tmp_path: Path) -> None:
    out = tmp_path / "case.json"
    billion.train_once(billion.Case(num_ids=10**9, num_rows=1_000), out)
    told = json.loads(out.read_text())
    assert told["evicted"] == told["new"] > 500
    billion.train_once(billion.Case(num_ids=10**9, num_rows=1_000, row_type=RowType.fp16, mode=IdMode.hashed), out)
    told = json.loads(out.read_text())
    assert (told["evicted"], told["new"]) == (0.0, 0.0)
    assert told["distinct"] > 10_000
    cases = [billion.Case(num_ids=ids_, num_rows=billion.ROWS_OF_SPACES) for ids_ in billion.SPACES]
    cases += [billion.Case(num_ids=billion.SPACE_OF_ROWS, num_rows=rows) for rows in billion.ROWS]
    cases += billion.LARGE
    figures = [
        harness.Figure(name=f"{case.name}: {what}", unit="", values=(1.0, 2.0))
        for case in dict.fromkeys(cases)
        for what in ("cpu_ms", "held_gib")
    ]
    billion.picture(figures, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"
