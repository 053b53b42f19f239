"""A process killed (kill -9) at any moment of a save leaves the older checkpoint, or the new one whole."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from stack.checkpoint.load import latest, open_checkpoint
from tests.checkpoint.saving import equal, loop, save, tables

MOMENTS = ("open", "os.mkdir", "os.rename", "os.remove", "shutil.rmtree")


def in_process(body: Callable[[], None]) -> int:
    """Starts `body` in a process of its own and returns its id."""
    child = os.fork()
    if child == 0:
        try:
            body()
            os._exit(0)
        finally:
            os._exit(1)
    return child


def killed(child: int) -> bool:
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def whole_step(folder: Path) -> int:
    """The step of the newest complete checkpoint, after checking every number in it."""
    path = latest(folder).path
    assert path is not None
    checkpoint = open_checkpoint(path)
    checkpoint.verify()
    step = checkpoint.manifest.step
    assert all(equal(checkpoint.table_rows(name, 0, whole.num_rows), whole) for name, whole in tables(step).items())
    assert checkpoint.loop() == loop(step)
    return step


def test_a_kill_at_every_file_operation_leaves_old_or_new(tmp_path: Path) -> None:
    save(tmp_path, 1)
    outcomes = []
    for moment in range(1, 200):

        def save_until_killed(moment: int = moment) -> None:
            seen = 0

            def count(event: str, _: object) -> None:
                nonlocal seen
                if event in MOMENTS:
                    seen += 1
                    if seen == moment:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(count)
            save(tmp_path, 2)

        was_killed = killed(in_process(save_until_killed))
        outcomes.append(whole_step(tmp_path))
        assert latest(tmp_path).ignored == ()
        if not was_killed:
            break
        if outcomes[-1] == 2:  # killed after the rename: start over from the old state
            (tmp_path / "00000002").rename(tmp_path.parent / f"{tmp_path.name}-{moment}")
    assert outcomes[-1] == 2
    assert outcomes.count(1) > 15


def test_kills_at_random_moments_of_a_run_that_saves_all_the_time(tmp_path: Path) -> None:
    save(tmp_path, 1)
    rng = random.Random(0)
    for _ in range(6):
        start = whole_step(tmp_path)

        def save_for_ever(start: int = start) -> None:
            for step in range(start + 1, 1_000_000):
                save(tmp_path, step)

        child = in_process(save_for_ever)
        time.sleep(rng.uniform(0.02, 0.2))
        os.kill(child, signal.SIGKILL)
        assert killed(child)
        assert whole_step(tmp_path) >= start
    assert latest(tmp_path).ignored == ()
    assert whole_step(tmp_path) > 1
