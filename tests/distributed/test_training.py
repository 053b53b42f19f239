"""Training under torchrun with two processes against one process: the same numbers."""

from __future__ import annotations

import json
import math
import sys

import msgspec
import pytest
import torch

from stack.audits.findings import Level
from stack.audits.judge import spread_findings
from stack.checkpoint.load import Checkpoint
from stack.train.norm_spread import RANK_SPREAD
from tests.distributed.launch import TORCHRUN, run_together
from tests.prepared import write_prepared
from tests.train.worker import Run, losses, versions

POISONED_STEP = 3
RUNS = {
    # Rounding differs between one and two processes. Without batch norm that is all that differs after 16 steps.
    "none": (Run(norm="none"), 2e-6),
    # Batch norm divides by small deviations and sits on the kinks of ReLU, so rounding grows threefold a step:
    # small rates, and 8 steps. With statistics of each rank's own rows the first step differs by 1.6e-3 to 5e-2.
    "batch": (
        Run(
            norm="batch", dense_learning_rate=1e-4, tables_learning_rate=1e-3,
            train={"batch_size": 64, "num_epochs": 4, "max_steps": 8},
        ),
        1e-4,
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=RUNS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run, float]:
    """A run of one process, the same run of two, and the tolerance of their losses."""
    folder = tmp_path_factory.mktemp(request.param)
    run, tolerance = RUNS[request.param]
    data = write_prepared(folder / "data")
    changes = {"dataset": str(data), "runs": str(folder), "through_verb": False, "poisoned_step": POISONED_STEP}
    one = msgspec.structs.replace(run, name="one", **changes)
    two = msgspec.structs.replace(run, name="two", **changes)
    run_one_and_two(one, two)
    return one, two, tolerance


def test_two_processes_have_the_losses_of_one(pair: tuple[Run, Run, float]) -> None:
    one, two, tolerance = pair
    steps = list(zip(losses(one.folder), losses(two.folder), strict=True))
    assert len(steps) >= 8
    for ours, theirs in steps:
        assert ours["step"] == theirs["step"]
        assert ours["num_examples"] == theirs["num_examples"]
        assert ours["losses"].keys() == theirs["losses"].keys()
        for name, loss in ours["losses"].items():
            if loss is not None:
                assert math.isclose(loss, theirs["losses"][name], abs_tol=tolerance), (ours["step"], name)
    assert steps[-1][0]["losses"]["ctr"] < steps[0][0]["losses"]["ctr"]


def test_a_nan_on_one_rank_is_refused_by_all(pair: tuple[Run, Run, float]) -> None:
    for run in pair[:2]:
        refused = [record["step"] for record in losses(run.folder) if record["refused"]]
        assert refused == [POISONED_STEP + 1]


def test_buffers_are_equal_on_all_ranks_and_close_to_those_of_one_process(pair: tuple[Run, Run, float]) -> None:
    one, two, tolerance = pair
    single = json.loads((one.folder / "buffers-0.json").read_bytes())
    ranks = [json.loads((two.folder / f"buffers-{rank}.json").read_bytes()) for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    assert any("running_mean" in name for name in single)
    for name, value in single.items():
        torch.testing.assert_close(torch.tensor(ranks[0][name]), torch.tensor(value), atol=10 * tolerance, rtol=1e-4)


def test_a_version_says_that_its_processes_have_the_same_statistics_and_would_say_if_not(
    pair: tuple[Run, Run, float],
) -> None:
    _, two, _ = pair
    assert last_checkpoint(two).manifest.metrics[RANK_SPREAD] == 0.0
    spreads = [json.loads((two.folder / f"spread-{rank}.json").read_bytes()) for rank in (0, 1)]
    assert spreads[0] == spreads[1] > 0.1
    (found,) = spread_findings(spreads[0])
    assert (found.level, found.name) == (Level.critical, "drift between ranks")
    assert not list(spread_findings(0.0))
    assert not list(spread_findings(None))


def test_both_leave_the_same_tables_whatever_number_of_processes_wrote_them(pair: tuple[Run, Run, float]) -> None:
    one, two, tolerance = pair
    ours, theirs = last_checkpoint(one), last_checkpoint(two)
    assert theirs.manifest.world_size == 2
    assert len(theirs.manifest.tables["item"].parts) == 2
    for name, table in ours.manifest.tables.items():
        whole, parts = (saved.table_rows(name, 0, table.num_rows) for saved in (ours, theirs))
        torch.testing.assert_close(whole.weight_ND, parts.weight_ND, atol=50 * tolerance, rtol=0.0)


def run_one_and_two(one: Run, two: Run) -> None:
    """The first run as one process and the second as two, at the same time."""
    programs = [["-m", "tests.train.worker", msgspec.json.encode(run).decode()] for run in (one, two)]
    run_together([[sys.executable, *programs[0]], [*TORCHRUN, *programs[1]]])


def last_checkpoint(run: Run) -> Checkpoint:
    saved = versions(run)
    return saved[max(saved)]
