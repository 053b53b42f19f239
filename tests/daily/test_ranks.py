"""Days on several processes, and on another number of them each day."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import msgspec
import psutil
import pytest

from tests.daily.conftest import copy_of
from tests.daily.days import change_day, empty
from tests.daily.worker import DAYS, Nights, chain, digests, finished, learn, learn_days, log_of
from tests.distributed.launch import ROOT, TORCHRUN, run_ranks
from tests.train.worker import Run


def _on_two(nights: Nights) -> list[str]:
    return run_ranks("tests.daily.worker", msgspec.json.encode(nights).decode(), world_size=2)


@pytest.mark.slow
def test_days_on_one_process_then_two_then_one_learn_what_one_learns(trained: Run, learnt: Run, tmp_path: Path) -> None:
    """Batch norm and dropout differ by process, so figures are near, not equal; those of the first day are of the same
    version, and its scores do not depend on who computes them."""
    run = copy_of(trained, tmp_path)
    outputs = _on_two(Nights(run=run, first=DAYS[2], last=DAYS[3]))
    assert "daily: 2016-07-21 is learnt" in outputs[0]
    assert outputs[1] == ""
    learn_days(run, DAYS[2], DAYS[4])
    ours, theirs = finished(run)[1:], finished(learnt)[1:]
    assert [version.world_size for version in ours] == [2, 2, 1]
    assert [version.step for version in ours] == [version.step for version in theirs]
    first = {name: value for name, value in theirs[0].metrics.items() if name.startswith("before/")}
    for name, value in first.items():
        assert ours[0].metrics[name] == pytest.approx(value, abs=1e-6), name
    for version, other in zip(ours, theirs, strict=True):
        for name in ("before/ctr/uniform/auc", "loss/ctr"):
            assert version.metrics[name] == pytest.approx(other.metrics[name], abs=0.1)
    assert [line["day"] for line in log_of(run)] == list(DAYS[2:5])


@pytest.mark.long
def test_what_one_process_refuses_all_refuse(trained: Run, tmp_path: Path) -> None:
    run = copy_of(trained, tmp_path, dataset=tmp_path / "data")
    with pytest.raises(AssertionError, match=r"ended with 1:(.|\n)*2016-07-22 does not follow 2016-07-19"):
        _on_two(Nights(run=run, first=DAYS[4], last=DAYS[4]))
    change_day(Path(run.dataset), DAYS[2], empty)
    with pytest.raises(AssertionError, match=r"ended with 3:(.|\n)*2016-07-20 is quarantined: empty day"):
        _on_two(Nights(run=run, first=DAYS[2], last=DAYS[2]))
    learn(Nights(run=run, first=DAYS[2], last=DAYS[3], allow=("gap",)))
    assert finished(run)[-1].context.data_days == (*DAYS[:2], DAYS[3])


@pytest.mark.long
def test_a_process_that_is_killed_in_a_day_is_started_again_and_nothing_is_lost(trained: Run, tmp_path: Path) -> None:
    whole, broken = copy_of(trained, tmp_path / "whole"), copy_of(trained, tmp_path / "broken")
    _on_two(Nights(run=whole, first=DAYS[2], last=DAYS[3]))
    asked = msgspec.json.encode(Nights(run=broken, first=DAYS[2], last=DAYS[3])).decode()
    command = [*TORCHRUN, "--max-restarts=2", "-m", "tests.daily.worker", asked]
    before, deadline = chain(broken).numbers(), time.monotonic() + 100
    with (tmp_path / "said").open("w") as said, subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said) as job:
        try:
            while chain(broken).numbers() == before and job.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            psutil.Process(job.pid).children()[-1].send_signal(signal.SIGKILL)
            status = job.wait(100)
        finally:
            job.terminate()
            job.wait(60)
    assert status == 0, (tmp_path / "said").read_text()
    assert digests(finished(broken)) == digests(finished(whole))
