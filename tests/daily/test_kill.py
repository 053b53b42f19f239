"""Days that are killed again and again end as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from tests.daily.conftest import copy_of
from tests.daily.worker import DAYS, Nights, chain, digests, finished, learn, log_of
from tests.distributed.launch import ROOT
from tests.train.worker import Run, losses

TIMEOUT_SECONDS = 60


def _num_files(run: Run) -> int:
    """What days leave behind: it grows all the time."""
    return sum(len(files) for _, _, files in os.walk(run.folder))


def _kill(nights: Nights, *, above: int) -> None:
    """Starts the days as a process of its own and kills it once so many files are there, or a little later."""
    command = [sys.executable, "-m", "tests.daily.worker", msgspec.json.encode(nights).decode()]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + TIMEOUT_SECONDS
    try:
        while _num_files(nights.run) < above and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(random.SystemRandom().uniform(0.0, 0.02))
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate(timeout=TIMEOUT_SECONDS)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL, errors


@pytest.mark.slow
@pytest.mark.parametrize(
    "managed",
    [pytest.param(False, id="direct ids"), pytest.param(True, id="managed ids", marks=pytest.mark.long)],
)
def test_days_killed_twice_end_bit_for_bit_as_undisturbed(
    trained: Run, trained_managed: Run, tmp_path: Path, managed: bool
) -> None:
    base = trained_managed if managed else trained
    whole, broken = copy_of(base, tmp_path / "whole"), copy_of(base, tmp_path / "broken")
    before = _num_files(whole)
    learn(Nights(run=whole, first=DAYS[2], last=DAYS[4]))
    num_new = _num_files(whole) - before
    nights = Nights(run=broken, first=DAYS[2], last=DAYS[4])
    killed_at = sorted(before + random.SystemRandom().randint(1, num_new - 8) for _ in range(2))
    for above in killed_at:
        _kill(nights, above=above)
    learn(nights)
    where = f"of {num_new} files killed at {[above - before for above in killed_at]}"
    assert digests(finished(broken)) == digests(finished(whole)), where
    assert [version.metrics for version in finished(broken)] == [version.metrics for version in finished(whole)], where
    assert losses(broken.folder) == losses(whole.folder), where
    told = [[(line["day"], line["version"], line["steps"]) for line in log_of(run)] for run in (whole, broken)]
    assert [(day, steps) for day, _, steps in told[1]] == [(day, steps) for day, _, steps in told[0]], where
    assert chain(broken).head() == finished(broken)[-1]
