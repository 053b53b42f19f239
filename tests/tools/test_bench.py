"""The benches measure what they say: the same examples, interleaved rounds, ratios within a round."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stack.base.run import RunConfig
from stack.data.dataset import Dataset
from stack.data.loader import Loader
from stack.tables.config import TablesConfig
from stack.tasks import TasksConfig
from stack.towers.config import ModelConfig
from stack.train.build import Setup
from stack.train.config import TrainConfig
from stack.train.optim import OptimConfig
from tests.batches import random_batch, small_model
from tests.prepared import write_prepared
from tools.bench import harness
from tools.bench.assembly import Workload
from tools.bench.encoding import prepared
from tools.bench.separate import separate


@pytest.mark.parametrize("examples_per_batch", [1000, 5])
def test_examples_with_their_own_copies_score_like_the_shared_pass(tmp_path: Path, examples_per_batch: int) -> None:
    dataset = Dataset(write_prepared(tmp_path / "prepared", num_days=2, num_users=12))
    batch = next(iter(Loader(dataset, days=dataset.days()[1:], global_batch_size=12, shuffle=False)))
    model = small_model(ModelConfig(), max_history=10).eval()
    shared = model(batch)
    parts = list(separate(batch, examples_per_batch=examples_per_batch, max_history=None))
    outputs = [model(part) for part in parts]
    assert max(part.num_timelines for part in parts) <= examples_per_batch
    for name, output in shared.items():
        scores = torch.cat([part[name].score_E for part in outputs])
        assert torch.allclose(scores, output.score_E, atol=1e-5)
        assert len(scores) > 0


def test_a_window_keeps_the_last_events_before_the_moment() -> None:
    batch = random_batch(torch.Generator().manual_seed(0))
    (whole,) = separate(batch, examples_per_batch=1000, max_history=None)
    (window,) = separate(batch, examples_per_batch=1000, max_history=3)
    assert window.num_events_B.tolist() == whole.num_events_B.clamp(max=3).tolist()
    whole_rows = whole.event_time_T.split(whole.num_events_B.tolist())
    window_rows = window.event_time_T.split(window.num_events_B.tolist())
    for all_times, times in zip(whole_rows, window_rows, strict=True):
        assert times.tolist() == all_times[len(all_times) - len(times) :].tolist()


def test_rounds_interleave_in_turn_and_drop_the_warm_up() -> None:
    calls: list[str] = []
    clock = iter(range(100))

    def variant(name: str) -> float:
        calls.append(name)
        return float(next(clock))

    found = harness.interleaved({"a": lambda: variant("a"), "b": lambda: variant("b")}, num_rounds=2, num_warmup=1)
    assert "".join(calls) == "abbaab"
    assert found == {"a": (3.0, 4.0), "b": (2.0, 5.0)}


def test_ratios_are_taken_round_by_round() -> None:
    # the machine was ten times slower in the second round: the ratio does not see it
    assert harness.ratio("r", (4.0, 40.0, 4.4), (2.0, 20.0, 2.0)).median == 2.0


def test_a_child_reports_its_own_peak_memory_and_its_failure() -> None:
    small = harness.run_child([sys.executable, "-c", "import time; time.sleep(0.2)"])
    program = "import time; x = b'1' * 300_000_000; del x; time.sleep(0.2)"
    large = harness.run_child([sys.executable, "-c", program])
    assert 250e6 < large.peak_bytes - small.peak_bytes < 350e6
    with pytest.raises(subprocess.CalledProcessError):
        harness.run_child([sys.executable, "-c", "raise SystemExit(3)"])


def test_json_holds_conditions_settings_and_every_round() -> None:
    figure = harness.Figure(name="speed", unit="examples/s", values=(3.0, 1.0, 2.0))
    found = json.loads(harness.as_json([figure], settings={"days": 2}, before=harness.conditions()))
    assert found["figures"][0]["median"] == 2.0
    assert found["figures"][0]["values"] == [3.0, 1.0, 2.0]
    assert {"code", "cpu", "cores", "load_average", "load_average_at_end"} <= set(found["conditions"])


def test_both_encodings_pass_the_same_examples_forward_and_backward(tmp_path: Path) -> None:
    setup = Setup(
        dataset=write_prepared(tmp_path / "prepared", num_days=2, num_users=6),
        model=ModelConfig(),
        tasks=TasksConfig(),
        tables=TablesConfig(),
        optim=OptimConfig(),
        train=TrainConfig(batch_size=3, num_threads=1),
        run=RunConfig(),
        composed="",
    )
    workload = Workload(setup=setup, num_batches=2, overrides=())
    with prepared(workload) as passes:
        for group in ("impression", "follow"):
            counts = [
                sum(batch.groups[group].num_examples for batch in form) for form in (passes.shared, passes.separate)
            ]
            assert counts[0] == counts[1] > 0
        for form in (passes.shared, passes.separate):
            assert passes.forward(form) > 0
            assert passes.forward_backward(form) > 0
